#!/usr/bin/env bash
# Checks that every kernel is standard WGSL: Tint, the compiler of Chrome and Edge, compiles it, and any message fails.
#
#   scripts/tint.sh
#
# Needs node 20 and npm, and the network once: Dawn for Node (npm's `webgpu`, pinned in scripts/tint) is installed into target/tint.
# No GPU and no driver. Where it cannot be installed this says so and passes, except where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

left_out() {
    not_checked "whether browsers accept the kernels, because $*"
    exit
}

command -v npm >/dev/null || left_out "there is no npm here (Debian: apt-get install nodejs npm)"
mkdir -p target/tint
if ! cmp -s scripts/tint/package-lock.json target/tint/node_modules/.tint-lock; then
    cp scripts/tint/package.json scripts/tint/package-lock.json target/tint/
    (cd target/tint && npm ci --ignore-scripts --no-audit --no-fund >&2) || left_out "npm could not install Dawn"
    cp scripts/tint/package-lock.json target/tint/node_modules/.tint-lock
fi
cp scripts/tint/check.mjs target/tint/
rm -rf target/tint/kernels
cargo build --release -q --workspace
target/release/xtask wgsl --out target/tint/kernels
node target/tint/check.mjs target/tint/kernels
