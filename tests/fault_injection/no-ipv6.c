/* Runs a program that cannot create IPv6 sockets, as on a kernel without IPv6 (CONFIG_IPV6=n, ipv6.disable=1):
 * socket(AF_INET6, ...) fails with EAFNOSUPPORT, because of a seccomp filter that the program cannot remove.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The lower half of the first argument, which is an int. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FAMILY offsetof(struct seccomp_data, args[0])
#else
#define FAMILY (offsetof(struct seccomp_data, args[0]) + 4)
#endif

int main(int count, char **words)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FAMILY),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (count < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ||
        /* Without the filter the test would prove nothing. */
        socket(AF_INET6, SOCK_STREAM, 0) >= 0 || errno != EAFNOSUPPORT) {
        perror("no-ipv6");
        return 1;
    }
    execvp(words[1], words + 1);
    perror(words[1]);
    return 1;
}
