/* Runs a program on a kernel without nft_tproxy, as far as it can tell (LD_PRELOAD): what it sends over netlink names that
 * expression by a name that no kernel knows, so that the kernel itself looks for its module and refuses the rule.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

/* NFTA_EXPR_NAME in the order of bytes of this machine: a length, the type 1, and the name with its zero. */
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
