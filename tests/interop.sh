#!/bin/bash
# Runs the packaged service with other programs that use the firewall: interop.sh [PACKAGE]. In its own Debian (see
# tests/debian.sh): nftables.service, iptables, ufw, firewalld, Docker, fail2ban, logcheck and Prometheus are started, reloaded
# and stopped while bans are in force; ufw, firewalld and Docker also beside decoys on every port. Takes some minutes and
# 600 MB, so `make test` does not run it. PARTS="ufw docker" runs only those.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$(realpath "${1:-$(packaging/deb.sh | tail -n 1)}")
# shellcheck source=tests/debian.sh
. tests/debian.sh

parts=${PARTS:-nftables iptables ufw firewalld docker decoys_ufw decoys_firewalld decoys_docker fail2ban logcheck prometheus}
others=firewalld,ufw,iptables,docker.io,fail2ban,python3-systemd,logcheck,logcheck-database,prometheus,netcat-openbsd,busybox-static,logrotate
# Debian 13 has Docker's client in a package of its own.
[ "${SUITE:-bookworm}" = bookworm ] || others+=,docker-cli

# The next unused closed port: the kernel counts a port only once in half an hour, even if the resulting ban was lifted.
next=200
service=8080
# The process that serves at the client, once there is one.
web=

banned() { inside nft list set inet portsentry blocked | seen -F "$1 "; }
not_banned() { ! banned "$1"; }
probes() { local host=$1 to=$2; shift 2; for port in "$@"; do at "$host" timeout 1 bash -c "exec 3<>/dev/tcp/$to/$port" 2>/dev/null || true; done; }
reaches() { at "$1" timeout 3 bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null; }
never_reaches() { ! at "$1" timeout 1 bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null; }
# How many sources the kernel has banned by itself.
trap_banned() { inside portsentry status --json | sed 's/.*"condemned":\([0-9]*\).*/\1/'; }
# The table's handle in the kernel, which changes if the table is created again.
handle() { inside nft -a list tables | sed -n 's/^table inet portsentry # handle //p'; }
left() { inside nft list set inet portsentry blocked | grep -o "$1 timeout [^ ]* expires [^ ,]*" | sed 's/.* //'; }

# Asserts after any action that the bans are in force and enforced, no other source is blocked, and clients reach the
# service. The table must be the same one, unless the action flushes it.
stands() {
    until_true banned 203.0.113.7
    until_true banned 10.97.3.2
    never_reaches banned 10.97.3.1 "$service" || fail "$1: the banned host reaches the service"
    [ -n "${flushes:-}" ] || [ "$(handle)" = "$table" ] || fail "$1: the table was created again"
    until_true reaches client 10.97.2.1 "$service"
    not_banned 10.97.2.2 || fail "$1: the client is blocked"
    say "  $1: bans are in force"
}

# Probes one port more than are forgiven, and another to be sure.
probes_closed() { probes "$1" "$2" "$next" $((next + 1)) $((next + 2)) $((next + 3)); next=$((next + 4)); }

# A scan of closed ports is counted by the kernel's trap and blocked, services included.
scan() {
    local before
    before=$(trap_banned)
    probes_closed scanner 10.97.1.1
    until_true banned 10.97.1.2
    more_trap_banned() { [ "$(trap_banned)" -gt "$before" ]; }
    until_true more_trap_banned
    never_reaches scanner 10.97.1.1 "$service" || fail "$1: the scanner reaches the service"
    inside portsentry unblock 10.97.1.2 >/dev/null
    until_true reaches scanner 10.97.1.1 "$service"
    say "  $1: a scan is blocked by the kernel"
}

# An answer over HTTP, which no decoy gives, within a number of seconds.
served() {
    # shellcheck disable=SC2016  # the inner shell expands it
    at "$1" timeout "${4:-3}" bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && read -r line <&3 && [[ $line == HTTP* ]]' \
        "$2" "$3" 2>/dev/null
}

# Forwards a connection from one neighbour to another.
routed() {
    inside sysctl -qw net.ipv4.ip_forward=1
    if [ -z "$web" ]; then
        at client "$root/bin/busybox" httpd -f -p 7070 -h "$root" &
        web=$!
        disown
    fi
    until_true served scanner 10.97.2.2 7070
}

