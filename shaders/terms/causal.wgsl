// Defines: causal_interval: keys up to the row's position, and the item's prefix.
// Expects: Span, Item.
// See: src/terms/causal.rs.

fn causal_interval(keys: Span, item: Item, position: i32) -> Span {
    return Span(keys.start, min(keys.end, max(position + 1, item.prefix)));
}
