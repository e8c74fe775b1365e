// Defines: main: as staged/scores.wgsl for few query rows, with a whole key per thread, queries broadcast across the subgroup.
// Expects: lib/*, staged/stage.wgsl, load_query, load_key, scores (read_write); consts THREADS, LANES, KEYS, HEAD_VECS.
// See: staged/scores.wgsl; src/oracle/forward.rs has the formulas.
//
// A workgroup, one subgroup, computes KEYS keys of a key/value head, THREADS keys at a time, and all rows of its group.

const HEAD_SLICES: u32 = (HEAD_VECS + LANES - 1u) / LANES;

const_assert THREADS == LANES;
const_assert KEYS % THREADS == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let key_tiles = (params.seq_len_kv + KEYS - 1u) / KEYS;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    // Parts of the score matrix hold whole groups.
    let first_pair = params.first_pair + index / key_tiles * params.group;
    let item = item_of(first_pair / params.num_heads);
    let first_head = first_pair % params.num_heads;
    let first_key = (index % key_tiles) * KEYS;
    let matrix_row = (first_pair - params.first_pair) * params.row_count;

    for (var first = first_key; first < min(first_key + KEYS, params.seq_len_kv); first += THREADS) {
        let key = first + lane;
        var own: array<array<vec4<f32>, LANES>, HEAD_SLICES>;
        if (key < item.stored_keys) {
            let at = key_row(item, first_head / params.group, key);
            for (var i = 0u; i < HEAD_SLICES; i++) {
                for (var j = 0u; j < LANES; j++) {
                    if (i * LANES + j < HEAD_VECS) {
                        own[i][j] = load_key(at, (i * LANES + j) * 4u);
                    }
                }
            }
        }
        for (var r = 0u; r < params.group * params.row_count; r++) {
            let head = first_head + r / params.row_count;
            let row = params.first_row + r % params.row_count;
            var score = 0.0;
            for (var i = 0u; i < HEAD_SLICES; i++) {
                var q = vec4<f32>(0.0);
                if (row < item.rows) {
                    q = load_query(query_row(item, head, row), min(i * LANES + lane, HEAD_VECS - 1u) * 4u) * params.scale;
                }
                for (var j = 0u; j < LANES; j++) {
                    if (i * LANES + j < HEAD_VECS) {
                        score = dot_add(score, subgroupShuffle(q, j), own[i][j]);
                    }
                }
            }
            let is_there = row < item.rows && key < item.stored_keys;
            let bits = score_bits(score, pair_of(item, head, row, key), is_there, interval_of(item, row));
            if (key < params.seq_len_kv) {
                scores[(matrix_row + r) * params.seq_len_kv + key] = bits;
            }
        }
    }
}
