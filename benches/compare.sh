#!/bin/bash
# Measures portsentry, classic PortSentry, fail2ban and CrowdSec under the same scans, and prints a Markdown table:
#   benches/compare.sh PROGRAM [portsentry|classic|fail2ban|crowdsec...]
# The other programs come from a Debian 12 that mmdebstrap downloads into memory; nothing is installed on this machine.
# Everything runs in its own mount, process and network namespaces and ends with the script. docs/comparison.md
# explains the rows. RUNS is the number of repetitions of each scan, TEMPLATE a directory with such a Debian.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
program=$(realpath -e "${1:?usage: $0 PROGRAM [portsentry|classic|fail2ban|crowdsec...]}")
runs=${RUNS:-3}

[ "$(id -u)" -eq 0 ] || { echo "$0 needs root" >&2; exit 1; }
missing=
for command in ip:iproute2 mmdebstrap:mmdebstrap nft:nftables nmap:nmap perl:perl strace:strace unshare:util-linux; do
    command -v "${command%:*}" >/dev/null || missing+=" ${command#*:}"
done
[ -z "$missing" ] || { echo "missing programs; install the packages:$missing" >&2; exit 1; }
[ $$ -eq 1 ] || exec unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$0" "$@"
shift
# Process 1 of a namespace ignores signals that it does not handle.
trap 'exit 130' INT TERM

# The victim's address and services; nmap probes all eight ports early, because they are popular.
declare -A victim=([4]=198.18.0.1 [6]=2001:db8::1)
services=(21 22 25 80 110 143 443 993)
mount -t tmpfs -o size=2g tmpfs /run
root=/run/debian log=/run/log
say() { printf '%(%T)T %s\n' -1 "$*" >&2; }
fail() { echo "$*" >&2; cat "$log" >&2; exit 1; }
at() { nsenter "--net=/run/netns/$1" "${@:2}"; }

make_debian() {
    say "downloading Debian 12 with the other programs"
    # The file keeps crowdsec's package from registering this machine at the central server.
    # shellcheck disable=SC2016  # the hook's shell expands it
    mmdebstrap --quiet --variant=minbase \
        --include=portsentry,iptables,fail2ban,python3-pyinotify,crowdsec,crowdsec-firewall-bouncer,nftables,ulogd2 \
        --essential-hook='mkdir "$1/etc/crowdsec"; echo "# not registered" >"$1/etc/crowdsec/online_api_credentials.yaml"' \
        bookworm "$root"
}

# --- The programs. Each has its version, a start with its documented configuration, and the list of its bans. ---

# Runs a command on the victim until the end of the session; counts the commands that it runs if $traced is set.
launch() {
    local strace=()
    [ -z "$traced" ] || strace=(strace -f --seccomp-bpf -qq -e trace=execve -o "/run/trace.$RANDOM")
    at victim "${strace[@]}" "$@" >>"$log" 2>&1 &
}
launch_debian() { launch chroot "$root" "$@"; }
until_true() { for _ in {1..300}; do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; fail "timed out: $*"; }
logged() { until_true grep -q "$1" "$log"; }
version() { dpkg-query --admindir="$root/var/lib/dpkg" -W -f='${Version}' "$1"; }
set_in() { sed -i "s|$2|$3|" "$root/etc/$1"; }

# One line for each packet to a closed port, written by ulogd. The rule logs only: closed ports answer with a reset.
start_logging() {
    at victim nft -f - <<RULES
        table inet firewall {
            chain input {
                type filter hook input priority filter
                iif lo accept
                ct state established,related accept
                tcp dport { $(IFS=,; echo "${services[*]}") } accept
                meta l4proto tcp log prefix "kernel:" group 0 queue-threshold 1
            }
        }
RULES
    : >"$root/var/log/ulog/syslogemu.log"
    at victim chroot "$root" ulogd &>/dev/null &
    sleep 1
}

portsentry_version() { "$program" --version | sed 's/.* //'; }
portsentry_start() {
    rm -rf /run/state
    : >/run/portsentry.toml
    launch "$program" --config /run/portsentry.toml --state-dir /run/state --expire "${1:-24h}"
    logged "now active and listening"
}
portsentry_bans() { at victim nft list set inet portsentry blocked; }

