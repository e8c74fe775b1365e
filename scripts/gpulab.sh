#!/usr/bin/env bash
# Runs a program against Mesa's newest drivers, real or virtual, on a Debian machine that has no GPU. Needs root and Debian.
#
#   scripts/gpulab.sh setup                      create the lab once (a minute): a small tree of Debian "sid" with the newest Mesa
#   scripts/gpulab.sh targets                    list the targets
#   scripts/gpulab.sh run TARGET -- CMD ARG...   run a program built on this machine against that target
#
# The software target `lavapipe` computes (and has cooperative matrices, 8x8 f16): it shows whether a kernel is right. The others are virtual
# GPUs: Mesa's AMD, NVIDIA, Apple and Adreno compilers run and report registers, spills, occupancy and cycles, but a dispatch computes
# nothing and leaves buffers as they were.
#
# The current folder is visible inside at the same path, so a test binary finds its data. As a cargo runner:
#   export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$PWD/scripts/gpulab.sh run lavapipe --"
# The tree is in GPULAB_ROOT, /var/lib/gpulab where that is not set; GPULAB_SUITE names another release of Debian. (Mesa 26.2 of "sid"
# opens NVIDIA chips from Ada on, 26.1 does not.)
set -euo pipefail
source "$(dirname "$0")/lib.sh"
root=${GPULAB_ROOT:-/var/lib/gpulab}
targets="lavapipe navi21 navi31 gfx1201 nv162 nv172 nv192 nv1b2 m1 adreno740"

die() { echo "gpulab: $*" >&2; exit 2; }

setup() {
    [ -e "$root/.ready" ] && [ -e "$root/usr/bin/vkd3d-compiler" ] && return 0
    [ "$(id -u)" = 0 ] || die "setup needs root"
    command -v apt-get >/dev/null || die "setup needs Debian or one of its children: there is no apt-get"
    command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; }
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk '$2 !~ /security|updates|backports/ && $1 ~ /debian\/?$/ && !found++ {print $1}')
    log=${TMPDIR:-/tmp}/gpulab-setup.log
    rm -rf "$root"
    # shellcheck disable=SC2086 # no mirror, no argument
    debootstrap --variant=minbase \
        --include=mesa-vulkan-drivers,mesa-drm-shim,libvulkan1,vulkan-tools,libegl1,libgl1-mesa-dri,spirv-tools,spirv-cross,glslang-tools,vkd3d-compiler,ca-certificates \
        "${GPULAB_SUITE:-sid}" "$root" $mirror >"$log" 2>&1 || die "debootstrap failed, see $log"
    touch "$root/.ready"
}

run() {
    [ -e "$root/.ready" ] || die "no lab in $root yet: run 'scripts/gpulab.sh setup' once, which needs root and Debian"
    [ "$(id -u)" = 0 ] || die "running in the lab needs root (it mounts and changes its root)"
    target=$1
    shift
    [ "${1:-}" = -- ] && shift
    case $PWD in / | /usr | /usr/* | /etc* | /lib* | /bin* | /var/lib*) die "run it in the project's folder, not in $PWD" ;; esac
    extra=
    case $1 in /*) [ -e "$1" ] && extra=$(dirname "$1") ;; esac
    case $extra in /usr/* | /bin*) extra= ;; esac # cargo hands over an absolute path
    export WGPU_BACKEND="${WGPU_BACKEND:-vulkan}" XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"
    case $target in
        lavapipe) icd=lvp shim= chip= ;;
        navi21 | navi31 | gfx1201) icd=radeon shim=amdgpu chip=AMDGPU_GPU_ID="$target" ;;
        nv*) icd=nouveau shim=nouveau chip=NOUVEAU_CHIPSET="${target#nv}" ;;
        m1) icd=asahi shim=asahi chip= ;;
        adreno*) icd=freedreno shim=freedreno chip=FD_GPU_ID="${target#adreno}" ;;
        *) die "no target '$target' (one of: $targets)" ;;
    esac
    set -- env VK_DRIVER_FILES=/usr/share/vulkan/icd.d/${icd}_icd.json ${chip:+"$chip"} ${shim:+MESA_SHADER_CACHE_DISABLE=1} \
        ${shim:+LD_PRELOAD=/usr/lib/x86_64-linux-gnu/lib${shim}_noop_drm_shim.so} "$@"
    # A private mount namespace, so that nothing stays mounted: the current folder, and the program's own, appear inside at the same path.
    export GPULAB_DIR="$PWD" GPULAB_TREE="$root" GPULAB_EXTRA="$extra"
    exec unshare -m sh -c '
        for d in "$GPULAB_DIR" ${GPULAB_EXTRA:+"$GPULAB_EXTRA"}; do mkdir -p "$GPULAB_TREE$d"; mount --bind "$d" "$GPULAB_TREE$d"; done
        for d in dev proc sys; do mount --rbind "/$d" "$GPULAB_TREE/$d"; done
        exec chroot "$GPULAB_TREE" sh -c '"'"'cd "$GPULAB_DIR" && exec "$@"'"'"' sh "$@"' sh "$@"
}

case ${1:-} in
    setup) setup ;;
    targets) echo "$targets" ;;
    run)
        shift
        [ $# -ge 2 ] || die "usage: scripts/gpulab.sh run TARGET -- CMD ARG..."
        run "$@"
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac
