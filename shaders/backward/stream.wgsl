// Defines: next_stream: the next tile of the streamed rows or keys that is not skipped.
// Expects: tile_shows_any, told, next_span, has_visible_terms; row_of_pair, key_of_pair; const BLOCK_STREAM.
// See: next_shown in shaders/lib/block.wgsl, the same for forward kernels.

// First streamed index from `first` on whose tile with the owned block is not skipped; past the end if there is none.
fn next_stream(item: Item, work: Work, head: u32, first: u32, end: u32, own_end: u32, thread: u32) -> u32 {
    var at = first;
    if (has_visible_terms()) {
        var span = 2u * BLOCK_STREAM;
        while (at < end) {
            let block = Block(item.batch, head, row_of_pair(work.first, at), 0u);
            let end_key = key_of_pair(own_end, min(at + BLOCK_STREAM, end));
            if (tile_shows_any(item, block, key_of_pair(work.first, at), end_key, thread)) {
                break;
            }
            at += BLOCK_STREAM;
            var is_hidden = true;
            while (is_hidden && at < end) {
                let wide = Block(item.batch, head, row_of_pair(work.first, at), 0u);
                let past = min(at + span, end);
                let rows = row_of_pair(own_end, past) - wide.first_row;
                let first_key = key_of_pair(work.first, at);
                is_hidden = told(item, wide, rows, first_key, key_of_pair(own_end, past)).status == SHOWS_NONE;
                at += select(0u, span, is_hidden);
                span = next_span(span, is_hidden, BLOCK_STREAM);
            }
        }
    }
    return at;
}
