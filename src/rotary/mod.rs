//! Rotary position embedding, and the norm of heads before it ([`QkNorm`]).
//!
//! The first `width` elements of a head are rotated in pairs (a, b) by an angle that grows with the position:
//!
//! ```text
//! y_a = cos * x_a - sin * x_b
//! y_b = sin * x_a + cos * x_b        angle(position, pair) = position / base^(2 pair / width)
//! ```
//!
//! The rest of the head is unchanged. Su et al., RoFormer, arXiv:2104.09864. [`Scaling`] stretches it to longer texts.

mod norm;
mod scaling;
mod sections;

use crate::error::{Error, Result};
pub use norm::QkNorm;
pub use scaling::Scaling;
pub use sections::Sections;

/// Pairing of the elements of a head that are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Pairs (i, i + width / 2), as in GPT-NeoX and most Llama checkpoints. The default.
    #[default]
    HalfSplit,
    /// Pairs (2 i, 2 i + 1), as in the paper and GPT-J.
    Interleaved,
}

/// Most angles that tables may have: 8 GiB of cosines and sines.
const MOST_ANGLES: usize = 1 << 30;

/// Cosines and sines of the positions from 0 on.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    pairing: Pairing,
    pairs: usize,
    /// Distance between the elements of a pair, unless they are neighbours.
    distance: usize,
    sections: Option<Sections>,
    /// Cosine and sine of each position and pair.
    angles: Vec<[f32; 2]>,
}

impl Rotary {
    /// Builds unscaled tables for positions `0..positions`. `width` is even; `base` is 10000 in most models.
    pub fn new(pairing: Pairing, base: f32, width: usize, positions: usize) -> Result<Self> {
        Self::scaled(pairing, base, width, positions, Scaling::None)
    }

    /// Builds tables with scaled frequencies. Errors: an odd or zero width, a base up to 1, a bad scaling, no memory.
    pub fn scaled(pairing: Pairing, base: f32, width: usize, positions: usize, scaling: Scaling) -> Result<Self> {
        check(base, width, scaling)?;
        let pairs = width / 2;
        Ok(Self { pairing, pairs, distance: pairs, sections: None, angles: angles([pairs, positions], base, width, scaling)? })
    }

    /// Builds tables that rotate the first `pairs` of the pairs (i, i + head_dim / 2) of a head, as Gemma 4 does
    /// (`rope_type: proportional`): pairs = partial_rotary_factor * head_dim / 2. Frequencies are those of the whole head,
    /// base^(-2 pair / head_dim).
    ///
    /// Errors: those of [`Self::scaled`], with head_dim as the width; no pairs or more than head_dim / 2.
    pub fn proportional(base: f32, pairs: usize, head_dim: usize, positions: usize, scaling: Scaling) -> Result<Self> {
        check(base, head_dim, scaling)?;
        if pairs == 0 || pairs > head_dim / 2 {
            return Err(Error::invalid("pairs", format!("are {pairs}, a head of {head_dim} has 1 to {}", head_dim / 2)));
        }
        let angles = angles([pairs, positions], base, head_dim, scaling)?;
        Ok(Self { pairing: Pairing::HalfSplit, pairs, distance: head_dim / 2, sections: None, angles })
    }

    /// Takes the angle of each pair from one of three positions of a token. Errors: sections that are not these pairs.
    pub fn with_sections(self, sections: Sections) -> Result<Self> {
        sections.check(self.pairs)?;
        Ok(Self { sections: Some(sections), ..self })
    }

