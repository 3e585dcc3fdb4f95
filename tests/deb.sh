#!/bin/bash
# Tests the package with a real installation: deb.sh [PACKAGE]. In its own Debian (see tests/debian.sh): install, a
# scan, upgrade, remove, install again, purge. Needs root, mmdebstrap and a Debian mirror, and takes minutes, so `make
# test` does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."

package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")
# shellcheck source=tests/debian.sh
. tests/debian.sh

say "a Debian with systemd"
debian ""
cp "$package" "$root/root/portsentry.deb"
neighbour scanner 1

is_banned() { inside nft list set inet portsentry blocked | seen '10\.97\.1\.2'; }
runs() { [ "$(inside systemctl is-active portsentry)" = active ] || { inside journalctl -u portsentry >&2; fail "$1: the service does not run"; }; }

# The command of the unit runs as the service's user, which has a name.
reloaded_by_service() { inside journalctl -t portsentry | seen 'adminalert: portsentry (portsentry, process [0-9]*): the configuration was reloaded'; }

say "install: the package says that it blocks, and how to watch first"
said=$(inside dpkg -i /root/portsentry.deb)
runs install
for part in "now blocks sources that scan this host, for 24 hours each" "portsentry trial 1d" "portsentry list --would-block"; do
    seen -F "$part" <<<"$said" || fail "the installation does not say \"$part\": $said"
done
! seen BLOCK_TCP <<<"$said" || fail "the installation names a classic configuration, and there is none: $said"
inside systemctl is-enabled portsentry >/dev/null || fail "the service is not enabled"
pid=$(inside systemctl show -p MainPID --value portsentry)
inside grep -q 'NoNewPrivs:.1' "/proc/$pid/status" || fail "the unit's restrictions are not in effect"
inside grep -q 'CapBnd:.0000000000003000' "/proc/$pid/status" || fail "the capabilities are not the expected two"
[ "$(inside stat -c %U /var/lib/portsentry/ledger.sqlite)" = portsentry ] || fail "the ledger does not belong to the service's user"
inside portsentry status

say "a scan is blocked"
for port in 23 79 111 143; do
    at scanner timeout 1 bash -c "exec 3<>/dev/tcp/10.97.1.1/$port" 2>/dev/null || true
done
until_true is_banned

say "reload"
inside systemctl reload portsentry
runs reload
until_true reloaded_by_service

say "upgrade: configuration, ban and service stay"
echo '# by hand' | inside tee -a /etc/portsentry/portsentry.toml >/dev/null
said=$(inside dpkg -i /root/portsentry.deb)
! seen "now blocks" <<<"$said" || fail "an upgrade is announced as an installation: $said"
runs upgrade
inside grep -q '# by hand' /etc/portsentry/portsentry.toml || fail "the configuration was overwritten"
is_banned || { inside journalctl -t portsentry >&2; fail "the upgrade lost the ban"; }

say "a custom command, with its drop-in"
inside mkdir -p /etc/systemd/system/portsentry.service.d
inside cp /usr/share/doc/portsentry-nft/examples/portsentry.service.d/run.conf /etc/systemd/system/portsentry.service.d/
# shellcheck disable=SC2016  # the command expands it
printf '#!/bin/sh\necho "$1 as $(id -un)" >>/var/lib/portsentry/told\n' | inside tee /usr/local/bin/told >/dev/null
inside chmod 755 /usr/local/bin/told
inside cp /etc/portsentry/portsentry.toml /root/before.toml
inside tee /etc/portsentry/portsentry.toml >/dev/null <<'SETTINGS'
expire = "1h"
[block]
method = ["nft", "run"]
[block.run]
command = ["/usr/local/bin/told", "$TARGET$"]
SETTINGS
inside systemctl daemon-reload
inside systemctl restart portsentry
runs "with a command"
pid=$(inside systemctl show -p MainPID --value portsentry)
inside grep -q 'Seccomp:.2' "/proc/$pid/status" || fail "the system call filter is not in effect"
inside pgrep -f -- --run-commands-of >/dev/null || fail "the command helper does not run"
neighbour other 2
for port in 23 79 111 143; do
    at other timeout 1 bash -c "exec 3<>/dev/tcp/10.97.2.1/$port" 2>/dev/null || true
done
until_true inside grep -q '^10.97.2.2 as portsentry$' /var/lib/portsentry/told
inside nft list set inet portsentry blocked | seen '10\.97\.2\.2' || fail "the scanner is not blocked"
inside cp /root/before.toml /etc/portsentry/portsentry.toml
inside rm -r /etc/systemd/system/portsentry.service.d /var/lib/portsentry/told
inside systemctl daemon-reload
inside systemctl restart portsentry
runs "without it again"

say "remove: ban, configuration and ledger stay"
inside dpkg -r portsentry-nft
[ "$(inside systemctl is-active portsentry)" != active ] || fail "the service still runs"
is_banned || fail "the removal lifted the ban"
inside test -e /var/lib/portsentry/ledger.sqlite || fail "the removal deleted the ledger"

say "install again, then purge: nothing is left"
inside dpkg -i /root/portsentry.deb
runs "install again"
inside dpkg -P portsentry-nft
for left in /var/lib/portsentry /var/log/portsentry /run/portsentry /etc/portsentry /usr/sbin/portsentry /etc/logrotate.d/portsentry-nft \
    /etc/systemd/system/multi-user.target.wants/portsentry.service; do
    ! inside test -e "$left" || fail "the purge left $left"
done
! inside nft list tables | seen portsentry || fail "the purge left the table"

say "a classic configuration that only logs: the installation, status and the log say that this one blocks"
classic=/etc/portsentry/portsentry.conf
inside mkdir /etc/portsentry
printf 'BLOCK_UDP="0"\nBLOCK_TCP="0"\n' | inside tee "$classic" >/dev/null
said=$(inside dpkg -i /root/portsentry.deb)
runs "beside a classic configuration"
for part in "$classic of classic PortSentry is not read" "(BLOCK_TCP is 0), but portsentry blocks" "portsentry import --output"; do
    seen -F "$part" <<<"$said" || fail "the installation does not say \"$part\": $said"
done
inside portsentry status | seen -F "$classic of classic PortSentry says to only log" || fail "status does not name the classic configuration"
inside journalctl -t portsentry | seen -F "$classic of classic PortSentry says to only log" || fail "the log does not name the classic configuration"
for port in 23 79 111 143; do
    at scanner timeout 1 bash -c "exec 3<>/dev/tcp/10.97.1.1/$port" 2>/dev/null || true
done
until_true is_banned
inside dpkg -P portsentry-nft
inside test -e "$classic" || fail "the purge removed the classic configuration"
say "all tests passed"
