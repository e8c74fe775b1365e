//! Visibility as arithmetic: which keys a query row may see.
//!
//! Everything but segments and the boolean mask leaves each row one interval of keys. Loops start and end at the ends
//! of the interval, so keys outside are never visited.

use std::ops::Range;

/// Position of query row 0 among the keys. Row i of a sequence has the position `p = i + offset`, from which causality,
/// windows, ALiBi and relative biases count.
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
}

/// Shape of a contiguous mask or bias. Each axis of [batch, num_heads, seq_len_q, seq_len_kv] has its full extent, or
/// extent 1 and is broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Broadcast(pub [usize; 4]);

impl Broadcast {
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
}

/// Visibility of keys to query rows. By default every key is visible.
///
/// Key j is visible to row i at position p (see [`Alignment`]) if all of these hold:
/// - `j <= p`, if `causal`; with `prefix_lengths`: `j <= p` or `j < prefix_lengths[batch]`;
/// - `p - window_left <= j` and `j <= p + window_right`, both inclusive; `None` is open;
/// - `j < kv_lengths[batch]`, if `kv_lengths`;
/// - `documents_q[batch, i] == documents_kv[batch, j]`, if `documents`;
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
    /// True if each item has a number of valid keys; the keys after them are padding.
    pub kv_lengths: bool,
    /// True if each item has a prefix that `causal` does not mask.
    pub prefix_lengths: bool,
    /// True if rows see only keys of their own segment.
    pub documents: bool,
    /// Boolean mask: true = may attend.
    pub mask: Option<Broadcast>,
}

impl Visibility {
    /// Interval of `0..seq_len_kv` that is visible to a row at `position`, before segments, mask and bias. `prefix` is
    /// the item's prefix length, or 0.
    pub fn interval(&self, position: i64, prefix: usize, seq_len_kv: usize) -> Range<usize> {
        let signed = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        let next = position.saturating_add(1);
        let mut end = signed(seq_len_kv);
        if self.causal {
            end = end.min(next.max(signed(prefix)));
        }
        if let Some(right) = self.window_right {
            end = end.min(next.saturating_add(right.into()));
        }
        let start = self.window_left.map_or(0, |left| position.saturating_sub(left.into()).max(0));
        let end = end.max(0);
        start.min(end) as usize..end as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let open = Visibility::default();
        assert_eq!(open.interval(3, 0, 8), 0..8);
        let causal = Visibility { causal: true, ..open };
        assert_eq!(causal.interval(3, 0, 8), 0..4);
        assert_eq!(causal.interval(-1, 0, 8), 0..0);
        assert_eq!(causal.interval(3, 6, 8), 0..6);
        assert_eq!(causal.interval(20, 0, 8), 0..8);
        let window = Visibility { window_left: Some(1), window_right: Some(2), ..open };
        assert_eq!(window.interval(3, 0, 8), 2..6);
        assert_eq!(window.interval(-5, 0, 8), 0..0);
        assert!(window.interval(30, 0, 8).is_empty());
    }

    #[test]
    fn alignment_offsets() {
        assert_eq!(Alignment::TopLeft.offset(3, 8), 0);
        assert_eq!(Alignment::BottomRight.offset(3, 8), 5);
        assert_eq!(Alignment::BottomRight.offset(8, 3), -5);
        assert_eq!(Alignment::Offset(-2).offset(3, 8), -2);
    }
}