# Forwarded packets of a held source pass. Only this test holds a source for so long.
held_unharmed() {
    until_true served scanner 10.97.2.2 7070
    inside nft add element inet portsentry held '{ 10.97.1.2 timeout 1h }'
    never_reaches scanner 10.97.1.1 "${2:-$service}" || fail "$1: a held source reaches the service"
    served scanner 10.97.2.2 7070 || fail "$1: a forwarded connection of a held source does not arrive"
    inside nft delete element inet portsentry held '{ 10.97.1.2 }'
    until_true reaches scanner 10.97.1.1 "${2:-$service}"
    say "  $1: a held source loses nothing that is forwarded"
}

# Decoys on every port that is not in use.
connect_mode() {
    printf '[tcp]\nmode = "connect"\nports = "1-65535"\n[udp]\nmode = "off"\n' >"$root/etc/portsentry/portsentry.toml"
    inside install -D -m 644 -t /etc/systemd/system/portsentry.service.d \
        /usr/share/doc/portsentry-nft/examples/portsentry.service.d/connect-mode.conf
    inside systemctl daemon-reload
    inside systemctl restart portsentry
    until_true decoys_there
    stands "connect mode"
}
decoys_there() { inside nft list set inet portsentry trapped | seen -E 'elements = \{ *1-'; }
built_in_mode() {
    : >"$root/etc/portsentry/portsentry.toml"
    inside rm /etc/systemd/system/portsentry.service.d/connect-mode.conf
    inside systemctl daemon-reload
    inside systemctl restart portsentry
    stands "built-in mode"
}

decoys="-m socket --transparent --nowildcard -j ACCEPT"

# silent WHAT CHAIN...: decoys do not answer, and `check` and `status` name each chain with the line that opens it. With
# these lines, decoys answer.
silent() {
    local what=$1 chain line
    shift
    never_reaches client 10.97.2.1 905 || fail "$what: a decoy answers behind the filter"
    for chain; do
        case "$chain" in
            "ip filter INPUT") line="iptables-nft -I INPUT $decoys" ;;
            "ip6 filter INPUT") line="ip6tables-nft -I INPUT $decoys" ;;
            *) line="nft insert rule $chain socket transparent 1 accept" ;;
        esac
        # shellcheck disable=SC2317  # until_true calls it
        warned() { inside portsentry status | seen -F "$line"; }
        until_true warned
        inside portsentry check 2>&1 | seen -F "$line" || fail "$what: check does not say: $line"
        # shellcheck disable=SC2086  # words
        inside $line
    done
    until_true reaches client 10.97.2.1 905
    # shellcheck disable=SC2317  # until_true calls it
    unwarned() { ! inside portsentry status | seen "decoys cannot answer"; }
    until_true unwarned
    say "  $what: decoys are silent, and answer after what status says"
}

# unharmed WHAT [PORT...]: forwarded connections, published ports, and a service that has just started and that the
# firewall accepts still work.
unharmed() {
    local what=$1 port
    shift
    for _ in 1 2 3 4; do
        served scanner 10.97.2.2 7070 || fail "$what: forwarded connections do not arrive"
        inside systemd-run --quiet --unit=fresh /bin/busybox httpd -f -p 8099 -h /
        # shellcheck disable=SC2317  # until_true calls it
        opened() { inside ss -Hltn 'sport = 8099' | seen LISTEN; }
        until_true opened
        served client 10.97.2.1 8099 || fail "$what: a new service does not get its first connection"
        inside systemctl stop fresh
        for port; do served client 10.97.2.1 "$port" || fail "$what: the published port $port does not answer"; done
    done
    if inside journalctl -t portsentry | seen -E 'to TCP port: (7070|8099)$'; then fail "$what: a decoy has taken a connection"; fi
    not_banned 10.97.1.2 || fail "$what: the host behind the router is banned"
    stands "$what"
}

# Completed connections to three decoys ban.
decoys_ban() {
    probes scanner 10.97.1.1 "$next" $((next + 1)) $((next + 2))
    next=$((next + 3))
    until_true banned 10.97.1.2
    never_reaches scanner 10.97.1.1 "$service" || fail "$1: the scanner reaches the service"
    inside portsentry list --json | seen '"proven"' || fail "$1: the ban is not proven"
    inside portsentry unblock 10.97.1.2 >/dev/null
    until_true reaches scanner 10.97.1.1 "$service"
    say "  $1: three decoys ban"
}

