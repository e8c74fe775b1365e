//! Heads as a norm and a rotary embedding must leave them: an oracle in f64, and random cases.

use super::STORAGE;
use super::buffers::draw;
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary, Scaling, Sections};
use wgpu_attention::{DType, Layout};

/// Number of positions in the tables.
pub(crate) const POSITIONS: usize = 40;

/// Rotary embedding in words of the formula.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) pairing: Pairing,
    pub(crate) pairs: usize,
    /// Distance between the elements of a pair, if they are no neighbours.
    pub(crate) distance: usize,
    /// Width in the exponent of the frequencies.
    pub(crate) width: usize,
    pub(crate) sections: Option<Sections>,
}

/// Heads of a layer, and what becomes of them.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub(crate) layer: LayerShape,
    pub(crate) layout: Layout,
    pub(crate) new: DType,
    /// Weights of queries and of keys, and eps.
    pub(crate) norm: Option<([Vec<f32>; 2], f32)>,
    pub(crate) turn: Option<Turn>,
    /// True if tokens have positions of their own.
    pub(crate) explicit: bool,
    /// A mistake: the norm after the rotary embedding.
    pub(crate) norm_last: bool,
}

impl Heads {
    /// The oracle: a head as it must become, in f64.
    pub(crate) fn exact(&self, head: &[f32], is_query: bool, positions: [usize; 3]) -> Vec<f64> {
        let mut y: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
        let normalise = |y: &mut Vec<f64>| {
            let Some((weights, eps)) = &self.norm else { return };
            let mean = y.iter().map(|x| x * x).sum::<f64>() / y.len() as f64;
            let weights = &weights[usize::from(!is_query)];
            y.iter_mut().zip(weights).for_each(|(x, &weight)| *x = *x / (mean + f64::from(*eps)).sqrt() * f64::from(weight));
        };
        if !self.norm_last {
            normalise(&mut y);
        }
        if let Some(turn) = &self.turn {
            let coordinates = coordinates(turn);
            for pair in 0..turn.pairs {
                let angle = positions[coordinates[pair]] as f64 * 10000f64.powf(-2.0 * pair as f64 / turn.width as f64);
                let interleaved = turn.pairing == Pairing::Interleaved;
                let [a, b] = if interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + turn.distance] };
                (y[a], y[b]) = (y[a] * angle.cos() - y[b] * angle.sin(), y[a] * angle.sin() + y[b] * angle.cos());
            }
        }
        if self.norm_last {
            normalise(&mut y);
        }
        y
    }

    pub(crate) fn norm(&self) -> Option<QkNorm> {
        self.norm.as_ref().map(|([query, key], eps)| QkNorm::new(query, key, *eps).expect("valid"))
    }

    pub(crate) fn rotary(&self) -> Option<Rotary> {
        let turn = self.turn.as_ref()?;
        let rotary = if turn.distance == turn.pairs {
            Rotary::new(turn.pairing, 10000.0, turn.width, POSITIONS)
        } else {
            Rotary::proportional(10000.0, turn.pairs, turn.width, POSITIONS, Scaling::None)
        };
        let rotary = rotary.expect("valid");
        Some(match turn.sections {
            Some(sections) => rotary.with_sections(sections).expect("parts of the pairs"),
            None => rotary,
        })
    }

    /// Draws heads of all kinds.
    pub(crate) fn drawn(rng: &mut Rng) -> Self {
        let new = DType::FLOATS[rng.usize(..3)];
        let key = STORAGE[rng.usize(..5)];
        let head_dim = if key.is_quantised() { [32, 96, 160][rng.usize(..3)] } else { [8, 24, 64, 130][rng.usize(..4)] };
        let layer = LayerShape::new(2, head_dim).head_dim_v(8).stored(key, DType::F32);
        let mut weights = || (0..head_dim).map(|_| rng.f32() * 2.0 - 0.5).collect::<Vec<f32>>();
        let weights = [weights(), weights()];
        let norm = (rng.u8(..3) > 0).then_some((weights, [1e-6, 0.05][rng.usize(..2)]));
        let turn = (norm.is_none() || rng.u8(..4) > 0).then(|| Turn::drawn(rng, head_dim));
        let explicit = turn.as_ref().is_some_and(|turn| turn.sections.is_some() || rng.bool());
        let layout = [Layout::Bhsd, Layout::Bshd][rng.usize(..2)];
        Self { layer, layout, new, norm, turn, explicit, norm_last: false }
    }
}

impl Turn {
    fn drawn(rng: &mut Rng, head_dim: usize) -> Self {
        // Rows of 16 bits are written in twos.
        let pairs = 2 * rng.usize(1..=head_dim / 4);
        let [height, width] = [(pairs + 1) / 3, pairs / 3].map(|most| rng.usize(..=most));
        let sections = match rng.u8(..4) {
            0 => Some(Sections::Chunks([pairs - height - width, height, width])),
            1 => Some(Sections::Interleaved([pairs - height - width, height, width])),
            _ => None,
        };
        let pairing = [Pairing::HalfSplit, Pairing::Interleaved][rng.usize(..2)];
        if rng.bool() && (head_dim / 2).is_multiple_of(2) {
            return Self { pairing: Pairing::HalfSplit, pairs, distance: head_dim / 2, width: head_dim, sections };
        }
        Self { pairing, pairs, distance: pairs, width: 2 * pairs, sections }
    }
}

/// Coordinate of each pair: lists that are joined, or overwritten with steps of 3, as the models' own code does it.
fn coordinates(turn: &Turn) -> Vec<usize> {
    match turn.sections {
        None => vec![0; turn.pairs],
        Some(Sections::Chunks(counts)) => counts.into_iter().enumerate().flat_map(|(n, count)| vec![n; count]).collect(),
        Some(Sections::Interleaved(counts)) => {
            let mut list = vec![0; turn.pairs];
            for n in [1, 2] {
                (n..3 * counts[n]).step_by(3).for_each(|pair| list[pair] = n);
            }
            list
        }
    }
}

/// Norm of every layer, of random weights.
pub(crate) fn norms(shape: &CacheShape) -> Vec<QkNorm> {
    let norm = |layer: &LayerShape| QkNorm::new(&draw(7, layer.head_dim), &draw(8, layer.head_dim), 1e-6).expect("valid");
    shape.layers.iter().map(norm).collect()
}
