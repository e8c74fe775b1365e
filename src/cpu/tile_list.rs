//! List of the tiles that users' masks show, made once for all heads whose masks are alike, as kernels have it:
//! shaders/fused/tile_list.wgsl.

use rayon::prelude::*;

use super::kernel::{Isa, SimdKernel};
use super::simd::Simd;
use super::user_status::tile_of;
use super::visible::Item;
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate_some};
use crate::custom::program::{Field, Id};
use crate::custom::status::TileRule;
use crate::custom::tile::Status;
use crate::problem::{BlockList, Inputs, Problem};
use crate::terms::{TileAt, TileBits};

/// Bits of the tiles that hold a pair which all masks of the user's terms show.
#[derive(Debug)]
pub(super) struct TileList {
    list: BlockList,
    words: Vec<u32>,
}

impl TileList {
    /// Makes the list of a problem that has one.
    pub(super) fn build(problem: &Problem, inputs: &Inputs<'_>, isa: Isa, items: &[Item], threads: usize) -> Option<Self> {
        let list = problem.tile_list()?;
        let [_, lists, row_tiles, line] = list.shape(&problem.dims);
        let mut words = vec![0; list.words(&problem.dims)];
        let fill = |(at, to): (usize, &mut [u32])| {
            let (item, of_head, row_tile) = (&items[at / row_tiles / lists], at / row_tiles % lists, at % row_tiles);
            isa.run(Line { problem, inputs, item, head: of_head * (problem.dims.num_heads / lists), list, row_tile, to });
        };
        match threads {
            1 => words.chunks_exact_mut(line).enumerate().for_each(fill),
            _ => words.par_chunks_exact_mut(line).enumerate().for_each(fill),
        }
        Some(Self { list, words })
    }

    /// False if the masks hide all of a tile.
    pub(super) fn may_see(&self, problem: &Problem, tile: &TileAt) -> bool {
        TileBits::new(self.list, &problem.dims, &self.words).status(tile) != Status::None
    }
}

/// One tile of rows and all tiles of keys.
struct Line<'a> {
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    item: &'a Item,
    head: usize,
    list: BlockList,
    row_tile: usize,
    to: &'a mut [u32],
}

impl SimdKernel for Line<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { problem, inputs, item, head, list, row_tile, to } = self;
        let (tile_rows, tile_keys) = (list.rows as usize, list.keys as usize);
        let rows = row_tile * tile_rows..item.rows.min((row_tile + 1) * tile_rows);
        let seen = item.seen_by_some(problem, rows.clone());
        if seen.is_empty() {
            return;
        }
        let mask = |at: usize| {
            let program = problem.user_terms[at].functions().visible.as_ref()?;
            Some((program, (0..program.nodes.len() as Id).collect::<Vec<_>>(), problem.tables_of(at, inputs.term_tables)))
        };
        let masks: Vec<_> = (0..problem.user_terms.len()).filter_map(mask).collect();
        let rule = |at: usize| Some((problem.user_terms[at].functions().status.as_ref()?, problem.tables_of(at, inputs.term_tables)));
        let rules: Vec<(&TileRule, Vec<&[u32]>)> = (0..problem.user_terms.len()).filter_map(rule).collect();
        let (mut pairs, mut registers) = (Pairs::default(), Vec::new());
        for (field, value) in [
            (Field::Batch, item.batch),
            (Field::Head, head),
            (Field::KvHead, head / problem.dims.group()),
            (Field::LenQ, item.rows),
            (Field::LenKv, item.length),
        ] {
            pairs.fill(field, value);
        }
        for tile in seen.start / tile_keys..seen.end.div_ceil(tile_keys) {
            let keys = seen.start.max(tile * tile_keys)..seen.end.min((tile + 1) * tile_keys);
            let at = tile_of(item, head / problem.dims.group(), head..head + 1, rows.clone(), keys.clone());
            let status = rules.iter().map(|(rule, tables)| rule.of(&at, tables)).min().unwrap_or(Status::All);
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
                for (mask, operations, tables) in &masks {
                    evaluate_some(mask, operations, &pairs, tables, &mut registers);
                    let shown = &registers[mask.nodes.len() - 1];
                    left.iter_mut().zip(shown).for_each(|(left, shown)| *left &= u32::from(*shown != 0));
                }
                left.iter().fold(0, |any, left| any | left) != 0
            });
            to[tile / 32] |= u32::from(shows) << (tile % 32);
        }
    }
}
