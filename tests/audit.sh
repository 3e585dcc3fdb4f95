#!/bin/bash
# Judges the crates by deny.toml: licences, duplicates, sources, and what is known against them. The last needs the database
# of RustSec from the network: where that cannot be had, a copy of an earlier run serves, and where there is none, one line
# says that it was left out. What is found fails.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"

cargo deny --locked --log-level error check --hide-inclusion-graph licenses bans sources

# Fetching apart from judging: only the first may fail without harm.
databases=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
if why=$(timeout 120 cargo deny --locked --log-level error fetch db 2>&1); then
    cargo deny --locked --log-level error check --hide-inclusion-graph advisories
elif [ -n "$(find "$databases" -name 'RUSTSEC-*' -print -quit 2>/dev/null)" ]; then
    echo "The database of known defects cannot be fetched; one of an earlier day serves."
    cargo deny --locked --offline --log-level error check --hide-inclusion-graph advisories
else
    echo "NOT CHECKED: known defects of the crates; the database cannot be fetched: $(tail -n 1 <<<"$why")"
fi
