//! Rows of an operand as f32, whatever their storage; and rows of f32 into an output.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::shared::Shared;
use crate::tensor::Strides;
use crate::{HostSlice, HostVec};

/// Reads `to.len()` numbers, `step` apart, from `start` on.
pub(super) fn read_row(data: HostSlice<'_>, start: usize, step: usize, to: &mut [f32]) {
    let len = to.len();
    match data {
        HostSlice::F32(data) if step == 1 => to.copy_from_slice(&data[start..start + len]),
        HostSlice::F16(data) if step == 1 => data[start..start + len].convert_to_f32_slice(to),
        HostSlice::BF16(data) if step == 1 => widen_bf16(&data[start..start + len], to),
        data => {
            for (i, x) in to.iter_mut().enumerate() {
                *x = data.get(start + i * step);
            }
        }
    }
}

fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// Consecutive rows of f32 in memory: where they lie, or a copy.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) step: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `width` numbers, the first at `start`; in place if they are contiguous f32, else copied into `scratch`
    /// at `row_step` numbers a row, of which those past `width` are 0.
    pub(super) fn read(data: HostSlice<'a>, start: usize, strides: Strides, count: usize, width: usize, scratch: &'a mut [f32]) -> Self {
        if let HostSlice::F32(data) = data
            && strides.dim == 1
        {
            let end = start + (count - 1) * strides.seq + width;
            return Self { data: &data[start..end], step: strides.seq, width };
        }
        let scratch = &mut scratch[..count * width];
        if strides.dim == 1 && strides.seq == width {
            read_row(data, start, 1, scratch);
        } else {
            for (row, to) in scratch.chunks_exact_mut(width).enumerate() {
                read_row(data, start + row * strides.seq, strides.dim, to);
            }
        }
        Self { data: scratch, step: width, width }
    }

    /// One row.
    pub(super) fn row(self, index: usize) -> &'a [f32] {
        &self.data[index * self.step..][..self.width]
    }

    /// From row `index` on.
    pub(super) fn from(self, index: usize) -> Self {
        Self { data: &self.data[index * self.step..], ..self }
    }
}

/// Whether none is NaN or infinite.
pub(super) fn all_finite(data: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    !data.iter().fold(false, |found, x| found | (x.to_bits() & EXPONENT == EXPONENT))
}

/// The output, written row by row from several threads.
pub(super) enum SharedOutput<'a> {
    F32(Shared<'a, f32>),
    F16(Shared<'a, f16>),
    BF16(Shared<'a, bf16>),
}

impl<'a> SharedOutput<'a> {
    pub(super) fn new(output: &'a mut HostVec) -> Self {
        match output {
            HostVec::F32(data) => Self::F32(Shared::new(data)),
            HostVec::F16(data) => Self::F16(Shared::new(data)),
            HostVec::BF16(data) => Self::BF16(Shared::new(data)),
        }
    }

    /// Writes a row, its numbers `step` apart, from `start` on, rounded to nearest even.
    ///
    /// # Safety
    /// Nobody else reads or writes these places meanwhile.
    pub(super) unsafe fn write_row(&self, start: usize, step: usize, row: &[f32]) {
        // SAFETY: passed on from the caller.
        unsafe {
            match self {
                Self::F32(data) if step == 1 => data.slice(start..start + row.len()).copy_from_slice(row),
                Self::F16(data) if step == 1 => data.slice(start..start + row.len()).convert_from_f32_slice(row),
                Self::F32(data) => data.scatter(start, step, row, |x| x),
                Self::F16(data) => data.scatter(start, step, row, f16::from_f32),
                Self::BF16(data) => data.scatter(start, step, row, bf16::from_f32),
            }
        }
    }
}
