//! Frequencies for texts longer than those of the training.

use crate::error::{Error, Result};

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
    pub(super) fn frequency(self, pair: usize, base: f64, width: usize) -> f64 {
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

    pub(super) fn check(self) -> Result<()> {
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
