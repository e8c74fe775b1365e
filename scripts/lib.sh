# Sourced by the other scripts: --help prints their first comment, and they share these functions.

# Prints the first comment of the script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

# Runs a command as root, by sudo where this is not root; sudo may ask for a password only at a terminal.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo --preserve-env "$@"
    else
        sudo --non-interactive --preserve-env "$@"
    fi
}

# Installs Debian packages that are missing; fails where there is no apt-get.
need() {
    dpkg -s "$@" >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null || return 1
    echo "installing $*" >&2
    as_root apt-get update -qq >&2 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Says that a check was left out. Fails where CI is set, because nothing may go unseen there.
not_checked() {
    echo "NOT CHECKED: $*" >&2
    [ -z "${CI:-}" ] || exit 1
}

# Runs cargo for a target: target, subcommand, further arguments; the variable profile names another than release. Debian's rustc-web, where rustup lacks the target, builds its library too.
for_target() {
    local target=$1 command=$2 std=-Zbuild-std profile=${profile:-release}
    shift 2
    case $target in wasm32-*) std=-Zbuild-std=std,panic_abort ;; esac # it links against the second, which std does not bring
    echo "== $target: cargo $command" >&2
    if rustup_has "$target"; then
        cargo "$command" --profile "$profile" --target "$target" "$@"
    else
        # Debian's compiler finds no linker for WebAssembly; rustup's brings one.
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$(rustc --print target-libdir)/../bin/rust-lld" \
            RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 \
            /usr/bin/cargo "$command" --profile "$profile" --target "$target" "$std" "$@"
    fi
}

rustup_has() { [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]; }

# True if a target's standard library is there, or could be installed.
has_std() { rustup_has "$1" || need rustc-web cargo-web rust-web-src; }
