//! Packing of f32 rows and panels into the parts of matrix products, and the choice of these products.

use half::bf16;

use super::kernel::{Isa, SimdKernel};
use super::matrix::{Configured, Engine, LANES, LARGEST, PAIRS, PackedRows, Parts, ROWS, TILE, words_of_row};
use super::matrix_block::MOST_PARTS;
use super::pack::{Element, Rows};
use super::shared::Buffer;
use super::simd::Simd;
use crate::numbers::DType;
use crate::problem::Problem;

/// Fewest rows of a key/value head for tiles, by the parts of keys and values, whose packing the rows share. Time of tiles by
/// that of multiply-adds for 4,096 keys of 64 in f32: 16 rows 1.75, 64 1.25, 128 1.04, 256 0.9; in f16: 16 1.35, 64 0.98.
#[cfg(target_arch = "x86_64")]
const FEWEST_ROWS: [usize; MOST_PARTS + 1] = [0, 0, 64, 256];

/// Matrix products of a call: the instructions, and the parts of each operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MatrixPlan {
    pub(super) engine: Engine,
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) weights: usize,
    /// True if the scale is multiplied into the queries, which stay exact; else into the scores.
    pub(super) scales_query: bool,
}

impl MatrixPlan {
    /// Chooses the parts. An operand keeps all its bits. Weights are rounded to 16 bits for an output of 16 bits, or to
    /// bf16 where the problem allows it, else kept. `None` without an engine, or where plain products are faster.
    pub(super) fn new(isa: Isa, problem: &Problem) -> Option<Self> {
        let engine = isa.engine()?;
        let query = parts(if problem.key_hadamard { DType::F32 } else { problem.query.dtype });
        let weights = match problem.output.dtype {
            _ if problem.allow_bf16_weights && problem.value.dtype == DType::BF16 => 1,
            DType::F32 => 3,
            _ => 2,
        };
        // A power of two moves only the exponent.
        let scales_query = query == parts(DType::F32) || problem.effective_scale().to_bits() << 9 == 0;
        let (key, value) = (parts(problem.key.dtype), parts(problem.value.dtype));
        #[cfg(target_arch = "x86_64")]
        match engine {
            Engine::Dots if [query, key, value] != [1; 3] => return None,
            Engine::Tiles if problem.dims.seq_len_q * problem.dims.group() < FEWEST_ROWS[key.max(value)] => return None,
            _ => {}
        }
        Some(Self { engine, query, key, value, weights, scales_query })
    }
}

/// Number of bf16 that add up to any number of a storage type.
pub(super) const fn parts(dtype: DType) -> usize {
    match dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        DType::F32 | DType::Q8 | DType::Q4 => 3,
    }
}

/// Number of words of the matrix b with `rows` rows of `width` lanes.
pub(super) fn panel_words(parts: usize, rows: usize, width: usize) -> usize {
    parts * rows.div_ceil(2 * PAIRS) * (width / LANES) * TILE
}

/// Element of rows that are packed.
pub(super) trait Packable: Element {
    /// True if no element is NaN, infinite, [`LARGEST`] or more, or other than 0 and less than `smallest`.
    ///
    /// The range is one of bits: the largest magnitude is below its end, and the least one, less 1 so that 0 wraps to the
    /// largest, is not below its start less 1.
    fn are_in_range(data: &[Self], smallest: f32) -> bool;
}

impl Packable for f32 {
    #[inline(always)]
    fn are_in_range(data: &[Self], smallest: f32) -> bool {
        let (mut largest, mut least) = (0, u32::MAX);
        for x in data {
            let magnitude = x.to_bits() & 0x7fff_ffff;
            largest = magnitude.max(largest);
            least = magnitude.wrapping_sub(1).min(least);
        }
        largest < LARGEST.to_bits() && least >= smallest.to_bits().saturating_sub(1)
    }
}

impl Packable for bf16 {
    #[inline(always)]
    fn are_in_range(data: &[Self], smallest: f32) -> bool {
        let (mut largest, mut least) = (0, u16::MAX);
        for x in data {
            let magnitude = x.to_bits() & 0x7fff;
            largest = magnitude.max(largest);
            least = magnitude.wrapping_sub(1).min(least);
        }
        largest < (LARGEST.to_bits() >> 16) as u16 && least >= ((smallest.to_bits() >> 16) as u16).saturating_sub(1)
    }
}

/// True if all elements of rows are in range.
#[inline(always)]
fn rows_are_in_range<T: Packable>(rows: &Rows<'_, T>, smallest: f32) -> bool {
    if rows.step == rows.width {
        return T::are_in_range(&rows.data[..rows.count * rows.width], smallest);
    }
    for r in 0..rows.count {
        if !T::are_in_range(rows.row(r), smallest) {
            return false;
        }
    }
    true
}

