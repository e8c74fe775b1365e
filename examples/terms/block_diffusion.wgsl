// Block diffusion in training: the sequence is a noised text followed by the clean one, both in blocks of BLOCK
// tokens. A noised block sees itself and the clean blocks before it; a clean block sees itself and the clean blocks
// before it. BD3-LM. For self-attention over both halves.
// Tables: none.

const BLOCK: i32 = 16;

fn visible(at: Pair) -> bool {
    let half = at.len_kv / 2;
    let row_is_clean = at.row >= half;
    let key_is_clean = at.key >= half;
    let row_block = (at.row % half) / BLOCK;
    let key_block = (at.key % half) / BLOCK;
    if (row_is_clean == key_is_clean) {
        return key_block == row_block || (row_is_clean && key_block < row_block);
    }
    return key_is_clean && key_block < row_block;
}
