//! Block list: rows see only the keys whose tile is in the list of their own tile; one bit a tile.

use std::ops::Range;

use super::term::{Status, Term, TermText, TileAt, extents, size};
use crate::problem::{BlockList, Dims, Problem};

pub(super) const TERM: Term = Term {
    name: "block_list",
    wgsl: files!("terms/block_list.wgsl")[0],
    is_present: |p| p.visibility.block_list.is_some(),
    values: |p, _| {
        let d = &p.dims;
        p.visibility.block_list.map_or([1, 1, 1, 0], |list| {
            let item = if list.batch == 1 { 0 } else { list.words(d) / list.batch.max(1) };
            let within = |size: u32, len: usize| size.min(len.max(1) as u32);
            [within(list.rows, d.seq_len_q), within(list.keys, d.seq_len_kv), (d.num_heads / list.heads) as u32, item as u32]
        })
    },
    check: |p| p.visibility.block_list.map_or(Ok(()), |list| list.check(&p.dims)),
    mask: Some(|p, inputs, at, first, to| {
        let bits = TileBits::of(p, inputs.block_list);
        let line = bits.line(at.batch, at.head / bits.share, at.row / bits.rows);
        for (j, x) in to.iter_mut().enumerate() {
            let tile = (first + j) / bits.keys;
            *x = if line[tile / 32] >> (tile % 32) & 1 == 0 { f32::NEG_INFINITY } else { *x };
        }
    }),
    status: Some(|p, inputs, tile| TileBits::of(p, inputs.block_list).status(tile)),
    draw: |p, kind, rest| {
        let sizes = [1, 2, 3, 8, 16, 32, 64, u32::MAX];
        let d = &p.dims;
        p.visibility.block_list = kind.one_in(7).then(|| BlockList {
            rows: rest.pick(&sizes),
            keys: rest.pick(&sizes),
            batch: rest.pick(&[1, d.batch]),
            heads: rest.pick(&[1, d.num_kv_heads, d.num_heads]),
        });
    },
    remove: |p| p.visibility.block_list = None,
    text: TermText {
        word: "block-list",
        value: "R,K,B,H",
        help: "Let rows see only the listed tiles of R rows and K keys, by B items and H lists of heads",
        needs_data: true,
        write: |p| {
            p.visibility.block_list.map_or_else(String::new, |list| format!("{},{},{},{}", list.rows, list.keys, list.batch, list.heads))
        },
        read: |p, value| {
            let [_, _, batch, heads] = extents(value)?;
            let mut sizes = value.split(',').map(|text| size(text.trim()));
            let mut tile = || sizes.next().unwrap_or(Ok(1));
            p.visibility.block_list = Some(BlockList { rows: tile()?, keys: tile()?, batch, heads });
            Ok(())
        },
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys outside the listed tiles: see [`BlockList`] and [`crate::Inputs::block_list`].
    #[must_use]
    pub const fn block_list(mut self, list: BlockList) -> Self {
        self.visibility.block_list = Some(list);
        self
    }
}

/// Bits of tiles, laid out as [`BlockList`] says. See: shaders/lib/tile_bits.wgsl.
pub(crate) struct TileBits<'a> {
    words: &'a [u32],
    rows: usize,
    keys: usize,
    /// Heads that share a list.
    share: usize,
    /// Extents of the words.
    shape: [usize; 4],
}

impl<'a> TileBits<'a> {
    pub(crate) fn new(list: BlockList, dims: &Dims, words: &'a [u32]) -> Self {
        let share = dims.num_heads / list.heads;
        Self { words, rows: list.rows as usize, keys: list.keys as usize, share, shape: list.shape(dims) }
    }

    fn of(problem: &Problem, words: &'a [u32]) -> Self {
        Self::new(problem.visibility.block_list.unwrap_or(BlockList::new(1, 1)), &problem.dims, words)
    }

    /// Words of a query tile.
    fn line(&self, batch: usize, list: usize, row_tile: usize) -> &'a [u32] {
        let [items, lists, row_tiles, words] = self.shape;
        let batch = if items == 1 { 0 } else { batch };
        &self.words[((batch * lists + list) * row_tiles + row_tile) * words..][..words]
    }

    /// Visibility of a tile of rows and keys, neither of them empty.
    pub(crate) fn status(&self, tile: &TileAt) -> Status {
        let within = |range: &Range<usize>, size: usize| range.start / size..(range.end - 1) / size + 1;
        let (lists, row_tiles, keys) = (within(&tile.heads, self.share), within(&tile.rows, self.rows), within(&tile.keys, self.keys));
        let (mut any, mut missing) = (0, 0);
        for line in lists.flat_map(|list| row_tiles.clone().map(move |row_tile| self.line(tile.batch, list, row_tile))) {
            for (word, first) in line.iter().zip((0..).step_by(32)).take(keys.end.div_ceil(32)).skip(keys.start / 32) {
                let low = keys.start.saturating_sub(first);
                let mask = u32::MAX << low & u32::MAX >> (32 - (keys.end - first).min(32));
                any |= word & mask;
                missing |= !word & mask;
            }
        }
        match (any, missing) {
            (0, _) => Status::None,
            (_, 0) => Status::All,
            _ => Status::Some,
        }
    }
}
