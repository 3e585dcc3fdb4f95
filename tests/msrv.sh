#!/bin/bash
# Checks that the oldest Rust version that Cargo.toml promises compiles library and program. rustup installs it if
# necessary; if that is not possible, a line says so, which is no failure.
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
            echo "NOT CHECKED: whether Rust $oldest compiles it; rustup is not installed."
            exit 0
        fi
        if ! rustup run "$oldest" rustc --version >/dev/null 2>&1; then
            why=$(timeout 300 rustup toolchain install "$oldest" --profile minimal --no-self-update 2>&1) || {
                echo "NOT CHECKED: whether Rust $oldest compiles it; it cannot be installed: $(tail -n 1 <<<"$why")"
                exit 0
            }
        fi
        ;;
esac
"${check[@]}" --locked --lib --bins
echo "Rust $oldest compiles it."
