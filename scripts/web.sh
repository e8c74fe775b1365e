#!/usr/bin/env bash
# Builds wgpu-attention for browsers and tests it in one.
#
#   scripts/web.sh setup           install what is missing (below)
#   scripts/web.sh build           build the npm package into target/web/package
#   scripts/web.sh page            build, then assemble the demo page in target/web/demo, to be put on any web server
#   scripts/web.sh test-page       the page, then its test in headless Chromium; screenshots go to target/web/screenshots
#   scripts/web.sh test [all]      build, then test the package: in headless Chromium and in Node on Dawn, both on SwiftShader, and on the CPU
#                                  path; then test-page. `all` runs the whole generated suite everywhere, in Node on lavapipe too, and the
#                                  library's own suite
#   scripts/web.sh time            build, then time the first answer, the longest tasks of the page, and a prefill beside `attn bench`, all on
#                                  SwiftShader
#   scripts/web.sh sizes           build the smallest module and one that verifies, and hold them to 200 and 350 kB, gzip, with all JavaScript
#   scripts/web.sh library [CASES] build web/library, which has the library on the browser's WebGPU through wgpu, and run its suite with CASES
#                                  random cases of the generated suite (20)
#
# Needs Rust for wasm32-unknown-unknown: `rustup target add wasm32-unknown-unknown`, or on Debian rustc-web, which setup installs as root or
# with sudo. Further node 20, npm, and Chromium or Chrome (the variable CHROME names another). setup builds wasm-bindgen's program, of the
# version in Cargo.lock, in two to ten minutes, and has npm install a driver of browsers and Dawn. All of it is in target/web.
#
# Dawn refuses the lavapipe of Debian 12; the lab's is new enough (scripts/gpulab.sh setup). What cannot run is said, and fails where CI is
# set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

target=wasm32-unknown-unknown
out=target/web
# Browsers with WebGPU have vectors.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="-C target-feature=+simd128"
# Features of WebAssembly that those browsers have too.
features=()
for feature in simd bulk-memory bulk-memory-opt sign-ext mutable-globals nontrapping-float-to-int reference-types multivalue call-indirect-overlong; do
    features+=("--enable-$feature")
done
version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)

setup() {
    mkdir -p "$out"
    has_std $target || { echo "web.sh: no Rust for browsers here: rustup target add $target" >&2; exit 1; }
    [ "$("$out/bin/wasm-bindgen" --version 2>/dev/null)" = "wasm-bindgen $version" ] ||
        cargo install wasm-bindgen-cli --version "$version" --no-default-features --root "$out" --target-dir "$out/cli"
    command -v npm >/dev/null || { echo "web.sh: no npm here (Debian: apt-get install nodejs npm)" >&2; exit 1; }
    if ! cmp -s web/test/package-lock.json "$out/node_modules/.web-lock"; then
        cp web/test/package.json web/test/package-lock.json "$out/"
        (cd "$out" && npm ci --ignore-scripts --no-audit --no-fund >&2)
        cp web/test/package-lock.json "$out/node_modules/.web-lock"
    fi
    find_chrome || { need chromium && find_chrome; } || { echo "web.sh: no Chromium here; CHROME can name a browser" >&2; exit 1; }
}

find_chrome() {
    CHROME=${CHROME:-$(command -v chromium || command -v google-chrome || command -v chromium-browser)} && export CHROME
}

# Builds a module: name, features, folder (that of the package).
module() {
    local wasm=$out/cargo/$target/web/wgpu_attention_web.wasm folder=${3:-$out/package}
    CARGO_TARGET_DIR=$out/cargo profile=web for_target $target build -p wgpu-attention-web --features "$2"
    "$out/bin/wasm-bindgen" --target web --no-typescript --out-name "$1" --out-dir "$folder" "$wasm"
    "$out/node_modules/.bin/wasm-opt" "$folder/$1_bg.wasm" -o "$folder/$1_bg.wasm" -Os "${features[@]}" --strip-debug --strip-producers
}

