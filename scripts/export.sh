#!/usr/bin/env bash
# Checks exported plans (docs/export.md): runs them on Dawn by web/run-plan.mjs, compares the answers with the oracle, and changes some on purpose,
# which must be noticed. Then runs the examples for other hosts: examples/web in headless Chromium, examples/python with wgpu-py.
#
#   scripts/export.sh                   one problem for each kernel, storage type and kind of problem
#   scripts/export.sh --only varlen     problems with a text in their names
#   scripts/export.sh --all             every problem
#
# Needs node 20 and npm, and the network once. Uses the software drivers SwiftShader (scripts/swiftshader.sh) and lavapipe (Mesa 23 or newer, for
# Dawn), each where it is found. Says what it left out, and fails for it where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}

folder=target/export
mkdir -p $folder
lavapipe=$(ls /usr/share/vulkan/icd.d/lvp_icd*.json 2>/dev/null | head -1 || true)
swiftshader=$(scripts/swiftshader.sh || true)

# Installs Dawn and a driver of browsers from scripts/export/package-lock.json.
install_node() {
    command -v npm >/dev/null || { not_checked "Dawn, because there is no npm here (Debian: apt-get install nodejs npm)"; return 1; }
    cmp -s scripts/export/package-lock.json $folder/node_modules/.export-lock && return
    cp scripts/export/package.json scripts/export/package-lock.json $folder/
    (cd $folder && npm ci --ignore-scripts --no-audit --no-fund >&2) || { not_checked "Dawn, which npm could not install"; return 1; }
    cp scripts/export/package-lock.json $folder/node_modules/.export-lock
}

cargo build --release -q --workspace
failed=0
if install_node; then
    cp scripts/export/*.mjs $folder/
    checked=0
    for driver in $swiftshader $lavapipe; do
        export VK_DRIVER_FILES=$driver
        node $folder/dawn.mjs </dev/null >/dev/null 2>&1 || { echo "left out: $driver, which Dawn does not take"; continue; }
        checked=$((checked + 1))
        target/release/xtask export --host $folder/dawn.mjs "$@" || failed=1
    done
    [ $checked -gt 0 ] || not_checked "exported plans, because Dawn found no driver"
    if command -v chromium >/dev/null; then
        node $folder/page.mjs || failed=1
    else
        not_checked "examples/web, because there is no Chromium here (Debian: apt-get install chromium)"
    fi
fi

# Python has no package of its own here: a virtual environment under target.
python=$folder/python/bin/python
if [ -x $python ] || { python3 -m venv $folder/python && $folder/python/bin/pip install -q -r examples/python/requirements.txt; }; then
    target/release/attn export --shape 2,8,2,100,300,64 --causal --lse --json 2>/dev/null >$folder/python-plan.json
    VK_DRIVER_FILES=${lavapipe:-$swiftshader} $python examples/python/run_plan.py $folder/python-plan.json || failed=1
else
    not_checked "examples/python, because pip could not install wgpu-py"
fi
exit $failed
