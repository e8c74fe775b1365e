//! ONNX operators on an engine: `Attention` (opsets 23 to 25), `RotaryEmbedding`, and ONNX Runtime's com.microsoft
//! `MultiHeadAttention` and `GroupQueryAttention`. A runtime passes attributes and tensors and receives tensors.
//!
//! ```
//! use wgpu_attention::onnx::{Attention, AttentionInputs, Tensor, Wanted};
//! use wgpu_attention::{Backend, Engine, EngineOptions};
//!
//! let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
//! let ones = [1.0f32; 12];
//! let tensor = Tensor { shape: &[1, 2, 3, 2], data: ones[..].into() }; // [batch, heads, seq, dim]
//! let node = Attention { is_causal: true, ..Default::default() };
//! let given = node.run(&AttentionInputs::new(tensor, tensor, tensor), Wanted::default(), &engine)?;
//! assert_eq!(given.output.shape, [1, 2, 3, 2]);
//! # Ok::<(), wgpu_attention::Error>(())
//! ```

mod attention;
mod contrib;
mod rotary_embedding;

pub use attention::{Attention, AttentionInputs, AttentionOutputs, Mask, Wanted};
pub use contrib::{GroupQueryAttention, GroupQueryAttentionInputs, MultiHeadAttention, MultiHeadAttentionInputs};
pub use rotary_embedding::RotaryEmbedding;

use crate::error::{Error, Result};
use crate::numbers::{HostSlice, HostVec};
use crate::problem::{Layout, TensorSpec, gather};

/// Borrowed contiguous tensor in host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Shape of the tensor.
    pub shape: &'a [usize],
    /// Elements in row-major order.
    pub data: HostSlice<'a>,
}

/// Owned contiguous tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: HostVec,
}

impl OwnedTensor {
    /// Borrows the tensor.
    pub fn view(&self) -> Tensor<'_> {
        Tensor { shape: &self.shape, data: self.data.as_slice() }
    }
}

impl<'a> Tensor<'a> {
    /// Checks that the data fills the shape.
    fn check(&self, argument: &'static str) -> Result<()> {
        check_shape(argument, self.shape, self.data.len())
    }

    /// Sizes [batch, heads, seq, dim] and layout of a tensor of these 4 axes or of 3, [batch, seq, heads * dim].
    fn heads(&self, argument: &'static str, num_heads: Option<usize>) -> Result<([usize; 4], Layout)> {
        self.check(argument)?;
        match (self.shape, num_heads) {
            (&[batch, heads, seq, dim], _) => Ok(([batch, heads, seq, dim], Layout::Bhsd)),
            ([_, _, _], None) => Err(Error::invalid(argument, "has 3 axes; that needs the number of heads as an attribute")),
            (&[batch, seq, width], Some(heads)) if heads > 0 && width.is_multiple_of(heads) => {
                Ok(([batch, heads, seq, width / heads], Layout::Bshd))
            }
            ([_, _, width], Some(heads)) => Err(Error::invalid(argument, format!("width {width} is no multiple of {heads} heads"))),
            _ => Err(Error::invalid(argument, format!("has shape {:?}; 3 or 4 axes are needed", self.shape))),
        }
    }

    /// Elements in [batch, heads, seq, dim] order, widened to f32.
    fn dense(&self, shape: [usize; 4], layout: Layout) -> Vec<f32> {
        gather(self.data, &TensorSpec::new(self.data.dtype(), layout), shape)
    }

    fn to_f32(self) -> Vec<f32> {
        (0..self.data.len()).map(|at| self.data.get(at)).collect()
    }
}

fn check_shape(argument: &'static str, shape: &[usize], len: usize) -> Result<()> {
    match shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)) {
        Some(elements) if elements == len => Ok(()),
        _ => Err(Error::invalid(argument, format!("has {len} elements, which is not shape {shape:?}"))),
    }
}

/// Pads a shape with leading 1s to four axes.
fn four_axes(argument: &'static str, shape: &[usize]) -> Result<[usize; 4]> {
    if shape.is_empty() || shape.len() > 4 {
        return Err(Error::invalid(argument, format!("has shape {shape:?}; 1 to 4 axes are needed")));
    }
    let mut full = [1; 4];
    full[4 - shape.len()..].copy_from_slice(shape);
    Ok(full)
}
