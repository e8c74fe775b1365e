//! Block lists: which tiles of rows and keys are visible, one bit a tile.

use crate::error::{Error, Result};
use crate::problem::{Dims, Problem};

/// Visibility by tiles, as FlexAttention's `BlockMask`, NSA and MoBA have it: row i sees key j if the list of its head has
/// the key tile `floor(j / keys)` for the query tile `floor(i / rows)`. Rows and keys count from the start of the item, in
/// varlen sequences, caches and pages too. Tiles need not be those of any kernel.
///
/// The data are bits, [`crate::Inputs::block_list`]: u32 [batch, heads, query tiles, ceil(key tiles / 32)], with
/// ceil(seq_len_q / rows) query tiles and ceil(seq_len_kv / keys) key tiles. Bit t % 32 of word t / 32 is set if key tile
/// t is visible; bits past the last key tile are ignored. [`Problem::block_list_words`] makes them from lists of
/// indices; two lists that both show are joined by `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockList {
    /// Query rows of a tile, at least 1.
    pub rows: u32,
    /// Keys of a tile, at least 1.
    pub keys: u32,
    /// Number of items with lists of their own: the problem's batch, or 1 for all.
    pub batch: usize,
    /// Number of lists of an item, which divides num_heads: consecutive heads share one. num_kv_heads gives each group
    /// its own.
    pub heads: usize,
}

/// Key tiles of every query tile as indices, in the order [batch, heads, query tiles] of a [`BlockList`].
#[derive(Clone, Copy, Debug)]
pub enum TileLists<'a> {
    /// Query tile t has the key tiles `indices[offsets[t]..offsets[t + 1]]`.
    Ragged {
        /// Where each list starts, and the end of the last.
        offsets: &'a [u32],
        /// Key tiles, in any order.
        indices: &'a [u32],
    },
    /// Query tile t has the first `counts[t]` of its `indices`, which are equally many for all: `kv_num_blocks` and
    /// `kv_indices` of a `BlockMask`.
    Padded {
        /// Number of key tiles of each query tile.
        counts: &'a [u32],
        /// Key tiles, in any order; those past the count may be anything.
        indices: &'a [u32],
    },
    /// One bool per key tile, [.., query tiles, key tiles]: true = visible.
    Dense(&'a [bool]),
}

impl BlockList {
    /// One list for all items and heads.
    pub const fn new(rows: u32, keys: u32) -> Self {
        Self { rows, keys, batch: 1, heads: 1 }
    }

    /// Shape of the words: [batch, heads, query tiles, ceil(key tiles / 32)].
    pub fn shape(&self, dims: &Dims) -> [usize; 4] {
        [self.batch, self.heads, dims.seq_len_q.div_ceil(self.rows.max(1) as usize), self.key_tiles(dims).div_ceil(32)]
    }

    /// Number of key tiles.
    pub(crate) fn key_tiles(&self, dims: &Dims) -> usize {
        dims.seq_len_kv.div_ceil(self.keys.max(1) as usize)
    }

    /// Number of words; `usize::MAX` on overflow.
    pub(crate) fn words(&self, dims: &Dims) -> usize {
        self.shape(dims).into_iter().fold(1, usize::saturating_mul)
    }

    /// Checks the shape against the problem's.
    pub(crate) fn check(&self, dims: &Dims) -> Result<()> {
        if self.rows == 0 || self.keys == 0 {
            return Err(Error::invalid("block_list", format!("tiles of {} rows and {} keys; both are at least 1", self.rows, self.keys)));
        }
        if self.batch != 1 && self.batch != dims.batch {
            return Err(Error::invalid(
                "block_list",
                format!("has lists for {} items; the batch is {}: it is that or 1", self.batch, dims.batch),
            ));
        }
        if self.heads == 0 || !dims.num_heads.is_multiple_of(self.heads) {
            let why = format!(
                "has {} lists an item, which do not divide the {} heads: consecutive heads share a list",
                self.heads, dims.num_heads
            );
            return Err(Error::invalid("block_list", why));
        }
        match self.words(dims) {
            usize::MAX => Err(Error::invalid("block_list", "its number of words overflows")),
            _ => Ok(()),
        }
    }
}

