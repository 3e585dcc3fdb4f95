#!/bin/sh
# Tests the parser and the scenario of packaging/examples/crowdsec with Debian's crowdsec: the output of `cscli explain`
# for a line, and the delivery of an alert. Downloads the package and unpacks it into its own directory; needs no root and
# changes nothing on the system.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
directory=$(mktemp -d)
engine=
cleanup() {
    [ -z "$engine" ] || kill "$engine" 2>/dev/null || true
    rm -rf "$directory"
}
trap cleanup EXIT

cd "$directory"
chmod 755 "$directory"
if [ -n "${CROWDSEC_DEB:-}" ]; then cp "$CROWDSEC_DEB" .; else apt-get download crowdsec >/dev/null 2>&1; fi
dpkg -x crowdsec_*.deb root
mkdir -p etc/parsers/s00-raw etc/parsers/s01-parse etc/parsers/s02-enrich etc/scenarios etc/postoverflows etc/acquis.d data hub plugins
port=${CROWDSEC_PORT:-18080}
hub=root/usr/share/crowdsec/hub
cp -r $hub/. hub/
cp $hub/parsers/s00-raw/crowdsecurity/syslog-logs.yaml etc/parsers/s00-raw/
cp $hub/parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml etc/parsers/s02-enrich/
cp "$here/packaging/examples/crowdsec/parser.yaml" etc/parsers/s01-parse/portsentry.yaml
cp "$here/packaging/examples/crowdsec/scenario.yaml" etc/scenarios/portsentry.yaml
sed "s|/var/log/portsentry/events.json|$directory/events.json|" "$here/packaging/examples/crowdsec/acquis.yaml" >etc/acquis.d/portsentry.yaml
cp -r root/etc/crowdsec/patterns etc/patterns
cp root/etc/crowdsec/profiles.yaml root/etc/crowdsec/simulation.yaml etc/
index=$(find root/usr/share/crowdsec root/var -name '.index.json' | head -n 1)
[ -z "$index" ] || cp "$index" hub/.index.json
sed -e "s|/etc/crowdsec/|$directory/etc/|; s|/var/lib/crowdsec/data/|$directory/data/|; s|/var/lib/crowdsec/hub/|$directory/hub/|" \
    -e "s|/usr/lib/crowdsec/plugins/|$directory/plugins/|; s|log_media: file|log_media: stdout|; s|127.0.0.1:8080|127.0.0.1:$port|" \
    -e "s|daemonize: true|daemonize: false|; s|acquisition_path: .*||" -e '/online_client/,+1d' -e '/^prometheus/,$d' \
    root/etc/crowdsec/config.yaml >etc/config.yaml
PATH=$directory/root/usr/bin:$PATH
cscli="cscli -c $directory/etc/config.yaml"
crowdsec="crowdsec -c $directory/etc/config.yaml"

: >etc/local_api_credentials.yaml
$cscli machines add test --auto --force >said 2>&1 || { cat said; exit 1; }

ban='{"event":"block","time":"TIME","source":"203.0.113.77","destination":"192.0.2.1","class":"syn","proto":"tcp","port":23,"subject":"203.0.113.77","ports":[{"proto":"tcp","port":23,"class":"syn"}],"probes":3,"reason":"3 distinct closed ports were probed","expires":"never","method":"nft"}'
ban=$(echo "$ban" | sed "s/TIME/$(date -u +%Y-%m-%dT%H:%M:%S.000000Z)/")
hand='{"event":"block","time":"2026-11-21T06:32:13.000000Z","source":"203.0.113.78","subject":"203.0.113.78","reason":"added by root","expires":"never"}'
spared='{"event":"refused","time":"2026-11-21T06:32:13.000000Z","source":"203.0.113.79","class":"syn","proto":"tcp","port":23,"reason":"on the allow-list"}'

: >events.json
$crowdsec >engine.log 2>&1 &
engine=$!
tries=0
until grep -q 'Starting processing data' engine.log; do
    tries=$((tries + 1))
    if [ $tries -gt 60 ] || ! kill -0 $engine; then echo "crowdsec did not start:"; cat engine.log; exit 1; fi
    sleep 1
done
# The command queries the engine's interface.
explain() { $cscli explain --log "$1" --type portsentry 2>&1; }
explain "$ban" >said || { cat said; exit 1; }
if ! grep -q 'portsentry/scan' said || ! grep -q 'portsentry/json-logs' said; then echo "a ban causes no alert:"; cat said; exit 1; fi
for line in "$hand" "$spared"; do
    explain "$line" >said || true
    if grep -q 'portsentry/scan' said; then echo "this line causes an alert: $line"; cat said; exit 1; fi
done

tries=0
while :; do
    # Repeated until crowdsec reads the file; the scenario makes one alert of all.
    echo "$ban" >>events.json
    $cscli alerts list -o json >found 2>/dev/null || true
    if grep -q '203.0.113.77' found; then break; fi
    tries=$((tries + 1))
    [ $tries -le 60 ] || { echo "no alert arrived:"; cat engine.log; exit 1; }
    sleep 1
done
grep -q '"scenario": *"portsentry/scan"' found
echo "crowdsec: cscli explain and an alert that arrived, with $($cscli version 2>&1 | sed -n 's/.*version: *//p' | head -n 1)"