say "a Debian"
prepare() { systemctl --quiet --root="$root" disable firewalld ufw docker docker.socket containerd fail2ban nftables \
    prometheus prometheus-node-exporter 2>/dev/null || true; }
debian "$others"
cp "$package" "$root/root/portsentry.deb"
neighbour scanner 1
neighbour client 2
neighbour banned 3
inside dpkg -i /root/portsentry.deb >/dev/null
inside systemd-run --quiet --unit=listener nc -lk -p "$service"
until_true reaches client 10.97.2.1 "$service"
probes_closed banned 10.97.3.1
until_true banned 10.97.3.2
inside portsentry block 203.0.113.7 --expire 2h --reason "by hand" >/dev/null
table=$(handle)
stands "alone"
scan "alone"

nftables() {
    # As Debian's own file, this one flushes the ruleset.
    cat >"$root/etc/nftables.conf" <<RULES
#!/usr/sbin/nft -f
flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        tcp dport $service accept
    }
}
RULES
    flushes=yes
    before=$(left 203.0.113.7)
    inside systemctl start nftables
    stands "start"
    scan "start"
    for _ in $(seq 100); do inside nft -f /etc/nftables.conf; done
    stands "a hundred flushes"
    scan "a hundred flushes"
    inside systemctl reload nftables
    stands "reload"
    inside systemctl stop nftables
    stands "stop"
    echo "   203.0.113.7 had $before, has $(left 203.0.113.7)"
    flushes=
    table=$(handle)
}

iptables() {
    local program
    for program in iptables-nft iptables-legacy; do
        inside "$program" -P INPUT DROP
        inside "$program" -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        inside "$program" -A INPUT -p tcp --dport "$service" -j ACCEPT
        stands "$program rules"
        scan "$program rules"
        inside "$program-save" >"$root/root/rules"
        inside sh -c "$program-restore </root/rules"
        stands "$program-restore"
        inside "$program" -P INPUT ACCEPT
        inside "$program" -F
        inside "$program" -X
        stands "$program -F"
    done
}

ufw() {
    inside ufw default deny incoming >/dev/null
    inside ufw allow "$service/tcp" >/dev/null
    inside ufw --force enable >/dev/null
    stands "enable"
    scan "enable"
    inside ufw limit 2222/tcp >/dev/null
    inside ufw reload >/dev/null
    stands "reload"
    inside systemctl restart ufw
    stands "restart"
    inside ufw --force reset >/dev/null
    stands "reset"
    inside ufw disable >/dev/null
    stands "disable"
    scan "disable"
}

firewalld() {
    local backend
    for backend in nftables iptables; do
        inside sed -i "s/^FirewallBackend=.*/FirewallBackend=$backend/" /etc/firewalld/firewalld.conf
        inside systemctl start firewalld
        until_true inside firewall-cmd --state
        inside firewall-cmd --quiet --add-port="$service/tcp" --permanent
        inside firewall-cmd --quiet --reload
        stands "$backend, reload"
        scan "$backend, reload"
        inside firewall-cmd --quiet --complete-reload
        stands "$backend, --complete-reload"
        inside firewall-cmd --quiet --panic-on
        inside firewall-cmd --quiet --panic-off
        stands "$backend, panic on and off"
        inside systemctl restart firewalld
        until_true inside firewall-cmd --state
        stands "$backend, restart"
        scan "$backend, restart"
        inside systemctl stop firewalld
        stands "$backend, stop"
    done
}

# The ports that the container serves: more than are forgiven, and all of them watched.
published=(8081 8443 9000 9100 10000)

