//! Lists of the tiles that users' masks show, for masks whose arithmetic cannot tell.

use crate::custom::program::{Field, Op, Program};
use crate::custom::status::TileRule;
use crate::problem::{BlockList, Problem};

/// Rows and keys of a tile: `LIST_ROWS` and `LIST_KEYS` of shaders/lib/tile_bits.wgsl.
const TILE: u32 = 32;
/// Fewest rows and keys that are worth a list: below, one kernel visits few tiles.
const FEWEST: usize = 4 * TILE as usize;
/// Most bytes of a list.
const MOST_BYTES: usize = 64 << 20;

impl Problem {
    /// Shape of a list of visible tiles that all kernels of the problem can share, if a user's mask reads what interval
    /// arithmetic does not follow. Heads and items whose masks are alike have one list. Varlen sequences have none: their
    /// lists would be as long as the longest sequence for each of them.
    pub(crate) fn tile_list(&self) -> Option<BlockList> {
        let d = &self.dims;
        let masks = || self.user_terms.iter().map(|term| term.functions());
        let is_vague = masks().any(|functions| functions.status.as_ref().is_some_and(TileRule::is_vague));
        if !is_vague || self.varlen.is_some() || d.seq_len_q < FEWEST || d.seq_len_kv < FEWEST {
            return None;
        }
        let reads =
            |field| masks().filter_map(|functions| functions.visible.as_ref()).any(|mask: &Program| mask.has(|op| op == Op::Pair(field)));
        let v = &self.visibility;
        let mask = v.mask.map_or([1; 4], |mask| mask.0);
        // Heads from one change of a mask to the next, by each of the masks.
        let of_lists = v.block_list.map_or(d.num_heads, |list| d.num_heads / list.heads);
        let of_masks = if reads(Field::Head) || mask[1] > 1 { 1 } else { d.num_heads };
        let of_groups = if reads(Field::KvHead) { d.group() } else { d.num_heads };
        let share = [of_lists, of_masks, of_groups].into_iter().fold(0, gcd);
        let by_item = v.kv_lengths || v.prefix_lengths || v.segments || mask[0] > 1 || v.block_list.is_some_and(|list| list.batch > 1);
        let batch = if by_item || reads(Field::Batch) { d.batch } else { 1 };
        let list = BlockList { batch, heads: d.num_heads / share, ..BlockList::new(TILE, TILE) };
        (list.words(d) <= MOST_BYTES / 4).then_some(list)
    }
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use crate::custom::{Table, Term};
    use crate::problem::{BlockList, BroadcastShape, Dims, Problem};

    #[test]
    fn heads_and_items_share_a_list_where_masks_are_alike() {
        let dims = Dims { num_kv_heads: 4, ..Dims::self_attention(3, 12, 512, 8) };
        let with = |index: &str| {
            let text = format!("fn visible(at: Pair) -> bool {{ return bits[{index}] != 0u; }}");
            Problem::new(dims).with_term(Term::with_tables(&text, &[Table::u32("bits", 64)]).expect("valid"))
        };
        let shape = |problem: &Problem| problem.tile_list().map(|list| [list.batch, list.heads]);
        assert_eq!(shape(&with("at.key * at.row")), Some([1, 1]));
        assert_eq!(shape(&with("at.kv_head + at.key * at.row")), Some([1, 4]));
        assert_eq!(shape(&with("at.head + at.batch * at.key")), Some([3, 12]));
        assert_eq!(shape(&with("at.key * at.row").kv_lengths()), Some([3, 1]));
        assert_eq!(shape(&with("at.key * at.row").mask(BroadcastShape([3, 12, 1, 1]))), Some([3, 12]));
        let lists = |heads| BlockList { heads, ..BlockList::new(8, 8) };
        assert_eq!(shape(&with("at.kv_head * at.row").block_list(lists(6))), Some([1, 12]));
        assert_eq!(shape(&with("at.kv_head * at.row").block_list(lists(2))), Some([1, 4]));
        let told = Term::wgsl("fn visible(at: Pair) -> bool { return at.key <= at.row; }").expect("valid");
        assert_eq!(shape(&Problem::new(dims).with_term(told)), None, "arithmetic tells");
        let mut few = with("at.key * at.row");
        few.dims.seq_len_q = 1;
        assert_eq!(shape(&few), None);
    }
}
