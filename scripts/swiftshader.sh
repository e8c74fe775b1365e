#!/usr/bin/env bash
# Prints the path of SwiftShader's Vulkan manifest: Chromium's software driver, which browsers use where there is no GPU.
#
#   VK_ADD_DRIVER_FILES=$(scripts/swiftshader.sh) attn devices      beside the installed drivers
#   VK_DRIVER_FILES=$(scripts/swiftshader.sh) attn verify           instead of them
#
# Takes that of an installed Chromium or Chrome; else, on Debian, unpacks it from the package `chromium-common` (a download of 30 MB) into
# target/swiftshader, which needs neither root nor a browser. Where there is none it says why and exits with 1.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

own=$PWD/target/swiftshader/usr/lib/chromium/vk_swiftshader_icd.json
for manifest in "$own" /usr/lib/chromium/vk_swiftshader_icd.json /usr/lib64/chromium-browser/vk_swiftshader_icd.json \
    /opt/google/chrome/vk_swiftshader_icd.json; do
    [ -e "$manifest" ] && { echo "$manifest"; exit 0; }
done

none() { echo "no SwiftShader: $*" >&2; exit 1; }
command -v apt-get >/dev/null || none "no Chromium here, and no apt-get to fetch one"
mkdir -p target/swiftshader
cd target/swiftshader
# Without lists of packages, or with old ones, there is nothing to fetch: root can renew them.
fetch() { apt-get download -qq chromium-common >&2; }
fetch || { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 && fetch; } || none "this system's packages have no chromium-common"
dpkg --fsys-tarfile chromium-common_*.deb | tar -x --wildcards './usr/lib/chromium/*swiftshader*'
rm chromium-common_*.deb
[ -e "$own" ] || none "chromium-common has none"
echo "$own"
