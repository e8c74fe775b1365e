#!/usr/bin/env bash
# Gives the generic kernels to vkd3d's HLSL compiler, which stands in for DX12's FXC: fails where it refuses one or takes over 10 seconds.
#
#   scripts/hlsl.sh [OPTION..]      scripts/hlsl.sh --only decode; cargo xtask hlsl --help lists them
#
# The compiler is the lab's, because older ones know too little HLSL (scripts/gpulab.sh: a minute, root, Debian and a network). Where there is no
# lab and it cannot be created this says so and passes, except where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

cargo build --release --workspace
setup() { as_root scripts/gpulab.sh setup; }
if ! { { setup || setup; } && as_root scripts/gpulab.sh run lavapipe -- vkd3d-compiler --version; }; then
    not_checked "how long DX12's compiler takes, because there is no lab here"
    exit
fi
as_root scripts/gpulab.sh run lavapipe -- target/release/xtask hlsl "$@"
