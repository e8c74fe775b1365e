// Defines: main: scores of a part of the score matrix: scale * Q K^T, then softcap, biases, masks up to score_stage.
// Expects: lib/*, staged/stage.wgsl, load_query, load_key, scores (read_write); head_vecs.
// See: src/oracle/forward.rs has the formulas.
//
// A workgroup computes 32 rows x 32 keys, a thread 4 x 4 of them. Queries and keys pass through workgroup memory 32
// elements at a time. The code from product to score can be long: it occurs once, in a rolled loop over rows that reads
// the products from workgroup memory, not by an index into registers.

const TILE: u32 = 32u; // rows, and keys, of a workgroup
const STEP: u32 = 8u; // vec4s of head_dim at a time
const STRIDE: u32 = STEP + 1u; // odd: neighbouring rows in different banks
const THREADS: u32 = 64u;

const_assert 4u * THREADS <= TILE * STRIDE;
const_assert TILE * STEP % THREADS == 0u;

var<workgroup> query_tile: array<vec4<f32>, TILE * STRIDE>; // 32 rows x 32 elements
var<workgroup> key_tile: array<vec4<f32>, TILE * STRIDE>; // 32 keys x 32 elements

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let key_tiles = (params.seq_len_kv + TILE - 1u) / TILE;
    let row_tiles = (params.row_count + TILE - 1u) / TILE;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let pair = params.first_pair + index / (key_tiles * row_tiles);
    let head = pair % params.num_heads;
    let item = item_of(pair / params.num_heads);
    let first_row = params.first_row + (index / key_tiles % row_tiles) * TILE;
    let first_key = (index % key_tiles) * TILE;
    let end_row = min(params.first_row + params.row_count, item.rows);
    let kv_head = head / params.group;

    var score: array<f32, 16>; // 4 rows x 4 keys
    for (var d = 0u; d < head_vecs(); d += STEP) {
        workgroupBarrier(); // between the last step's tiles being read and these being written
        for (var n = 0u; n < TILE * STEP / THREADS; n++) {
            let i = n * THREADS + thread;
            let local = i / STEP;
            let dim = d + i % STEP;
            var q = vec4<f32>(0.0);
            if (first_row + local < end_row && dim < head_vecs()) {
                q = load_query(query_row(item, head, first_row + local), dim * 4u) * params.scale;
            }
            query_tile[local * STRIDE + i % STEP] = q;
            var k = vec4<f32>(0.0);
            if (first_key + local < item.stored_keys && dim < head_vecs()) {
                k = load_key(key_row(item, kv_head, first_key + local), dim * 4u);
            }
            key_tile[local * STRIDE + i % STEP] = k;
        }
        workgroupBarrier(); // between tiles written and read
        for (var s = 0u; s < STEP + params.zero; s += 4u) {
            for (var step = 0u; step < 4u; step++) {
                for (var r = 0u; r < 4u; r++) {
                    let q = query_tile[(thread / 8u * 4u + r) * STRIDE + s + step];
                    for (var c = 0u; c < 4u; c++) {
                        let k = key_tile[(thread % 8u + c * 8u) * STRIDE + s + step];
                        score[r * 4u + c] = dot_add(score[r * 4u + c], q, k);
                    }
                }
            }
        }
    }

    workgroupBarrier(); // between the last tiles read and query_tile written
    for (var r = 0u; r < 4u; r++) {
        query_tile[r * THREADS + thread] =
            vec4<f32>(score[r * 4u], score[r * 4u + 1u], score[r * 4u + 2u], score[r * 4u + 3u]);
    }
    for (var r = 0u; r < 4u + params.zero; r++) {
        let products = query_tile[r * THREADS + thread]; // this thread's own
        let row = first_row + thread / 8u * 4u + r;
        if (row >= params.first_row + params.row_count) {
            continue;
        }
        let visible_keys = interval_of(item, row);
        let line = ((pair - params.first_pair) * params.row_count + row - params.first_row) * params.seq_len_kv;
        for (var c = 0u; c < 4u; c++) {
            let key = first_key + thread % 8u + c * 8u;
            if (key >= params.seq_len_kv) {
                continue;
            }
            let is_there = row < item.rows && key < item.stored_keys;
            scores[line + key] = score_bits(products[c], pair_of(item, head, row, key), is_there, visible_keys);
        }
    }
}
