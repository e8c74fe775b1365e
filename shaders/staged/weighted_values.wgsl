// Defines: main: output = weights x V for a part of the score matrix. A weight of -0 is a hidden key: its value is not touched.
// Expects: lib/*, load_value, store_output, scores (read); value_vecs.
// Twin: src/cpu/naive.rs has the formulas.
//
// A workgroup computes 32 rows x 32 columns; a thread 4 rows x one vec4. Weights and values go through workgroup memory 32 keys at a time.
// Only where a value is infinite or NaN does it matter that a hidden key's is not touched.

const TILE: u32 = 32u; // rows and keys of a tile
const COLUMNS: u32 = 8u; // vec4 columns of a workgroup
const THREADS: u32 = 64u;

const STRIDE: u32 = TILE / 4u + 1u; // odd: neighbouring rows in different banks

var<workgroup> weight_tile: array<vec4<f32>, TILE * STRIDE>; // 32 rows x 32 keys
var<workgroup> value_tile: array<vec4<f32>, TILE * COLUMNS>; // 32 keys x 32 columns
var<workgroup> non_finite: atomic<u32>; // whether any value so far was infinite or NaN

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column_tiles = (value_vecs() + COLUMNS - 1u) / COLUMNS;
    let row_tiles = (params.row_count + TILE - 1u) / TILE;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let pair = params.first_pair + index / (column_tiles * row_tiles);
    let head = pair % params.num_heads;
    let item = item_of(pair / params.num_heads);
    let first_local = (index / column_tiles % row_tiles) * TILE;
    let first_column = (index % column_tiles) * COLUMNS;
    let matrix_row = (pair - params.first_pair) * params.row_count;

    let kv_head = head / params.group;
    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }

    var acc: array<vec4<f32>, 4>;
    for (var first = 0u; first < item.keys; first += TILE) {
        workgroupBarrier(); // between the last step's tiles being read and these being written
        for (var n = 0u; n < (TILE * TILE + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (i >= TILE * TILE) {
                break;
            }
            let local = first_local + i / TILE;
            let key = first + i % TILE;
            var weight = bitcast<f32>(HIDDEN_BITS);
            if (local < params.row_count && key < item.keys) {
                weight = scores[(matrix_row + local) * params.seq_len_kv + key];
                if (is_dropping()) {
                    if (bitcast<u32>(weight) != HIDDEN_BITS) {
                        weight *= kept(item, head, params.first_row + local, key);
                    }
                }
            }
            weight_tile[i / TILE * STRIDE + i % TILE / 4u][i % 4u] = weight;
        }
        var largest = 0u;
        for (var n = 0u; n < (TILE * COLUMNS + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (i >= TILE * COLUMNS) {
                break;
            }
            let key = first + i / COLUMNS;
            let column = first_column + i % COLUMNS;
            var v = vec4<f32>(0.0);
            if (key < item.keys && column < value_vecs()) {
                v = load_value(value_row(item, kv_head, key), column * 4u);
            }
            largest = max(largest, magnitude(v));
            value_tile[i] = v;
        }
        if (largest >= INFINITE) {
            atomicStore(&non_finite, 1u);
        }
        workgroupBarrier(); // between tiles written and read
        let own_rows = thread / COLUMNS * 4u;
        if (atomicLoad(&non_finite) != 0u) {
            for (var j = 0u; j < TILE + params.zero; j++) { // rolled: rarely run
                let v = value_tile[j * COLUMNS + thread % COLUMNS];
                for (var r = 0u; r < 4u; r++) {
                    let weight = weight_tile[(own_rows + r) * STRIDE + j / 4u][j % 4u];
                    acc[r] = select(fma(vec4<f32>(weight), v, acc[r]), acc[r], bitcast<u32>(weight) == HIDDEN_BITS);
                }
            }
        } else {
            for (var j = 0u; j < TILE + params.zero; j += 4u) {
                let at = j * COLUMNS + thread % COLUMNS;
                let v = array<vec4<f32>, 4>(value_tile[at], value_tile[at + COLUMNS], value_tile[at + 2u * COLUMNS], value_tile[at + 3u * COLUMNS]);
                for (var r = 0u; r < 4u; r++) {
                    let w = weight_tile[(own_rows + r) * STRIDE + j / 4u];
                    let first_two = fma(vec4<f32>(w.y), v[1], fma(vec4<f32>(w.x), v[0], acc[r]));
                    acc[r] = fma(vec4<f32>(w.w), v[3], fma(vec4<f32>(w.z), v[2], first_two));
                }
            }
        }
    }
    let column = first_column + thread % COLUMNS;
    for (var r = 0u; r < 4u; r++) {
        let local = first_local + thread / COLUMNS * 4u + r;
        let row = params.first_row + local;
        if (local < params.row_count && row < item.rows && column < value_vecs()) {
            store_output(output_row(item, head, row), column * 4u, acc[r]);
        }
    }
}
