#!/usr/bin/env bash
# Checks what a release would publish: packs the crates, builds each from its tarball and runs the README's programs with them.
#
#   scripts/package.sh
#
# The library is checked without features and with each alone; the README's Rust is run by a crate of a temporary folder, its `attn run` by
# the program that was built. Needs python3 with numpy for that line, as the README does; without it the line is left out, except where CI is
# set. Nothing is uploaded. Five minutes on two cores, and a network or a filled cache of crates.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Dependencies are built once for all that follows.
export CARGO_TARGET_DIR=$root/target/package-check

# Of the workspace, all but xtask is published. Tests, benchmarks and examples stay in the repository, and cargo says so for each; any other
# warning fails.
cargo package --workspace --no-verify --allow-dirty 2>&1 | tee "$scratch/log"
if grep '^warning' "$scratch/log" | grep -vE 'ignoring (test|example|benchmark) '; then
    echo "cargo package warns" >&2
    exit 1
fi
for crate in wgpu-attention wgpu-attention-cli wgpu-attention-simulator; do
    mkdir "$scratch/$crate"
    tar -xzf "$CARGO_TARGET_DIR/package/$crate"-[0-9]*.crate -C "$scratch/$crate" --strip-components 1
done
cp Cargo.lock "$scratch"
cd "$scratch"

mkdir -p readme/src
cat >Cargo.toml <<EOF
[workspace]
members = ["wgpu-attention", "wgpu-attention-cli", "wgpu-attention-simulator", "readme"]
resolver = "3"

[patch.crates-io]
wgpu-attention = { path = "wgpu-attention" }
EOF
cat >readme/Cargo.toml <<EOF
[package]
name = "readme"
version = "0.0.0"
edition = "2024"

[dependencies]
wgpu-attention = "*"
EOF
echo '#![doc = include_str!("../../wgpu-attention/README.md")]' >readme/src/lib.rs

for features in "" vulkan metal dx12 gles webgpu safetensors verify; do
    cargo check --release -p wgpu-attention --lib --no-default-features --features "$features"
done
cargo test --release -p readme --doc | tee log
grep -q 'test result: ok. [1-9]' log # some did run
cargo build --release -p wgpu-attention-cli -p wgpu-attention-simulator
PATH=$CARGO_TARGET_DIR/release:$PATH
attn --version
if python3 -c 'import numpy' 2>/dev/null; then
    # The README's lines that write arrays and give them to `attn run`.
    grep -E '^(python3 -c|attn run )' wgpu-attention/README.md >commands
    [ "$(wc -l <commands)" -ge 2 ]
    bash -euxo pipefail commands
    [ -s o.npy ]
else
    not_checked "the README's attn run, because python3 has no numpy here"
fi
