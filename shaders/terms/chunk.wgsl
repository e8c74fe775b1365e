// Defines: chunk_interval: keys of the row's own chunk, floor(key / size) == floor(position / size).
// Expects: Span, Item, floor_multiple, chunk_values: size.
// See: src/terms/chunk.rs.

fn chunk_interval(keys: Span, item: Item, position: i32) -> Span {
    let size = i32(chunk_values().x);
    let start = floor_multiple(position, size);
    return Span(max(keys.start, start), min(keys.end, start + size));
}
