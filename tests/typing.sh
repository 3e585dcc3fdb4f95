# Types the commands of a page in docs/ as an ordinary user with sudo; sourced after tests/debian.sh. $page is the page.
# shellcheck shell=bash disable=SC2154  # work, root, init and page are those scripts'

# In a file, because a command may run in a pipe.
typed=$work/typed
: >"$typed"

# newcomer PACKAGE: creates a user who has built the package in a directory of the sources.
newcomer() {
    inside useradd --create-home --shell /bin/bash newcomer
    echo 'newcomer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/newcomer"
    inside install -d -o newcomer /home/newcomer/portsentry
    inside install -d -o newcomer /home/newcomer/portsentry/target/debian /home/newcomer/portsentry/target/release
    cp "$1" "$root/home/newcomer/portsentry/target/debian/portsentry-nft_package.deb"
    dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/sbin/portsentry >"$root/home/newcomer/portsentry/target/release/portsentry"
    chmod 755 "$root/home/newcomer/portsentry/target/release/portsentry"
    echo "127.0.1.1 $(inside hostname)" >>"$root/etc/hosts"
}

as_user() {
    # The path of Debian's /etc/login.defs, in which an ordinary user has no /usr/sbin.
    nsenter --target "$init" --all runuser -u newcomer -- \
        env -C /home/newcomer/portsentry PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games DEBIAN_FRONTEND=noninteractive "$@"
}

# The commands in the page's blocks, one per line, with continued lines joined and without comments.
commands_of_page() {
    # shellcheck disable=SC2016  # backticks of Markdown
    sed -n '/^```sh$/,/^```$/p' "$page" | grep -v '^```' | sed -e ':a' -e '/\\$/N' -e 's/\\\n *//' -e 'ta' -e 's/  *#.*//' -e '/^$/d'
}

# Runs a command of the page, exactly as written there.
types() {
    commands_of_page | grep -qxF -- "$1" || fail "no command of $page: $1"
    printf '%s\n' "$1" >>"$typed"
    printf '$ %s\n' "$1" >&2
    as_user bash -c "$1"
}

# leaves_out COMMAND REASON: a command of the page that cannot be typed here.
leaves_out() {
    printf 'not typed: %s (%s)\n' "$1" "$2" >&2
    printf '%s\n' "$1" >>"$typed"
}

every_line_was_typed() {
    local missing
    missing=$(commands_of_page | grep -vxFf "$typed" || true)
    [ -z "$missing" ] || fail "commands of $page that were not typed: $missing"
}