classic_version() { version portsentry; }
classic_start() {
    set_in portsentry/portsentry.conf '^BLOCK_TCP="0"' 'BLOCK_TCP="1"'
    set_in portsentry/portsentry.conf '^KILL_ROUTE="/sbin/route' '#&'
    # shellcheck disable=SC2016  # the placeholder is classic PortSentry's
    set_in portsentry/portsentry.conf '^#\(KILL_ROUTE="/sbin/iptables -I INPUT -s $TARGET$ -j DROP"\)' '\1'
    printf '%s\n' 127.0.0.1/32 0.0.0.0 "${victim[4]}" >"$root/etc/portsentry/portsentry.ignore"
    rm -f "$root"/var/lib/portsentry/portsentry.*
    launch_debian portsentry -atcp
    until_true at victim grep -q '^ *[0-9]' /proc/net/raw
    sleep 1
}
classic_bans() { at victim chroot "$root" iptables -S INPUT; }

fail2ban_version() { version fail2ban; }
fail2ban_start() {
    printf '%s\n' "[Definition]" 'failregex = kernel: IN=\S* OUT=\S* .*SRC=<HOST> DST=' >"$root/etc/fail2ban/filter.d/portscan.conf"
    printf '%s\n' "[portscan]" "enabled = true" "filter = portscan" "logpath = /var/log/ulog/syslogemu.log" \
        "banaction = nftables-allports" ${1:+"bantime = $1"} >"$root/etc/fail2ban/jail.d/defaults-debian.conf"
    rm -rf "$root/var/lib/fail2ban" "$root/run/fail2ban"
    mkdir "$root/var/lib/fail2ban" "$root/run/fail2ban"
    start_logging
    launch_debian fail2ban-server -xf --logtarget=stdout start
    logged "Jail 'portscan' started"
}
fail2ban_bans() { at victim nft list set inet f2b-table addr-set-portscan; }

crowdsec_version() { version crowdsec; }
crowdsec_start() {
    local data=$root/var/lib/crowdsec/data etc=$root/etc/crowdsec
    [ -e /run/crowdsec ] || cp -a "$data" /run/crowdsec
    rm -rf "$data"
    cp -a /run/crowdsec "$data"
    ln -sf /var/lib/crowdsec/hub/parsers/s01-parse/crowdsecurity/iptables-logs.yaml "$etc/parsers/s01-parse/"
    ln -sf /var/lib/crowdsec/hub/scenarios/crowdsecurity/iptables-scan-multi_ports.yaml "$etc/scenarios/"
    printf '%s\n' "filenames:" "  - /var/log/ulog/syslogemu.log" "labels:" "  type: syslog" >"$etc/acquis.yaml"
    set_in crowdsec/profiles.yaml "duration: .*" "duration: ${1:-4h}"
    set_in crowdsec/config.yaml "^ *credentials_path: .*online.*" ""
    set_in crowdsec/config.yaml "^ *online_client:.*" ""
    for file in config.yaml bouncers/crowdsec-firewall-bouncer.yaml; do
        set_in "crowdsec/$file" "daemonize: true" "daemonize: false"
        set_in "crowdsec/$file" "\(log_m[a-z]*\): file" "\1: stdout"
    done
    # Otherwise the bouncer runs commands for its metrics, whether there is a ban or not.
    sed -i '/^prometheus:/,/enabled/s/true/false/' "$etc/bouncers/crowdsec-firewall-bouncer.yaml"
    start_logging
    launch_debian crowdsec -c /etc/crowdsec/config.yaml
    logged "Starting processing data"
    launch_debian crowdsec-firewall-bouncer -c /etc/crowdsec/bouncers/crowdsec-firewall-bouncer.yaml
    until_true at victim nft list set ip crowdsec crowdsec-blacklists
}
crowdsec_bans() { at victim nft list set ip crowdsec crowdsec-blacklists; }

# --- The network: a victim and a scanner, joined by a veth pair. ---

