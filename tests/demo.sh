#!/bin/bash
# Demonstrates portsentry in under a minute: two hosts in their own namespaces, joined by a veth pair. One scans the
# other, before and after the program starts. No packet leaves the machine, and everything is removed at the end.
#   tests/demo.sh PROGRAM
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
program=$(realpath "${1:?usage: $0 PROGRAM}")

if [ "$(id -u)" -ne 0 ]; then
    # shellcheck disable=SC2016  # the inner shell expands it
    exec unshare --user --map-root-user --net --mount \
        sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' sh "$0" "$program"
fi

victim="psdemo-$$-victim" attacker="psdemo-$$-attacker"
log=$(mktemp)
state=$(mktemp -d)
pids=()
clean_up() {
    trap - EXIT INT TERM
    [ "${#pids[@]}" -eq 0 ] || { kill "${pids[@]}" && wait "${pids[@]}"; } 2>/dev/null || true
    ip netns del "$victim" 2>/dev/null || true
    ip netns del "$attacker" 2>/dev/null || true
    rm -rf "$log" "$state"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '\033[2m%s\033[0m\n' "$ $*"; }
# With short timeouts: by default nmap waits for minutes when a host that replied at first becomes silent.
scan() {
    local command=(nmap -sS -n -Pn --max-retries 0 --max-rtt-timeout 100ms --min-parallelism 10 "-p$1" 10.77.1.1)
    show "${command[*]}        (on the attacker)"
    ip netns exec "$attacker" "${command[@]}" | sed -n '/^PORT/,/^MAC/{/^MAC/!p}; /^All/p; /^Not/p; /^Nmap done/p'
}

ip netns add "$victim"
ip netns add "$attacker"
ip -n "$victim" link add eth0 type veth peer name eth0 netns "$attacker"
for side in "$victim 10.77.1.1/24" "$attacker 10.77.1.2/24"; do
    read -r namespace address <<<"$side"
    ip -n "$namespace" link set lo up
    ip -n "$namespace" link set eth0 up
    ip -n "$namespace" addr add "$address" dev eth0
done

# Eight services: listening sockets are enough for a scanner to call a port open. Perl is always installed.
services=(21 22 25 80 110 143 443 993)
# shellcheck disable=SC2016  # Perl's variables
ip netns exec "$victim" perl -MIO::Socket::INET -e '
    @listeners = map { IO::Socket::INET->new(LocalPort => $_, Listen => 64, ReuseAddr => 1) or die "$_: $!" } @ARGV;
    sleep' "${services[@]}" &
pids+=($!)
until_true() { for _ in $(seq 200); do "$@" && return; sleep 0.05; done; echo "timed out: $*" >&2; exit 1; }
listening() { [ "$(ip netns exec "$victim" ss -Hltn | wc -l)" -ge "${#services[@]}" ]; }
until_true listening

say "Before: the victim serves ${#services[@]} ports, and a scan finds them all"
scan 1-1024

say "portsentry starts on the victim"
show "portsentry --expire 24h"
ip netns exec "$victim" "$program" --expire 24h --state-dir "$state" 2>"$log" &
pids+=($!)
started() { grep -q 'now active and listening' "$log" || ! kill -0 "${pids[-1]}" 2>/dev/null; }
until_true started
cat "$log"
grep -q 'now active and listening' "$log"
said=$(wc -l <"$log")

say "The same scan again: blocked at the third closed port; ports that still show were probed before"
scan 1-1024
say "A scan of the services only: no port answers now"
scan "$(IFS=,; echo "${services[*]}")"

say "The log lines"
tail -n "+$((said + 1))" "$log" | head -n 15

say "The ban, as the kernel enforces it"
show "nft list set inet portsentry blocked"
ip netns exec "$victim" nft list set inet portsentry blocked

say "The program ends, and the ban stays"
show "kill -TERM portsentry"
kill -TERM "${pids[-1]}"
wait "${pids[-1]}"
ip netns exec "$victim" nft list set inet portsentry blocked | grep elements
echo