/// Loads elements `column..column + LANES` of a row; 0 past its end.
#[inline(always)]
unsafe fn load_padded<V: Simd, T: Packable>(row: &[T], column: usize) -> V {
    // SAFETY: the machine has V's instructions by contract; LANES is at most 16.
    unsafe {
        if column + V::LANES <= row.len() {
            return T::load(row.as_ptr().add(column));
        }
        let mut lanes = [T::default(); 16];
        if column < row.len() {
            lanes[..row.len() - column].copy_from_slice(&row[column..]);
        }
        T::load(lanes.as_ptr())
    }
}

/// Splits two rows of a vector of lanes and stores them as pairs, `step` words between parts.
///
/// # Safety
/// `to` is valid for a vector in each part; the machine has V's instructions.
#[inline(always)]
pub(super) unsafe fn store_pairs<V: Simd>(even: V, odd: V, parts: usize, to: *mut f32, step: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let (mut even, mut odd) = (even, odd);
        for part in 0..parts {
            let (upper_even, upper_odd) = (even.round_upper(), odd.round_upper());
            upper_even.pair_upper(upper_odd).store(to.add(part * step));
            (even, odd) = (even.sub(upper_even.upper()), odd.sub(upper_odd.upper()));
        }
    }
}

/// Offset of a vector of lanes of a pair in b.
#[inline(always)]
pub(super) fn panel_offset(pair: usize, lane: usize, width: usize) -> usize {
    ((pair / PAIRS * (width / LANES) + lane / LANES) * PAIRS + pair % PAIRS) * LANES + lane % LANES
}

/// Packing of rows as the matrix a of a product.
pub(super) struct Packing<'a> {
    pub(super) engine: &'a Configured,
    pub(super) isa: Isa,
    pub(super) parts: usize,
    /// True if the rows of a are the columns of what is packed.
    pub(super) is_transposed: bool,
    /// Smallest magnitude other than 0 that can be used: [`super::matrix::SMALLEST`], or 0 for weights and gradients, which get small.
    pub(super) smallest: f32,
}

impl<'a> Packing<'a> {
    /// Rows and columns of a.
    const fn shape(&self, count: usize, width: usize) -> [usize; 2] {
        if self.is_transposed { [width, count] } else { [count, width] }
    }

    /// Packs rows. Returns false if an element is out of range.
    pub(super) fn pack<T: Packable>(&self, from: Rows<'_, T>, to: &mut Buffer) -> bool {
        let ([rows, columns], mut fits) = (self.shape(from.count, from.width), false);
        let &Self { isa, parts, smallest, is_transposed, .. } = self;
        let to = to.take(PackedRows::words(parts, rows, columns));
        isa.run(Pack { from, is_transposed, parts, smallest, to, fits: &mut fits });
        fits
    }

    /// Rows that [`Self::pack`] has written.
    pub(super) fn packed(&self, count: usize, width: usize, words: &'a mut Buffer) -> PackedRows<'a> {
        let [rows, columns] = self.shape(count, width);
        let words = words.take(PackedRows::words(self.parts, rows, columns));
        let step = words.len() / self.parts;
        PackedRows { engine: self.engine, parts: Parts { words, count: self.parts, step }, step: step / rows.next_multiple_of(ROWS) }
    }
}

/// Panel [row][lane], packed as the matrix b of a product.
#[derive(Default)]
pub(super) struct PackedPanel {
    words: Buffer,
    len: usize,
    parts: usize,
}

impl PackedPanel {
    /// Packs a panel. Returns false if an element is out of range: see [`Packing::smallest`].
    pub(super) fn pack(&mut self, isa: Isa, from: &[f32], width: usize, parts: usize, smallest: f32) -> bool {
        let mut fits = false;
        (self.len, self.parts) = (panel_words(parts, from.len() / width, width), parts);
        isa.run(PackPanel { from, width, parts, smallest, to: self.words.take(self.len), fits: &mut fits });
        fits
    }

    /// Packable panel.
    pub(super) fn parts(&mut self) -> Parts<'_> {
        Parts { words: self.words.take(self.len), count: self.parts, step: self.len / self.parts }
    }
}

/// Packs rows as a, or as the transposed a: its rows are then their columns.
struct Pack<'a, T> {
    from: Rows<'a, T>,
    is_transposed: bool,
    parts: usize,
    /// Smallest magnitude other than 0 that can be used.
    smallest: f32,
    /// [`PackedRows::words`] words.
    to: &'a mut [f32],
    /// Set to true if all elements can be used.
    fits: &'a mut bool,
}

