// Defines: Item, item_of, item_of_rows; Interval, interval_of: the interval of keys that a row may see; has_flag.
// Expects: params, table(index) and cache_word(index) -> u32.
// See: src/visibility.rs (Visibility::interval, Alignment::offset).

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

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

fn item_of(batch: u32) -> Item {
    var item = Item(batch, 0u, params.seq_len_q, 0u, params.seq_len_kv, params.seq_len_kv, params.position_offset, 0);
    if (has_flag(FLAG_PACKED)) {
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

// Interval of keys that a row may see, by arithmetic. Bounds never decrease from one row to the next.
fn interval_of(item: Item, row: u32) -> Interval {
    let position = i32(row) + item.offset;
    var start = 0;
    var end = i32(item.keys);
    if (has_flag(FLAG_CAUSAL)) {
        end = min(end, max(position + 1, item.prefix));
    }
    if (has_flag(FLAG_WINDOW_RIGHT)) {
        end = min(end, position + 1 + params.window_right);
    }
    if (has_flag(FLAG_WINDOW_LEFT)) {
        start = max(start, position - params.window_left);
    }
    end = max(end, 0);
    start = min(start, end);
    return Interval(u32(start), u32(end));
}
