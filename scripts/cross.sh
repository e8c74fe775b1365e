#!/usr/bin/env bash
# Other systems from this one: what compiles for them, and what runs.
#
#   scripts/cross.sh check [TARGET..]   compiles for Windows, macOS and browsers as far as cargo check goes, or for the targets that are named
#   scripts/cross.sh all                the same for iOS and Android too, then the CPU path's tests as 64-bit ARM (NEON), under qemu
#
# Takes the standard library that rustup has of a target. Where it has none, Debian's rustc-web builds it: that is installed with what else
# is needed, with sudo where this is not root. Elsewhere this says what to install, leaves the target out, and passes, except where CI is set.
# A target takes one to two minutes on two cores the first time; target/cross keeps what was built.
set -euo pipefail
cd "$(dirname "$0")/.."

usual="x86_64-pc-windows-gnu aarch64-apple-darwin wasm32-unknown-unknown"
others="aarch64-apple-ios aarch64-linux-android"
arm=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=target/cross

# Installs packages where there is apt-get; else fails.
need() {
    dpkg -s "$@" >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null || return 1
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
    "${as_root[@]}" apt-get update -qq >&2 &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

left_out() {
    echo "NOT CHECKED: $*" >&2
    [ -z "${CI:-}" ] || exit 1
}

# cargo for a target: target, subcommand, further arguments.
for_target() {
    local target=$1 command=$2
    shift 2
    echo "== $target: cargo $command" >&2
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        cargo "$command" --release --target "$target" "$@"
    else
        RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 \
            /usr/bin/cargo "$command" --release --target "$target" -Zbuild-std "$@"
    fi
}

has_std() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ] || need rustc-web cargo-web rust-web-src
}

check() {
    local target what packages
    for target in "$@"; do
        what=(-p wgpu-attention -p wgpu-attention-cli)
        packages=()
        case $target in
            *-windows-gnu) packages=(binutils-mingw-w64-x86-64) ;; # dlltool
            *-apple-*) packages=(clang) ;;
            wasm32-*) what=(-p wgpu-attention --lib --no-default-features --features webgpu,verify) ;;
        esac
        if ! has_std "$target" || { [ ${#packages[@]} -gt 0 ] && ! need "${packages[@]}"; }; then
            left_out "$target, for which 'rustup target add $target' is enough outside of Debian"
            continue
        fi
        CC_aarch64_apple_darwin=clang AR_aarch64_apple_darwin=ar for_target "$target" check "${what[@]}"
    done
}

run_arm() {
    if ! has_std $arm || ! need gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; then
        left_out "$arm, which needs 'rustup target add $arm', a linker aarch64-linux-gnu-gcc and qemu-aarch64"
        return
    fi
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
    for_target $arm test --lib --no-default-features --features verify,gles -- cpu:: | tee target/cross/arm.txt
    grep -q 'test result: ok. [1-9]' target/cross/arm.txt # some did run
}

case ${1:-} in
    check)
        shift
        # shellcheck disable=SC2086 # a list
        [ $# -gt 0 ] || set -- $usual
        check "$@"
        ;;
    all)
        # shellcheck disable=SC2086 # lists
        check $usual $others
        run_arm
        ;;
    *)
        sed -n '2,5s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
