// Defines: for kernels that own keys and stream the rows of all their query heads: Work; passes, pass_head;
//          rows_that_see; stream_qk; row_of_pair, key_of_pair.
// Expects: lib/*, load_query.
// See: own_keys.wgsl, key_sums.wgsl.

const OWNS_ROWS: bool = false;

// `exists` is false past the ends of the grid and of an item.
struct Work {
    exists: bool,
    item: Item,
    kv_head: u32,
    first: u32,
}

fn passes() -> u32 {
    return params.group;
}

fn pass_head(work: Work, pass_index: u32) -> u32 {
    return work.kv_head * params.group + pass_index;
}

// Rows that may see one of some keys: from the first whose interval ends after the first key to the last whose interval
// starts before their end. Bounds of intervals never decrease.
fn rows_that_see(item: Item, first_key: u32, end_key: u32) -> Interval {
    var range = Interval(0u, 0u);
    var above = item.rows;
    while (range.start < above) {
        let middle = (range.start + above) / 2u;
        if (interval_of(item, middle).end > first_key) {
            above = middle;
        } else {
            range.start = middle + 1u;
        }
    }
    range.end = range.start;
    above = item.rows;
    while (range.end < above) {
        let middle = (range.end + above) / 2u;
        if (interval_of(item, middle).start < end_key) {
            range.end = middle + 1u;
        } else {
            above = middle;
        }
    }
    return range;
}

fn stream_qk(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_query(query_row(item, head, index), column * 4u) * params.scale;
}

fn row_of_pair(own: u32, stream: u32) -> u32 {
    return stream;
}

fn key_of_pair(own: u32, stream: u32) -> u32 {
    return own;
}
