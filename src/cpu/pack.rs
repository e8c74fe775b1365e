//! Conversion of operand rows from any storage type to f32, and of f32 rows to an output; transposition.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::kernel::SimdKernel;
use super::shared::{Buffer, LINE, Shared};
use super::simd::{Isa, Simd};
use crate::numbers::{BLOCK, block_words, blocks};
use crate::numbers::{DType, HostSlice, HostVec};

/// Widens rows of 16-bit floats to f32: `to[r * to_step + c] = from[r * from_step + c]` for r < rows, c < width.
pub(super) struct Widen<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) from: &'a [T],
    pub(super) from_step: usize,
    pub(super) to: &'a mut [f32],
    pub(super) to_step: usize,
}

impl SimdKernel for Widen<'_, f16> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for r in 0..self.rows {
            let from = &self.from[r * self.from_step..][..self.width];
            let to = &mut self.to[r * self.to_step..][..self.width];
            let whole = self.width - self.width % V::LANES;
            for c in (0..whole).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; c + LANES <= width.
                unsafe { V::widen_f16(from.as_ptr().add(c)).store(to.as_mut_ptr().add(c)) };
            }
            for c in whole..self.width {
                to[c] = from[c].to_f32();
            }
        }
    }
}

impl SimdKernel for Widen<'_, bf16> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for r in 0..self.rows {
            let from = &self.from[r * self.from_step..][..self.width];
            let to = &mut self.to[r * self.to_step..][..self.width];
            for c in 0..self.width {
                to[c] = f32::from_bits(u32::from(from[c].to_bits()) << 16);
            }
        }
    }
}

/// Converts rows of whole quantised blocks to f32.
struct WidenBlocks<'a> {
    dtype: DType,
    rows: usize,
    width: usize,
    /// Starts at the first block of the first row.
    from: &'a [u32],
    from_step: usize,
    to: &'a mut [f32],
    to_step: usize,
}

impl SimdKernel for WidenBlocks<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let words = |numbers: usize| numbers / BLOCK * block_words(self.dtype);
        for (r, to) in self.to.chunks_mut(self.to_step).take(self.rows).enumerate() {
            let from = &self.from[words(r * self.from_step)..][..words(self.width)];
            blocks::widen(self.dtype, from, &mut to[..self.width]);
        }
    }
}

/// Location of rows in an operand: the first element, and the strides between rows and between elements.
#[derive(Clone, Copy)]
pub(super) struct RowLayout {
    pub(super) start: usize,
    pub(super) row_step: usize,
    pub(super) step: usize,
}

/// Reads `rows` rows of `width` elements into rows of `to`, which are `to_step` apart.
pub(super) fn read_rows(isa: Isa, data: HostSlice<'_>, at: RowLayout, (rows, width): (usize, usize), to: &mut [f32], to_step: usize) {
    let RowLayout { start, row_step: from_step, step } = at;
    match data {
        HostSlice::F16(data) if step == 1 => isa.run(Widen { rows, width, from: &data[start..], from_step, to, to_step }),
        HostSlice::BF16(data) if step == 1 => isa.run(Widen { rows, width, from: &data[start..], from_step, to, to_step }),
        // The problem's check allows only step 1 for quantised operands.
        HostSlice::Q8(words) | HostSlice::Q4(words) => {
            let dtype = data.dtype();
            let from = &words[start / BLOCK * block_words(dtype)..];
            isa.run(WidenBlocks { dtype, rows, width, from, from_step, to, to_step });
        }
        data => {
            for (r, to) in to.chunks_mut(to_step).take(rows).enumerate() {
                let start = start + r * from_step;
                match data {
                    HostSlice::F32(data) if step == 1 => to[..width].copy_from_slice(&data[start..start + width]),
                    data => to[..width].iter_mut().enumerate().for_each(|(i, x)| *x = data.get(start + i * step)),
                }
            }
        }
    }
}

