/* Simulates a kernel without nft_tproxy for one program (LD_PRELOAD): its netlink messages get an unknown name in place of
 * that expression. The kernel itself then looks for the module and refuses the rule.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

/* NFTA_EXPR_NAME in host byte order: length, type 1, and the name with its zero byte. */
static const struct {
    unsigned short length, type;
    char name[8];
} wanted = {4 + sizeof "tproxy", 1, "tproxy"};

ssize_t send(int socket, const void *bytes, size_t length, int flags)
{
    static ssize_t (*real)(int, const void *, size_t, int);
    char *found, *rest = (char *)bytes;
    if (!real)
        real = (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    while ((found = memmem(rest, length - (rest - (char *)bytes), &wanted, wanted.length))) {
        memcpy(found + 4, "absent", 6);
        rest = found + wanted.length;
    }
    return real(socket, bytes, length, flags);
}
