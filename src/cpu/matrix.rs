//! Matrix products of bf16 operands, accumulated in f32, by matrix tiles, by dot products of pairs, or by a twin of the tiles.
//!
//! An operand of more precision is the sum of several bf16 matrices, its *parts*: f16 of two, f32 of three, because a bf16
//! has 8 significant bits. Each part is what the parts before it leave, rounded to the nearest bf16. The product of two operands
//! is the sum of the products of their parts; those whose part numbers, counted from 0, add up to 3 or more are left out: at
//! most 2^-24 of the product of two f32.
//!
//! Layouts, in words of two bf16:
//! - a is [part][row][pair], rows padded to [`ROWS`], with pairs of consecutive columns;
//! - b is [part][chunk][group of lanes][pair][lane]: [`PAIRS`] pairs of consecutive rows, [`LANES`] lanes. One chunk of one
//!   group is a tile, 1 KiB.
//!
//! Matrix instructions treat subnormal numbers as 0, and flush subnormal results. Therefore operands are used here only if
//! each element is 0 or in [`SMALLEST`]..[`LARGEST`]; no sum of their products overflows, and what is flushed is below 2^-126.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::kernel::SimdKernel;
use super::matrix_block::MOST_PARTS;
pub(super) use super::matrix_block::{BlockOfC, Engine, KEEP, LANES, PAIRS, ROWS, Step, TILE};
use super::product::Start;
use super::simd::Simd;

/// Smallest magnitude of an operand's elements, other than 0: 2^-60.
pub(super) const SMALLEST: f32 = f32::from_bits((127 - 60) << 23);
/// Limit on the magnitude of an operand's elements: 2^60.
pub(super) const LARGEST: f32 = f32::from_bits((127 + 60) << 23);

/// Rows of a, as parts.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    /// [part][row][pair] or [part][chunk][group][pair][lane].
    pub(super) words: &'a [f32],
    pub(super) count: usize,
    /// Words between two parts.
    pub(super) step: usize,
}

/// Matrix a of a product, packed on a thread whose engine is ready.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<'a> {
    pub(super) engine: &'a Configured,
    pub(super) parts: Parts<'a>,
    /// Words between two rows.
    pub(super) step: usize,
}

impl PackedRows<'_> {
    /// Number of words for `rows` rows of `columns` elements.
    pub(super) fn words(parts: usize, rows: usize, columns: usize) -> usize {
        parts * rows.next_multiple_of(ROWS) * words_of_row(columns)
    }

    /// Returns the matrix without its first words in each row or part.
    pub(super) fn from(self, word: usize) -> Self {
        Self { parts: Parts { words: &self.parts.words[word..], ..self.parts }, ..self }
    }
}

/// Words of a row of a with `columns` elements.
pub(super) fn words_of_row(columns: usize) -> usize {
    columns.div_ceil(2 * PAIRS) * PAIRS
}

/// `c[m][lane] = start + sum over k of a[m][k] * b[k][lane]` for lane < width.
pub(super) struct MatrixProduct<'a> {
    pub(super) a: PackedRows<'a>,
    pub(super) b: Parts<'a>,
    /// Number of chunks of [`PAIRS`] pairs.
    pub(super) chunks: usize,
    /// Rows of c, a multiple of [`ROWS`].
    pub(super) rows: usize,
    /// Lanes of c, a multiple of [`LANES`], and the step between its rows.
    pub(super) width: usize,
    pub(super) c: &'a mut [f32],
    pub(super) start: Start<'a>,
}

/// Most steps that are summed in one chain of tiles.
const MOST_STEPS: usize = 96;

impl SimdKernel for MatrixProduct<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { a: PackedRows { parts: a, step: a_step, .. }, b, rows, width, chunks, .. } = self;
        let groups = width / LANES;
        assert!(rows > 0 && rows.is_multiple_of(ROWS) && groups > 0 && width.is_multiple_of(LANES));
        assert!(chunks > 0 && a.count > 0 && a.words.len() >= (a.count - 1) * a.step + (rows - 1) * a_step + chunks * PAIRS);
        assert!(b.count > 0 && b.words.len() >= (b.count - 1) * b.step + chunks * groups * TILE);
        assert!(self.c.len() >= rows * width);
        assert!(!matches!(self.start, Start::Scaled(alpha) if alpha.len() < width));
        let c = self.c.as_mut_ptr();
        let mut all = [[0, 0]; MOST_STEPS];
        let at_once = (MOST_STEPS / terms(a.count, b.count).count()).min(chunks);
        for first in (0..chunks).step_by(at_once) {
            let (mut len, mut last) = (0, [KEEP; 2]);
            for chunk in first..chunks.min(first + at_once) {
                for (i, j) in terms(a.count, b.count) {
                    let step = [(i * a.step + chunk * PAIRS) as u32, (j * b.step + chunk * groups * TILE) as u32];
                    all[len] = [0, 1].map(|operand: usize| if step[operand] == last[operand] { KEEP } else { step[operand] });
                    (len, last) = (len + 1, step);
                }
            }
            let start = if first > 0 { Start::There } else { self.start };
            // The larger operand is read once, the other one stays in the first-level cache.
            let (row_blocks, group_pairs) = (rows / ROWS, groups.div_ceil(2));
            for block in 0..row_blocks * group_pairs {
                let (row, pair) = match a.count * rows >= b.count * width {
                    true => (block / group_pairs, block % group_pairs),
                    false => (block % row_blocks, block / row_blocks),
                };
                // SAFETY: the asserts put the rows, groups and steps inside a, b and c; the machine has V's instructions by
                // contract.
                unsafe { self.block::<V>(row * ROWS, 2 * pair, &all[..len], start, c) };
            }
        }
    }
}

