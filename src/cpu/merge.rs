//! Partial results over disjoint keys, merged into the result over all keys.

use crate::error::{Error, Result};

/// Softmax denominators of the rows of a [`Part`].
#[derive(Clone, Copy, Debug)]
pub enum RowSums<'a> {
    /// Natural logarithms of the denominators, as in [`crate::Outputs::lse`]. One f32 is rounded by up to |lse| * 2^-24,
    /// which changes the part's weight by that factor: one percent where scores are 2e5, everything from 1e7 on.
    Lse(&'a [f32]),
    /// Statistics (m, l), as in [`crate::Outputs::stats`]: the denominator is l * exp(m), kept to 2^-24 of itself
    /// however large the scores are, so that the merge is exact where an lse is not.
    Stats(&'a [[f32; 2]]),
}

impl RowSums<'_> {
    const fn rows(&self) -> usize {
        match self {
            Self::Lse(lse) => lse.len(),
            Self::Stats(stats) => stats.len(),
        }
    }

    /// Statistics of a row; `None` if it has no visible key, l = NaN if it saw NaN or infinity.
    fn stats(&self, row: usize) -> Option<(f64, f64)> {
        let [m, l] = match self {
            Self::Lse(lse) => [lse[row], if lse[row] == f32::NEG_INFINITY { 0.0 } else { 1.0 }],
            Self::Stats(stats) => stats[row],
        };
        let l = if l != 0.0 && !m.is_finite() { f32::NAN } else { l };
        (l != 0.0).then_some((m.into(), l.into()))
    }
}

/// Attention over some of the keys, without a sink, in f32.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Output rows of equal width, in the order of `sums`: [tokens, num_heads, head_dim_v] for varlen sequences,
    /// [batch, num_heads, seq_len_q, head_dim_v] for a padded batch. A row without a visible key is not read.
    pub output: &'a [f32],
    /// Denominators of the rows. Parts of either kind can be merged with each other.
    pub sums: RowSums<'a>,
}

/// Attention over the keys of all parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Output rows, in the order of the parts' outputs; 0 for a row with no visible key in any part.
    pub output: Vec<f32>,
    /// Natural logarithms of the merged denominators, in the order of the parts' rows.
    pub lse: Vec<f32>,
    /// Statistics (m, l) of the merged rows, to merge further: m is the largest of the parts.
    pub stats: Vec<[f32; 2]>,
}

/// Merges attentions of the same queries over disjoint keys. With (m, l) of each part, or m = lse and l = 1:
///
/// ```text
/// M      = max_p m_p
/// L      = sum_p l_p * exp(m_p - M)             lse = M + ln(L)
/// output = sum_p l_p * exp(m_p - M) * output_p / L
/// ```
///
/// Sums are f64. The merge is exact up to the rounding of the parts, whatever their number, order and size, and finite
/// where they are. [`RowSums`] says how much the rounding of an lse matters.
///
/// A row that saw NaN or infinity in any part (l of NaN, an lse of +inf or NaN) is NaN in output, lse and l.
/// A sink that no part has is merged as one more part, with output 0 and the sink as its lse.
/// (Rabe and Staats 2021, *Self-attention does not need O(n²) memory*.)
///
/// Errors: no parts, parts of different sizes, outputs that are not whole rows.
pub fn merge(parts: &[Part<'_>]) -> Result<Merged> {
    let first = parts.first().ok_or_else(|| Error::invalid("parts", "are none; they say the size of the result"))?;
    let (rows, numbers) = (first.sums.rows(), first.output.len());
    let width = numbers.checked_div(rows).unwrap_or(0);
    if width * rows != numbers {
        return Err(Error::invalid("parts", format!("{numbers} numbers of output are no {rows} rows of one length")));
    }
    if let Some(part) = parts.iter().find(|part| (part.sums.rows(), part.output.len()) != (rows, numbers)) {
        let why = format!("one has {} rows and {} numbers, the first {rows} and {numbers}", part.sums.rows(), part.output.len());
        return Err(Error::invalid("parts", why));
    }
    let mut merged = Merged { output: vec![0.0; numbers], lse: vec![f32::NEG_INFINITY; rows], stats: vec![[f32::MIN, 0.0]; rows] };
    let mut sums = vec![0.0f64; width];
    for row in 0..rows {
        let seen = || parts.iter().filter_map(|part| Some((part, part.sums.stats(row)?)));
        if seen().next().is_none() {
            continue;
        }
        // An m may be NaN: its l is, and makes the row NaN.
        let top = seen().map(|(_, (m, _))| m).filter(|m| m.is_finite()).fold(f64::from(f32::MIN), f64::max);
        let mut total = 0.0;
        sums.fill(0.0);
        for (part, (m, l)) in seen() {
            let weight = l * (m - top).exp();
            total += weight;
            sums.iter_mut().zip(&part.output[row * width..]).for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        merged.stats[row] = [top as f32, total as f32];
        merged.lse[row] = (top + total.ln()) as f32;
        merged.output[row * width..][..width].iter_mut().zip(&sums).for_each(|(x, sum)| *x = (sum / total) as f32);
    }
    Ok(merged)
}
