#!/bin/bash
# Compares `portsentry check` with the start of the packaged service: unit.sh [PACKAGE]. In its own Debian (see
# tests/debian.sh) it draws configurations from the keys that the unit restricts, with and without its drop-ins. The check
# must pass exactly those with which systemd starts the service. ROUNDS sets the number of configurations, SEED selects
# others. Needs root, mmdebstrap and a Debian mirror, so `make test` does not run it.
# tests/end_to_end/check_and_start.rs draws from all keys, without systemd.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")
# shellcheck source=tests/debian.sh
. tests/debian.sh

RANDOM=${SEED:-1}
settings=/etc/portsentry/portsentry.toml
drop_ins=/etc/systemd/system/portsentry.service.d
examples=/usr/share/doc/portsentry-nft/examples/portsentry.service.d

# Lines of one key each; one of them, or none, is drawn from each list.
# shellcheck disable=SC2034  # draw reads it by its name
connect=('tcp.mode = "connect"' 'tcp.mode = "connect"; tcp.ports = "6000-6003"' 'udp.mode = "connect"' 'udp.mode = "connect"; udp.ports = "6000-6003"')
metrics=(127.0.0.1:9777 '[::1]:9777' 0.0.0.0:9777 127.0.0.1:80 127.0.0.1:22 192.0.2.1:9777)
metrics=("${metrics[@]/#/metrics.listen = \"}")
metrics=("${metrics[@]/%/\"}")
# shellcheck disable=SC2034  # draw reads it by its name
json=('report.json_file = "/var/log/portsentry/events.json"' 'report.json_file = "/var/log/events.json"' 'report.json_file = "/home/alice/events.json"'
    'report.json_file = "/nosuch/events.json"')
ignored=(/etc/portsentry/ignore /etc/portsentry/secret /srv/ignore /home/alice/ignore /root/ignore /tmp/ignore /nosuch/ignore)
ignored=("${ignored[@]/#/allow.files = [\"}")
ignored=("${ignored[@]/%/\"]}")
programs=(/bin/true /usr/local/bin/private /home/alice/program /root/program /tmp/program /nosuch/program)
commands=("${programs[@]/#/block.run.command = [\"}")
commands=("${commands[@]/%/\"]}")
digests=("${programs[@]/#/notify.command = [\"}")
digests=("${digests[@]/%/\"]}")
# shellcheck disable=SC2034  # draw reads it by its name
others=('allow.names = ["monitor.invalid"]' 'report.resolve_host = true' 'report.log = "syslog"' 'report.log = "stderr"' 'interfaces = ["nosuch0"]'
    'interfaces = ["scanner"]' 'block.run.at_once = 64' 'tcp.block = false' 'tcp.block = "run"' 'tcp.mode = "off"' 'detect.max_sources = 1048576'
    'block.nft.size = 1000000' 'fleet.url = "unix:///run/valkey.sock"; fleet.host = "a"'
    'fleet.url = "unix:///run/valkey.sock"; fleet.host = "a"; fleet.socket = "/srv/fleet/fleet.sock"')
methods=('"nft"' '"route"' '"nft", "route"' '"nft", "hosts-deny"' '"nft", "run"' '"run"')

# draw LIST TIMES: prints one item of the list in one of TIMES calls.
draw() {
    local -n list=$1
    [ $((RANDOM % $2)) -ne 0 ] || printf '%s\n' "${list[RANDOM % ${#list[@]}]}"
}

configuration() {
    printf 'block.method = [%s]\n' "${methods[RANDOM % ${#methods[@]}]}"
    for list in connect metrics json ignored commands digests others; do
        draw "$list" 5
    done
}

say "a Debian with the service"
debian ""
cp "$package" "$root/root/portsentry.deb"
neighbour scanner 1
inside dpkg -i /root/portsentry.deb >/dev/null
for file in /etc/portsentry/ignore /etc/portsentry/secret /srv/ignore /home/alice/ignore /root/ignore /tmp/ignore; do
    inside install -D -m 644 /dev/null "$file"
done
inside chmod 600 /etc/portsentry/secret
for program in "${programs[@]:1:4}"; do
    inside install -D -m 755 /bin/true "$program"
done
inside chmod 700 /usr/local/bin/private

differs=0
passed=0
for round in $(seq "${ROUNDS:-60}"); do
    # The generator's state must stay in this shell.
    configuration >"$work/drawn"
    tr ';' '\n' <"$work/drawn" | sed 's/^ *//' >"$root$settings"
    mode=644
    [ $((RANDOM % 10)) -ne 0 ] || mode=600
    inside chmod "$mode" "$settings"
    inside rm -rf "$drop_ins" /var/lib/portsentry-wrappers
    [ $((RANDOM % 2)) -ne 0 ] || inside mkdir /var/lib/portsentry-wrappers
    inside mkdir -p "$drop_ins"
    for name in connect-mode internet hosts-deny run; do
        [ $((RANDOM % 3)) -eq 0 ] || inside cp "$examples/$name.conf" "$drop_ins"
    done
    inside systemctl daemon-reload
    checks=no
    starts=no
    ! inside portsentry check >"$work/check" 2>&1 || checks=yes
    ! inside systemctl restart portsentry 2>/dev/null || starts=yes
    if [ "$checks" != "$starts" ]; then
        differs=$((differs + 1))
        {
            printf -- '-- round %s: check passes: %s, the service starts: %s; mode %s, drop-ins:\n' "$round" "$checks" "$starts" "$mode"
            ls "$root$drop_ins"
            cat "$root$settings" "$work/check"
            inside journalctl -u portsentry -n 5 -o cat
        } >&2
    fi
    if [ "$starts" = yes ]; then
        passed=$((passed + 1))
    else
        inside systemctl stop portsentry
    fi
    inside systemctl reset-failed portsentry 2>/dev/null || true
done
say "rounds: ${ROUNDS:-60}, started: $passed, different: $differs"
[ "$passed" -gt 0 ] || fail "the service never started"
[ "$differs" -eq 0 ] || fail "check and the service do not agree"
