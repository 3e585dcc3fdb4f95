#!/bin/bash
# Whether the oldest Rust that Cargo.toml promises takes library and program. It is fetched with rustup where it is missing;
# where that cannot be, one line says so, and that is no failure.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"

oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
[ -n "$oldest" ] || { echo "Cargo.toml promises no rust-version." >&2; exit 1; }

check=(rustup run "$oldest" cargo check)
case "$(rustc --version)" in
    "rustc $oldest."*) check=(cargo check) ;;
    *)
        if ! command -v rustup >/dev/null; then
            echo "NOT CHECKED: whether Rust $oldest takes it; there is no rustup to fetch it with."
            exit 0
        fi
        if ! rustup run "$oldest" rustc --version >/dev/null 2>&1; then
            why=$(timeout 300 rustup toolchain install "$oldest" --profile minimal --no-self-update 2>&1) || {
                echo "NOT CHECKED: whether Rust $oldest takes it; it cannot be fetched: $(tail -n 1 <<<"$why")"
                exit 0
            }
        fi
        ;;
esac
"${check[@]}" --locked --lib --bins
echo "Rust $oldest takes it."
