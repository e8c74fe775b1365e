//! Rotary position embedding.
//!
//! The first `width` elements of a head are rotated in pairs (a, b) by an angle that grows with the position:
//!
//! ```text
//! y_a = cos * x_a - sin * x_b
//! y_b = sin * x_a + cos * x_b        angle(position, pair) = position / base^(2 pair / width)
//! ```
//!
//! The rest of the head is unchanged. Su et al., RoFormer, arXiv:2104.09864. [`Scaling`] stretches it to longer texts.

use crate::error::{Error, Result};

/// Pairing of the elements of a head that are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Pairs (i, i + width / 2), as in GPT-NeoX and most Llama checkpoints. The default.
    #[default]
    HalfSplit,
    /// Pairs (2 i, 2 i + 1), as in the paper and GPT-J.
    Interleaved,
}

/// Scaling of the frequencies f(pair) = base^(-2 pair / width), so that a model trained on `original_positions` reads
/// longer texts. Names, defaults and formulas: Hugging Face's `rope_scaling` (transformers, `modeling_rope_utils.py`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scaling {
    /// No scaling. The default.
    #[default]
    None,
    /// `linear`: f' = f / factor (Chen et al., *Position Interpolation*, arXiv:2306.15595).
    Linear {
        /// Factor by which texts get longer.
        factor: f32,
    },
    /// `llama3`, of Llama 3.1. With turns = original_positions * f / 2 pi, the full turns of a pair in the old length:
    ///
    /// ```text
    /// s  = clamp((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    /// f' = (1 - s) f / factor + s f
    /// ```
    Llama3 {
        /// Factor by which texts get longer; 8 in Llama 3.1, 32 in Llama 3.2.
        factor: f32,
        /// Turns below which a frequency is divided by the whole factor; 1 in Llama 3.
        low_freq_factor: f32,
        /// Turns above which a frequency stays as it is; 4 in Llama 3.
        high_freq_factor: f32,
        /// Number of positions that the model was trained on; 8192 in Llama 3.
        original_positions: usize,
    },
    /// `yarn` (Peng et al., *YaRN*, arXiv:2309.00071):
    ///
    /// ```text
    /// pair_of(turns) = width * ln(original_positions / (2 pi turns)) / (2 ln base)
    /// low, high      = pair_of(beta_fast), pair_of(beta_slow)      rounded down and up if `truncate`
    /// s              = clamp((pair - low) / (high - low), 0, 1)    low at least 0, high at most width - 1
    /// f'             = s f / factor + (1 - s) f
    /// ```
    ///
    /// Cosines and sines are multiplied by the attention factor, and scores therefore by its square.
    Yarn {
        /// Factor by which texts get longer.
        factor: f32,
        /// Turns above which a frequency stays as it is; usually 32.
        beta_fast: f32,
        /// Turns below which a frequency is divided by the whole factor; usually 1.
        beta_slow: f32,
        /// Number of positions that the model was trained on.
        original_positions: usize,
        /// Factor on cosines and sines. `None` is `0.1 ln(factor) + 1`, or 1 if factor is at most 1. Configurations
        /// with `mscale` and `mscale_all_dim` mean `(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`.
        attention_factor: Option<f32>,
        /// True if `low` and `high` are rounded to whole pairs, the default of configurations; false in gpt-oss.
        truncate: bool,
    },
}

impl Scaling {
    /// Scaled frequency of a pair.
    fn frequency(self, pair: usize, base: f64, width: usize) -> f64 {
        let turn = 2.0 * std::f64::consts::PI;
        let plain = base.powf(-2.0 * pair as f64 / width as f64);
        match self {
            Self::None => plain,
            Self::Linear { factor } => plain / f64::from(factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let turns = original_positions as f64 * plain / turn;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * plain / f64::from(factor) + kept * plain
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
                let pair_of = |turns: f32| width as f64 * (original_positions as f64 / (f64::from(turns) * turn)).ln() / (2.0 * base.ln());
                let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let slowed = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                slowed * plain / f64::from(factor) + (1.0 - slowed) * plain
            }
        }
    }

    /// Factor on cosines and sines; 1 unless the scaling is YaRN.
    pub fn attention_factor(self) -> f32 {
        match self {
            Self::Yarn { attention_factor: Some(given), .. } => given,
            Self::Yarn { factor, .. } if factor > 1.0 => (0.1 * f64::from(factor).ln() + 1.0) as f32,
            _ => 1.0,
        }
    }

    fn check(self) -> Result<()> {
        let numbers = match self {
            Self::None => vec![],
            Self::Linear { factor } => vec![factor],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                vec![factor, low_freq_factor, high_freq_factor - low_freq_factor, original_positions as f32]
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, .. } => {
                vec![factor, beta_slow, beta_fast - beta_slow, original_positions as f32]
            }
        };
        if numbers.iter().any(|&x| !(x.is_finite() && x > 0.0)) || !self.attention_factor().is_finite() {
            let why = format!("{self:?}: factors must be finite and above 0, the upper border above the lower one");
            return Err(Error::invalid("scaling", why));
        }
        Ok(())
    }
}

/// Most angles that tables may have: 8 GiB of cosines and sines.
const MOST_ANGLES: usize = 1 << 30;

/// Cosines and sines of the positions from 0 on.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    pairing: Pairing,
    pairs: usize,
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
        if !width.is_multiple_of(2) || width == 0 {
            return Err(Error::invalid("width", format!("{width} cannot be split into pairs: it must be even and above 0")));
        }
        if !(base.is_finite() && base > 1.0) {
            return Err(Error::invalid("base", format!("{base} is not a finite number above 1")));
        }
        scaling.check()?;
        let pairs = width / 2;
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
        Ok(Self { pairing, pairs, angles })
    }

    /// Wraps tables [positions, pairs], as models and ONNX provide them.
    pub fn from_tables(pairing: Pairing, pairs: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self> {
        if pairs == 0 || cos.len() != sin.len() || !cos.len().is_multiple_of(pairs) {
            let why = format!("{} cosines and {} sines are no two tables of rows of {pairs}", cos.len(), sin.len());
            return Err(Error::invalid("cos", why));
        }
        Ok(Self { pairing, pairs, angles: cos.into_iter().zip(sin).map(|(cos, sin)| [cos, sin]).collect() })
    }

    /// Pairing of the rotated elements.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// Number of pairs that are rotated in each head.
    pub fn pairs(&self) -> usize {
        self.pairs
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
        let pairs = self.pairs;
        if head.len() / 2 < pairs {
            return Err(Error::invalid("width", format!("a head of {} has no {pairs} pairs to rotate", head.len())));
        }
        if position >= self.positions() {
            return Err(Error::invalid("position", format!("{position} is past the {} positions of the tables", self.positions())));
        }
        for (pair, &[cos, sin]) in self.angles[position * pairs..][..pairs].iter().enumerate() {
            let (a, b) = match self.pairing {
                Pairing::HalfSplit => (pair, pair + pairs),
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
