#!/bin/bash
# Checks the crates against deny.toml: licences, duplicates, sources, and known vulnerabilities. The last needs
# RustSec's database from the network. If it cannot be fetched, a copy of an earlier run is used; without one, a line
# says that this check was skipped. Findings fail.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"

judge=(cargo deny --locked --log-level error)
# An exception that is no longer needed must be removed.
"${judge[@]}" check --hide-inclusion-graph --deny unmatched-skip --deny unnecessary-skip licenses bans sources

# Fetching is separate from checking: only a failed fetch is tolerated.
copies=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
if why=$(timeout 120 "${judge[@]}" fetch db 2>&1); then
    "${judge[@]}" check --hide-inclusion-graph advisories
elif copy=$(compgen -G "$copies/*/crates"); then
    echo "The vulnerability database cannot be fetched; using the copy of $(git -C "$copy" log -1 --format=%cs)."
    "${judge[@]}" --offline check --hide-inclusion-graph advisories
else
    echo "NOT CHECKED: known vulnerabilities of the crates; the database cannot be fetched: $(grep -m 1 '^fatal: ' <<<"$why" || head -n 1 <<<"$why")"
fi