build() {
    rm -rf "$out/package"
    mkdir -p "$out/package"
    module core backward,cache
    module cpu cpu
    module full backward,cache,cpu,terms,verify
    cp web/*.mjs web/*.d.ts web/package.json web/README.md LICENSE-* "$out/package/"
    sizes >&2
}

# Prints what a page downloads.
sizes() {
    local name
    for name in core cpu full; do
        printf '%s: %s bytes, gzip %s\n' "$name" "$(cat "$out/package/$name"{.js,_bg.wasm} | wc -c)" "$(cat "$out/package/$name"{.js,_bg.wasm} | gzip -9 | wc -c)"
    done
    printf 'JavaScript: gzip %s\n' "$(cat "$out"/package/*.mjs | gzip -9 | wc -c)"
}

# Holds what a page loads to a size, gzip: features, bytes.
hold() {
    module held "$1" "$out/sizes"
    local size
    size=$(cat "$out"/sizes/held{.js,_bg.wasm} "$out"/package/*.mjs | gzip -9 | wc -c)
    echo "$1, with all JavaScript: gzip $size bytes of $2"
    [ "$size" -le "$2" ]
}

time_package() {
    local driver
    driver=$(scripts/swiftshader.sh)
    cargo build --release --workspace
    cp web/test/*.mjs "$out/"
    VK_DRIVER_FILES=$driver node "$out/time.mjs" "$out/package" target/release/attn bench --backend vulkan --shape 1,8,8,512,512,64 --json
}

build_library() {
    CARGO_TARGET_DIR=$out/cargo for_target $target build -p wgpu-attention-web-library
    rm -rf "$out/www"
    "$out/bin/wasm-bindgen" --target web --out-name web --out-dir "$out/www" "$out/cargo/$target/release/wgpu_attention_web_library.wasm"
    echo '{ "type": "module" }' >"$out/www/package.json"
}

# Assembles the demo page: web/demo, the package, the gallery's terms, and site.json, which says what there is.
page() {
    rm -rf "$out/demo"
    mkdir -p "$out/demo/terms"
    cp web/demo/*.html web/demo/*.css web/demo/*.js web/demo/*.mjs "$out/demo/"
    cp examples/terms/*.wgsl "$out/demo/terms/"
    cp -r "$out/package" "$out/demo/package"
    list() { (cd "$out/demo" && find . -type f "$@" | sed 's/^\.\/\(.*\)/"\1"/' | sort | paste -sd,); }
    field() { sed -n "s/^$1 = \"\(.*\)\"$/\1/p" Cargo.toml | head -n 1; }
    local files terms
    files=$(list ! -name '*.d.ts' ! -name 'LICENSE*' ! -name package.json)
    terms=$(list -name '*.wgsl' | sed 's/terms\///g; s/\.wgsl//g')
    printf '{ "version": "%s", "repository": "%s", "terms": [%s], "files": [%s] }\n' "$(field version)" "$(field repository)" "$terms" "$files" \
        >"$out/demo/site.json"
}

test_page() {
    rm -rf "$out/page-test"
    cp -r web/demo/test "$out/page-test" # beside node_modules
    node --test web/demo/test/parsers.test.mjs && node "$out/page-test/page.mjs" "$out/demo" "$out/screenshots"
}

# Runs a program, named by what it is on; exit status 3 means that Dawn finds no adapter.
try() {
    local name=$1 status=0
    shift
    echo "== $name" >&2
    "$@" || status=$?
    case $status in
        0) ;;
        3) not_checked "$name: Dawn does not take the driver" ;;
        *) failed=1 ;;
    esac
}

# Runs a suite in Chromium, on Dawn, and on the CPU path: folder, options, further ones in Node on lavapipe, further ones on the CPU path.
everywhere() {
    local folder=$1 driver lavapipe=(node)
    cp web/test/*.mjs "$out/"
    try "Chromium, SwiftShader" node "$out/browser.mjs" "$folder" "{ \"backend\": \"webgpu\", $2 }"
    if driver=$(scripts/swiftshader.sh); then
        try "Dawn, SwiftShader" env VK_DRIVER_FILES="$driver" node "$out/node.mjs" "$folder" "{ \"backend\": \"webgpu\", $3 }"
    else
        not_checked "Dawn on SwiftShader"
    fi
    if [ -n "$4" ]; then
        if [ -e "${GPULAB_ROOT:-/var/lib/gpulab}/.ready" ] && [ "$(id -u)" = 0 ]; then
            cp "$(readlink -f "$(command -v node)")" "$out/node" # the lab has no other
            lavapipe=(scripts/gpulab.sh run lavapipe -- "$out/node")
        fi
        try "Dawn, lavapipe" "${lavapipe[@]}" "$out/node.mjs" "$folder" "{ \"backend\": \"webgpu\", \"long\": true, $4 }"
    fi
}

# Types: a small program that uses all of the package.
types() {
    cp web/test/consumer.ts "$out/package/"
    echo "== types" >&2
    (cd "$out/package" && ../node_modules/.bin/tsc --noEmit --strict --module nodenext --target es2022 --lib es2023,dom --types "" consumer.ts) || failed=1
    rm "$out/package/consumer.ts"
}

test_package() {
    local failed=0 cases='"random": 5, "filter": "nan-"'
    [ "${1:-}" = all ] && cases='"random": 20'
    cp web/test/*.mjs "$out/package/"
    cp web/test/*.mjs "$out/"
    types
    try "README" node "$out/newcomer.mjs" "$out/package" web/README.md
    try "Chromium, CPU path" node "$out/browser.mjs" "$out/package" "{ \"backend\": \"cpu\", \"random\": 20 }"
    everywhere "$out/package" '"random": 8' "$cases" "$([ "${1:-}" = all ] && echo "$cases")"
    for file in web/test/*.mjs; do rm "$out/package/$(basename "$file")"; done
    return $failed
}

test_library() {
    local failed=0 random="\"random\": ${1:-20}"
    cp web/library/test/suite.mjs "$out/www/"
    everywhere "$out/www" "$random" "$random" "$random"
    try "CPU path" node "$out/node.mjs" "$out/www" "{ \"backend\": \"cpu\", $random }"
    return $failed
}

# Not joined by &&, which would let a function go on after a command that fails.
case ${1:-} in
    setup) setup ;;
    build | page | test-page | test)
        setup
        build
        [ "$1" != test ] || test_package "${2:-}"
        [ "$1" = build ] || page
        case $1 in test*) test_page ;; esac
        if [ "$1 ${2:-}" = "test all" ]; then
            build_library
            test_library
        fi
        ;;
    time)
        setup
        build
        time_package
        ;;
    sizes)
        setup
        build
        hold plan 200000
        hold backward,cache,verify 350000
        ;;
    library)
        setup
        build_library
        test_library "${2:-}"
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac
