/* The wall clock of one process with an offset (LD_PRELOAD): the file in CLOCK_OFFSET holds the seconds to add, eight bytes
 * that may change at any time. Other clocks are unchanged, as when an administrator or NTP sets the time. The timestamps
 * of captured packets, which the kernel takes from the wall clock, are shifted too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

/* As in pcap/pcap.h. */
struct header {
    struct timeval ts;
    unsigned int caplen, len;
};
typedef void (*handler)(unsigned char *, const struct header *, const unsigned char *);

static const volatile long long *offset;

__attribute__((constructor)) static void look(void)
{
    const char *path = getenv("CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *bytes = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    /* Without the offset the test would prove nothing. */
    if (bytes == MAP_FAILED)
        abort();
    offset = bytes;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *offset;
    return result;
}

struct wrapped {
    handler each;
    unsigned char *user;
};

static void shifted(unsigned char *user, const struct header *found, const unsigned char *data)
{
    const struct wrapped *wrapped = (const struct wrapped *)user;
    struct header header;
    memcpy(&header, found, sizeof header);
    header.ts.tv_sec += *offset;
    wrapped->each(wrapped->user, &header, data);
}

int pcap_dispatch(void *capture, int count, handler each, unsigned char *user)
{
    static int (*real)(void *, int, handler, unsigned char *);
    if (!real)
        real = (int (*)(void *, int, handler, unsigned char *))dlsym(RTLD_NEXT, "pcap_dispatch");
    struct wrapped wrapped = {each, user};
    return real(capture, count, shifted, (unsigned char *)&wrapped);
}
