//! Check of the `status` of users' terms against their `visible`.

use std::ops::Range;

use super::visible::Item;
use crate::custom::status::contradiction;
use crate::custom::tile::{Status, Tile};
use crate::error::{Error, Result};
use crate::problem::{Inputs, Problem};
use crate::terms::TileAt;

/// Rows and keys of the tiles that are checked.
const SIZES: [[usize; 2]; 6] = [[1, 16], [1, 64], [16, 16], [32, 64], [64, 32], [32, 1024]];
/// Most pairs of a head that are looked at in tiles of one size.
const MOST_PAIRS: usize = 1 << 18;

/// Refuses a problem whose terms have a `status` that says none of a tile where a pair of it is visible, or all where one
/// is masked. Looks at tiles of several sizes, of one head and of all heads that share keys; where there are many, at
/// some of them, evenly spread.
pub(crate) fn check_status(problem: &Problem, inputs: &Inputs<'_>) -> Result<()> {
    if !problem.user_terms.iter().any(|term| term.has_status()) {
        return Ok(());
    }
    problem.check()?;
    inputs.check(problem)?;
    for item in (0..problem.dims.batch).map(|batch| Item::new(problem, inputs, batch)) {
        for kv_head in 0..problem.dims.num_kv_heads {
            SIZES.into_iter().try_for_each(|size| check_tiles(problem, inputs, &item, kv_head, size))?;
        }
    }
    Ok(())
}

fn check_tiles(problem: &Problem, inputs: &Inputs<'_>, item: &Item, kv_head: usize, [rows, keys]: [usize; 2]) -> Result<()> {
    let (group, down, across) = (problem.dims.group(), item.rows.div_ceil(rows), item.length.div_ceil(keys));
    let tiles = down * across;
    for (nth, tile) in (0..tiles).step_by(tiles.div_ceil(MOST_PAIRS / (rows * keys)) | 1).enumerate() {
        let (row, column) = (tile / across, tile % across);
        // Tiles may start at any key.
        let shift = row % keys;
        let keys = (column * keys).saturating_sub(shift)..(column * keys + keys - shift).min(item.length);
        let rows = row * rows..(row * rows + rows).min(item.rows);
        let head = kv_head * group + nth / 2 % group;
        let heads = if nth % 2 == 0 { kv_head * group..kv_head * group + group } else { head..head + 1 };
        check_tile(problem, inputs, &tile_of(item, kv_head, &TileAt { batch: item.batch, heads, rows, keys }))?;
    }
    Ok(())
}

/// Tile of rows and keys that are there.
pub(super) fn tile_of(item: &Item, kv_head: usize, at: &TileAt) -> Tile {
    let one = |x: usize| [x as i64; 2];
    let ends = |range: &Range<usize>| [range.start as i64, range.end as i64 - 1];
    let (rows, keys) = (ends(&at.rows), ends(&at.keys));
    [one(item.batch), ends(&at.heads), one(kv_head), rows, keys, rows.map(|i| i + item.offset), keys, one(item.rows), one(item.length)]
}

fn check_tile(problem: &Problem, inputs: &Inputs<'_>, tile: &Tile) -> Result<()> {
    for (index, term) in problem.user_terms.iter().enumerate().filter(|(_, term)| term.has_status()) {
        let (functions, tables) = (term.functions(), problem.tables_of(index, inputs.term_tables));
        let (Some(visible), Some(rule)) = (&functions.visible, &functions.status) else { continue };
        let status = rule.of(tile, &tables);
        let Some(pair) = contradiction(visible, status, tile, &tables) else { continue };
        let [batch, heads, _, rows, keys, positions, ..] = tile.map(|[first, last]| format!("{first}..={last}"));
        let [_, head, _, row, key, ..] = pair;
        let (says, is) = if status == Status::None { ("none", "visible") } else { ("all", "masked") };
        let why = format!(
            "`status` of term {index} says that {says} of a tile is visible (batch {batch}, heads {heads}, rows {rows}, positions \
             {positions}, keys {keys}), but the pair of head {head}, row {row} and key {key} is {is}"
        );
        return Err(Error::invalid("user_terms", why));
    }
    Ok(())
}
