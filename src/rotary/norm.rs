//! RMS norm of query and key heads.

use crate::error::{Error, Result};

/// RMS norm of each query head and each key head, with learned weights (QK-norm), before the rotary embedding:
///
/// ```text
/// y_i = x_i / sqrt(mean(x^2) + eps) * weight_i        mean over the head_dim elements of a head
/// ```
///
/// As in Qwen 3 and Gemma 3; models that normalise all heads of a token together (OLMo 2) do it before they split them.
/// Zhang & Sennrich, *Root Mean Square Layer Normalization*, arXiv:1910.07467.
#[derive(Clone, Debug, PartialEq)]
pub struct QkNorm {
    /// Weights of queries, weights of keys, eps.
    words: Vec<f32>,
}

impl QkNorm {
    /// Takes the weights of queries and of keys, `[head_dim]` each, and eps: 1e-6 in most models.
    ///
    /// Errors: no weights, unequally many, an eps below 0 or not finite.
    pub fn new(query: &[f32], key: &[f32], eps: f32) -> Result<Self> {
        if query.len() != key.len() || query.is_empty() {
            let why = format!("has {} weights of queries and {} of keys: both have head_dim, above 0", query.len(), key.len());
            return Err(Error::invalid("norm", why));
        }
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(Error::invalid("eps", format!("{eps} is not a finite number from 0 on")));
        }
        Ok(Self { words: [query, key, &[eps]].concat() })
    }

    /// Adds 1 to every weight, as Gemma stores them.
    pub fn plus_one(mut self) -> Self {
        let weights = 2 * self.head_dim();
        self.words[..weights].iter_mut().for_each(|weight| *weight += 1.0);
        self
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.words.len() / 2
    }

    /// Weights of queries, weights of keys, then eps, as shaders read them: 2 head_dim + 1 elements.
    pub fn words(&self) -> &[f32] {
        &self.words
    }

    /// Normalises query heads in place, [.., head_dim]. Errors: elements that are no whole heads.
    pub fn apply_query(&self, heads: &mut [f32]) -> Result<()> {
        self.apply(heads, &self.words[..self.head_dim()])
    }

    /// Normalises key heads in place, [.., head_dim]. Errors: elements that are no whole heads.
    pub fn apply_key(&self, heads: &mut [f32]) -> Result<()> {
        self.apply(heads, &self.words[self.head_dim()..2 * self.head_dim()])
    }

    fn apply(&self, heads: &mut [f32], weights: &[f32]) -> Result<()> {
        let head_dim = self.head_dim();
        if !heads.len().is_multiple_of(head_dim) {
            return Err(Error::invalid("norm", format!("{} elements are no whole heads of {head_dim}", heads.len())));
        }
        let eps = f64::from(self.words[2 * head_dim]);
        for head in heads.chunks_exact_mut(head_dim) {
            let squares: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let factor = (1.0 / (squares / head_dim as f64 + eps).sqrt()) as f32;
            head.iter_mut().zip(weights).for_each(|(x, weight)| *x = *x * factor * weight);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads (3, 4) and (0, 0): their mean squares are 12.5 and 0, and eps adds 0.25 or nothing.
    #[test]
    fn heads_are_normalised_as_defined() {
        let norm = QkNorm::new(&[1.0, 2.0], &[-0.5, 0.25], 0.25).expect("valid");
        let root = 12.75f32.sqrt();
        let of = |norm: &QkNorm, apply: fn(&QkNorm, &mut [f32]) -> Result<()>| {
            let mut heads = [3.0, 4.0, 0.0, 0.0];
            apply(norm, &mut heads).map(|()| heads)
        };
        let near = |got: Result<[f32; 4]>, expected: [f32; 4]| {
            got.expect("whole heads").iter().zip(expected).for_each(|(x, y)| assert!((x - y).abs() < 1e-6, "{x} instead of {y}"));
        };
        near(of(&norm, QkNorm::apply_query), [3.0 / root, 8.0 / root, 0.0, 0.0]);
        near(of(&norm, QkNorm::apply_key), [-1.5 / root, 1.0 / root, 0.0, 0.0]);
        near(of(&norm.clone().plus_one(), QkNorm::apply_key), [1.5 / root, 5.0 / root, 0.0, 0.0]);
        assert_eq!((norm.clone().plus_one().words()[4], norm.head_dim()), (0.25, 2));
        assert!(norm.apply_key(&mut [0.0; 3]).is_err());
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let ones = [1.0f32; 4];
        assert!(matches!(QkNorm::new(&ones, &ones[1..], 0.0), Err(Error::Invalid { argument: "norm", .. })));
        assert!(matches!(QkNorm::new(&[], &[], 0.0), Err(Error::Invalid { argument: "norm", .. })));
        for eps in [-1e-6, f32::NAN, f32::INFINITY] {
            assert!(matches!(QkNorm::new(&ones, &ones, eps), Err(Error::Invalid { argument: "eps", .. })));
        }
    }
}
