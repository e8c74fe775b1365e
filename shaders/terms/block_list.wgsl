// Defines: block_list_visible: the list of the row's tile has the tile of the key; block_list_status: of a whole tile.
// Expects: Pair, lib/tile_bits.wgsl; block_list_values: rows and keys of a tile, heads that share a list, words of an item.
// See: src/terms/block_list.rs.

fn block_list_bits() -> TileBits {
    let values = block_list_values();
    return TileBits(params.table_block_list, values.x, values.y, values.z, values.w);
}

fn block_list_visible(at: Pair) -> bool {
    return bits_show(block_list_bits(), at);
}

fn block_list_status(tile: Tile) -> u32 {
    return bits_status(block_list_bits(), tile);
}
