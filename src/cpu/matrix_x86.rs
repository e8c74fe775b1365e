//! Matrix products by AMX tiles and by AVX512-BF16 dot products. See `matrix_twin.rs` for what a tile computes.
#![cfg(target_arch = "x86_64")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::matrix_block::{BlockOfC, KEEP, LANES, PAIRS, ROWS, TILE};

/// Configuration of the tiles: all eight have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures the tiles of this thread.
pub(super) fn configure() {
    // SAFETY: reads the configuration, which is 64 bytes; the machine has tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
}

/// Puts the tiles of this thread back into their initial state, so that switches between threads need not save them.
pub(super) fn release() {
    // SAFETY: the machine has tiles; nothing else keeps data in them.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            out("tmm6") _, out("tmm7") _, options(nostack, nomem));
    }
}

/// True if the machine has AMX tiles with bf16, and the system lets this process use them.
pub(super) fn has_tiles() -> bool {
    static HAS_TILES: OnceLock<bool> = OnceLock::new();
    *HAS_TILES.get_or_init(|| {
        const OSXSAVE: u32 = 1 << 27;
        const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
        const TILE_STATE: u64 = 1 << 17 | 1 << 18;
        #[allow(unused_unsafe, reason = "the intrinsic has become safe after the oldest Rust that this crate supports")]
        // SAFETY: a processor with AVX-512 has this instruction.
        let leaf = |leaf| unsafe { __cpuid_count(leaf, 0) };
        if !is_x86_feature_detected!("avx512f") || leaf(1).ecx & OSXSAVE == 0 || leaf(7).edx & TILE_AND_BF16 != TILE_AND_BF16 {
            return false;
        }
        let (low, high): (u32, u32);
        // SAFETY: the system has enabled XGETBV, which OSXSAVE says.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
        (u64::from(high) << 32 | u64::from(low)) & TILE_STATE == TILE_STATE && is_permitted()
    })
}

/// Asks Linux to let the threads of this process use tiles. Other systems are not supported.
fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: u64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: this system call reads and writes no memory of the process.
        unsafe {
            asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA, out("rcx") _,
                out("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Computes a block of c by tiles: 0 to 3 are its own, 4 and 5 those of a, 6 and 7 of b.
///
/// # Safety
/// The block is valid and has a step, the first one without [`KEEP`]; the machine has tiles, and they are configured.
#[inline(always)]
pub(super) unsafe fn tiles(block: BlockOfC<'_>) {
    // The literals are the lines of the second group of lanes.
    macro_rules! compute {
        ($start:literal, $load:literal, $multiply:literal, $store:literal, $store_more:literal) => {
            asm!(
                $start,
                "2:",
                "mov {x:e}, dword ptr [{steps}]",
                "cmp {x:e}, -1",
                "je 3f",
                "lea {x}, [{a} + 4 * {x}]",
                "tileloadd tmm4, [{x} + {a_step} * 1]",
                "add {x}, {a_rows}",
                "tileloadd tmm5, [{x} + {a_step} * 1]",
                "3:",
                "mov {x:e}, dword ptr [{steps} + 4]",
                "cmp {x:e}, -1",
                "je 4f",
                "lea {x}, [{b} + 4 * {x}]",
                "tileloadd tmm6, [{x} + {b_step} * 1]",
                $load,
                "4:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                $multiply,
                "add {steps}, 8",
                "cmp {steps}, {end}",
                "jne 2b",
                "tilestored [{c} + {c_step} * 1], tmm0",
                $store,
                "add {c}, {c_rows}",
                "tilestored [{c} + {c_step} * 1], tmm2",
                $store_more,
                x = out(reg) _,
                steps = inout(reg) block.steps.as_ptr_range().start => _,
                end = in(reg) block.steps.as_ptr_range().end,
                a = in(reg) block.a,
                a_step = in(reg) 4 * block.a_step,
                a_rows = in(reg) 4 * 16 * block.a_step,
                b = in(reg) block.b,
                b_step = in(reg) 4 * LANES,
                c = inout(reg) block.c => _,
                c_step = in(reg) 4 * block.c_step,
                c_rows = in(reg) 4 * 16 * block.c_step,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    macro_rules! wide {
        ($start:literal) => {
            compute!(
                $start,
                "tileloadd tmm7, [{x} + {b_step} * 1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7",
                "tilestored [{c} + {c_step} * 1 + 64], tmm1",
                "tilestored [{c} + {c_step} * 1 + 64], tmm3"
            )
        };
    }
    // SAFETY: the text reads the block's steps, the tiles that they name and the block of c, and writes the latter; all of them are
    // valid by contract. It changes only the registers that are named.
    unsafe {
        match (block.is_wide, block.adds) {
            (true, false) => wide!("tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3"),
            (true, true) => wide!(
                "tileloadd tmm0, [{c} + {c_step} * 1]\ntileloadd tmm1, [{c} + {c_step} * 1 + 64]\nlea {x}, [{c} + {c_rows}]\n\
                 tileloadd tmm2, [{x} + {c_step} * 1]\ntileloadd tmm3, [{x} + {c_step} * 1 + 64]"
            ),
            (false, false) => compute!("tilezero tmm0\ntilezero tmm2", "", "", "", ""),
            (false, true) => compute!(
                "tileloadd tmm0, [{c} + {c_step} * 1]\nlea {x}, [{c} + {c_rows}]\ntileloadd tmm2, [{x} + {c_step} * 1]",
                "",
                "",
                "",
                ""
            ),
        }
    }
}

/// True if the machine has AVX512-BF16.
pub(super) fn has_dots() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Computes a block of c by dot products of pairs.
///
/// # Safety
/// The block is valid and has a step, and the machine has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn dots(block: BlockOfC<'_>) {
    // SAFETY: passed on from the caller.
    unsafe { if block.is_wide { dots_of::<2>(block) } else { dots_of::<1>(block) } }
}

/// Rows of c at a time, whose accumulators stay in registers.
const DOT_ROWS: usize = 8;

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
unsafe fn dots_of<const N: usize>(block: BlockOfC<'_>) {
    // SAFETY: inside the tiles and rows of a valid block. Vectors of pairs and of 16 words are the same 64 bytes.
    unsafe {
        for first in (0..ROWS).step_by(DOT_ROWS) {
            let mut sum = [[_mm512_setzero_ps(); N]; DOT_ROWS];
            let (mut a, mut b) = (block.a, block.b);
            for &[of_a, of_b] in block.steps {
                if of_a != KEEP {
                    a = block.a.add(of_a as usize + first * block.a_step);
                }
                if of_b != KEEP {
                    b = block.b.add(of_b as usize);
                }
                for pair in 0..PAIRS {
                    let mut lanes = [_mm512_setzero_si512(); N];
                    for v in 0..N {
                        lanes[v] = _mm512_loadu_si512(b.add(v * TILE + pair * LANES).cast());
                    }
                    for row in 0..DOT_ROWS {
                        let x = _mm512_set1_epi32(a.add(row * block.a_step + pair).cast::<i32>().read());
                        for v in 0..N {
                            sum[row][v] = _mm512_dpbf16_ps(sum[row][v], of(x), of(lanes[v]));
                        }
                    }
                }
            }
            for row in 0..DOT_ROWS {
                for v in 0..N {
                    let at = block.c.add((first + row) * block.c_step + v * LANES);
                    if block.adds {
                        sum[row][v] = _mm512_add_ps(sum[row][v], _mm512_loadu_ps(at));
                    }
                    _mm512_storeu_ps(at, sum[row][v]);
                }
            }
        }
    }
}

/// The pairs of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn of(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(words) }
}
