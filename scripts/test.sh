#!/usr/bin/env bash
# Runs the whole test suite, then a minute of random problems (cargo xtask fuzz). Arguments go to `cargo test`, which is all then:
# scripts/test.sh layer
#
# The GPU tests need a Vulkan and a GL adapter. On Debian and Ubuntu a software driver (Mesa) is installed for what is missing,
# with sudo where this is not root; elsewhere this says what to install. Where Chromium's SwiftShader can be had it is one more
# adapter, for it is what browsers fall back to: scripts/swiftshader.sh. The suite runs on every adapter that is found.
set -euo pipefail
cd "$(dirname "$0")/.."

has() { target/release/attn devices --json | grep -q "\"backend\":\"$1\""; }

install() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "no sudo: as root, apt-get install $*" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "installing a software driver: $*" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

command -v cc >/dev/null || { command -v apt-get >/dev/null && install build-essential; }
cargo build --release --workspace
if [ "$(uname -s)" = Linux ]; then
    packages=()
    has vulkan || packages+=(libvulkan1 mesa-vulkan-drivers)
    has gl || packages+=(libegl1 libgl1-mesa-dri)
    if [ "${#packages[@]}" -gt 0 ]; then
        if command -v apt-get >/dev/null; then
            install "${packages[@]}"
        else
            echo "No Vulkan or no GL adapter. Install Mesa's Vulkan (lavapipe) and EGL drivers, for instance" >&2
            echo "  Fedora: dnf install mesa-vulkan-drivers mesa-libEGL mesa-dri-drivers" >&2
            echo "  Arch:   pacman -S vulkan-swrast vulkan-icd-loader mesa" >&2
            echo "and run this again." >&2
            exit 1
        fi
    fi
elif ! target/release/attn devices --json | grep -q '"adapters":\[{'; then
    echo "No adapter. macOS has Metal and Windows has DX12 (WARP) by themselves; on other systems install a Vulkan driver." >&2
    exit 1
fi
if [ "$(uname -s)" = Linux ]; then
    if swiftshader=$(scripts/swiftshader.sh); then
        export VK_ADD_DRIVER_FILES="${VK_ADD_DRIVER_FILES:+$VK_ADD_DRIVER_FILES:}$swiftshader"
    fi
    if ! target/release/attn devices | grep -q SwiftShader; then
        echo "NOT TESTED on SwiftShader: it cannot be had here, or the Vulkan loader is older than 1.3.207" >&2
        [ -z "${CI:-}" ] || exit 1
    fi
fi
cargo test --release --workspace "$@"
[ $# -gt 0 ] || target/release/xtask fuzz --minutes 1 --seed "${ATTENTION_SEED:-1}"
