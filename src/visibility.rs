//! Which keys a query row may see, as arithmetic.
//!
//! Everything but documents and the boolean mask leaves each row one interval of keys, so that what cannot be seen is
//! never visited: loops start and end at the interval's ends.

use std::ops::Range;

/// Where query row 0 stands among the keys. Causality, windows, ALiBi and relative biases count from there:
/// row i of a sequence stands at position `p = i + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// offset = 0: PyTorch's `is_causal`.
    TopLeft,
    /// offset = (visible length of the keys) - seq_len_q: the last row stands at the last key. FlashAttention, ONNX, decoding.
    /// The visible length is `kv_lengths` or the packed sequence's where there is one.
    BottomRight,
    /// The offset itself.
    Offset(i32),
}

impl Alignment {
    /// The position of row 0.
    pub fn offset(self, seq_len_q: usize, seq_len_kv: usize) -> i64 {
        match self {
            Self::TopLeft => 0,
            Self::BottomRight => (seq_len_kv as i64).wrapping_sub(seq_len_q as i64),
            Self::Offset(offset) => offset.into(),
        }
    }
}

/// Shape of a mask or a bias: each axis of [batch, num_heads, seq_len_q, seq_len_kv] is there in full, or 1 and broadcast.
/// Contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Broadcast(pub [usize; 4]);

impl Broadcast {
    /// Elements to step along each axis; 0 where it is broadcast.
    pub fn strides(self) -> [usize; 4] {
        let [_, heads, rows, keys] = self.0;
        let of_head = rows.saturating_mul(keys);
        let full = [heads.saturating_mul(of_head), of_head, keys, 1];
        std::array::from_fn(|axis| if self.0[axis] == 1 { 0 } else { full[axis] })
    }

    /// How many elements it has. `None` on overflow.
    pub fn elements(self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
    }
}

/// Which keys a query row may see. The default is all of them.
///
/// Row i at position p (see [`Alignment`]) sees key j when all of these hold:
/// - `j <= p`, if `causal`; with `prefix_lengths`: `j <= p` or `j < prefix_length[batch]`;
/// - `p - window_left <= j` and `j <= p + window_right`, both inclusive, `None` being open;
/// - `j < kv_length[batch]`, if `kv_lengths`;
/// - `document_q[batch, i] == document_kv[batch, j]`, if `documents`;
/// - the mask is true there, if there is one;
/// - the additive bias there is not -inf, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Visibility {
    /// Where the rows stand. Needed as soon as anything counts from a position; there is no default that guesses.
    pub alignment: Option<Alignment>,
    /// Hide the keys after the row's position.
    pub causal: bool,
    /// Hide the keys more than this far before the position.
    pub window_left: Option<u32>,
    /// Hide the keys more than this far after the position.
    pub window_right: Option<u32>,
    /// Each batch item has a length of its own among the keys; those past it are padding.
    pub kv_lengths: bool,
    /// Each batch item has a prefix that `causal` does not hide.
    pub prefix_lengths: bool,
    /// Rows see only keys of their own document.
    pub documents: bool,
    /// A boolean mask: true = may attend.
    pub mask: Option<Broadcast>,
}

impl Visibility {
    /// The keys that a row at `position` may see, as far as arithmetic tells, of `0..seq_len_kv`.
    /// `prefix` is the item's prefix length, 0 where there is none.
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
