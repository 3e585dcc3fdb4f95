#!/bin/bash
# Measures how long a new user needs: quick-start.sh [PACKAGE]. Types every command of docs/quick-start.md as an
# ordinary user with sudo in its own Debian (see tests/debian.sh): install, watch, allow, block, inspect, unblock. Needs
# root, mmdebstrap and a Debian mirror, so `make test` does not run it. The scanner is another namespace, with the
# address in the page.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")
page=docs/quick-start.md
# shellcheck source=tests/debian.sh
. tests/debian.sh
# shellcheck source=tests/typing.sh
. tests/typing.sh

# The limit in seconds, from the first command to the unblock.
limit=300
settings=/etc/portsentry/portsentry.toml

# As with an editor: the key under [tcp], or an empty list.
writes() { inside sed -i "$1" "$settings"; }
scans() { for port in 23 79 111 143; do at scanner timeout 1 bash -c "exec 3<>/dev/tcp/198.51.100.1/$port" 2>/dev/null || true; done; }
serves() { at scanner timeout 1 bash -c 'exec 3<>/dev/tcp/198.51.100.1/22' 2>/dev/null; }
refuses() { ! serves; }
said() { inside journalctl -t portsentry | seen -F "$1"; }
in_set() { inside nft list set inet portsentry blocked | seen -F '198.51.100.7 '; }

say "a Debian"
debian sudo,netcat-openbsd
newcomer "$package"
neighbour scanner 1
inside ip addr add 198.51.100.1/24 dev scanner
at scanner ip addr flush dev up0
at scanner ip addr add 198.51.100.7/24 dev up0
inside systemd-run --quiet --unit=listener nc -lk -p 22
until_true serves

SECONDS=0
say "install"
types "sudo apt install ./target/debian/portsentry-nft_*.deb"
until_true said "adminalert: PortSentry is now active and listening."
leaves_out 'make demo' 'it takes the sources and a scanner; tests/demo.sh is run by itself'
leaves_out 'make deb' 'the package is there'
leaves_out 'make build' 'the program of the package is put in its place'
# The command follows the journal until it is ended.
types 'sudo journalctl -t portsentry -f' >"$work/followed" &
follows=$!
until_true grep -q "PortSentry is now active" "$work/followed"
kill "$follows" 2>/dev/null || true
inside pkill -x journalctl
# Instead of the service; each runs until it is ended.
inside systemctl stop portsentry
foreground() {
    types "$1" >"$work/foreground" 2>&1 &
    until_true grep -q "PortSentry is now active" "$work/foreground"
    ! second=$(as_user sudo target/release/portsentry 2>&1) || fail "a second instance starts"
    [[ $second == *"as process"* ]] || fail "the second instance does not name the first: $second"
    inside pkill -x portsentry
    until_true grep -q "PortSentry is shutting down" "$work/foreground"
}
foreground 'sudo target/release/portsentry --log-only'
foreground 'sudo target/release/portsentry --expire 24h'
inside systemctl start portsentry

say "watch without blocking"
types "sudo portsentry trial 1d"
as_user sudo portsentry status | head -n 1 | seen "only logging" || fail "a trial blocks"
types "sudo portsentry trial --end"
writes '/^\[tcp\]/,/^\[udp\]/s/^block = true/block = false/'
types "sudo systemctl restart portsentry"
scans
until_true said "attackalert: TCP SYN/Normal scan from host: 198.51.100.7/198.51.100.7 to TCP port: 111"
serves || fail "a scan was blocked"
types "sudo portsentry list --would-block" | grep -F 198.51.100.7
writes '/^\[allow\]/,/^\[block\]/s/^networks = .*/networks = ["192.0.2.10", "2001:db8:5::\/64"]/'
types "sudo portsentry check" >"$work/check"
grep -q '^protected *192.0.2.10: on the allow-list' "$work/check" || fail "an allowed address is not protected: $(cat "$work/check")"

say "block"
writes '/^\[tcp\]/,/^\[udp\]/s/^block = false/block = true/'
types "sudo systemctl restart portsentry"
scans
until_true in_set
refuses || fail "the blocked host is served"
types "sudo portsentry list"
types "sudo nft list set inet portsentry blocked" | grep 198.51.100.7

say "inspect, unblock, block"
types "sudo portsentry status"
types "sudo portsentry explain 198.51.100.7"
types "sudo portsentry unblock 198.51.100.7"
until_true serves
took=$SECONDS
say "from the first command to the unblock: $took s"
types 'sudo portsentry block 198.51.100.7 --expire 7d --reason "by hand"'
until_true refuses
types "sudo portsentry unblock 198.51.100.7"
types "sudo portsentry allow 192.0.2.0/24 --for 1h"
types "sudo portsentry allowed" | seen -F 192.0.2.0/24 || fail "the allowed network is not listed"
types "sudo portsentry disallow 192.0.2.0/24"
types "sudo portsentry report -o report.html"
as_user grep -q '</html>' report.html || fail "the report has no HTML page"

say "metrics"
# shellcheck disable=SC2016  # $ is the last line of the file
writes '/^\[metrics\]/,$s/^listen = .*/listen = "127.0.0.1:9777"/'
! as_user sudo portsentry check >"$work/check" 2>&1 || fail "the check does not ask for the drop-in"
grep -q 'metrics.listen: .*internet.conf' "$work/check" || fail "the drop-in is not named: $(cat "$work/check")"
types "$(commands_of_page | grep 'internet.conf$')"
types "sudo systemctl daemon-reload"
types "sudo systemctl restart portsentry"
as_user sudo portsentry check | seen '^result *no problem found' || fail "the drop-in is not enough"
metrics() { inside bash -c 'exec 3<>/dev/tcp/127.0.0.1/9777; printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; grep -q ^portsentry_bans_intended <&3'; }
until_true metrics

say "stop"
types "sudo systemctl stop portsentry"
inside nft list table inet portsentry >/dev/null || fail "the table was removed"
inside nft delete table inet portsentry
every_line_was_typed
[ "$took" -le "$limit" ] || fail "it took more than $limit s"
say "all tests passed"
