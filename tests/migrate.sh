#!/bin/bash
# Types the commands of docs/migrating-from-classic.md on a host with Debian's classic PortSentry: migrate.sh [PACKAGE].
# As an ordinary user with sudo in its own Debian with systemd (see tests/debian.sh): install, import, check, trial,
# ban, purge. Needs root, mmdebstrap and a Debian mirror, so `make test` does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")
page=docs/migrating-from-classic.md
# shellcheck source=tests/debian.sh
. tests/debian.sh
# shellcheck source=tests/typing.sh
. tests/typing.sh

# Debian's classic configuration has connect mode, BLOCK_TCP="0", and blocks with a route.
scans() { for port in "$@"; do at scanner timeout 1 bash -c "exec 3<>/dev/tcp/10.97.1.1/$port" 2>/dev/null || true; done; }
banned() { as_user sudo portsentry list | seen -F 10.97.1.2 && inside ip route show type unreachable | seen -F 10.97.1.2; }
active() { [ "$(inside systemctl is-active portsentry)" = active ]; }
would_block() { as_user sudo portsentry list --would-block | seen -F 10.97.1.2; }

say "a Debian with classic PortSentry"
debian sudo,portsentry
newcomer "$package"
neighbour scanner 1
# Debian 13 has an instance of a unit for each mode, and enables none.
if [ -e "$root/usr/lib/systemd/system/portsentry@.service" ]; then
    inside systemctl enable --quiet --now portsentry@tcp portsentry@udp
fi
inside pgrep -x portsentry >/dev/null || inside systemctl start portsentry
echo '192.0.2.10' >>"$root/etc/portsentry/portsentry.ignore.static"

say "install: classic is removed, and nothing is blocked yet"
types 'sudo apt install ./target/debian/portsentry-nft_*.deb && sudo portsentry trial 1d' <<<y
active || fail "the service does not run"
[ "$(inside pgrep -c -x portsentry)" -eq 1 ] || fail "classic still runs"
[ -e "$root/etc/portsentry/portsentry.conf" ] || fail "classic's configuration was removed before the import"
# Not classic's ports: a port that was open a moment ago is no evidence.
scans 23 81 82 83
until_true would_block
! banned || fail "a source is blocked during the trial"

say "import"
types 'sudo portsentry import --output /etc/portsentry/portsentry.toml --force'
inside grep -q '^block = false' /etc/portsentry/portsentry.toml || fail "classic's BLOCK_TCP=\"0\" is lost"
inside grep -q '192.0.2.10' /etc/portsentry/portsentry.toml || fail "the ignore file is lost"
inside sed -i '/^\[tcp\]/,/^\[udp\]/s/^block = false/block = true/' /etc/portsentry/portsentry.toml
! types 'sudo portsentry check' >"$work/check" 2>&1 || fail "connect mode needs no drop-in"
grep -q 'connect-mode.conf' "$work/check" || fail "check does not name the drop-in: $(cat "$work/check")"
types "$(commands_of_page | grep 'connect-mode.conf$')"
types 'sudo systemctl daemon-reload'
types 'sudo portsentry check' >"$work/check" || fail "the drop-in is not enough: $(cat "$work/check")"
grep -q '^protected *192.0.2.10: on the allow-list' "$work/check" || fail "not protected: $(cat "$work/check")"
types 'sudo systemctl restart portsentry'
as_user sudo portsentry status | head -n 1 | seen 'only logging' || fail "the trial did not outlive the restart"
types 'sudo portsentry list --would-block' | seen -F 10.97.1.2 || fail "the results of the trial are lost"

say "block"
types 'sudo portsentry trial --end'
scans 11 79 111 143
until_true banned

say "purge classic: service, settings and ban stay"
types 'sudo apt purge portsentry' <<<y
active || fail "the purge stopped the service"
inside systemctl is-enabled portsentry >/dev/null || fail "the purge disabled the service"
banned || fail "the purge lifted the ban"
inside test -e /etc/portsentry/portsentry.toml || fail "the purge deleted the configuration"
types 'sudo systemctl restart portsentry'
active || fail "the service does not start after the purge"
banned || fail "the restart after the purge lifted the ban"
inside test -e /var/lib/portsentry/portsentry.history || fail "the history is missing after the restart"

say "files of a classic that was built from source"
as_user bash -c 'printf "TCP_PORTS=\"1,11\"\nBLOCK_TCP=\"1\"\n" >old.conf; echo TCP_MODE=\"atcp\" >old.default; echo 192.0.2.11 >old.ignore'
types 'sudo portsentry import old.conf --defaults old.default' | seen '^mode = "advanced"' || fail "the mode is lost"
types 'sudo portsentry import old.conf --ignore old.ignore --json' | seen -F 192.0.2.11 || fail "the ignore file is lost"
# shellcheck disable=SC2016  # the page has it literally
leaves_out 'echo '"'"'sed -e /$TARGET$/d -i portsentry.blocked.atcp && iptables -D INPUT -s $TARGET$ -j DROP'"'"' | at now+24hour' \
    "it shows what classic's guides do"
every_line_was_typed
say "all tests passed"
