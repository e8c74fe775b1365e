//! List of the tiles that users' masks show, made once for all heads whose masks are alike, as kernels have it:
//! shaders/fused/tile_list.wgsl.

use std::ops::Range;

use super::kernel::{Isa, SimdKernel};
use super::pool;
use super::simd::Simd;
use super::user_term::{UserTerm, status_of};
use super::visible::{Item, hull};
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate_some};
use crate::custom::program::Field;
use crate::custom::tile::Status;
use crate::problem::{BlockList, Problem};
use crate::terms::{TileAt, TileBits};

/// Tiles of rows whose bits one thread makes.
const BAND: usize = 16;

/// Bits of the tiles that hold a pair which all masks of the user's terms show.
#[derive(Debug)]
pub(super) struct TileList {
    list: BlockList,
    words: Vec<u32>,
}

impl TileList {
    /// Makes the list of a problem that has one.
    pub(super) fn build(problem: &Problem, users: &[UserTerm<'_>], isa: Isa, items: &[Item], threads: usize) -> Option<Self> {
        let list = problem.tile_list()?;
        let [_, lists, row_tiles, line] = list.shape(&problem.dims);
        let mut words = vec![0; list.words(&problem.dims)];
        let bands = row_tiles.div_ceil(BAND);
        let fill = |(at, to): (usize, &mut [u32])| {
            let (item, of_head, first) = (&items[at / bands / lists], at / bands % lists, at % bands * BAND);
            isa.run(Band { problem, users, item, head: of_head * (problem.dims.num_heads / lists), list, first, line, to });
        };
        let whole = words.chunks_exact_mut(row_tiles * line).flat_map(|list| list.chunks_mut(BAND * line)).enumerate();
        match threads {
            1 => whole.for_each(fill),
            _ => pool::for_each(whole.collect::<Vec<_>>(), fill),
        }
        Some(Self { list, words })
    }

    /// Status of a tile with rows and keys of an item and a key/value head, by the masks and, where these cannot tell, a list.
    pub(super) fn status(
        list: Option<&Self>,
        users: &[UserTerm<'_>],
        problem: &Problem,
        (item, kv_head): (&Item, usize),
        tile: &TileAt,
    ) -> Status {
        let status = status_of(users, item, kv_head, tile);
        let bits = list.filter(|_| status == Status::Some).map(|list| TileBits::new(list.list, &problem.dims, &list.words));
        if bits.is_some_and(|bits| bits.status(tile) == Status::None) { Status::None } else { status }
    }
}

/// Some tiles of rows, and all tiles of keys.
struct Band<'a> {
    problem: &'a Problem,
    users: &'a [UserTerm<'a>],
    item: &'a Item,
    head: usize,
    list: BlockList,
    /// First tile of rows.
    first: usize,
    /// Words in a line.
    line: usize,
    to: &'a mut [u32],
}

impl Band<'_> {
    /// Rows of some tiles.
    fn rows(&self, tiles: &Range<usize>) -> Range<usize> {
        let size = self.list.rows as usize;
        tiles.start * size..self.item.rows.min(tiles.end * size)
    }
}

impl SimdKernel for Band<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let kv_head = self.head / self.problem.dims.group();
        let (mut pairs, mut registers) = (Pairs::default(), Vec::new());
        for (field, value) in [
            (Field::Batch, self.item.batch),
            (Field::Head, self.head),
            (Field::KvHead, kv_head),
            (Field::LenQ, self.item.rows),
            (Field::LenKv, self.item.length),
        ] {
            pairs.fill(field, value);
        }
        // Rectangles whose status is unknown: the longer side is halved until the arithmetic can tell, or one tile is left.
        let (tiles, tile_keys) = (self.first..self.first + self.to.len() / self.line, self.list.keys as usize);
        let seen: Vec<_> = tiles.clone().map(|tile| self.item.seen_by_some(self.problem, self.rows(&(tile..tile + 1)))).collect();
        let mut parts = vec![[tiles, 0..self.item.length.div_ceil(tile_keys)]];
        while let Some(part) = parts.pop() {
            let [rows, keys] = &part;
            let seen = hull(seen[rows.start - self.first..rows.end - self.first].iter().cloned());
            let seen = seen.start.max(keys.start * tile_keys)..seen.end.min(keys.end * tile_keys);
            let at = TileAt { batch: self.item.batch, heads: self.head..self.head + 1, rows: self.rows(rows), keys: seen };
            if at.rows.is_empty() || at.keys.is_empty() {
                continue;
            }
            let longer = usize::from(keys.len() > rows.len());
            let shows = match status_of(self.users, self.item, kv_head, &at) {
                Status::None => false,
                Status::All => true,
                Status::Some if part[longer].len() > 1 => {
                    let middle = part[longer].start + part[longer].len().next_power_of_two() / 2;
                    let mut halves = [part.clone(), part];
                    (halves[0][longer].end, halves[1][longer].start) = (middle, middle);
                    parts.extend(halves);
                    continue;
                }
                Status::Some => shows_some(&self, &at, &mut pairs, &mut registers),
            };
            if shows {
                for (row, key) in rows.clone().flat_map(|row| keys.clone().map(move |key| (row, key))) {
                    self.to[(row - self.first) * self.line + key / 32] |= 1 << (key % 32);
                }
            }
        }
    }
}

/// True if the masks show a pair of a tile. `pairs` has the fields that are the same in all of it.
#[inline(always)]
fn shows_some(band: &Band<'_>, at: &TileAt, pairs: &mut Pairs, registers: &mut Vec<Lanes>) -> bool {
    let (tile_keys, rows, keys) = (band.list.keys as usize, &at.rows, &at.keys);
    // Lanes past the end repeat the last key or row.
    let all: Lanes = std::array::from_fn(|lane| (keys.start + lane % tile_keys).min(keys.end - 1) as u32);
    (pairs.fields[Field::Key as usize], pairs.fields[Field::KeyPosition as usize]) = (all, all);
    rows.clone().step_by(LANES / tile_keys).any(|first| {
        let row = |lane: usize| (first + lane / tile_keys).min(rows.end - 1);
        pairs.fields[Field::Row as usize] = std::array::from_fn(|lane| row(lane) as u32);
        pairs.fields[Field::Position as usize] = std::array::from_fn(|lane| (row(lane) as i64 + band.item.offset) as u32);
        let mut left = [1; LANES];
        for (mask, tables) in band.users.iter().filter_map(|term| Some((term.visible.as_ref()?, &term.tables))) {
            for operations in [&mask.uniform, &mask.of_rows, &mask.of_keys, &mask.of_pairs] {
                evaluate_some(mask.program, operations, pairs, tables, registers);
            }
            let shown = &registers[mask.program.nodes.len() - 1];
            left.iter_mut().zip(shown).for_each(|(left, shown)| *left &= u32::from(*shown != 0));
        }
        left.iter().fold(0, |any, left| any | left) != 0
    })
}
