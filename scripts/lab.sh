#!/usr/bin/env bash
# Compares what compilers for GPUs that are not here make of the kernels with benches/record/lab.tsv: fails on new spills.
#
#   scripts/lab.sh [TARGET..]       scripts/lab.sh navi31 nv172; `scripts/gpulab.sh targets` lists them
#
# Creates the lab where there is none (scripts/gpulab.sh: a minute, root, Debian and a network). Where it cannot be created this says so and
# passes, except where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

cargo build --release --workspace
# `true` inside: the lab is there and lets us in. A mirror in the middle of an update fails once.
setup() { as_root scripts/gpulab.sh setup; }
if ! { { setup || setup; } && as_root scripts/gpulab.sh run lavapipe -- true; }; then
    not_checked "new spills on ${*:-any target}, because there is no lab here"
    exit
fi
as_root target/release/xtask lab --compare "$@"
