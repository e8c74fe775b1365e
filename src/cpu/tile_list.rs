//! List of the tiles that users' masks show, made once for all heads whose masks are alike, as kernels have it:
//! shaders/fused/tile_list.wgsl.

use rayon::prelude::*;

use super::kernel::{Isa, SimdKernel};
use super::simd::Simd;
use super::user_term::{UserTerm, status_of};
use super::visible::Item;
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate_some};
use crate::custom::program::Field;
use crate::custom::tile::Status;
use crate::problem::{BlockList, Problem};
use crate::terms::{TileAt, TileBits};

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
        let fill = |(at, to): (usize, &mut [u32])| {
            let (item, of_head, row_tile) = (&items[at / row_tiles / lists], at / row_tiles % lists, at % row_tiles);
            isa.run(Line { problem, users, item, head: of_head * (problem.dims.num_heads / lists), list, row_tile, to });
        };
        match threads {
            1 => words.chunks_exact_mut(line).enumerate().for_each(fill),
            _ => words.par_chunks_exact_mut(line).enumerate().for_each(fill),
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

/// One tile of rows and all tiles of keys.
struct Line<'a> {
    problem: &'a Problem,
    users: &'a [UserTerm<'a>],
    item: &'a Item,
    head: usize,
    list: BlockList,
    row_tile: usize,
    to: &'a mut [u32],
}

impl SimdKernel for Line<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { problem, users, item, head, list, row_tile, to } = self;
        let (tile_rows, tile_keys) = (list.rows as usize, list.keys as usize);
        let rows = row_tile * tile_rows..item.rows.min((row_tile + 1) * tile_rows);
        let seen = item.seen_by_some(problem, rows.clone());
        if seen.is_empty() {
            return;
        }
        let kv_head = head / problem.dims.group();
        let (mut pairs, mut registers) = (Pairs::default(), Vec::new());
        for (field, value) in [
            (Field::Batch, item.batch),
            (Field::Head, head),
            (Field::KvHead, kv_head),
            (Field::LenQ, item.rows),
            (Field::LenKv, item.length),
        ] {
            pairs.fill(field, value);
        }
        for tile in seen.start / tile_keys..seen.end.div_ceil(tile_keys) {
            let keys = seen.start.max(tile * tile_keys)..seen.end.min((tile + 1) * tile_keys);
            let at = TileAt { batch: item.batch, heads: head..head + 1, rows: rows.clone(), keys: keys.clone() };
            let status = status_of(users, item, kv_head, &at);
            to[tile / 32] |= u32::from(status == Status::All) << (tile % 32);
            if status != Status::Some {
                continue;
            }
            // Lanes past the end repeat the last key or row.
            let key = |lane: usize| (keys.start + lane % tile_keys).min(keys.end - 1) as u32;
            let all: Lanes = std::array::from_fn(key);
            (pairs.fields[Field::Key as usize], pairs.fields[Field::KeyPosition as usize]) = (all, all);
            let shows = rows.clone().step_by(LANES / tile_keys).any(|first| {
                let row = |lane: usize| (first + lane / tile_keys).min(rows.end - 1);
                pairs.fields[Field::Row as usize] = std::array::from_fn(|lane| row(lane) as u32);
                pairs.fields[Field::Position as usize] = std::array::from_fn(|lane| (row(lane) as i64 + item.offset) as u32);
                let mut left = [1; LANES];
                for (mask, tables) in users.iter().filter_map(|term| Some((term.visible.as_ref()?, &term.tables))) {
                    for operations in [&mask.uniform, &mask.of_rows, &mask.of_keys, &mask.of_pairs] {
                        evaluate_some(mask.program, operations, &pairs, tables, &mut registers);
                    }
                    let shown = &registers[mask.program.nodes.len() - 1];
                    left.iter_mut().zip(shown).for_each(|(left, shown)| *left &= u32::from(*shown != 0));
                }
                left.iter().fold(0, |any, left| any | left) != 0
            });
            to[tile / 32] |= u32::from(shows) << (tile % 32);
        }
    }
}