docker() {
    local proxy port container
    mkdir -p "$work/image/bin"
    cp "$root/bin/busybox" "$work/image/bin/"
    for proxy in true false; do
        mkdir -p "$root/etc/docker"
        echo "{\"userland-proxy\": $proxy}" >"$root/etc/docker/daemon.json"
        inside systemctl restart docker
        stands "start, userland-proxy $proxy"
        tar -C "$work/image" -c . | inside docker import - busybox >/dev/null
        # shellcheck disable=SC2046  # the ports are separate words
        inside docker run -d --name web $(printf -- '-p %s:80 ' "${published[@]}") busybox \
            /bin/busybox httpd -f -p 80 -h / >/dev/null
        # A new client's first packets, all at once: none of these ports has answered yet.
        # shellcheck disable=SC2016  # the inner shell expands it
        at client bash -c 'for port in "$@"; do timeout 5 bash -c "exec 3<>/dev/tcp/10.97.2.1/$port" & done; wait' sh "${published[@]}"
        for port in "${published[@]}"; do reaches client 10.97.2.1 "$port" || fail "the client does not reach port $port"; done
        stands "published ports, userland-proxy $proxy"
        for port in "${published[@]}"; do
            never_reaches banned 10.97.3.1 "$port" || fail "the banned host reaches the container at $port"
        done
        scan "published ports, userland-proxy $proxy"
        # A container that scans the host is banned, and the ban is not lifted: Docker makes bridged packets pass the
        # firewall.
        container=$(inside docker inspect -f '{{.NetworkSettings.IPAddress}}' web)
        # shellcheck disable=SC2016  # the inner shell expands it
        inside docker exec web /bin/busybox sh -c 'for port in "$@"; do /bin/busybox nc -w 1 172.17.0.1 "$port" </dev/null; done' \
            sh $((next++)) $((next++)) $((next++)) 2>/dev/null || true
        until_true banned "$container"
        # shellcheck disable=SC2317  # until_true calls it
        banned_container() { inside journalctl -t portsentry | seen -F "attackalert: Host $container has been blocked"; }
        until_true banned_container
        inside portsentry unblock "$container" >/dev/null
        inside systemctl restart docker
        stands "restart, userland-proxy $proxy"
        inside docker start web >/dev/null
        until_true reaches client 10.97.2.1 "${published[0]}"
        inside docker stop -t 0 web >/dev/null
        # Clients come back to services that have just stopped.
        for _ in 1 2 3; do probes client 10.97.2.1 "${published[@]}"; done
        stands "the container stopped, userland-proxy $proxy"
        inside docker rm -f web >/dev/null
        inside systemctl stop docker.socket docker
        stands "stop, userland-proxy $proxy"
    done
    # Docker leaves it at DROP, and the parts that follow forward packets.
    inside iptables -P FORWARD ACCEPT
}

decoys_ufw() {
    routed
    inside ufw default deny incoming >/dev/null
    inside ufw default allow routed >/dev/null
    inside ufw allow "$service/tcp" >/dev/null
    inside ufw allow 8099/tcp >/dev/null
    inside ufw --force enable >/dev/null
    held_unharmed "ufw"
    connect_mode
    silent "ufw" "ip filter INPUT" "ip6 filter INPUT"
    unharmed "ufw"
    decoys_ban "ufw"
    inside ufw --force reset >/dev/null
    inside ufw disable >/dev/null
    local program
    for program in iptables-nft ip6tables-nft; do
        inside "$program" -S INPUT | seen -F -- "-P INPUT ACCEPT" || fail "ufw cannot open $program"
        # shellcheck disable=SC2086  # words
        inside "$program" -D INPUT $decoys
    done
    built_in_mode
}

decoys_firewalld() {
    local backend chains
    routed
    for backend in nftables iptables; do
        inside sed -i "s/^FirewallBackend=.*/FirewallBackend=$backend/" /etc/firewalld/firewalld.conf
        inside systemctl restart firewalld
        until_true inside firewall-cmd --state
        inside firewall-cmd --quiet --permanent --add-port="$service/tcp" --add-port=8099/tcp
        inside firewall-cmd --quiet --permanent --add-interface=scanner --add-interface=client
        inside firewall-cmd --quiet --permanent --add-forward
        inside firewall-cmd --quiet --reload
        held_unharmed "firewalld, $backend"
        connect_mode
        # firewalld 2 lets no other program change its table, unless it is told to.
        if [ "$backend" = nftables ] && inside grep -q '^NftablesTableOwner=yes' /etc/firewalld/firewalld.conf; then
            # shellcheck disable=SC2317  # until_true calls it
            owner_named() { inside portsentry status | seen -F "NftablesTableOwner=no"; }
            until_true owner_named
            inside sed -i 's/^NftablesTableOwner=.*/NftablesTableOwner=no/' /etc/firewalld/firewalld.conf
            inside systemctl restart firewalld
            until_true inside firewall-cmd --state
            say "  firewalld, $backend: status names the setting that lets the table be changed"
        fi
        chains=("inet firewalld filter_INPUT")
        [ "$backend" = nftables ] || chains=("ip filter INPUT" "ip6 filter INPUT")
        silent "firewalld, $backend" "${chains[@]}"
        unharmed "firewalld, $backend"
        decoys_ban "firewalld, $backend"
        # The reload creates its tables again, without the line.
        inside firewall-cmd --quiet --reload
        silent "firewalld, $backend, reload" "${chains[@]}"
        inside systemctl stop firewalld
        built_in_mode
    done
}

