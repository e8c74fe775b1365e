#!/usr/bin/env bash
# Runs the whole test suite, then random problems for a minute (cargo xtask fuzz).
#
#   scripts/test.sh                       everything
#   scripts/test.sh ARGUMENT..            only `cargo test` with the arguments
#   scripts/test.sh layer                 tests with `layer` in their names
#   scripts/test.sh --test it decode::    one module of tests/it
#
# The tests run on every adapter found. They need a Vulkan and a GL adapter: on Debian and Ubuntu Mesa's software drivers are installed
# for what is missing, with sudo unless run as root; elsewhere this says what to install. SwiftShader, which browsers fall back to, is one
# more adapter where scripts/swiftshader.sh finds it.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

has() { target/release/attn devices --json | grep -q "\"backend\":\"$1\""; }

command -v cc >/dev/null || need build-essential
cargo build --release --workspace
if [ "$(uname -s)" = Linux ]; then
    packages=()
    has vulkan || packages+=(libvulkan1 mesa-vulkan-drivers)
    has gl || packages+=(libegl1 libgl1-mesa-dri)
    if [ "${#packages[@]}" -gt 0 ] && ! need "${packages[@]}"; then
        echo "No Vulkan or no GL adapter. Install Mesa's Vulkan (lavapipe) and EGL drivers, for instance" >&2
        echo "  Fedora: dnf install mesa-vulkan-drivers mesa-libEGL mesa-dri-drivers" >&2
        echo "  Arch:   pacman -S vulkan-swrast vulkan-icd-loader mesa" >&2
        echo "and run this again." >&2
        exit 1
    fi
    if swiftshader=$(scripts/swiftshader.sh); then
        export VK_ADD_DRIVER_FILES="${VK_ADD_DRIVER_FILES:+$VK_ADD_DRIVER_FILES:}$swiftshader"
    fi
    target/release/attn devices | grep -q SwiftShader ||
        not_checked "SwiftShader: it is not available here, or the Vulkan loader is older than 1.3.207"
elif ! target/release/attn devices --json | grep -q '"adapters":\[{'; then
    echo "No adapter. macOS has Metal and Windows has DX12 (WARP) by themselves; on other systems install a Vulkan driver." >&2
    exit 1
fi
cargo test --release --workspace "$@"
[ $# -gt 0 ] || target/release/xtask fuzz --minutes 1 --seed "${ATTENTION_SEED:-1}"
