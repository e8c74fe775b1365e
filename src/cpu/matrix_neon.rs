//! Matrix products by the bf16 matrix instruction of 64-bit ARM, BFMMLA: 2 x 4 elements times 4 x 2.
#![cfg(target_arch = "aarch64")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::matrix_block::{BlockOfC, KEEP, LANES, PAIRS, ROWS, TILE};

/// True if the machine has BFMMLA.
pub(super) fn has_products() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

/// Two rows, and two lanes, of the pieces of c that stay in registers.
const ROW_PAIRS: usize = 4;
const LANE_PAIRS: usize = 4;

/// Computes a block of c.
///
/// # Safety
/// The block is valid and has a step, and the machine has BFMMLA.
pub(super) unsafe fn products(block: BlockOfC<'_>) {
    for row in (0..ROWS).step_by(2 * ROW_PAIRS) {
        for lane in (0..if block.is_wide { 2 * LANES } else { LANES }).step_by(2 * LANE_PAIRS) {
            // SAFETY: passed on from the caller; the piece is inside the block.
            unsafe { piece(&block, row, lane) };
        }
    }
}

/// Computes the piece of c that begins at a row and a lane.
#[inline]
#[target_feature(enable = "neon")]
#[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
unsafe fn piece(block: &BlockOfC<'_>, row: usize, lane: usize) {
    // SAFETY: inside the tiles and rows of a valid block.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); LANE_PAIRS]; ROW_PAIRS];
        let (mut a, mut b) = (block.a, block.b);
        for &[of_a, of_b] in block.steps {
            if of_a != KEEP {
                a = block.a.add(of_a as usize + row * block.a_step);
            }
            if of_b != KEEP {
                // The second group of lanes is the next tile.
                b = block.b.add(of_b as usize + lane / LANES * TILE + lane % LANES);
            }
            // Two pairs of elements at a time.
            for pair in (0..PAIRS).step_by(2) {
                let of_row = |row: usize| vld1_u32(a.add(row * block.a_step + pair).cast());
                let of_lanes = |pair: usize, lane: usize| vld1q_u32(b.add(pair * LANES + lane).cast());
                let mut factors = [vdupq_n_u32(0); LANE_PAIRS];
                for two in 0..LANE_PAIRS / 2 {
                    let (first, second) = (of_lanes(pair, 4 * two), of_lanes(pair + 1, 4 * two));
                    factors[2 * two] = vzip1q_u32(first, second);
                    factors[2 * two + 1] = vzip2q_u32(first, second);
                }
                for r in 0..ROW_PAIRS {
                    let rows = vcombine_u32(of_row(2 * r), of_row(2 * r + 1));
                    for l in 0..LANE_PAIRS {
                        sums[r][l] = multiply_add(sums[r][l], rows, factors[l]);
                    }
                }
            }
        }
        for r in 0..ROW_PAIRS {
            for l in (0..LANE_PAIRS).step_by(2) {
                let [first, second] = [sums[r][l], sums[r][l + 1]];
                let both =
                    [vcombine_f32(vget_low_f32(first), vget_low_f32(second)), vcombine_f32(vget_high_f32(first), vget_high_f32(second))];
                for (below, sum) in both.into_iter().enumerate() {
                    let at = block.c.add((row + 2 * r + below) * block.c_step + lane + 2 * l);
                    vst1q_f32(at, if block.adds { vaddq_f32(sum, vld1q_f32(at)) } else { sum });
                }
            }
        }
    }
}

/// Adds the products of two rows and two lanes, of four elements each: row 0 lane 0, row 0 lane 1, row 1 lane 0, row 1 lane 1.
///
/// # Safety
/// The machine has BFMMLA.
#[inline(always)]
unsafe fn multiply_add(mut sum: float32x4_t, rows: uint32x4_t, lanes: uint32x4_t) -> float32x4_t {
    // SAFETY: reads and writes the named registers alone; the machine has the instruction by contract.
    unsafe {
        asm!(".arch_extension bf16", "bfmmla {sum:v}.4s, {rows:v}.8h, {lanes:v}.8h", sum = inout(vreg) sum, rows = in(vreg) rows,
            lanes = in(vreg) lanes, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