impl<T: Packable> SimdKernel for Pack<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { from, is_transposed, parts, smallest, to, fits } = self;
        *fits = rows_are_in_range(&from, smallest);
        if *fits {
            // SAFETY: the machine has V's instructions by contract.
            unsafe { if is_transposed { pack_columns::<V, T>(from, parts, to) } else { pack_rows::<V, T>(from, parts, to) } }
        }
    }
}

/// # Safety
/// The machine has V's instructions.
#[inline(always)]
unsafe fn pack_rows<V: Simd, T: Packable>(from: Rows<'_, T>, parts: usize, to: &mut [f32]) {
    let words = words_of_row(from.width);
    let step = from.count.next_multiple_of(ROWS) * words;
    assert!(to.len() >= parts * step);
    for r in 0..from.count {
        let row = from.row(r);
        for column in (0..2 * words).step_by(V::LANES) {
            // SAFETY: the machine has V's instructions by contract; the row ends inside its part, which was checked.
            unsafe {
                let to = to.as_mut_ptr().add(r * words).cast::<u16>().add(column);
                let mut rest: V = load_padded(row, column);
                for part in 0..parts {
                    let upper = rest.round_upper();
                    upper.store_upper(to.add(2 * part * step));
                    rest = rest.sub(upper.upper());
                }
            }
        }
    }
    to.chunks_exact_mut(step).take(parts).for_each(|part| part[from.count * words..].fill(0.0));
}

/// # Safety
/// The machine has V's instructions.
#[inline(always)]
unsafe fn pack_columns<V: Simd, T: Packable>(from: Rows<'_, T>, parts: usize, to: &mut [f32]) {
    let words = words_of_row(from.count);
    let rows = from.width.next_multiple_of(ROWS);
    assert!(parts <= MOST_PARTS && to.len() >= parts * rows * words);
    let mut pairs = Pairs([[0.0; 16 * 16]; MOST_PARTS]);
    for first in (0..words).step_by(V::LANES) {
        for column in (0..rows).step_by(V::LANES) {
            // SAFETY: the machine has V's instructions by contract; LANES is at most 16 and divides `words` and `rows`,
            // whose product was checked. Whole vectors of whole pairs are inside the rows, which the test of the range has visited.
            unsafe {
                if 2 * (first + V::LANES) <= from.count && column + V::LANES <= from.width {
                    let data = &from.data[2 * first * from.step + column..];
                    for p in 0..V::LANES {
                        let at = data.as_ptr().add(2 * p * from.step);
                        let (even, odd) = (T::load::<V>(at), T::load::<V>(at.add(from.step)));
                        store_pairs(even, odd, parts, pairs.0.as_mut_ptr().cast::<f32>().add(p * V::LANES), 16 * 16);
                    }
                } else {
                    let row = |index: usize| if index < from.count { from.row(index) } else { &[] };
                    for p in 0..V::LANES {
                        let even = load_padded::<V, _>(row(2 * (first + p)), column);
                        let odd = load_padded::<V, _>(row(2 * (first + p) + 1), column);
                        store_pairs(even, odd, parts, pairs.0.as_mut_ptr().cast::<f32>().add(p * V::LANES), 16 * 16);
                    }
                }
                for (part, pairs) in pairs.0.iter().enumerate().take(parts) {
                    let to = to.as_mut_ptr().add((part * rows + column) * words + first);
                    V::transpose(pairs.as_ptr(), V::LANES, to, words);
                }
            }
        }
    }
}

/// Pairs of up to 16 rows and 16 columns, in each part.
#[repr(align(64))]
struct Pairs([[f32; 16 * 16]; MOST_PARTS]);

/// Packs a panel [row][lane] as b.
struct PackPanel<'a> {
    from: &'a [f32],
    /// A multiple of [`LANES`].
    width: usize,
    parts: usize,
    /// Smallest magnitude other than 0 that can be used.
    smallest: f32,
    /// [`panel_words`] words.
    to: &'a mut [f32],
    /// Set to true if all elements can be used.
    fits: &'a mut bool,
}

impl SimdKernel for PackPanel<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { from, width, parts, smallest, to, fits } = self;
        let rows = from.len() / width;
        let step = panel_words(1, rows, width);
        assert!(width.is_multiple_of(LANES) && from.len().is_multiple_of(width) && to.len() >= parts * step);
        *fits = f32::are_in_range(from, smallest);
        let row = |index: usize| &from[(index * width).min(from.len())..from.len().min((index + 1) * width)];
        for pair in 0..rows.next_multiple_of(2 * PAIRS) / 2 {
            for lane in (0..width).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the vector ends inside a part, which was checked.
                unsafe {
                    let (even, odd) = (load_padded::<V, _>(row(2 * pair), lane), load_padded::<V, _>(row(2 * pair + 1), lane));
                    store_pairs(even, odd, parts, to.as_mut_ptr().add(panel_offset(pair, lane, width)), step);
                }
            }
        }
    }
}