# session [EXPIRY]: a new victim on which $tool runs.
session() {
    local name
    for name in victim scanner; do
        # The processes of the last session first: they keep a namespace alive.
        { ip netns pids "$name" | xargs -r kill -KILL; wait; ip netns del "$name"; } 2>/dev/null || true
        ip netns add "$name"
        ip -n "$name" link set lo up
    done
    ip -n victim link add eth0 type veth peer name eth0 netns scanner
    ip -n victim link set eth0 up
    ip -n scanner link set eth0 up
    ip -n victim addr add "${victim[4]}/16" dev eth0
    ip -n victim addr add "${victim[6]}/32" dev eth0 nodad
    # Answers to forged sources go to an address without a host.
    ip -n victim neigh add 198.18.255.254 lladdr 02:00:00:00:00:01 dev eth0
    ip -n victim route add default via 198.18.255.254
    # shellcheck disable=SC2016  # Perl's variables
    nsenter --net=/run/netns/victim perl -MIO::Socket::IP -e '
        @listeners = map { IO::Socket::IP->new(LocalHost => "::", LocalPort => $_, V6Only => 0, Listen => 4096) or die "$_: $!" } @ARGV;
        sleep' "${services[@]}" &
    : >"$log"
    "${tool}_start" "$@"
    new_source
    until_true reaches 4
    sleep 2
}

# Gives the scanner an address in a network that it has not used before.
new_source() {
    number=$((number + 1))
    ip -n scanner addr flush dev eth0 scope global
    ip -n scanner addr add "198.18.$number.2/16" dev eth0
    ip -n scanner addr add "$(printf '2001:db8:0:%x::2' $number)/32" dev eth0 nodad
}
number=0

# Whether the scanner reaches an open port; two seconds allow for a second SYN.
reaches() { at scanner timeout 2 bash -c "exec 3<>/dev/tcp/${victim[$1]}/80" 2>/dev/null; }

# Waits up to 15 s, or as long as the given process runs, until the scanner is blocked.
is_blocked() {
    local version=$1 process=${2:-} end=$((SECONDS + 15))
    while reaches "$version"; do
        [ -z "$process" ] || ! kill -0 "$process" 2>/dev/null || end=$((SECONDS + 15))
        [ $SECONDS -lt $end ] || return
        sleep 0.2
    done
}

# scan VERSION OPTIONS: nmap from a new source until it is blocked; its output is in /run/scan.
scan() {
    local version=$1 options=(-n -Pn -v --packet-trace) nmap result=0
    [ "$version" = 4 ] || options+=(-6)
    new_source
    : >/run/scan
    nsenter --net=/run/netns/scanner stdbuf -oL nmap "${options[@]}" "${@:2}" "${victim[$version]}" >/run/scan 2>&1 &
    nmap=$!
    # An earlier connection would make the source a client of the victim, which portsentry forgives more.
    until_true grep -qE '^(SENT|CONN)' /run/scan
    sleep 0.5
    is_blocked "$version" $nmap || result=1
    kill $nmap 2>/dev/null || true
    wait $nmap || true
    return $result
}


# --- The measurements: each records rows of the table. ---

