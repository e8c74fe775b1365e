// Defines: mask_visible: the boolean mask is true.
// Expects: Pair, broadcast_at, mask_at, mask_values: strides.
// See: src/terms/mask.rs.

fn mask_visible(at: Pair) -> bool {
    return mask_at(broadcast_at(at, mask_values()));
}