decoys_docker() {
    local proxy
    mkdir -p "$work/image/bin" "$root/etc/docker"
    cp "$root/bin/busybox" "$work/image/bin/"
    connect_mode
    for proxy in true false; do
        echo "{\"userland-proxy\": $proxy}" >"$root/etc/docker/daemon.json"
        # Until this restart, connections to decoys are not tracked.
        inside systemctl restart docker
        routed_by_docker
        tar -C "$work/image" -c . | inside docker import - busybox >/dev/null
        # shellcheck disable=SC2046  # words
        inside docker run -d --name web $(printf -- '-p %s:80 ' "${published[@]}") busybox \
            /bin/busybox httpd -f -p 80 -h / >/dev/null
        unharmed "userland-proxy $proxy" "${published[@]}"
        # A container connects to another host.
        # shellcheck disable=SC2016  # the inner shell expands it
        inside docker exec web /bin/busybox sh -c 'printf "GET / HTTP/1.0\r\n\r\n" | /bin/busybox nc -w 3 10.97.2.2 7070' | seen HTTP ||
            fail "userland-proxy $proxy: a container does not reach the network"
        until_true reaches client 10.97.2.1 905
        decoys_ban "userland-proxy $proxy"
        inside docker rm -f web >/dev/null
        inside systemctl stop docker.socket docker
    done
    built_in_mode
}

# Docker's chain FORWARD drops packets that are not for containers.
routed_by_docker() {
    inside iptables -I DOCKER-USER -s 10.97.0.0/16 -d 10.97.0.0/16 -j ACCEPT
    routed
}

fail2ban() {
    local examples=/usr/share/doc/portsentry-nft/examples/fail2ban
    # Debian's sshd jail needs a log file or another backend; without it the service exits.
    printf '[sshd]\nenabled = false\n' >"$root/etc/fail2ban/jail.d/defaults-debian.conf"
    inside cp "$examples/jail.conf" /etc/fail2ban/jail.d/portsentry.conf
    inside cp "$examples/filter.conf" /etc/fail2ban/filter.d/portsentry-journal.conf
    printf '[portsentry-journal]\nenabled = true\nfilter = portsentry-journal\nbackend = systemd\nmaxretry = 1\nbanaction = nftables-allports\n' \
        >"$root/etc/fail2ban/jail.d/portsentry-journal.conf"
    # As on a host that has not banned a source yet.
    local history=/var/lib/portsentry/portsentry.history
    inside systemctl stop portsentry
    inside rm "$history"
    inside systemctl start portsentry
    until_true inside test -f "$history"
    ! inside test -s "$history" || fail "the history is not empty without a ban"
    inside systemctl start fail2ban
    until_true inside fail2ban-client status portsentry
    say "  the jail starts before the first ban"
    stands "start"
    local jail
    probes_closed scanner 10.97.1.1
    until_true banned 10.97.1.2
    for jail in portsentry portsentry-journal; do
        # shellcheck disable=SC2317  # until_true calls it
        takes_over() { inside fail2ban-client status "$jail" | seen -F 10.97.1.2; }
        until_true takes_over
        say "  the jail $jail has the ban"
        ! inside fail2ban-client status "$jail" | seen -F 10.97.2.2 || fail "$jail has the client"
    done
    inside fail2ban-client reload >/dev/null
    stands "reload"
    inside portsentry unblock 10.97.1.2 >/dev/null
    inside fail2ban-client unban 10.97.1.2 >/dev/null
    until_true reaches scanner 10.97.1.1 "$service"
    # A ban that an operator has lifted stays lifted, although its line is less than a minute old.
    inside systemctl restart fail2ban
    until_true inside fail2ban-client status portsentry
    sleep 5
    for jail in portsentry portsentry-journal; do
        ! inside fail2ban-client status "$jail" | seen -F 10.97.1.2 || fail "$jail restores the lifted ban"
    done
    say "  the lifted ban stays lifted"
    inside logrotate --force /etc/logrotate.d/portsentry-nft
    ! inside test -s "$history" || fail "the history was not rotated"
    inside systemctl restart fail2ban
    until_true inside fail2ban-client status portsentry
    say "  the jail starts after logrotate"
    probes_closed scanner 10.97.1.1
    until_true banned 10.97.1.2
    jail=portsentry
    until_true takes_over
    say "  the jail follows the new file"
    inside portsentry unblock 10.97.1.2 >/dev/null
    inside fail2ban-client unban 10.97.1.2 >/dev/null
    until_true reaches scanner 10.97.1.1 "$service"
    inside systemctl stop fail2ban
    stands "stop"
}

