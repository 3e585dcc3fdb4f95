#!/bin/bash
# Judges the crates by deny.toml: licences, duplicates, sources, and what is known against them. The last needs the database
# of RustSec from the network: where that cannot be had, a copy of an earlier run serves, and where there is none, one line
# says that it was left out. What is found fails.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"

judge=(cargo deny --locked --log-level error)
# An exception that is no longer needed goes, too.
"${judge[@]}" check --hide-inclusion-graph --deny unmatched-skip --deny unnecessary-skip licenses bans sources

# Fetching apart from judging: only the first may fail without harm.
copies=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
if why=$(timeout 120 "${judge[@]}" fetch db 2>&1); then
    "${judge[@]}" check --hide-inclusion-graph advisories
elif copy=$(compgen -G "$copies/*/crates"); then
    echo "The database of known defects cannot be fetched; the copy of $(git -C "$copy" log -1 --format=%cs) serves."
    "${judge[@]}" --offline check --hide-inclusion-graph advisories
else
    echo "NOT CHECKED: known defects of the crates; the database cannot be fetched: $(grep -m 1 '^fatal: ' <<<"$why" || head -n 1 <<<"$why")"
fi