impl MatrixProduct<'_> {
    /// Computes the block of c that starts at a row and a group of lanes.
    ///
    /// # Safety
    /// The block and all steps are inside the operands, and the machine has V's instructions.
    #[inline(always)]
    unsafe fn block<V: Simd>(&self, row: usize, group: usize, steps: &[Step], start: Start<'_>, c: *mut f32) {
        let (width, lane) = (self.width, group * LANES);
        // SAFETY: passed on from the caller; the engine is configured.
        unsafe {
            let block = BlockOfC {
                a: self.a.parts.words.as_ptr().add(row * self.a.step),
                a_step: self.a.step,
                b: self.b.words.as_ptr().add(group * TILE),
                steps,
                is_wide: lane + LANES < width,
                adds: false,
                c: c.add(row * width + lane),
                c_step: width,
            };
            // Sums of operands with few bits may be one long chain; others are summed in levels.
            let is_chain = matches!(start, Start::There) && self.a.parts.count.max(self.b.count) < MOST_PARTS;
            if is_chain || matches!(start, Start::Nothing) {
                return self.a.engine.0.compute(BlockOfC { adds: is_chain, ..block });
            }
            let mut sums = Sums([MaybeUninit::uninit(); ROWS * 2 * LANES]);
            self.a.engine.0.compute(BlockOfC { c: sums.0.as_mut_ptr().cast(), c_step: 2 * LANES, ..block });
            add::<V>(&sums, block, start, lane);
        }
    }
}

/// Pairs of parts of a and b whose products count. Neighbours share a part, which stays loaded.
fn terms(a: usize, b: usize) -> impl Iterator<Item = (usize, usize)> {
    [(2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)].into_iter().filter(move |&(i, j)| i < a && j < b)
}

/// Sums of one block of c.
#[repr(align(64))]
struct Sums([MaybeUninit<f32>; ROWS * 2 * LANES]);

/// Adds sums to a block of c, which is first scaled.
///
/// # Safety
/// The block is valid, its lanes are set in `sums`, and the machine has V's instructions.
#[inline(always)]
unsafe fn add<V: Simd>(sums: &Sums, block: BlockOfC<'_>, start: Start<'_>, lane: usize) {
    let width = if block.is_wide { 2 * LANES } else { LANES };
    for v in (0..width).step_by(V::LANES) {
        // SAFETY: v + LANES <= width, and the caller's block is valid.
        unsafe {
            let alpha = match start {
                Start::Scaled(alpha) => V::load(alpha.as_ptr().add(lane + v)),
                Start::Nothing | Start::There => V::splat(1.0),
            };
            for row in 0..ROWS {
                let place = block.c.add(row * block.c_step + v);
                V::load(place).mul_add(alpha, V::load(sums.0.as_ptr().cast::<f32>().add(row * 2 * LANES + v))).store(place);
            }
        }
    }
}

impl Engine {
    /// # Safety
    /// The block is valid, the machine has the engine's instructions, and the thread is [`Configured`].
    #[inline(always)]
    pub(super) unsafe fn compute(self, block: BlockOfC<'_>) {
        // SAFETY: passed on from the caller.
        unsafe {
            match self {
                Self::Twin => super::matrix_twin::compute(block),
                #[cfg(target_arch = "x86_64")]
                Self::Dots => super::matrix_x86::dots(block),
                #[cfg(target_arch = "x86_64")]
                Self::Tiles => super::matrix_x86::tiles(block),
                #[cfg(target_arch = "aarch64")]
                Self::Mmla => super::matrix_neon::products(block),
            }
        }
    }
}

/// Engine that is ready on this thread: its tiles are configured, until this value is dropped.
pub(super) struct Configured(Engine, PhantomData<*const ()>);

impl Configured {
    /// # Safety
    /// The machine has the engine's instructions.
    pub(super) unsafe fn new(engine: Engine) -> Self {
        #[cfg(target_arch = "x86_64")]
        if engine == Engine::Tiles {
            super::matrix_x86::configure();
        }
        Self(engine, PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Engine::Tiles {
            super::matrix_x86::release();
        }
    }
}
