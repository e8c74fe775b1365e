#!/usr/bin/env bash
# Compiles for other systems, as far as cargo check goes, and runs the CPU path's tests on 64-bit ARM.
#
#   scripts/cross.sh check [TARGET..]   Windows, macOS and browsers, or the named targets
#   scripts/cross.sh all                iOS and Android too, then the tests as 64-bit ARM (NEON), under qemu
#
# Takes rustup's standard library of a target. Where rustup has none, Debian's rustc-web builds it: that is installed with what else is
# needed, with sudo unless run as root. Elsewhere this says what to install, leaves the target out, and passes, except where CI is set.
# A target takes one to two minutes on two cores the first time; target/cross keeps what was built.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

usual="x86_64-pc-windows-gnu aarch64-apple-darwin wasm32-unknown-unknown"
others="aarch64-apple-ios aarch64-linux-android"
arm=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=target/cross

check() {
    local target what packages
    for target in "$@"; do
        what=(-p wgpu-attention -p wgpu-attention-cli)
        packages=()
        case $target in
            *-windows-gnu) packages=(binutils-mingw-w64-x86-64) ;; # dlltool
            *-apple-*) packages=(clang) ;;
            wasm32-*) what=(-p wgpu-attention --lib --features verify) ;;
        esac
        if ! has_std "$target" || { [ ${#packages[@]} -gt 0 ] && ! need "${packages[@]}"; }; then
            not_checked "$target, for which 'rustup target add $target' is enough outside of Debian"
            continue
        fi
        CC_aarch64_apple_darwin=clang AR_aarch64_apple_darwin=ar for_target "$target" check "${what[@]}"
    done
}

run_arm() {
    if ! has_std $arm || ! need gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; then
        not_checked "$arm, which needs 'rustup target add $arm', a linker aarch64-linux-gnu-gcc and qemu-aarch64"
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
        usage >&2
        exit 2
        ;;
esac
