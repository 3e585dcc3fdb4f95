#!/bin/bash
# Boots Debian's own kernels in QEMU with a root in memory, and runs the tests that use the kernel: kernels.sh
# [VERSION…], each of 5.10, 6.1 and 6.12; all of them by default. The last line of each says how many passed.
# TESTS="ruleset trap": only these programs. ARGUMENTS="bans::": only these tests. ACCEL=tcg: emulation, even if there
# is /dev/kvm. LIMIT=600: seconds per program. All files are in target/kernels: a kernel's log is VERSION.log.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

programs=${TESTS:-host sandbox ruleset monitor routes trap connect slow_backends portsentry end_to_end ledger scenarios fault_injection classic_regressions}
manifest=$PWD
work=${CARGO_TARGET_DIR:-$PWD/target}/kernels
mkdir -p "$work"

# The tools that the tests and the program run, and those that the root itself needs.
tools=(sh bash awk grep sed find xargs ps pgrep kill sysctl ip ss tc nft iptables-nft nmap masscan zmap hping3 strace ping tcpdmatch
    kmod modprobe depmod insmod lsmod getent perl mkfs.ext4)
packages=(coreutils util-linux mount)
data=(/usr/share/nmap /etc/zmap /etc/services /etc/protocols /etc/ld.so.conf /etc/ld.so.conf.d
    /etc/alternatives/awk /usr/lib/x86_64-linux-gnu/perl-base /usr/lib/x86_64-linux-gnu/xtables)

# Without ARGUMENTS: the tests to run of programs whose other tests do not use the kernel, and the tests to skip because
# they need too much traffic. docs/kernels.md has the reasons.
declare -A chosen=(
    [portsentry]="netlink:: capture:: enforce:: sandbox:: daemon:: sensor:: control::"
    [ledger]="trouble::"
    [scenarios]="clock:: crashes:: escalation::second flush:: kernel_log:: removed:: backends::"
)
declare -A left_out=(
    [ruleset]="million::"
    [end_to_end]="report:: reverse:: refusals:: allow::allowed_name allow::silent_name allow::unresolvable_name allow::moved_name allow::name_with allow::etc_hosts_name"
    [fault_injection]="flood::full_trap flood::forged_datagrams"
    [classic_regressions]="flood::flood_"
)

# suite VERSION: the Debian release that contains this kernel.
suite() {
    case "$1" in
        5.10) echo bullseye ;;
        6.1) echo bookworm ;;
        6.12) echo trixie ;;
        *) echo "Linux $1 is not supported; use 5.10, 6.1 or 6.12 from Debian" >&2; exit 2 ;;
    esac
}

