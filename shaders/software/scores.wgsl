// Defines: main: as staged/scores.wgsl, with whole query rows per thread, keys broadcast across the subgroup.
// Expects: lib/*, staged/stage.wgsl, software/products.wgsl, scores (read_write); consts THREADS, LANES, ROWS, KEYS, STEP.
// See: staged/scores.wgsl; src/oracle/forward.rs has the formulas.
//
// A workgroup, one subgroup, computes THREADS * ROWS rows x KEYS keys, STEP keys at a time.

const TILE_ROWS: u32 = THREADS * ROWS;

const_assert THREADS == LANES;
const_assert KEYS % STEP == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let key_tiles = (params.seq_len_kv + KEYS - 1u) / KEYS;
    let row_tiles = (params.row_count + TILE_ROWS - 1u) / TILE_ROWS;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let pair = params.first_pair + index / (key_tiles * row_tiles);
    let head = pair % params.num_heads;
    let item = item_of(pair / params.num_heads);
    let first_local = (index / key_tiles % row_tiles) * TILE_ROWS;
    let first_key = (index % key_tiles) * KEYS;
    let end_key = min(first_key + KEYS, params.seq_len_kv);
    let matrix_row = (pair - params.first_pair) * params.row_count;

    var query: Queries;
    var keys: array<Interval, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = params.first_row + first_local + r * THREADS + lane;
        if (row < item.rows) {
            load_query_row(&query, r, query_row(item, head, row));
            keys[r] = interval_of(item, row);
        }
    }
    for (var first = first_key; first < min(end_key, item.stored_keys); first += STEP) {
        let score = products(&query, item, head / params.group, first, item.stored_keys, lane);
        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < STEP; c++) {
                let local = first_local + r * THREADS + lane;
                let row = params.first_row + local;
                let key = first + c;
                let is_there = row < item.rows && key < item.stored_keys;
                let bits = score_bits(score[r][c], pair_of(item, head, row, key), is_there, keys[r]);
                if (local < params.row_count && key < end_key) {
                    scores[(matrix_row + local) * params.seq_len_kv + key] = bits;
                }
            }
        }
    }
    for (var key = max(first_key, item.stored_keys); key < end_key; key++) {
        for (var local = first_local + lane; local < min(first_local + TILE_ROWS, params.row_count); local += THREADS) {
            scores[(matrix_row + local) * params.seq_len_kv + key] = NEGATIVE_INFINITY;
        }
    }
}
