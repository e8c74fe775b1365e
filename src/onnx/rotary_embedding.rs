//! Operator `RotaryEmbedding` of ONNX.

use super::{OwnedTensor, Tensor};
use crate::error::{Error, Result};
use crate::numbers::HostVec;
use crate::problem::TensorSpec;
use crate::rotary::{Pairing, Rotary};

/// Attributes of ONNX `RotaryEmbedding`, opset 23. [`crate::rotary`] has the formula.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RotaryEmbedding {
    /// True if a pair is two neighbours, false if it has one element of each half.
    pub interleaved: bool,
    /// Number of heads, needed for an input of 3 axes.
    pub num_heads: Option<usize>,
    /// Rotated width of each head; 0 is all of it.
    pub rotary_embedding_dim: usize,
}

impl RotaryEmbedding {
    /// Rotates X, [batch, heads, seq, dim] or [batch, seq, heads * dim].
    ///
    /// With `position_ids` [batch, seq], the caches are [positions, width / 2]; without, [batch, seq, width / 2].
    pub fn run(&self, x: Tensor<'_>, cos_cache: Tensor<'_>, sin_cache: Tensor<'_>, position_ids: Option<&[i64]>) -> Result<OwnedTensor> {
        let (shape, layout) = x.heads("X", self.num_heads)?;
        let [batch, heads, seq, dim] = shape;
        let width = if self.rotary_embedding_dim == 0 { dim } else { self.rotary_embedding_dim };
        if width > dim || !width.is_multiple_of(2) {
            return Err(Error::invalid("rotary_embedding_dim", format!("{width} is not even or more than the head's {dim}")));
        }
        for (argument, cache) in [("cos_cache", cos_cache), ("sin_cache", sin_cache)] {
            cache.check(argument)?;
            if cache.shape.last() != Some(&(width / 2)) {
                return Err(Error::invalid(argument, format!("has shape {:?}; its last axis must be {}", cache.shape, width / 2)));
            }
        }
        let pairing = if self.interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
        let rotary = Rotary::from_tables(pairing, width / 2, cos_cache.to_f32(), sin_cache.to_f32())?;
        let positions = positions(position_ids, batch * seq)?;

        let mut data = x.to_f32();
        let steps = TensorSpec::new(x.data.dtype(), layout).strides(shape);
        for (token, position) in positions.into_iter().enumerate() {
            let (b, i) = (token / seq, token % seq);
            for h in 0..heads {
                rotary.apply(&mut data[b * steps.batch + h * steps.head + i * steps.seq..][..dim], position)?;
            }
        }
        Ok(OwnedTensor { shape: x.shape.to_vec(), data: HostVec::from_f32(x.data.dtype(), &data) })
    }
}

/// Row of the caches for each token.
fn positions(position_ids: Option<&[i64]>, tokens: usize) -> Result<Vec<usize>> {
    let Some(ids) = position_ids else { return Ok((0..tokens).collect()) };
    if ids.len() != tokens {
        return Err(Error::invalid("position_ids", format!("has {} numbers for {tokens} tokens", ids.len())));
    }
    ids.iter().map(|&id| usize::try_from(id).map_err(|_| Error::invalid("position_ids", format!("{id} is no position")))).collect()
}
