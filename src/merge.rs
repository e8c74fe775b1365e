//! Partial results over disjoint keys, merged into the result over all of them.

use crate::{Error, Result};

/// An attention over some of the keys, without sink, in f32.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Rows of equally many numbers, in the order of `lse`: [tokens, num_heads, head_dim_v] goes with the lse of packed sequences,
    /// [batch, num_heads, seq_len_q, head_dim_v] with that of a padded batch. A row of lse -inf is not read.
    pub output: &'a [f32],
    /// The natural logarithm of each row's denominator; -inf for a row that saw nothing, NaN for one that saw NaN.
    pub lse: &'a [f32],
}

/// The attention over the keys of all parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// In the order of the parts' outputs; 0 for a row that saw nothing in any part.
    pub output: Vec<f32>,
    /// In the order of the parts' lse.
    pub lse: Vec<f32>,
}

/// Merges attentions of the same queries over disjoint keys:
///
/// ```text
/// lse    = ln(sum_p exp(lse_p))
/// output = sum_p exp(lse_p - lse) * output_p
/// ```
///
/// Sums are f64, and the largest lse is taken off first: the merge is exact up to the rounding of the parts, whatever their number, order
/// and size, and finite where they are. That rounding is the lse's own: a part's weight is off by up to |lse| * 2^-24, a hundredth where
/// scores are 2e5, and means nothing from 1e7 on. Keys that must not lose that belong in one attention, which keeps more of its own parts.
///
/// An lse of +inf or NaN in a part makes output and lse of that row NaN.
/// A sink that none of the parts had is one more part, of output 0 and the sink as its lse.
/// (Rabe and Staats 2021, *Self-attention does not need O(n²) memory*.)
///
/// Errors: no part, or parts of different sizes.
pub fn merge(parts: &[Part<'_>]) -> Result<Merged> {
    let first = parts.first().ok_or_else(|| Error::invalid("parts", "there is none; the size of the result is theirs"))?;
    let (rows, numbers) = (first.lse.len(), first.output.len());
    let width = numbers.checked_div(rows).unwrap_or(0);
    if width * rows != numbers {
        return Err(Error::invalid("parts", format!("{numbers} numbers of output are no {rows} rows of one length")));
    }
    if let Some(part) = parts.iter().find(|part| (part.lse.len(), part.output.len()) != (rows, numbers)) {
        let why = format!("one has {} rows and {} numbers, the first {rows} and {numbers}", part.lse.len(), part.output.len());
        return Err(Error::invalid("parts", why));
    }
    let mut merged = Merged { output: vec![0.0; numbers], lse: vec![f32::NEG_INFINITY; rows] };
    let mut sums = vec![0.0f64; width];
    for row in 0..rows {
        let seen = || parts.iter().filter(|part| part.lse[row] != f32::NEG_INFINITY);
        if seen().next().is_none() {
            continue;
        }
        if seen().any(|part| !part.lse[row].is_finite()) {
            merged.lse[row] = f32::NAN;
            merged.output[row * width..][..width].fill(f32::NAN);
            continue;
        }
        let top = seen().map(|part| f64::from(part.lse[row])).fold(f64::NEG_INFINITY, f64::max);
        let mut total = 0.0;
        sums.fill(0.0);
        for part in seen() {
            let weight = (f64::from(part.lse[row]) - top).exp();
            total += weight;
            sums.iter_mut().zip(&part.output[row * width..]).for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        merged.lse[row] = (top + total.ln()) as f32;
        merged.output[row * width..][..width].iter_mut().zip(&sums).for_each(|(x, sum)| *x = (sum / total) as f32);
    }
    Ok(merged)
}
