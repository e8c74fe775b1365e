//! Counts of a mask: visible pairs, and tiles by what kernels do with them.

use std::fmt;
use std::ops::Range;

use wgpu_attention::Dims;
use wgpu_attention::cpu::TileStatus;

/// Counts of a head.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Head {
    pub(super) visible: usize,
    pub(super) pairs: usize,
    /// Status of each tile, row by row.
    pub(super) tiles: Vec<Tile>,
    /// Least and greatest change of a visible score.
    pub(super) change: Option<[f32; 2]>,
}

/// Treatment of a tile by a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    Skipped,
    /// No pair is tested: all are visible.
    Whole,
    Tested,
    /// Tested, and then skipped, because no pair is visible.
    Empty,
}

impl Head {
    /// Counts the pairs of a head by their scores, -inf where masked, which were `x` before, and its tiles by their status.
    pub(super) fn of(
        scores: &[f32],
        dims: &Dims,
        [tile_rows, tile_keys]: [usize; 2],
        x: f32,
        status: impl Fn(Range<usize>, Range<usize>) -> TileStatus,
    ) -> Self {
        let mut head = Self { pairs: scores.len(), ..Self::default() };
        for &score in scores.iter().filter(|&&score| score != f32::NEG_INFINITY) {
            head.visible += 1;
            let change = score - x;
            head.change = Some(head.change.map_or([change; 2], |[least, most]| [least.min(change), most.max(change)]));
        }
        for first_row in (0..dims.seq_len_q).step_by(tile_rows) {
            let rows = first_row..dims.seq_len_q.min(first_row.saturating_add(tile_rows));
            for first_key in (0..dims.seq_len_kv).step_by(tile_keys) {
                let keys = first_key..dims.seq_len_kv.min(first_key.saturating_add(tile_keys));
                let is_visible = |row: usize| scores[row * dims.seq_len_kv..][keys.clone()].iter().any(|&score| score != f32::NEG_INFINITY);
                head.tiles.push(match status(rows.clone(), keys.clone()) {
                    TileStatus::None => Tile::Skipped,
                    TileStatus::All => Tile::Whole,
                    TileStatus::Some if rows.clone().any(is_visible) => Tile::Tested,
                    TileStatus::Some => Tile::Empty,
                });
            }
        }
        head
    }

    /// Sums several heads up.
    pub(super) fn sum(heads: &[Self]) -> Self {
        heads.iter().fold(Self::default(), |sum, head| Self {
            visible: sum.visible + head.visible,
            pairs: sum.pairs + head.pairs,
            tiles: [&sum.tiles[..], &head.tiles].concat(),
            change: match (sum.change, head.change) {
                (Some([a, b]), Some([c, d])) => Some([a.min(c), b.max(d)]),
                (a, b) => a.or(b),
            },
        })
    }

    pub(super) fn count(&self, wanted: &[Tile]) -> usize {
        self.tiles.iter().filter(|tile| wanted.contains(tile)).count()
    }

    pub(super) fn share(&self, wanted: &[Tile]) -> Percent {
        Percent(self.count(wanted), self.tiles.len())
    }

    pub(super) const fn density(&self) -> Percent {
        Percent(self.visible, self.pairs)
    }

    /// Shares of the tiles that are skipped, whole, and tested.
    pub(super) fn shares(&self) -> [Percent; 3] {
        [self.share(&[Tile::Skipped]), self.share(&[Tile::Whole]), self.share(&[Tile::Tested, Tile::Empty])]
    }
}

/// Share of a count, written with at most two decimals.
pub(super) struct Percent(usize, usize);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.2}", 100.0 * self.0 as f64 / self.1.max(1) as f64);
        write!(f, "{} %", text.trim_end_matches('0').trim_end_matches('.'))
    }
}
