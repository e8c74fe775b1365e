#!/usr/bin/env bash
# Compares what the compilers of GPUs that are not here make of the kernels with benches/record/lab.tsv: fails on new spills.
# Arguments are targets: scripts/lab.sh navi31 nv172
#
# Makes the lab where there is none (scripts/gpulab.sh: a minute, root, Debian and a network). Where it cannot be made this says so and
# passes, except where CI is set: there nothing may go unseen.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive --preserve-env)
lab() { "${as_root[@]}" scripts/gpulab.sh "$@"; }

cargo build --release --workspace
# `true` inside: that it is there and lets us in. A mirror in the middle of an update fails once.
if ! { { lab setup || lab setup; } && lab run lavapipe -- true; }; then
    echo "NOT COMPARED: there is no lab here, so nobody looked for new spills on ${*:-any target}" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi
"${as_root[@]}" target/release/xtask lab --compare "$@"
