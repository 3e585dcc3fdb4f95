#!/bin/bash
# Runs every test; the last line says how many passed and how many failed. Needs namespaces: root can create them;
# otherwise the script runs itself again as root of its own user namespace. With --fast only tests that need neither
# root nor namespaces, without the longest ones. Other arguments are passed to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

programs=()
skipped=()
# Most tests wait, and the simulation computes: it runs beside them, at the lowest priority.
beside=(--test host_life)
niceness=19
waiting=()
if [ "${1:-}" = --fast ]; then
    shift
    # Most of the fast tests compute as well, so the simulation runs at normal priority. The tests of the ledger mostly wait, and follow it.
    beside+=(--test ledger)
    niceness=0
    # These do nothing but wait, for half a minute, so they run at the same time as all others.
    waiting=(--test slow_backends)
    programs=(--lib --bins --test allocation --test architecture --test config --test import --test library --test replay
        --test repository)
    # These tests load rules into a namespace, end connections in one, or mount a small disk.
    skipped=(-- --skip example_ruleset_loads --skip connections:: --skip full_disk)
    # These compute for five seconds and more each: floods, the fuzz targets' inputs with every byte changed, runs of the
    # simulation, comparisons of the hash table with a map and of the ledger with a model, each beginning of a classic
    # configuration, damaged ledgers and those of a hundred thousand bans, and the live view in every size.
    skipped+=(--skip forged_flood_of --skip fuzzing::tests::corpus --skip disabled_rule_fails_its_scenario
        --skip fixed_causes_replay_without_ban --skip every_kind_of_scan_is_found --skip late_ban_replays_up_to_its_verdict
        --skip same_seed_repeats_packet_by_packet --skip table_agrees_with_map_except_evictions
        --skip ledger_agrees_with_model --skip truncated_classic_file_is_translated_or_refused
        --skip damaged_ledger_is_used_or_quarantined --skip hundred_thousand_bans
        --skip every_size_is_painted_within_bounds)
elif [ "$(id -u)" -ne 0 ]; then
    # A fresh /run, because `ip netns` keeps its names there and the real one belongs to the real root.
    if ! unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run' 2>/dev/null; then
        echo "No test ran: this user cannot create namespaces (on Ubuntu, AppArmor may forbid it). Run it as root." >&2
        echo "0 passed, 1 failed"
        exit 1
    fi
    # shellcheck disable=SC2016  # the inner shell expands it
    exec unshare --user --map-root-user --net --mount \
        sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"' sh bash "$0" "$@"
fi

# Most tests wait for packets and timeouts, so that two of them share a processor.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((2 * $(nproc)))}"

log=$(mktemp)
beside_log=$(mktemp)
waiting_log=$(mktemp)
trap 'rm -f "$log" "$beside_log" "$waiting_log"' EXIT
outcome=0
if [ $# -gt 0 ]; then
    [ "${#programs[@]}" -eq 0 ] || programs+=("${beside[@]}" "${waiting[@]}")
    cargo test --locked --no-fail-fast "${programs[@]}" "$@" "${skipped[@]}" 2>&1 | tee "$log" || outcome=$?
else
    documentation=false
    if [ "${#programs[@]}" -eq 0 ]; then
        documentation=true
        programs=(--lib --bins --examples)
        for file in tests/*.rs tests/*/main.rs; do
            name=${file#tests/}
            name=${name%/main.rs}
            name=${name%.rs}
            [ "$name" = host_life ] || programs+=(--test "$name")
        done
    fi
    cargo test --locked --no-run "${programs[@]}" "${beside[@]}" "${waiting[@]}" 2>&1 | tee "$log" || outcome=$?
    nice -n "$niceness" cargo test --locked --no-fail-fast "${beside[@]}" "${skipped[@]}" >"$beside_log" 2>&1 &
    running=($!)
    if [ "${#waiting[@]}" -gt 0 ]; then
        cargo test --locked --no-fail-fast "${waiting[@]}" "${skipped[@]}" >"$waiting_log" 2>&1 &
        running+=($!)
    fi
    cargo test --locked --no-fail-fast "${programs[@]}" "${skipped[@]}" 2>&1 | tee -a "$log" || outcome=$?
    ! "$documentation" || cargo test --locked --no-fail-fast --doc 2>&1 | tee -a "$log" || outcome=$?
    for second in "${running[@]}"; do wait "$second" || outcome=$?; done
    cat "$beside_log" "$waiting_log" | tee -a "$log"
fi

# `test result: ok. 5 passed; 0 failed; …`, once per test program.
read -r passed failed < <(awk '/^test result: / { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$log")
# No test at all, or a program that does not compile or crashes, is a failure that no line above counts.
if [ "$failed" -eq 0 ] && { [ "$outcome" -ne 0 ] || [ "$passed" -eq 0 ]; }; then
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
