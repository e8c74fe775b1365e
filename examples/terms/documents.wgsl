// Documents: several texts in one sequence, each of which sees only itself. Training on concatenated texts; the same
// as Problem::segments. For self-attention: rows and keys are the same tokens.
// Tables: segment_ids array<i32> [batch * tokens], the document of each token. With numbers that ascend over the whole
//         batch, and the table declared sorted, tiles of other documents are skipped.

fn visible(at: Pair) -> bool {
    let first = at.batch * at.len_kv;
    return segment_ids[first + at.row] == segment_ids[first + at.key];
}
