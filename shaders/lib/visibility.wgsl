// Defines: Item, item_of, item_of_rows; Interval, interval_of: the interval of keys that a row may see; Span;
//          floor_multiple; has_flag.
// Expects: params, interval_of_terms, table(index) and cache_word(index) -> u32.
// See: src/terms/mod.rs (Problem::interval), src/problem/visibility.rs (Alignment::offset).

// Batch item: its first row and key, how many there are, and the position of row 0.
struct Item {
    batch: u32,
    first_row: u32,
    rows: u32,
    first_key: u32,
    // Keys in memory, and how many of them are not padding.
    stored_keys: u32,
    keys: u32,
    offset: i32,
    prefix: i32,
}

struct Interval {
    start: u32,
    end: u32,
}

// Interval of keys that need not exist: its ends may be negative or in the wrong order.
struct Span {
    start: i32,
    end: i32,
}

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

fn item_of(batch: u32) -> Item {
    var item = Item(batch, 0u, params.seq_len_q, 0u, params.seq_len_kv, params.seq_len_kv, params.position_offset, 0);
    if (has_flag(FLAG_VARLEN)) {
        item.first_row = table(params.table_cu_seqlens_q + batch);
        item.rows = table(params.table_cu_seqlens_q + batch + 1u) - item.first_row;
        if (!is_paged()) {
            item.first_key = table(params.table_cu_seqlens_kv + batch);
            item.stored_keys = table(params.table_cu_seqlens_kv + batch + 1u) - item.first_key;
            item.keys = item.stored_keys;
        }
    }
    if (has_flag(FLAG_KV_LENGTHS)) {
        item.keys = min(item.keys, cache_word(params.table_kv_lengths + batch));
    }
    if (is_paged()) {
        item.stored_keys = item.keys;
    }
    if (has_flag(FLAG_BOTTOM_RIGHT)) {
        item.offset = i32(item.keys) - i32(item.rows);
    }
    if (has_flag(FLAG_PREFIX)) {
        item.prefix = i32(min(table(params.table_prefix_lengths + batch), item.keys));
    }
    return item;
}

// Item for kernels that visit all rows and no keys: varlen rows are those of one item, of params.seq_len_q tokens.
fn item_of_rows(batch: u32) -> Item {
    return Item(batch, 0u, params.seq_len_q, 0u, 0u, 0u, 0, 0);
}

// Interval of keys that a row may see, by arithmetic. Ends never decrease from one row to the next.
fn interval_of(item: Item, row: u32) -> Interval {
    let keys = interval_of_terms(Span(0, i32(item.keys)), item, i32(row) + item.offset);
    let end = max(keys.end, 0);
    return Interval(u32(min(keys.start, end)), u32(end));
}

// Largest multiple of size that is not above x. GL leaves the remainder of a negative number open.
fn floor_multiple(x: i32, size: i32) -> i32 {
    return select(x / size, -((size - 1 - x) / size), x < 0) * size;
}