tools=("$@")
[ $# -gt 0 ] || tools=(portsentry classic fail2ban crowdsec)
declare -A cells
rows=()
record() {
    say "${tool:?}: $1: $2"
    [ "$tool" != "${tools[0]}" ] || rows+=("$1")
    cells["$tool|$1"]=$2
}

# The median of the arguments and their range.
median() { printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { m = v[int((NR + 1) / 2)]; print v[1] == v[NR] ? m : m " [" v[1] " to " v[NR] "]" }'; }

measure_scans() {
    local type version learned blocked answers times
    for row in "-sS 4" "-sT 4" "-sS 6"; do
        read -r type version <<<"$row"
        learned=() blocked=0
        for _ in $(seq "$runs"); do
            if scan "$version" "$type" -p1-1024; then blocked=$((blocked + 1)); fi
            learned+=("$(grep -c '^Discovered open port' /run/scan || true)")
        done
        record "\`nmap $type\`, IPv$version: open ports learned, of 8; sources blocked" "$(median "${learned[@]}"); $blocked of $runs"
    done
    blocked=0
    for type in -sF -sN -sX; do
        if scan 4 "$type" -p1-1024; then blocked=$((blocked + 1)); fi
    done
    record "\`nmap -sF\`, \`-sN\`, \`-sX\`: sources blocked" "$blocked of 3"
    answers=() times=()
    for _ in $(seq "$runs"); do
        scan 4 -sS -p1-1024 --max-rate 50 || true
        answers+=("$(grep -c '^RCVD' /run/scan || true)")
        times+=("$(awk -F '[(s)]+' '/^SENT/ && !first { first = $2 } /^RCVD/ { last = $2 } END { printf "%.2f", last ? last - first : 0 }' /run/scan)")
    done
    record "50 probes a second: ports that answer, of 1,024" "$(median "${answers[@]}")"
    record "50 probes a second: time from the first probe to the last answer, s" "$(median "${times[@]}")"
}

measure_client() {
    new_source
    for _ in {1..10}; do at scanner timeout 1 bash -c "exec 3<>/dev/tcp/${victim[4]}/99" 2>/dev/null || true; done
    record "client that tries one closed port ten times" "$(if is_blocked 4; then echo blocked; else echo "not blocked"; fi)"
}

measure_memory() {
    local process total=0
    for process in $(ip netns pids victim); do
        case $(cat "/proc/$process/comm") in perl | ulogd) continue ;; esac
        total=$((total + $(awk '/^Pss:/ { print $2 }' "/proc/$process/smaps_rollup")))
    done
    record "memory when idle (PSS), MiB" $(((total + 512) / 1024))
}

commands_run() { cat /run/trace.* | grep -c 'execve(' || true; }
# The first ban sets up the firewall, so commands are counted for the second.
measure_ban() {
    local before ends=no
    scan 4 -sS -p1-1024 && sleep 1 && before=$(commands_run)
    scan 4 -sS -p1-1024 && sleep 1
    record "commands run for a ban" $(($(commands_run) - before))
    for _ in {1..30}; do
        if reaches 4; then ends=yes; break; fi
    done
    record "a ban of 30 s ends within a minute" $ends
}

# forge PORTS: 1,000 forged sources, each with a SYN to each of these ports. nmap calls them decoys and adds its own address.
forge() {
    local sources group
    for group in {0..9}; do
        mapfile -t sources < <(printf "198.19.$group.%d\n" {1..100})
        at scanner nmap -n -Pn -sS --max-retries 0 --max-rtt-timeout 100ms -D "$(IFS=,; echo "${sources[*]}")" "-p$1" \
            "${victim[4]}" >/dev/null
    done
}

measure_forged() {
    local ports=$1 banned=0 now since=$SECONDS
    new_source
    forge "200-$((199 + ports))"
    while [ $((SECONDS - since)) -lt 15 ]; do
        now=$("${tool}_bans" | grep -oE '198\.19(\.[0-9]+){2}' | sort -u | wc -l || true)
        [ "$now" -le "$banned" ] || { banned=$now; since=$SECONDS; }
        sleep 1
    done
    record "forged SYNs of 1,000 sources, $ports per source: addresses banned" "$banned"
}

if [ -n "${TEMPLATE:-}" ]; then cp -a "$TEMPLATE" "$root"; else make_debian; fi
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
echo "127.0.0.1 localhost $(hostname)" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"

for tool in "${tools[@]}"; do
    traced=
    session
    measure_memory
    measure_scans
    measure_client
    for ports in 1 4 20; do
        session
        measure_forged "$ports"
    done
    traced=yes
    session 30s
    measure_ban
done

header="|" line="|---|"
for tool in "${tools[@]}"; do header+=" | $tool $("${tool}_version")" line+="---|"; done
printf '%s |\n%s\n' "$header" "$line"
for row in "${rows[@]}"; do
    printf '| %s' "$row"
    for tool in "${tools[@]}"; do printf ' | %s' "${cells["$tool|$row"]:--}"; done
    printf ' |\n'
done
