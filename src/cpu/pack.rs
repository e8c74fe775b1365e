//! Conversion of operand rows from any storage type to f32, and of f32 rows to an output; transposition.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::kernel::{Isa, SimdKernel};
use super::shared::{Buffer, LINE, Shared};
use super::simd::Simd;
use crate::numbers::{BLOCK, block_words, blocks};
use crate::numbers::{HostSlice, HostVec};

/// Location of rows in an operand: the first element, and the strides between rows and between elements.
#[derive(Clone, Copy)]
pub(super) struct RowLayout {
    pub(super) start: usize,
    pub(super) row_step: usize,
    pub(super) step: usize,
}

/// Reads `rows` rows of `width` elements as f32 into rows of `to`, which are `to_step` apart.
pub(super) struct Widen<'a> {
    pub(super) data: HostSlice<'a>,
    pub(super) at: RowLayout,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) to: &'a mut [f32],
    pub(super) to_step: usize,
}

impl Widen<'_> {
    /// Reads the rows. Contiguous f32 need no kernel.
    pub(super) fn read(self, isa: Isa) {
        let (HostSlice::F32(data), 1) = (self.data, self.at.step) else { return isa.run(self) };
        for (r, to) in self.to.chunks_mut(self.to_step).take(self.rows).enumerate() {
            to[..self.width].copy_from_slice(&data[self.at.start + r * self.at.row_step..][..self.width]);
        }
    }
}

impl SimdKernel for Widen<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { data, at: RowLayout { start, row_step, step }, rows, width, to, to_step } = self;
        let rows = to.chunks_mut(to_step).take(rows).enumerate().map(|(r, to)| (start + r * row_step, &mut to[..width]));
        match data {
            HostSlice::F16(data) if step == 1 => {
                for (at, to) in rows {
                    let (from, whole) = (&data[at..][..width], width - width % V::LANES);
                    for c in (0..whole).step_by(V::LANES) {
                        // SAFETY: the machine has V's instructions by contract; c + LANES <= width.
                        unsafe { V::widen_f16(from.as_ptr().add(c)).store(to.as_mut_ptr().add(c)) };
                    }
                    for c in whole..width {
                        to[c] = from[c].to_f32();
                    }
                }
            }
            HostSlice::BF16(data) if step == 1 => {
                for (at, to) in rows {
                    to.iter_mut().zip(&data[at..][..width]).for_each(|(to, x)| *to = x.widen());
                }
            }
            // The problem's check allows only step 1 and whole blocks for quantised operands.
            HostSlice::Q8(words) | HostSlice::Q4(words) => {
                let dtype = data.dtype();
                rows.for_each(|(at, to)| blocks::widen(dtype, &words[at / BLOCK * block_words(dtype)..], to));
            }
            data => rows.for_each(|(at, to)| to.iter_mut().enumerate().for_each(|(i, x)| *x = data.get(at + i * step))),
        }
    }
}

/// Float that rows are stored in.
pub(super) trait Element: Copy + Default {
    /// Loads a vector.
    ///
    /// # Safety
    /// `from` is valid for a vector of elements; the machine has V's instructions.
    unsafe fn load<V: Simd>(from: *const Self) -> V;

    /// Elements, if they are stored in this type.
    fn of(data: HostSlice<'_>) -> Option<&[Self]>;

    /// Returns the element as f32.
    fn widen(self) -> f32;

    /// True unless the element is NaN or infinite.
    fn is_finite(self) -> bool;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V {
        // SAFETY: passed on from the caller.
        unsafe { V::load(from) }
    }

    fn of(data: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F32(data) = data { Some(data) } else { None }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V {
        // SAFETY: passed on from the caller.
        unsafe { V::widen_f16(from) }
    }

    fn of(data: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F16(data) = data { Some(data) } else { None }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f16::is_finite(self)
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V {
        // SAFETY: passed on from the caller.
        unsafe { V::widen_bf16(from) }
    }

    fn of(data: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::BF16(data) = data { Some(data) } else { None }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        bf16::is_finite(self)
    }
}

/// Rows of f32, or of another type.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T = f32> {
    pub(super) data: &'a [T],
    pub(super) count: usize,
    pub(super) width: usize,
    /// Stride between rows.
    pub(super) step: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Returns one row.
    pub(super) fn row(&self, index: usize) -> &'a [T] {
        &self.data[index * self.step..][..self.width]
    }
}

impl<T: Element> Rows<'_, T> {
    /// Copies the rows, as f32, with NaN and infinity replaced by 0.
    pub(super) fn cleaned(self, scratch: &mut Buffer) -> Rows<'_> {
        Rows::copy(self.count, self.width, scratch, |to, step| {
            for (r, to) in to.chunks_exact_mut(step).enumerate() {
                to.iter_mut().zip(self.row(r)).for_each(|(to, x)| *to = if x.is_finite() { x.widen() } else { 0.0 });
            }
        })
    }

    /// True if no element is NaN or infinite.
    pub(super) fn is_finite(self) -> bool {
        (0..self.count).all(|r| all_finite(self.row(r)))
    }
}

