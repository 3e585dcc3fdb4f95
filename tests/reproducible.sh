#!/bin/bash
# Builds the package of the last commit twice and compares the bytes: two clones at paths of different lengths, built
# one after the other, with different cargo directory, umask, time zone and language. Two release builds: 10 to 30 minutes
# on two cores. `reproducible.sh DIRECTORY` keeps clones and packages there, and continues with existing ones.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$#" -gt 0 ]; then
    mkdir -p "$1"
    work=$(realpath "$1")
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
first=$work/a
second=$work/another-place/of-another-length
crates=${CARGO_HOME:-$HOME/.cargo}
commit=$(git rev-parse HEAD)

for place in "$first" "$second"; do
    [ -e "$place" ] || git clone --quiet --no-hardlinks . "$place"
    git -C "$place" fetch --quiet
    git -C "$place" checkout --quiet --detach "$commit"
done
# The same crates under another path.
mkdir -p "$work/another-cargo"
ln -sfn "$(realpath "$crates")/registry" "$work/another-cargo/registry"

# A clean environment.
clean=(env -u SOURCE_DATE_EPOCH -u CARGO_TARGET_DIR -u CARGO_HOME -u RUSTFLAGS -u CFLAGS "PATH=$PATH:$crates/bin")
one=$("${clean[@]}" CARGO_HOME="$crates" "$first/packaging/deb.sh" | tail -n 1)
two=$(umask 077 && "${clean[@]}" CARGO_HOME="$work/another-cargo" TZ=Asia/Kathmandu LANG=tr_TR.UTF-8 "$second/packaging/deb.sh" | tail -n 1)

for package in "$one" "$two"; do
    sha256sum "$package"
    # Paths of the build machine must not appear.
    mkdir "$work/unpacked"
    dpkg-deb --extract "$package" "$work/unpacked"
    if grep -rlaF -e "$work" -e "$crates" "$work/unpacked"; then
        echo "The files above contain a path of the build machine." >&2
        exit 1
    fi
    rm -r "$work/unpacked"
done
if ! cmp "$one" "$two"; then
    echo "Two builds of $commit differ; run diffoscope $one $two." >&2
    exit 1
fi
echo "Two builds of $commit are identical."
