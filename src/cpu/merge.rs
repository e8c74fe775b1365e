//! Partial results over disjoint keys, merged into the result over all keys.

use crate::error::{Error, Result};

/// Attention over some of the keys, without a sink, in f32.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Output rows of equal width, in the order of `lse`: [tokens, num_heads, head_dim_v] for varlen sequences,
    /// [batch, num_heads, seq_len_q, head_dim_v] for a padded batch. A row whose lse is -inf is not read.
    pub output: &'a [f32],
    /// Natural logarithm of each row's denominator; -inf for a row with no visible key, NaN for one that saw NaN.
    pub lse: &'a [f32],
}

/// Attention over the keys of all parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Output rows, in the order of the parts' outputs; 0 for a row with no visible key in any part.
    pub output: Vec<f32>,
    /// Natural logarithms of the merged denominators, in the order of the parts' lse.
    pub lse: Vec<f32>,
}

/// Merges attentions of the same queries over disjoint keys:
///
/// ```text
/// lse    = ln(sum_p exp(lse_p))
/// output = sum_p exp(lse_p - lse) * output_p
/// ```
///
/// Sums are f64, and the largest lse is subtracted first. The merge is exact up to the rounding of the parts, whatever
/// their number, order and size, and finite where they are. Rounding an lse changes its part's weight by up to |lse| *
/// 2^-24: one percent where scores are 2e5, everything from 1e7 on. One attention over all keys avoids this.
///
/// An lse of +inf or NaN in any part makes output and lse of its row NaN.
/// A sink that no part has is merged as one more part, with output 0 and the sink as its lse.
/// (Rabe and Staats 2021, *Self-attention does not need O(n²) memory*.)
///
/// Errors: no parts, parts of different sizes, outputs that are not whole rows.
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
