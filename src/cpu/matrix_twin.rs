//! Scalar twin of the matrix tiles, in the order and rounding that Intel documents for TDPBF16PS: within a tile, the even and
//! the odd elements of the pairs are two chains of fused multiply-adds from 0, whose sum is added to c. Subnormal numbers
//! count as 0, and subnormal results are flushed.

use super::matrix_block::{BlockOfC, KEEP, LANES, PAIRS, ROWS};

/// # Safety
/// The block is valid.
pub(super) unsafe fn compute(block: BlockOfC<'_>) {
    let lanes = if block.is_wide { 2 * LANES } else { LANES };
    for row in 0..ROWS {
        for lane in 0..lanes {
            // SAFETY: inside a valid block.
            let of_c = unsafe { &mut *block.c.add(row * block.c_step + lane) };
            let (mut c, mut last) = (if block.adds { flush(*of_c) } else { 0.0 }, [0; 2]);
            for step in block.steps {
                last = [0, 1].map(|operand: usize| if step[operand] == KEEP { last[operand] } else { step[operand] as usize });
                // The second group of lanes is the next tile.
                let (of_a, of_b) = (last[0], last[1] + lane / LANES * PAIRS * LANES + lane % LANES);
                let mut chains = [0.0; 2];
                for pair in 0..PAIRS {
                    // SAFETY: inside a tile of a valid block.
                    let [a, b] =
                        unsafe { [*block.a.add(of_a + row * block.a_step + pair), *block.b.add(of_b + pair * LANES)].map(f32::to_bits) };
                    for (chain, shift) in chains.iter_mut().zip([16, 0]) {
                        *chain = multiply_add([a, b].map(|pair| f32::from_bits(pair << shift & 0xffff_0000)), *chain);
                    }
                }
                c = flush(c + flush(chains[0] + chains[1]));
            }
            *of_c = c;
        }
    }
}

/// `a * b + c` with one rounding. The product of two bf16 is exact in f64; so is the sum, unless c is too far from the
/// product for it to come near a tie between two f32.
fn multiply_add([a, b]: [f32; 2], c: f32) -> f32 {
    flush((f64::from(flush(a)) * f64::from(flush(b)) + f64::from(c)) as f32)
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 * x } else { x }
}