    /// Wraps tables [positions, pairs], as models and ONNX provide them.
    pub fn from_tables(pairing: Pairing, pairs: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self> {
        if pairs == 0 || cos.len() != sin.len() || !cos.len().is_multiple_of(pairs) {
            let why = format!("{} cosines and {} sines are no two tables of rows of {pairs}", cos.len(), sin.len());
            return Err(Error::invalid("cos", why));
        }
        let angles = cos.into_iter().zip(sin).map(|(cos, sin)| [cos, sin]).collect();
        Ok(Self { pairing, pairs, distance: pairs, sections: None, angles })
    }

    /// Pairing of the rotated elements.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// Number of pairs that are rotated in each head.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Distance between the elements of a pair, unless they are neighbours: the number of pairs, or half of the head.
    pub fn distance(&self) -> usize {
        self.distance
    }

    /// Sections of the pairs, if tokens have three positions.
    pub fn sections(&self) -> Option<Sections> {
        self.sections
    }

    /// Cosine and sine of every position and pair, as shaders read them.
    pub fn angles(&self) -> &[[f32; 2]] {
        &self.angles
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.angles.len() / self.pairs
    }

    /// Rotates one head in place. Errors: a head too narrow for the pairs, a position past the tables.
    pub fn apply(&self, head: &mut [f32], position: usize) -> Result<()> {
        self.apply_at(head, [position; 3])
    }

    /// Rotates one head in place, each pair by the position that its section takes: time, height or width.
    ///
    /// Errors: those of [`Self::apply`].
    pub fn apply_at(&self, head: &mut [f32], positions: [usize; 3]) -> Result<()> {
        let (pairs, distance) = (self.pairs, self.distance);
        if head.len() < pairs + distance {
            return Err(Error::invalid("width", format!("a head of {} has no {pairs} pairs to rotate", head.len())));
        }
        if let Some(past) = positions.into_iter().find(|&position| position >= self.positions()) {
            return Err(Error::invalid("position", format!("{past} is past the {} positions of the tables", self.positions())));
        }
        for pair in 0..pairs {
            let position = positions[self.sections.map_or(0, |sections| sections.coordinate(pair))];
            let [cos, sin] = self.angles[position * pairs + pair];
            let (a, b) = match self.pairing {
                Pairing::HalfSplit => (pair, pair + distance),
                Pairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            (head[a], head[b]) = (cos * head[a] - sin * head[b], sin * head[a] + cos * head[b]);
        }
        Ok(())
    }

    /// Rotates every head of [tokens, heads, head_dim] in place; `positions` has one position per token.
    pub fn apply_tokens(&self, data: &mut [f32], heads: usize, head_dim: usize, positions: &[usize]) -> Result<()> {
        if Some(data.len()) != positions.len().checked_mul(heads).and_then(|rows| rows.checked_mul(head_dim)) {
            let why = format!("{} numbers are no {} tokens of {heads} heads of {head_dim}", data.len(), positions.len());
            return Err(Error::invalid("positions", why));
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

fn check(base: f32, width: usize, scaling: Scaling) -> Result<()> {
    if !width.is_multiple_of(2) || width == 0 {
        return Err(Error::invalid("width", format!("{width} cannot be split into pairs: it must be even and above 0")));
    }
    if !(base.is_finite() && base > 1.0) {
        return Err(Error::invalid("base", format!("{base} is not a finite number above 1")));
    }
    scaling.check()
}

/// Cosines and sines [positions, pairs] of the frequencies of a width.
fn angles([pairs, positions]: [usize; 2], base: f32, width: usize, scaling: Scaling) -> Result<Vec<[f32; 2]>> {
    let mut angles = Vec::new();
    let count = pairs.checked_mul(positions.max(1)).filter(|&count| count <= MOST_ANGLES);
    if count.is_none_or(|count| angles.try_reserve_exact(count).is_err()) {
        return Err(Error::Limit {
            limit: "memory",
            needed: (pairs as u64).saturating_mul(8).saturating_mul(positions as u64),
            available: 8 * MOST_ANGLES as u64,
            remedy: "make tables for fewer positions".into(),
        });
    }
    let frequencies: Vec<f64> = (0..pairs).map(|pair| scaling.frequency(pair, base.into(), width)).collect();
    let factor = f64::from(scaling.attention_factor());
    for angle in (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency)) {
        angles.push([angle.cos(), angle.sin()].map(|x| (factor * x) as f32));
    }
    Ok(angles)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests that the score of a rotated query and key depends only on their distance.
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

    /// Compares with inverse frequencies of transformers' own tests (tests/utils/test_modeling_rope_utils.py): head_dim
    /// 128, base 10000, factor 10, 2048 positions.
    #[test]
    fn scaled_frequencies_are_those_of_the_models() {
        let llama = Scaling::Llama3 { factor: 10.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions: 2048 };
        let yarn = |attention_factor| Scaling::Yarn {
            factor: 10.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 2048,
            attention_factor,
            truncate: true,
        };
        let plain = [(0, 1.0), (1, 0.86596), (16, 0.1), (63, 1.1548e-4)];
        let of_llama = [(1, 0.86596), (30, 1.3335e-2), (31, 1.0730e-2), (32, 7.7785e-3), (35, 2.8248e-3), (40, 3.4539e-4), (41, 2.7384e-4)];
        let of_yarn = [(16, 0.1), (17, 8.3479e-2), (24, 2.2515e-2), (33, 3.3599e-3), (40, 4.3007e-4), (41, 2.7384e-4), (63, 1.1548e-5)];
        for (scaling, known) in [(Scaling::None, &plain[..]), (llama, &of_llama), (yarn(None), &of_yarn)] {
            for &(pair, frequency) in known {
                let got = scaling.frequency(pair, 10000.0, 128);
                assert!((got / frequency - 1.0).abs() < 1e-4, "{scaling:?}: {got} instead of {frequency} at {pair}");
            }
        }
        assert_eq!((llama.attention_factor(), yarn(Some(0.5)).attention_factor()), (1.0, 0.5));
        assert!((yarn(None).attention_factor() - 1.2302585).abs() < 1e-6);
        // At position 1 the angle is the frequency, and the length of (cos, sin) is the attention factor.
        let rotary = Rotary::scaled(Pairing::HalfSplit, 10000.0, 128, 2, yarn(None)).unwrap_or_else(|error| panic!("{error}"));
        let [cos, sin] = rotary.angles[64 + 17];
        assert!((sin / cos - 8.3479e-2f32.tan()).abs() < 1e-5 && (cos.hypot(sin) - 1.2302585).abs() < 1e-6);
        let linear = Scaling::Linear { factor: 4.0 };
        assert!((linear.frequency(16, 10000.0, 128) - 0.025).abs() < 1e-9);
        for bad in [Scaling::Linear { factor: 0.0 }, yarn(Some(f32::NAN))] {
            assert!(Rotary::scaled(Pairing::HalfSplit, 10000.0, 128, 2, bad).is_err());
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
