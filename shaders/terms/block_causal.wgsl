// Defines: block_causal_interval: keys before the end of the row's block, key < (floor(position / size) + 1) * size.
// Expects: Span, Item, floor_multiple, block_causal_values: size.
// See: src/terms/block_causal.rs.

fn block_causal_interval(keys: Span, item: Item, position: i32) -> Span {
    let size = i32(block_causal_values().x);
    return Span(keys.start, min(keys.end, floor_multiple(position, size) + size));
}
