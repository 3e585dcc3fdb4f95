#!/bin/bash
# Installs the missing Debian or Ubuntu packages for a target:
# packages.sh build|test|demo|lint|deb|audit|interop|kernels|all
set -euo pipefail

# rustables generates its kernel constants from the headers with libclang; pcap links libpcap.
build=(gcc libc6-dev libpcap-dev libclang-dev linux-libc-dev pkg-config)
# Namespaces, scanners, strace and the tools that the tests run; TCP wrappers; checkers for the unit, the manual and the
# scripts.
test=(iproute2 nftables iptables nmap masscan zmap hping3 strace util-linux iputils-ping tcpd systemd mandoc shellcheck jq)
# The fleet's server, its client, and the tool for its certificates.
test+=(redis-server redis-tools openssl)
# For the manual pages, which a test compares with their sources.
test+=(pandoc)
# Namespaces, nftables and the scanner of the demonstration.
demo=(iproute2 nftables nmap util-linux)
lint=(shellcheck)
# dpkg-shlibdeps, the compressor, and the tool that writes the list of components.
deb=(dpkg-dev binutils xz-utils jq)
# mmdebstrap, for tests/interop.sh, tests/deb.sh and tests/quick-start.sh.
interop=(mmdebstrap)
# QEMU, and the tools that create its root.
kernels=(qemu-system-x86 cpio kmod binutils e2fsprogs)
cargo_deb=3.8.0
cargo_deny=0.20.2

case "${1:-all}" in
    build) wanted=("${build[@]}") ;;
    test) wanted=("${build[@]}" "${test[@]}") ;;
    demo) wanted=("${build[@]}" "${demo[@]}") ;;
    lint) wanted=("${build[@]}" "${lint[@]}") ;;
    deb) wanted=("${build[@]}" "${deb[@]}") ;;
    audit) wanted=("${build[@]}") ;;
    interop) wanted=("${interop[@]}") ;;
    kernels) wanted=("${build[@]}" "${test[@]}" "${kernels[@]}") ;;
    all) wanted=("${build[@]}" "${test[@]}" "${lint[@]}") ;;
    *) echo "usage: $0 build|test|demo|lint|deb|audit|interop|kernels|all" >&2; exit 2 ;;
esac

if command -v dpkg-query >/dev/null; then
    missing=()
    for package in "${wanted[@]}"; do
        # shellcheck disable=SC2016  # dpkg-query expands it
        status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
        # Another package may provide it, as pkgconf does for pkg-config.
        case "$status" in
            ii*) ;;
            *) [ "$package" = pkg-config ] && command -v pkg-config >/dev/null || missing+=("$package") ;;
        esac
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "Installing ${missing[*]}" >&2
        root=()
        if [ "$(id -u)" -ne 0 ]; then
            command -v sudo >/dev/null || { echo "As root: apt-get install ${missing[*]}" >&2; exit 1; }
            root=(sudo)
        fi
        "${root[@]}" apt-get update -qq
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
else
    echo "This is not Debian or Ubuntu; install the equivalents of: ${wanted[*]}" >&2
fi

if ! PATH="$PATH:$HOME/.cargo/bin" command -v cargo >/dev/null; then
    echo "There is no cargo; install Rust 1.89 or later from https://rustup.rs" >&2
    exit 1
fi

# tool NAME VERSION: installs a cargo tool from crates.io with the versions of its own lock file.
tool() {
    ! PATH="$PATH:$HOME/.cargo/bin" cargo "${1#cargo-}" --version 2>/dev/null | grep -qxE "($1 )?$2" || return 0
    echo "Installing $1 $2" >&2
    PATH="$PATH:$HOME/.cargo/bin" cargo install --quiet --locked --no-default-features --version "$2" "$1"
}

case "${1:-all}" in
    deb) tool cargo-deb "$cargo_deb" ;;
    audit | all) tool cargo-deny "$cargo_deny" ;;
esac
