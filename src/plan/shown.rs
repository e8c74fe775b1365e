//! Keys that users' masks show to a block of rows, as far as interval arithmetic tells without tables.

use std::ops::Range;

use crate::custom::status::TileRule;
use crate::custom::tile::{Status, Tile};
use crate::problem::Problem;

/// Most blocks of rows that are asked about one by one; of more, neighbours are taken together.
const MOST_BLOCKS: usize = 512;
/// Fewest keys that are asked about at once.
const FEWEST_KEYS: usize = 64;

/// Upper bound of the keys that any block of `rows` consecutive rows sees, at most `most`. A bound that is far below the
/// number of keys saves splits, which sums of many keys need.
pub(super) fn most_keys(problem: &Problem, rows: usize, most: usize) -> usize {
    let d = &problem.dims;
    let functions = problem.user_terms.iter().map(|term| term.functions()).filter(|functions| functions.tables.is_empty());
    let rules: Vec<&TileRule> = functions.filter_map(|functions| functions.status.as_ref()).collect();
    // Rows and keys of other problems stand where only their data tells.
    let is_known = problem.varlen.is_none() && problem.paged.is_none() && !problem.visibility.kv_lengths;
    if rules.is_empty() || !is_known {
        return most;
    }
    let offset = problem.visibility.alignment.map_or(0, |alignment| alignment.offset(d.seq_len_q, d.seq_len_kv));
    let ends = |range: Range<usize>| [range.start as i64, range.end as i64 - 1];
    let one = |x: usize| [x as i64; 2];
    let step = rows.max(1) * d.seq_len_q.div_ceil(rows.max(1)).div_ceil(MOST_BLOCKS).max(1);
    let (all, mut found) = (0..d.seq_len_kv, 0);
    // The last rows first: in a causal mask, they see most.
    for first in (0..d.seq_len_q).step_by(step).rev() {
        let rows = ends(first..d.seq_len_q.min(first + step));
        let status = |keys: &Range<usize>| {
            let (heads, keys) = ([d.num_heads, d.num_kv_heads].map(|heads| ends(0..heads)), ends(keys.clone()));
            let positions = rows.map(|row| row + offset);
            let tile: Tile = [ends(0..d.batch), heads[0], heads[1], rows, keys, positions, keys, one(d.seq_len_q), one(d.seq_len_kv)];
            rules.iter().map(|rule| rule.of(&tile, &[])).min()
        };
        let (mut parts, mut shown) = (Vec::from([all.clone()]), 0);
        while let Some(part) = parts.pop() {
            match status(&part) {
                Some(Status::None) => {}
                Some(Status::Some) if part.len() > FEWEST_KEYS => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([part.start..middle, middle..part.end]);
                }
                _ => shown += part.len(),
            }
        }
        found = found.max(shown);
        if found >= most {
            return most;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom::Term;
    use crate::problem::{Alignment, Dims};

    #[test]
    fn bounds() {
        let most = |visible: &str| {
            let term = Term::wgsl(&format!("fn visible(at: Pair) -> bool {{ return {visible}; }}")).expect("a mask");
            let problem = Problem::new(Dims::self_attention(1, 2, 5000, 8)).aligned(Alignment::BottomRight).with_term(term);
            most_keys(&problem, 32, 5000)
        };
        assert_eq!(most("at.key <= at.position"), 5000);
        assert!((256 + 31..256 + 31 + 4 * FEWEST_KEYS).contains(&most("at.key <= at.position && at.position - at.key < 256")));
        assert_eq!(most("at.head == 1 || at.key < 100"), 5000, "the bound holds for every head");
        assert_eq!(most("at.key < 0"), 0);
    }
}
