#!/usr/bin/env bash
# Measures the GPU of this machine: builds attn, then runs `attn measure`, which verifies, tunes and times the GPU in at most ten minutes and
# writes one folder under benches/record.
#
#   scripts/measure-gpu.sh                    the default GPU
#   scripts/measure-gpu.sh --backend nvidia   one GPU of several: part of its name
#   scripts/measure-gpu.sh --minutes 5        further arguments are those of `attn measure`
#   scripts/measure-gpu.sh --offline ..       with the attn in target/release as it is: no network, no compiler
#
# Linux and macOS; on Windows run scripts/measure-gpu.ps1. Needs Rust (https://rustup.rs) unless --offline, and the GPU's driver: Vulkan on
# Linux (Debian: libvulkan1 with nvidia-driver or mesa-vulkan-drivers), nothing on macOS.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

if [ "${1:-}" = --offline ]; then
    shift
    [ -x target/release/attn ] || { echo "measure-gpu.sh: no target/release/attn: build it where there is a compiler (cargo build --release -p wgpu-attention-cli), and copy it here" >&2; exit 1; }
else
    command -v cargo >/dev/null || { echo "measure-gpu.sh: no cargo here: install Rust from https://rustup.rs, or run with --offline beside a built target/release/attn" >&2; exit 1; }
    cargo build --release -p wgpu-attention-cli
fi
exec target/release/attn measure "$@"