# fetch VERSION: prints the path of the kernel's package, verified by apt with Debian's own keys, without a change to
# this machine's apt configuration.
fetch() {
    local place=$work/$1 package
    mkdir -p "$place/apt/lists/partial" "$place/apt/cache/archives/partial"
    cat >"$place/apt/debian.sources" <<END
Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $(suite "$1")-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    cat >"$place/apt/apt.conf" <<END
Dir::Etc::SourceList "$place/apt/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$place/apt/lists";
Dir::State::Status "/dev/null";
Dir::Cache "$place/apt/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
END
    export APT_CONFIG=$place/apt/apt.conf
    if apt-get update -qq -o APT::Update::Error-Mode=any >&2; then
        # The meta package depends on the current kernel package.
        package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
        if [ -z "$(find "$place" -maxdepth 1 -name "${package}_*.deb")" ]; then
            rm -f "$place"/*.deb
            (cd "$place" && apt-get download -qq "$package" >&2)
        fi
    else
        echo "Debian's archive is unreachable; using the files of an earlier run" >&2
    fi
    unset APT_CONFIG
    find "$place" -maxdepth 1 -name 'linux-image-*.deb' | head -n 1
}

# steps FILE…: prints each file and its chain of links: libblas.so.3 is a link to a link in /etc/alternatives.
steps() {
    local path
    for path; do
        echo "$path"
        while [ -L "$path" ]; do
            path=$(cd "$(dirname "$path")" && realpath -s "$(readlink "$path")")
            echo "$path"
        done
    done
}

# put ROOT: copies the files on standard input into the root, with their libraries and link targets.
put() {
    local files libraries
    mapfile -t files
    mapfile -t libraries < <(ldd "${files[@]}" 2>/dev/null | grep -E '^[[:space:]]' | grep -oE '/[^ ]+' | sort -u)
    # The directories /bin, /lib and so on are links into /usr in the root as well.
    { steps "${files[@]}" "${libraries[@]}" && readlink -f "${files[@]}" "${libraries[@]}"; } |
        sed -E 's#^/(bin|sbin|lib|lib64)/#/usr/\1/#' | sort -u |
        tar --create --directory=/ --no-recursion --transform='flags=r;s#^/##' --absolute-names --files-from=- |
        tar --extract --directory="$1" --keep-directory-symlink
}

# pack DIRECTORY FILE: creates an archive that the kernel unpacks at its start.
pack() {
    (cd "$1" && find . -mindepth 1 -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) >"$2"
}

# Creates the root without the modules.
build_root() {
    local root=$work/root name kind path program arguments skipped
    rm -rf "$root"
    mkdir -p "$root"/{proc,sys,dev,run,tmp,root,var/lib,var/log,etc,usr/bin,usr/sbin,usr/lib,usr/lib64}
    chmod 1777 "$root/tmp"
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    ln -s /run "$root/var/run"
    {
        for program in "${tools[@]}"; do type -P "$program" || echo "$program is not installed" >&2; done
        dpkg -L "${packages[@]}" | grep -E '^(/usr)?/s?bin/.'
    } | sort -u | put "$root"
    for path in "${data[@]}"; do
        [ ! -e "$path" ] || { mkdir -p "$root$(dirname "$path")" && cp -a "$path" "$root$path"; }
    done
    cp tests/netns_lab/etc/* "$root/etc/"
    : >"$root/etc/resolv.conf"
    : >"$root/etc/shadow" && chmod 600 "$root/etc/shadow"

    # The project's current files, under the path that the tests were compiled with.
    mkdir -p "$root$manifest"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$root$manifest"
    echo "$manifest" >"$root/manifest"
    echo "$slowness" >"$root/slowness"
    # Programs that a test would compile with the C compiler are compiled here.
    mkdir -p "$root/built"
    cc -O2 -o "$root/built/no-ipv6.c" tests/fault_injection/no-ipv6.c
    cc -shared -fPIC -O2 -o "$root/built/clock.c" tests/scenarios/clock.c
    cc -shared -fPIC -O2 -o "$root/built/no-tproxy.c" tests/connect/no-tproxy.c
    cp tests/kernels/cc "$root/usr/bin/cc"
    cp tests/kernels/init "$root/init"
    chmod 755 "$root/init" "$root/usr/bin/cc"

    local wanted=()
    for name in $programs; do
        if [ "$name" = portsentry ]; then wanted+=(--lib); else wanted+=(--test "$name"); fi
    done
    cargo test --locked --no-run --message-format=json "${wanted[@]}" >"$work/build.json"
    sed -n 's/.*"target":{"kind":\["\([a-z]*\)"\][^}]*"name":"\([^"]*\)".*"test":true}.*"executable":"\([^"]*\)".*/\1 \2 \3/p' \
        "$work/build.json" >"$work/executables"
    sed -n 's/.*"target":{"kind":\["bin"\].*"profile":{[^}]*"test":false}.*"executable":"\([^"]*\)".*/bin program \1/p' \
        "$work/build.json" >>"$work/executables"
    while read -r kind name path; do
        case "$kind $name" in
            'bin portsentry') continue ;;
            'bin program') ;;
            *) [[ " $programs " == *" $name "* ]] || continue ;;
        esac
        mkdir -p "$root$(dirname "$path")"
        echo "$path" | put "$root"
        strip --strip-debug "$root$path"
    done <"$work/executables"
    for name in $programs; do
        read -ra skipped <<<"${left_out[$name]:-}"
        arguments=${ARGUMENTS:-${chosen[$name]:-} ${skipped[*]/#/--skip }}
        awk -v limit="$limit" -v name="$name" -v arguments="$arguments" \
            '$1 != "bin" && $2 == name { print limit, name, $3, arguments }' "$work/executables"
    done >"$root/programs"
    ldconfig -r "$root"
    pack "$root" "$work/root.cpio"
}

# build_modules PLACE: adds all modules that the tests may load.
build_modules() {
    local root=$1/modules release directory
    rm -rf "$1/package" "$root"
    mkdir -p "$root/usr/lib/modules"
    dpkg-deb -x "$1"/linux-image-*.deb "$1/package"
    release=$(basename "$1/package/boot/vmlinuz-"* | sed 's/^vmlinuz-//')
    directory=$(find "$1/package" -type d -path "*/lib/modules/$release")
    mkdir -p "$root/usr/lib/modules/$release/kernel"/{drivers,fs}
    for part in net lib crypto arch drivers/net fs/overlayfs fs/nls fs/fuse fs/ext4 fs/jbd2; do
        [ ! -e "$directory/kernel/$part" ] || cp -a "$directory/kernel/$part" "$root/usr/lib/modules/$release/kernel/$part"
    done
    # Uncompressed or compressed.
    mkdir -p "$root/usr/lib/modules/$release/kernel/drivers/block"
    cp "$directory"/kernel/fs/mbcache.ko* "$root/usr/lib/modules/$release/kernel/fs/"
    cp "$directory"/kernel/drivers/block/loop.ko* "$root/usr/lib/modules/$release/kernel/drivers/block/"
    rm -rf "$root/usr/lib/modules/$release/kernel/drivers/net"/{ethernet,wireless,usb,can,wan,hamradio,phy,dsa}
    cp "$directory"/modules.{builtin,builtin.modinfo,order} "$root/usr/lib/modules/$release/"
    # depmod needs /lib, which is a link in the root.
    ln -s usr/lib "$root/lib"
    depmod -b "$root" "$release"
    rm "$root/lib"
    pack "$root" "$1/modules.cpio"
}

# machine SECONDS [ARGUMENT…]: runs a machine without network or disk.
machine() {
    local cpu=max
    # With nested KVM a machine may lack information about flaws of the processor.
    [ "$accel" = tcg ] || cpu=host,-arch-capabilities
    timeout -k 10 "$1" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -monitor none -nic none \
        -machine "q35,accel=$accel" -cpu "$cpu" -smp 2 -m "${MEMORY:-4G}" "${@:2}" </dev/null >&2
}

# choose PLACE: uses KVM if it boots this kernel; nested KVM may not.
choose() {
    accel=${ACCEL:-tcg}
    if [ -z "${ACCEL:-}" ] && [ -w /dev/kvm ]; then
        accel=kvm
        : >"$work/start.log"
        # Without a root it ends as soon as it has started.
        machine 60 -serial "file:$work/start.log" -kernel "$1"/package/boot/vmlinuz-* -append "console=ttyS0 panic=-1" \
            2>"$work/start.err" || true
        if ! grep -q '^\[.*Linux version' "$work/start.log"; then
            echo "KVM does not boot this kernel here; using emulation" >&2
            accel=tcg
        fi
    fi
    slowness=$([ "$accel" = kvm ] && echo 1 || echo 8)
    limit=${LIMIT:-$((900 * (slowness > 1 ? 4 : 1)))}
}

# boot VERSION PLACE: runs the machine and stores its log.
boot() {
    local log=$work/$1.log
    : >"$log"
    cat "$work/root.cpio" "$2/modules.cpio" >"$2/initrd"
    machine "${BOOT_LIMIT:-$((limit * 8))}" -serial "file:$log" -kernel "$2"/package/boot/vmlinuz-* -initrd "$2/initrd" \
        -append "console=ttyS0 panic=-1 loglevel=4 rdinit=/init" || true
    rm -f "$2/initrd"
    sed -i 's/\r$//' "$log"
    grep -E '(test .* \.\.\. FAILED|^kernels: )' "$log" | grep -v ' starts$' || true
    if ! grep -qE '^kernels: Linux .* [0-9]+ passed, 0 failed$' "$log"; then
        echo "Linux $1 failed: see $log" >&2
        return 1
    fi
}

[ "$#" -gt 0 ] || set -- 5.10 6.1 6.12
for version; do suite "$version" >/dev/null; done
for version; do
    package=$(fetch "$version")
    [ -n "$package" ] || { echo "The package of Linux $version could not be fetched" >&2; exit 1; }
    build_modules "$work/$version"
done
choose "$work/$1"
build_root
outcome=0
for version; do boot "$version" "$work/$version" || outcome=1; done
exit "$outcome"
