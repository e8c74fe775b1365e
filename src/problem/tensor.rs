//! Storage of a four-dimensional tensor: storage type, layout, offset.

use crate::error::{Error, Result};
use crate::numbers::BLOCK;
use crate::numbers::{DType, HostSlice};

/// Strides in elements along each axis of [batch, heads, seq, dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strides {
    /// Stride from one batch item to the next; ignored for varlen sequences.
    pub batch: usize,
    /// Stride from one head to the next.
    pub head: usize,
    /// Stride from one position of the sequence to the next.
    pub seq: usize,
    /// Stride from one element of a head to the next.
    pub dim: usize,
}

/// Order of the axes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// [batch, heads, seq, dim], contiguous: PyTorch's SDPA, ONNX 4-D. The default.
    #[default]
    Bhsd,
    /// [batch, seq, heads, dim], contiguous: FlashAttention, ONNX 3-D; for varlen sequences [tokens, heads, dim].
    Bshd,
    /// Arbitrary strides, such as a view into a packed QKV buffer.
    Strided(Strides),
}

/// Storage of one of query, key, value, output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Storage type.
    pub dtype: DType,
    /// Order of the axes.
    pub layout: Layout,
    /// Index of the first element in its buffer or slice.
    pub offset: usize,
}

impl TensorSpec {
    /// Creates a contiguous tensor in the given layout, from the start of its buffer.
    pub const fn new(dtype: DType, layout: Layout) -> Self {
        Self { dtype, layout, offset: 0 }
    }

    /// Strides of a tensor of the shape [batch, heads, seq, dim].
    pub fn strides(&self, shape: [usize; 4]) -> Strides {
        let [_, heads, seq, dim] = shape;
        match self.layout {
            Layout::Bhsd => {
                let head = seq.saturating_mul(dim);
                Strides { batch: heads.saturating_mul(head), head, seq: dim, dim: 1 }
            }
            Layout::Bshd => {
                let row = heads.saturating_mul(dim);
                Strides { batch: seq.saturating_mul(row), head: dim, seq: row, dim: 1 }
            }
            Layout::Strided(strides) => strides,
        }
    }

    /// Number of elements up to the last one of this shape, offset included; 0 if it is empty. `None` on overflow.
    pub fn required_len(&self, shape: [usize; 4]) -> Option<usize> {
        if shape.contains(&0) {
            return Some(0);
        }
        shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
        let strides = self.strides(shape);
        let steps = [strides.batch, strides.head, strides.seq, strides.dim];
        let last = steps.iter().zip(shape).try_fold(self.offset, |at, (&step, extent)| at.checked_add(step.checked_mul(extent - 1)?))?;
        last.checked_add(1)
    }

    /// Checks the length of a slice: long enough, and no longer than its shape if it is whole (a named layout without
    /// offset, not quantised), because a longer one belongs to other sizes.
    pub(crate) fn check_len(&self, argument: &'static str, shape: [usize; 4], len: usize) -> Result<()> {
        let needed = self.required_len(shape).unwrap_or(usize::MAX);
        let is_whole = self.offset == 0 && !matches!(self.layout, Layout::Strided(_)) && !self.dtype.is_quantised();
        if len < needed || is_whole && len != needed {
            let why = format!("has {len} elements; shape {shape:?} with its strides and offset needs {needed}");
            return Err(Error::invalid(argument, why));
        }
        Ok(())
    }

    /// Refuses quantised rows that are strided or share a block with another row.
    pub(crate) fn check_blocks(&self, argument: &'static str, shape: [usize; 4]) -> Result<()> {
        let strides = self.strides(shape);
        let steps = [self.offset, strides.batch, strides.head, strides.seq, shape[3]];
        if self.dtype.is_quantised() && (strides.dim != 1 || steps.iter().any(|step| !step.is_multiple_of(BLOCK))) {
            let why = format!("{} needs rows of whole blocks of {BLOCK}, contiguous: {shape:?}, {self:?}", self.dtype);
            return Err(Error::invalid(argument, why));
        }
        Ok(())
    }

    /// Refuses layouts in which two elements share a location, because an output must not be written twice.
    pub(crate) fn check_no_overlap(&self, argument: &'static str, shape: [usize; 4]) -> Result<()> {
        if shape.contains(&0) {
            return Ok(());
        }
        let strides = self.strides(shape);
        let steps = [strides.batch, strides.head, strides.seq, strides.dim];
        let mut axes: [(usize, usize); 4] = std::array::from_fn(|axis| (steps[axis], shape[axis]));
        axes.sort_unstable();
        let mut reach = 0usize;
        for (step, extent) in axes.into_iter().filter(|&(_, extent)| extent > 1) {
            if step <= reach {
                return Err(Error::invalid(argument, format!("strides {strides:?} put two elements of {shape:?} in one place")));
            }
            reach = reach.saturating_add(step.saturating_mul(extent - 1));
        }
        Ok(())
    }
}

/// Gathers the elements of a host tensor in [batch, heads, seq, dim] order.
///
/// Panics if `data` is shorter than [`TensorSpec::required_len`]; callers check first.
pub fn gather(data: HostSlice<'_>, spec: &TensorSpec, shape: [usize; 4]) -> Vec<f32> {
    match data {
        HostSlice::F32(numbers) => gather_from(|at| numbers[at], spec, shape),
        HostSlice::F16(numbers) => gather_from(|at| numbers[at].to_f32(), spec, shape),
        HostSlice::BF16(numbers) => gather_from(|at| numbers[at].to_f32(), spec, shape),
        HostSlice::Q8(_) | HostSlice::Q4(_) => gather_from(|at| data.get(at), spec, shape),
    }
}

fn gather_from(get: impl Fn(usize) -> f32, spec: &TensorSpec, shape: [usize; 4]) -> Vec<f32> {
    let strides = spec.strides(shape);
    let mut dense = Vec::with_capacity(shape.iter().product());
    for batch in 0..shape[0] {
        for head in 0..shape[1] {
            for seq in 0..shape[2] {
                let row = spec.offset + batch * strides.batch + head * strides.head + seq * strides.seq;
                dense.extend((0..shape[3]).map(|dim| get(row + dim * strides.dim)));
            }
        }
    }
    dense
}
