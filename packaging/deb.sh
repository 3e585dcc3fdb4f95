#!/bin/bash
# Builds the Debian package: the program and the files generated from it, packed by cargo-deb. The last line is the package's path. The same
# commit and tool chain give the same bytes at any place and time (tests/reproducible.sh): every timestamp is SOURCE_DATE_EPOCH, by default the
# commit's time, and no path of the builder is included. The maintainer is DEBFULLNAME and DEBEMAIL, by default the commit's author. Arguments go
# to cargo-deb.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)
fi
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC0
# One thread, because the output of several depends on their number.
export XZ_DEFAULTS=--threads=1
umask 022
maintainer=$(git log -1 --format='%an <%ae>' 2>/dev/null || true)
[ -z "${DEBEMAIL:-}" ] || maintainer="${DEBFULLNAME:-$DEBEMAIL} <$DEBEMAIL>"
[ -n "$maintainer" ] || { echo "no maintainer: set DEBFULLNAME and DEBEMAIL" >&2; exit 1; }

packaging/build.sh >&2
program=${CARGO_TARGET_DIR:-target}/release/portsentry
made=target/packaging
mkdir -p "$made"
for shell in bash zsh fish; do
    "$program" completions "$shell" >"$made/portsentry.$shell"
done

packaging/sbom.sh >"$made/sbom.cdx.json"

# One entry is enough: the package also contains CHANGELOG.md, which lists the changes for users.
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
cat >"$made/changelog" <<CHANGELOG
portsentry-nft ($version-1) unstable; urgency=medium

  * See changelog.gz.

 -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")
CHANGELOG

cargo deb --no-build --locked --quiet --strip --compress-system --maintainer "$maintainer" "$@"