impl<'a> Rows<'a> {
    /// Stands for rows that are not read.
    pub(super) const fn unread(count: usize, width: usize) -> Self {
        Self { data: &[], count, width, step: 0 }
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
        Self { data, count, width, step }
    }

    /// Returns `count` rows from `index` on.
    pub(super) fn part(self, index: usize, count: usize) -> Self {
        Self { data: &self.data[index * self.step..], count, ..self }
    }
}

/// True if no element is NaN or infinite.
pub(super) fn all_finite<T: Element>(data: &[T]) -> bool {
    !data.iter().fold(false, |found, x| found | !x.is_finite())
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

    /// Multiplies a row and writes it to `at`, rounded to nearest even. Without a factor, it becomes 0.
    ///
    /// # Safety
    /// Nothing else reads or writes these places meanwhile.
    pub(super) unsafe fn write_row(&self, isa: Isa, at: RowLayout, row: &mut [f32], factor: Option<f32>) {
        isa.run(WriteRow { output: self, at, row, factor });
    }
}

/// Writing of a row, while nothing else reads or writes its places.
struct WriteRow<'a> {
    output: &'a SharedOutput<'a>,
    at: RowLayout,
    row: &'a mut [f32],
    factor: Option<f32>,
}

impl SimdKernel for WriteRow<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { output, at: RowLayout { start, step, .. }, row, factor } = self;
        match factor {
            Some(factor) => row.iter_mut().for_each(|x| *x *= factor),
            None => row.fill(0.0),
        }
        let row = &*row;
        // SAFETY: the places are this row's alone.
        unsafe {
            match output {
                SharedOutput::F32(data) if step == 1 => data.slice(start..start + row.len()).copy_from_slice(row),
                SharedOutput::F16(data) if step == 1 => data.slice(start..start + row.len()).convert_from_f32_slice(row),
                SharedOutput::BF16(data) if step == 1 => {
                    for (to, x) in data.slice(start..start + row.len()).iter_mut().zip(row) {
                        let bits = x.to_bits();
                        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
                        *to = bf16::from_bits((if x.is_nan() { bits | 1 << 22 } else { rounded } >> 16) as u16);
                    }
                }
                SharedOutput::F32(data) => data.scatter(start, step, row, |x| x),
                SharedOutput::F16(data) => data.scatter(start, step, row, f16::from_f32),
                SharedOutput::BF16(data) => data.scatter(start, step, row, bf16::from_f32),
                SharedOutput::None => {}
            }
        }
    }
}

/// `to[c * rows + r] = from[r * from_step + c]` for r < rows, c < columns.
pub(super) struct Transpose<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) from: &'a [f32],
    pub(super) from_step: usize,
    pub(super) to: &'a mut [f32],
}

impl SimdKernel for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { rows, columns, from, from_step, to } = self;
        assert!(rows > 0 && columns > 0);
        assert!(from.len() >= (rows - 1) * from_step + columns && to.len() >= columns * rows);
        let (whole_rows, whole_columns) = (rows - rows % V::LANES, columns - columns % V::LANES);
        for r in (0..whole_rows).step_by(V::LANES) {
            for c in (0..whole_columns).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the block ends inside what was checked.
                unsafe { V::transpose(from.as_ptr().add(r * from_step + c), from_step, to.as_mut_ptr().add(c * rows + r), rows) };
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_columns } else { 0 };
            for c in first..columns {
                to[c * rows + r] = from[r * from_step + c];
            }
        }
    }
}
