// Defines: window_interval: keys from position - left to position + right, both inclusive.
// Expects: Span, Item, window_values: left, right.
// See: src/terms/window.rs.

fn window_interval(keys: Span, item: Item, position: i32) -> Span {
    let size = vec2<i32>(window_values().xy);
    return Span(max(keys.start, position - size.x), min(keys.end, position + 1 + size.y));
}
