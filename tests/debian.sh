#!/bin/bash
# Creates a Debian with systemd in its own namespaces; sourced by other scripts. Needs root, mmdebstrap and a Debian
# mirror. Nothing on this machine is changed, and the cgroup for systemd is removed at the end.
#
#   debian PACKAGES        creates and boots it; $root is its root directory. With $TEMPLATE, a directory made by mmdebstrap,
#                          it is a copy. The function `prepare` of the script is called before the boot.
#   inside COMMAND         runs a command in it
#   neighbour NAME NUMBER  creates a host 10.97.NUMBER.2 next to it; its own address on that link is 10.97.NUMBER.1
set -euo pipefail

[ "$(id -u)" -eq 0 ] || { echo "This needs root." >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "This needs mmdebstrap: apt-get install mmdebstrap" >&2; exit 1; }

work=$(mktemp -d)
root=$work/root
cgroup=$(findmnt -nt cgroup2 -o TARGET | head -n 1)/psdeb-$$
boot=
init=
neighbours=()
finish() {
    # shellcheck disable=SC2181  # the status of the script
    [ $? -eq 0 ] || [ -z "$init" ] || inside journalctl -u portsentry -n 40 -o short-iso --no-pager >&2 || true
    # Its init is process 1 of a process namespace: when it ends, all its processes end.
    [ -z "$init" ] || kill -KILL "$init" 2>/dev/null || true
    [ -z "$boot" ] || wait "$boot" 2>/dev/null || true
    for name in "${neighbours[@]}"; do
        ip netns pids "$name" | xargs -r kill
        ip netns del "$name" 2>/dev/null || true
    done
    # systemd's own cgroups, the innermost first.
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
# As `grep -q`, but it reads to the end: otherwise the writer would be killed by SIGPIPE, and the pipe would fail.
seen() { [ "$(grep -c "$@")" -gt 0 ]; }
inside() { nsenter --target "$init" --all env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

# Waits until a command succeeds. The limit is generous for a slow machine.
until_true() {
    for _ in $(seq "${TRIES:-150}"); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    fail "timed out: $*"
}

# The child of unshare is process 1 of the namespace, and becomes systemd.
find_init() { init=$(pgrep -P "$boot") && [ "$(cat "/proc/$init/comm")" = systemd ]; }

debian() {
    if [ -n "${TEMPLATE:-}" ]; then
        cp -a "$TEMPLATE" "$root"
    else
        mmdebstrap --quiet --variant=minbase --include="systemd,systemd-sysv,dbus,nftables,libpcap0.8,procps,iproute2${1:+,$1}" \
            "${SUITE:-bookworm}" "$root"
    fi
    : >"$root/etc/machine-id"
    # Services enabled by packages that must not run yet.
    ! declare -F prepare >/dev/null || prepare
    mkdir "$cgroup"
    # shellcheck disable=SC2016  # the inner shell expands it
    (
        echo "$BASHPID" >"$cgroup/cgroup.procs"
        exec unshare --mount --uts --ipc --net --pid --cgroup --fork --kill-child --propagation private bash -c '
            set -e
            mount --bind "$1" "$1"
            cd "$1"
            mount -t proc proc proc
            mount -t sysfs -o ro sysfs sys
            mount -t tmpfs tmpfs run
            mount -t tmpfs tmpfs tmp
            mount -t tmpfs -o mode=755 tmpfs dev
            for node in null zero full random urandom tty; do
                mknod -m 666 "dev/$node" c $(stat -c "0x%t 0x%T" "/dev/$node")
            done
            # PrivateDevices= takes these over from here.
            mkdir dev/pts dev/shm dev/mqueue dev/hugepages
            mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
            ln -s pts/ptmx dev/ptmx
            ln -s /proc/self/fd dev/fd
            mount -t cgroup2 cgroup2 sys/fs/cgroup
            pivot_root . mnt
            umount -l mnt
            exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --show-status=no
        ' bash "$root"
    ) >"$work/boot.log" 2>&1 &
    boot=$!
    for _ in $(seq 100); do
        if find_init; then break; fi
        sleep 0.2
    done
    find_init || fail "systemd did not start: $(cat "$work/boot.log")"
    until_true inside systemctl is-active basic.target
    inside ip link set lo up
}

neighbour() {
    local name=psdeb-$$-$1
    ip netns add "$name"
    neighbours+=("$name")
    ip -n "$name" link set lo up
    ip -n "$name" link add up0 type veth peer name "$1" netns "$init"
    ip -n "$name" addr add "10.97.$2.2/24" dev up0
    ip -n "$name" link set up0 up
    ip -n "$name" route add default via "10.97.$2.1"
    inside ip addr add "10.97.$2.1/24" dev "$1"
    inside ip link set "$1" up
}
# Runs a command on a neighbour.
at() { local name=psdeb-$$-$1; shift; ip netns exec "$name" "$@"; }