/// Consecutive rows of f32, in place or copied.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    /// Stride between rows.
    pub(super) step: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// Returns `count` rows of `width` elements: in place if that is wanted and they are contiguous f32, else a copy.
    pub(super) fn read(
        isa: Isa,
        data: HostSlice<'a>,
        at: RowLayout,
        (count, width): (usize, usize),
        in_place: bool,
        scratch: &'a mut Buffer,
    ) -> Self {
        if let (HostSlice::F32(data), 1, true) = (data, at.step, in_place) {
            let end = at.start + (count - 1) * at.row_step + width;
            return Self { data: &data[at.start..end], step: at.row_step, width };
        }
        Self::copy(count, width, scratch, |to, step| read_rows(isa, data, at, (count, width), to, step))
    }

    /// Copies rows with `fill`, which gets the step between them: an odd number of cache lines, so that a column
    /// spreads over all sets of a cache. Rows are zero-padded to whole lines.
    pub(super) fn copy(count: usize, width: usize, scratch: &'a mut Buffer, fill: impl FnOnce(&mut [f32], usize)) -> Self {
        let step = LINE * (width.div_ceil(LINE) | 1);
        let data = scratch.take(count * step);
        fill(data, step);
        if !width.is_multiple_of(LINE) {
            data.chunks_exact_mut(step).for_each(|row| row[width..width.next_multiple_of(LINE)].fill(0.0));
        }
        Self { data, step, width }
    }

    /// Copies the rows with NaN and infinity replaced by 0.
    pub(super) fn cleaned(self, count: usize, scratch: &mut Buffer) -> Rows<'_> {
        Rows::copy(count, self.width, scratch, |to, step| {
            for (r, to) in to.chunks_exact_mut(step).enumerate() {
                to.iter_mut().zip(self.row(r)).for_each(|(to, &x)| *to = if x.is_finite() { x } else { 0.0 });
            }
        })
    }

    /// Returns one row.
    pub(super) fn row(self, index: usize) -> &'a [f32] {
        &self.data[index * self.step..][..self.width]
    }

    /// Returns the rows from `index` on.
    pub(super) fn from(self, index: usize) -> Self {
        Self { data: &self.data[index * self.step..], ..self }
    }
}

/// True if no element is NaN or infinite.
pub(super) fn all_finite(data: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    !data.iter().fold(false, |found, x| found | (x.to_bits() & EXPONENT == EXPONENT))
}

/// Output that several threads write row by row.
pub(super) enum SharedOutput<'a> {
    F32(Shared<'a, f32>),
    F16(Shared<'a, f16>),
    BF16(Shared<'a, bf16>),
    /// Quantised: never written, because `Problem::check` rejects it.
    None,
}

impl<'a> SharedOutput<'a> {
    pub(super) fn new(output: &'a mut HostVec) -> Self {
        match output {
            HostVec::F32(data) => Self::F32(Shared::new(data)),
            HostVec::F16(data) => Self::F16(Shared::new(data)),
            HostVec::BF16(data) => Self::BF16(Shared::new(data)),
            HostVec::Q8(_) | HostVec::Q4(_) => Self::None,
        }
    }

    /// Writes a row from `start` on, its elements `step` apart and rounded to nearest even.
    ///
    /// # Safety
    /// Nothing else reads or writes these places meanwhile.
    pub(super) unsafe fn write_row(&self, start: usize, step: usize, row: &[f32]) {
        // SAFETY: passed on from the caller.
        unsafe {
            match self {
                Self::F32(data) if step == 1 => data.slice(start..start + row.len()).copy_from_slice(row),
                Self::F16(data) if step == 1 => data.slice(start..start + row.len()).convert_from_f32_slice(row),
                Self::F32(data) => data.scatter(start, step, row, |x| x),
                Self::F16(data) => data.scatter(start, step, row, f16::from_f32),
                Self::BF16(data) => data.scatter(start, step, row, bf16::from_f32),
                Self::None => {}
            }
        }
    }
}

/// `to[c * to_step + r] = from[r * from_step + c]` for r < rows, c < columns.
pub(super) struct Transpose<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) from: &'a [f32],
    pub(super) from_step: usize,
    pub(super) to: &'a mut [f32],
    pub(super) to_step: usize,
}

impl SimdKernel for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { rows, columns, from, from_step, to, to_step } = self;
        assert!(rows > 0 && columns > 0);
        assert!(from.len() >= (rows - 1) * from_step + columns && to.len() >= (columns - 1) * to_step + rows);
        let (whole_rows, whole_columns) = (rows - rows % V::LANES, columns - columns % V::LANES);
        for r in (0..whole_rows).step_by(V::LANES) {
            for c in (0..whole_columns).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the block ends inside what was checked.
                unsafe { V::transpose(from.as_ptr().add(r * from_step + c), from_step, to.as_mut_ptr().add(c * to_step + r), to_step) };
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_columns } else { 0 };
            for c in first..columns {
                to[c * to_step + r] = from[r * from_step + c];
            }
        }
    }
}
