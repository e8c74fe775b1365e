//! Rotary position embedding.
//!
//! The first `width` numbers of a head are rotated in pairs (a, b) by an angle that grows with the position:
//!
//! ```text
//! y_a = cos * x_a - sin * x_b
//! y_b = sin * x_a + cos * x_b        angle(position, pair) = position / base^(2 pair / width)
//! ```
//!
//! The rest of the head stays as it is. Su et al., RoFormer, arXiv:2104.09864.

use crate::{Error, Result};

/// Which two numbers of a head are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// i and i + width / 2: GPT-NeoX, Llama in most checkpoints.
    #[default]
    HalfSplit,
    /// 2 i and 2 i + 1: the paper, GPT-J.
    Interleaved,
}

/// Cosines and sines of a range of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    pairing: Pairing,
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// The usual angles, for positions `0..positions`. `width` is even; `base` is 10000 unless a model says otherwise.
    pub fn new(pairing: Pairing, base: f32, width: usize, positions: usize) -> Result<Self> {
        if !width.is_multiple_of(2) || width == 0 {
            return Err(Error::invalid("width", format!("{width} cannot be split into pairs: it must be even and above 0")));
        }
        let pairs = width / 2;
        let angles = (0..positions)
            .flat_map(|position| (0..pairs).map(move |pair| position as f64 / f64::from(base).powf(2.0 * pair as f64 / width as f64)));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Ok(Self { pairing, pairs, cos, sin })
    }

    /// From tables [positions, pairs], as models and ONNX hand them over.
    pub fn from_tables(pairing: Pairing, pairs: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self> {
        if pairs == 0 || cos.len() != sin.len() || !cos.len().is_multiple_of(pairs) {
            return Err(Error::invalid(
                "cos",
                format!("{} cosines and {} sines are no two tables of rows of {pairs}", cos.len(), sin.len()),
            ));
        }
        Ok(Self { pairing, pairs, cos, sin })
    }

    /// How many positions there are angles for.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs
    }

    /// Rotates one head in place.
    pub fn apply(&self, head: &mut [f32], position: usize) -> Result<()> {
        let pairs = self.pairs;
        if head.len() < 2 * pairs {
            return Err(Error::invalid("width", format!("a head of {} has no {pairs} pairs to rotate", head.len())));
        }
        if position >= self.positions() {
            return Err(Error::invalid("position", format!("{position} is past the {} positions of the tables", self.positions())));
        }
        let row = position * pairs..(position + 1) * pairs;
        for (pair, (&cos, &sin)) in self.cos[row.clone()].iter().zip(&self.sin[row]).enumerate() {
            let (a, b) = match self.pairing {
                Pairing::HalfSplit => (pair, pair + pairs),
                Pairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            (head[a], head[b]) = (cos * head[a] - sin * head[b], sin * head[a] + cos * head[b]);
        }
        Ok(())
    }

    /// Rotates every head of [tokens, heads, head_dim] in place; `positions` has one number a token.
    pub fn apply_tokens(&self, data: &mut [f32], heads: usize, head_dim: usize, positions: &[usize]) -> Result<()> {
        if data.len() != positions.len() * heads * head_dim {
            return Err(Error::invalid(
                "positions",
                format!("{} numbers are no {} tokens of {heads} heads of {head_dim}", data.len(), positions.len()),
            ));
        }
        if data.is_empty() {
            return Ok(());
        }
        for (token, &position) in data.chunks_mut(heads * head_dim).zip(positions) {
            token.chunks_mut(head_dim).try_for_each(|head| self.apply(head, position))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The score of a rotated query and key depends on their distance alone.
    #[test]
    fn scores_depend_on_the_distance() {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let rotary = Rotary::new(pairing, 10000.0, 4, 32).unwrap_or_else(|error| panic!("{error}"));
            let score = |at: usize, to: usize| {
                let (mut query, mut key) = ([0.3f32, -1.0, 0.7, 0.2, 5.0], [1.1f32, 0.4, -0.6, 0.9, 2.0]);
                for (head, position) in [(&mut query, at), (&mut key, to)] {
                    rotary.apply(head, position).unwrap_or_else(|error| panic!("{error}"));
                }
                query.iter().zip(key).map(|(x, y)| x * y).sum::<f32>()
            };
            assert!((score(9, 4) - score(25, 20)).abs() < 1e-5);
            assert!((score(9, 4) - score(9, 5)).abs() > 1e-2);
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(Rotary::new(Pairing::HalfSplit, 10000.0, 5, 3).is_err());
        assert!(Rotary::from_tables(Pairing::HalfSplit, 2, vec![1.0; 4], vec![0.0; 6]).is_err());
        let rotary = Rotary::from_tables(Pairing::HalfSplit, 2, vec![1.0; 4], vec![0.0; 4]).unwrap_or_else(|error| panic!("{error}"));
        assert!(rotary.apply(&mut [0.0; 3], 0).is_err());
        assert!(rotary.apply(&mut [0.0; 4], 2).is_err());
    }
}