logcheck() {
    # Causes lines of each kind in the journal, from which logcheck reads them.
    inside systemctl restart portsentry
    inside portsentry block 198.51.100.66 --expire 1s >/dev/null
    probes_closed scanner 10.97.1.1
    until_true banned 10.97.1.2
    # shellcheck disable=SC2317  # until_true calls it
    said() { inside journalctl -t portsentry | seen -F "$1"; }
    local routine=("PortSentry is now active and listening." "Host 198.51.100.66 is no longer blocked: its ban has expired")
    local told=("scan from host: 10.97.1.2/10.97.1.2 to TCP port" "PortSentry is shutting down") alarm="Host 10.97.1.2 has been blocked via"
    for line in "${routine[@]}" "${told[@]}" "$alarm"; do
        until_true said "$line"
    done
    echo journal >"$root/etc/logcheck/journal"
    inside mkdir -p /etc/logcheck/none.d
    inside runuser -u logcheck -- /usr/sbin/logcheck -o -t -L /etc/logcheck/journal -D /etc/logcheck/none.d >"$work/mail"
    grep -F portsentry "$work/mail" || fail "logcheck mails nothing of portsentry: $(cat "$work/mail")"
    for line in "${routine[@]}"; do
        ! grep -F "$line" "$work/mail" || fail "logcheck mails a routine line: $line"
    done
    for line in "${told[@]}" "$alarm"; do
        grep -qF "$line" "$work/mail" || fail "logcheck does not mail: $line"
    done
    # The first section of the mail contains only the alarms.
    sed -n '/^Security Events/,/^System Events/p' "$work/mail" | seen -F "$alarm" || fail "no security event: $alarm"
    inside portsentry unblock 10.97.1.2 >/dev/null
    until_true reaches scanner 10.97.1.1 "$service"
    stands "logcheck"
}

prometheus() {
    # The server of the fleet is away; the metrics include those of the fleet.
    printf '%s\n' '[metrics]' 'listen = "127.0.0.1:9777"' '[fleet]' 'url = "unix:///run/valkey/fleet.sock"' 'host = "interop"' \
        >"$root/etc/portsentry/portsentry.toml"
    inside install -D -m 644 -t /etc/systemd/system/portsentry.service.d \
        /usr/share/doc/portsentry-nft/examples/portsentry.service.d/internet.conf
    inside systemctl daemon-reload
    inside systemctl restart portsentry
    cp examples/grafana-dashboard.json examples/prometheus-alerts.yml "$root/root/"
    cat >"$root/etc/prometheus/prometheus.yml" <<'CONFIG'
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: ["/etc/prometheus/portsentry-alerts.yml"]
scrape_configs:
  - job_name: portsentry
    static_configs:
      - targets: ["127.0.0.1:9777"]
CONFIG
    cp examples/prometheus-alerts.yml "$root/etc/prometheus/portsentry-alerts.yml"
    inside promtool check config /etc/prometheus/prometheus.yml
    inside systemctl start prometheus
    stands "start"
    scan "start"
    # The program's metrics, checked by Prometheus's own tool, and all queries of the dashboard and the alerts.
    inside python3 -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen("http://127.0.0.1:9777/metrics").read().decode())' \
        >"$root/root/metrics"
    # promtool reads only the older format, where the name of a counter in its help ends with _total.
    inside sh -c 'promtool check metrics </root/metrics' >"$work/lint" 2>&1 || true
    ! grep -v '_total no help text$' "$work/lint" || fail "promtool complains"
    # shellcheck disable=SC2317  # until_true calls it
    answered() { inside python3 - <tests/dashboard.py; }
    TRIES=300 until_true answered
    answered
}

for part in $parts; do
    say "$part"
    "$part"
done
[ "$(inside systemctl is-active portsentry)" = active ] || fail "the service has stopped"
inside portsentry list
say "all tests passed"
