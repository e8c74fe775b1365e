#!/usr/bin/env bash
# Draws the pictures of docs/gallery.md anew, by the commands that it shows, and writes what they print into the page.
# Without this, the test that it runs only compares.
#
#   scripts/gallery.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

WRITE_GALLERY=1 cargo test --release -p wgpu-attention-cli --test gallery the_page
git --no-pager diff --stat -- docs/gallery docs/gallery.md
