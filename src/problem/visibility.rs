//! Visibility as arithmetic: which keys a query row may see.
//!
//! Everything but segments, block lists and the boolean mask leaves each row one interval of keys. Loops start and end
//! at the ends of the interval, so keys outside are never visited.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::numbers::Random;
use crate::problem::{BlockList, Dims};

/// Position of query row 0 among the keys. Row i of a sequence has the position `p = i + offset`, from which every
/// term that knows positions counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Offset 0, as in PyTorch's `is_causal`.
    TopLeft,
    /// Offset (number of valid keys) - seq_len_q: the last row is at the last key, as in FlashAttention, ONNX and
    /// decoding. The valid keys are those of `kv_lengths` or of the varlen sequence, if there is one.
    BottomRight,
    /// Explicit offset.
    Offset(i32),
}

impl Alignment {
    /// Position of row 0.
    pub fn offset(self, seq_len_q: usize, seq_len_kv: usize) -> i64 {
        match self {
            Self::TopLeft => 0,
            Self::BottomRight => (seq_len_kv as i64).wrapping_sub(seq_len_q as i64),
            Self::Offset(offset) => offset.into(),
        }
    }

    /// Text form, which [`Self::from_str`] reads.
    pub(crate) fn text(self) -> String {
        match self {
            Self::TopLeft => "top-left".into(),
            Self::BottomRight => "bottom-right".into(),
            Self::Offset(offset) => offset.to_string(),
        }
    }
}

impl FromStr for Alignment {
    type Err = String;

    /// Reads `top-left`, `bottom-right` or an offset.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "top-left" => Ok(Self::TopLeft),
            "bottom-right" => Ok(Self::BottomRight),
            number => number.parse().map(Self::Offset).map_err(|_| "say top-left, bottom-right or a whole number".into()),
        }
    }
}

/// Shape of a contiguous mask or bias. Each axis of [batch, num_heads, seq_len_q, seq_len_kv] has its full extent, or
/// extent 1 and is broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastShape(pub [usize; 4]);

impl BroadcastShape {
    /// Strides in elements along each axis; 0 for broadcast axes.
    pub fn strides(self) -> [usize; 4] {
        let [_, heads, rows, keys] = self.0;
        let of_head = rows.saturating_mul(keys);
        let full = [heads.saturating_mul(of_head), of_head, keys, 1];
        std::array::from_fn(|axis| if self.0[axis] == 1 { 0 } else { full[axis] })
    }

    /// Number of elements. `None` on overflow.
    pub fn elements(self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
    }

    /// Checks that the shape broadcasts to the scores of `dims`.
    pub(crate) fn check(self, argument: &'static str, dims: &Dims) -> Result<()> {
        let full = dims.scores_shape();
        if self.0.iter().zip(full).any(|(&extent, full)| extent != full && extent != 1) {
            return Err(Error::invalid(argument, format!("shape {:?} does not broadcast to {full:?}: each axis is full or 1", self.0)));
        }
        match self.elements() {
            Some(_) => Ok(()),
            None => Err(Error::invalid(argument, format!("shape {:?} overflows", self.0))),
        }
    }

    /// Text form: the four extents, separated by commas.
    pub(crate) fn text(self) -> String {
        self.0.map(|extent| extent.to_string()).join(",")
    }

    /// Draws a shape whose axes are full or 1.
    pub(crate) fn draw(dims: &Dims, random: &mut Random) -> Self {
        Self(dims.scores_shape().map(|extent| if random.one_in(2) { 1 } else { extent }))
    }
}

/// Returns the index of [b, h, i, j] in a mask or bias, and its stride along the keys.
pub(crate) fn along_keys(shape: Option<BroadcastShape>, index: [usize; 4]) -> (usize, usize) {
    let strides = shape.map_or([0; 4], BroadcastShape::strides);
    (index.iter().zip(strides).map(|(index, stride)| index * stride).sum(), strides[3])
}

/// Visibility of keys to query rows. By default every key is visible.
///
/// Key j is visible to row i at position p (see [`Alignment`]) if all of these hold:
/// - `j <= p`, if `causal`; with `prefix_lengths`: `j <= p` or `j < prefix_lengths[batch]`;
/// - `p - window_left <= j` and `j <= p + window_right`, both inclusive; `None` is open;
/// - `floor(j / chunk) == floor(p / chunk)`, if there is a chunk size, as in Llama 4;
/// - `j < (floor(p / block_causal) + 1) * block_causal`, if there is a block size: whole blocks see themselves;
/// - `j < kv_lengths[batch]`, if `kv_lengths`;
/// - `segment_ids_q[batch, i] == segment_ids_kv[batch, j]`, if `segments`;
/// - the tile of j is in the list of the tile of i, if there is a `block_list`;
/// - the mask is true there, if there is one;
/// - the additive bias there is not -inf, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Visibility {
    /// Position of row 0. Required if anything counts from a position: there is no default.
    pub alignment: Option<Alignment>,
    /// True if keys after a row's position are masked.
    pub causal: bool,
    /// Distance before the position beyond which keys are masked.
    pub window_left: Option<u32>,
    /// Distance after the position beyond which keys are masked.
    pub window_right: Option<u32>,
    /// Size of a chunk, at least 1. Rows see only the keys of their own chunk.
    pub chunk: Option<u32>,
    /// Size of a block, at least 1. Rows see the keys before the end of their block.
    pub block_causal: Option<u32>,
    /// True if each item has a number of valid keys; the keys after them are padding.
    pub kv_lengths: bool,
    /// True if each item has a prefix that `causal` does not mask.
    pub prefix_lengths: bool,
    /// True if rows see only keys of their own segment.
    pub segments: bool,
    /// Lists of visible tiles.
    pub block_list: Option<BlockList>,
    /// Boolean mask: true = may attend.
    pub mask: Option<BroadcastShape>,
}

impl Visibility {
    /// Every key is visible.
    pub const ALL: Self = Self {
        alignment: None,
        causal: false,
        window_left: None,
        window_right: None,
        chunk: None,
        block_causal: None,
        kv_lengths: false,
        prefix_lengths: false,
        segments: false,
        block_list: None,
        mask: None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_offsets() {
        assert_eq!(Alignment::TopLeft.offset(3, 8), 0);
        assert_eq!(Alignment::BottomRight.offset(3, 8), 5);
        assert_eq!(Alignment::BottomRight.offset(8, 3), -5);
        assert_eq!(Alignment::Offset(-2).offset(3, 8), -2);
    }
}
