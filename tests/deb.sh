#!/bin/bash
# Installs the package for real: deb.sh [PACKAGE]. A Debian of its own with systemd as its init, in namespaces of its own:
# install, a scan, upgrade, remove, install again, purge. Needs root, mmdebstrap and a Debian mirror, and takes minutes, so
# that `make test` leaves it out. Nothing of this machine is changed; the cgroup that systemd needs goes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" -eq 0 ] || { echo "This needs root." >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "This needs mmdebstrap: apt-get install mmdebstrap" >&2; exit 1; }
package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")

work=$(mktemp -d)
root=$work/root
scanner=psdeb-$$
cgroup=$(findmnt -nt cgroup2 -o TARGET | head -n 1)/psdeb-$$
boot=
init=
finish() {
    # Its init is process 1 of a process namespace: with it all in there is gone.
    [ -z "$init" ] || kill -KILL "$init" 2>/dev/null || true
    [ -z "$boot" ] || wait "$boot" 2>/dev/null || true
    ip netns del "$scanner" 2>/dev/null || true
    # systemd's own groups, the innermost first.
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
inside() { nsenter --target "$init" --all env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

# Waits until a command succeeds; some seconds are much on a slow machine.
until_true() {
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    fail "never true: $*"
}

say "a Debian"
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,nftables,libpcap0.8,procps,iproute2 \
    "${SUITE:-bookworm}" "$root"
: >"$root/etc/machine-id"
cp "$package" "$root/root/portsentry.deb"

say "its init"
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
# The child of unshare is process 1 in there, once it has become systemd.
find_init() { init=$(pgrep -P "$boot") && [ "$(cat "/proc/$init/comm")" = systemd ]; }
for _ in $(seq 100); do
    if find_init; then break; fi
    sleep 0.2
done
find_init || fail "no init: $(cat "$work/boot.log")"
until_true inside systemctl is-active basic.target
inside ip link set lo up
ip netns add "$scanner"
ip -n "$scanner" link add up0 type veth peer name eth0 netns "$init"
ip -n "$scanner" addr add 10.97.0.2/24 dev up0
ip -n "$scanner" link set up0 up
inside ip addr add 10.97.0.1/24 dev eth0
inside ip link set eth0 up

is_banned() { inside nft list set inet portsentry blocked | grep -q '10\.97\.0\.2'; }
runs() { [ "$(inside systemctl is-active portsentry)" = active ] || { inside journalctl -u portsentry >&2; fail "$1: it does not run"; }; }

say "install"
inside dpkg -i /root/portsentry.deb
runs install
inside systemctl is-enabled portsentry >/dev/null || fail "it is not enabled"
pid=$(inside systemctl show -p MainPID --value portsentry)
inside grep -q 'NoNewPrivs:.1' "/proc/$pid/status" || fail "the unit's restrictions do not hold"
inside grep -q 'CapBnd:.0000000000003000' "/proc/$pid/status" || fail "it has other capabilities than two"
[ "$(inside stat -c %U /var/lib/portsentry/ledger.sqlite)" = portsentry ] || fail "the ledger is not the service's own"
inside portsentry status

say "a scan is blocked"
for port in 23 79 111 143; do
    ip netns exec "$scanner" timeout 1 bash -c "exec 3<>/dev/tcp/10.97.0.1/$port" 2>/dev/null || true
done
until_true is_banned

say "reload"
inside systemctl reload portsentry
runs reload

say "upgrade: the settings, the ban and the service stay"
echo '# by hand' | inside tee -a /etc/portsentry/portsentry.toml >/dev/null
inside dpkg -i /root/portsentry.deb
runs upgrade
inside grep -q '# by hand' /etc/portsentry/portsentry.toml || fail "the settings were overwritten"
is_banned || fail "the upgrade lost the ban"

say "remove: the ban stays, and so do settings and ledger"
inside dpkg -r portsentry-nft
[ "$(inside systemctl is-active portsentry)" != active ] || fail "it runs on"
is_banned || fail "the removal lifted the ban"
inside test -e /var/lib/portsentry/ledger.sqlite || fail "the removal took the ledger"

say "install again, then purge: nothing is left"
inside dpkg -i /root/portsentry.deb
runs "install again"
inside dpkg -P portsentry-nft
for left in /var/lib/portsentry /var/log/portsentry /run/portsentry /etc/portsentry /usr/sbin/portsentry /etc/logrotate.d/portsentry-nft \
    /etc/systemd/system/multi-user.target.wants/portsentry.service; do
    ! inside test -e "$left" || fail "the purge left $left"
done
[ -z "$(inside nft list ruleset)" ] || fail "the purge left the table"
say "all of it went well"