impl Problem {
    /// Makes the words of the problem's block list, for [`crate::Inputs::block_list`], from lists of indices.
    ///
    /// Errors: a problem without a block list; lists of another length; an index that is no key tile, with its place.
    pub fn block_list_words(&self, lists: TileLists<'_>) -> Result<Vec<u32>> {
        let Some(list) = self.visibility.block_list else {
            return Err(Error::invalid("block_list", "the problem has none: add one with Problem::block_list"));
        };
        list.check(&self.dims)?;
        let [batch, heads, query_tiles, words] = list.shape(&self.dims);
        let (lines, tiles) = (batch * heads * query_tiles, list.key_tiles(&self.dims));
        let long = |name: &str, len: usize, expected: usize| match len == expected {
            true => Ok(()),
            false => {
                Err(Error::invalid("block_list", format!("{name} has {len} elements, [{batch}, {heads}, {query_tiles}] need {expected}")))
            }
        };
        let mut bits = vec![0; lines * words];
        let mut set = |line: usize, place: usize, tile: u32| {
            if tile as usize >= tiles {
                let at = [line / (heads * query_tiles), line / query_tiles % heads, line % query_tiles];
                let why = format!("index {place} of query tile {at:?} is {tile}; there are {tiles} key tiles");
                return Err(Error::invalid("block_list", why));
            }
            bits[line * words + tile as usize / 32] |= 1 << (tile % 32);
            Ok(())
        };
        match lists {
            TileLists::Ragged { offsets, indices } => {
                long("offsets", offsets.len(), lines + 1)?;
                for (line, ends) in offsets.windows(2).enumerate() {
                    let Some(own) = indices.get(ends[0] as usize..ends[1] as usize) else {
                        let why = format!("offsets {}..{} are no places among {} indices", ends[0], ends[1], indices.len());
                        return Err(Error::invalid("block_list", why));
                    };
                    own.iter().enumerate().try_for_each(|(place, &tile)| set(line, place, tile))?;
                }
            }
            TileLists::Padded { counts, indices } => {
                long("counts", counts.len(), lines)?;
                let width = indices.len() / lines.max(1);
                long("indices", indices.len(), lines * width)?;
                for (line, &count) in counts.iter().enumerate() {
                    let Some(own) = indices[line * width..][..width].get(..count as usize) else {
                        return Err(Error::invalid("block_list", format!("count {line} is {count}; there are {width} indices")));
                    };
                    own.iter().enumerate().try_for_each(|(place, &tile)| set(line, place, tile))?;
                }
            }
            TileLists::Dense(shown) => {
                long("the list", shown.len(), lines * tiles)?;
                for at in (0..shown.len()).filter(|&at| shown[at]) {
                    set(at / tiles, at % tiles, (at % tiles) as u32)?;
                }
            }
        }
        Ok(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        let dims = Dims { seq_len_q: 5, seq_len_kv: 70, ..Dims::self_attention(2, 4, 5, 8) };
        let problem = |list: BlockList| Problem::new(dims).block_list(list);
        let one = problem(BlockList::new(3, 2)); // 2 query tiles, 35 key tiles
        assert_eq!(one.visibility.block_list.map(|list| list.shape(&dims)), Some([1, 1, 2, 2]));
        let expected = [1 << 31 | 1, 0b101, 0, 1];
        let ragged = TileLists::Ragged { offsets: &[0, 4, 5], indices: &[34, 0, 31, 32, 32] };
        assert_eq!(one.block_list_words(ragged).expect("valid"), expected);
        let padded = TileLists::Padded { counts: &[4, 1], indices: &[34, 0, 31, 32, 32, 99, 99, 99] };
        assert_eq!(one.block_list_words(padded).expect("valid"), expected);
        let dense: Vec<bool> = (0..70).map(|at| [0, 31, 32, 34, 35 + 32].contains(&at)).collect();
        assert_eq!(one.block_list_words(TileLists::Dense(&dense)).expect("valid"), expected);

        let refused = |lists| one.block_list_words(lists).expect_err("refused").to_string();
        let place = refused(TileLists::Ragged { offsets: &[0, 0, 2], indices: &[1, 35] });
        assert!(place.contains("index 1 of query tile [0, 0, 1] is 35; there are 35 key tiles"), "{place}");
        assert!(refused(TileLists::Ragged { offsets: &[0, 0, 3], indices: &[1, 2] }).contains("0..3"));
        assert!(refused(TileLists::Ragged { offsets: &[2, 0, 0], indices: &[1, 2] }).contains("2..0"));
        assert!(refused(TileLists::Ragged { offsets: &[0, 0], indices: &[] }).contains("need 3"));
        assert!(refused(TileLists::Padded { counts: &[0, 2], indices: &[1, 2] }).contains("count 1 is 2"));
        assert!(refused(TileLists::Padded { counts: &[0, 1], indices: &[1, 2, 3] }).contains("3 elements"));
        assert!(refused(TileLists::Dense(&[true])).contains("need 70"));
        assert!(Problem::new(dims).block_list_words(ragged).is_err(), "no block list");

        let bad = [BlockList::new(0, 1), BlockList::new(1, 0), BlockList { batch: 3, ..BlockList::new(1, 1) }];
        let bad = bad.into_iter().chain([0, 3, 8].map(|heads| BlockList { heads, ..BlockList::new(1, 1) }));
        bad.for_each(|list| assert!(problem(list).check().is_err(), "{list:?}"));
        problem(BlockList { batch: 2, heads: 2, ..BlockList::new(u32::MAX, u32::MAX) }).check().expect("valid");
    }
}
