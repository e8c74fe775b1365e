// Defines: main: output = weights x V for a part of the score matrix. Values whose weight is 0 by its bits are skipped.
// Expects: lib/*, load_value, store_output, scores (read); value_vecs.
// See: src/oracle/forward.rs has the formulas.
//
// A workgroup computes 32 rows x 32 columns, a thread 4 rows x one vec4. Weights and values pass through workgroup
// memory 32 keys at a time. A masked key has weight 0 by its bits; skipping it matters only for infinity and NaN.

const TILE: u32 = 32u; // rows and keys of a tile
const COLUMNS: u32 = 8u; // vec4 columns of a workgroup
const THREADS: u32 = 64u;
const PART_TILES: u32 = 4u; // tiles of keys that are summed before they join the total

const STRIDE: u32 = TILE / 4u + 1u; // odd: neighbouring rows in different banks

const_assert TILE * COLUMNS % THREADS == 0u;

var<workgroup> weight_tile: array<vec4<f32>, TILE * STRIDE>; // 32 rows x 32 keys
var<workgroup> value_tile: array<vec4<f32>, TILE * COLUMNS>; // 32 keys x 32 columns
var<workgroup> non_finite: atomic<u32>; // 1 if any value so far was infinite or NaN

// Weight of a key in a row of the part, after dropout; 0 past the ends.
fn weight_of(item: Item, head: u32, pair: u32, local: u32, key: u32) -> f32 {
    if (local >= params.row_count || key >= item.keys) {
        return 0.0;
    }
    let line = ((pair - params.first_pair) * params.row_count + local) * params.seq_len_kv;
    let weight = bitcast<f32>(scores[line + key]);
    let factor = dropout_scale(pair_of(item, head, params.first_row + local, key));
    return visible_weight(dropped_out(weight, factor), bitcast<u32>(weight) != 0u);
}

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

    let kv_head = head / params.group;
    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }

    // Sums have two levels, because the error of one chain would grow with the number of keys.
    var acc: array<vec4<f32>, 4>;
    var part: array<vec4<f32>, 4>;
    for (var first = 0u; first < item.keys; first += TILE) {
        workgroupBarrier(); // between the last step's tiles being read and these being written
        for (var n = 0u; n < TILE * TILE / 4u / THREADS; n++) {
            let i = n * THREADS + thread;
            let local = first_local + i / (TILE / 4u);
            let key = first + i % (TILE / 4u) * 4u;
            weight_tile[i / (TILE / 4u) * STRIDE + i % (TILE / 4u)] = vec4<f32>(
                weight_of(item, head, pair, local, key), weight_of(item, head, pair, local, key + 1u),
                weight_of(item, head, pair, local, key + 2u), weight_of(item, head, pair, local, key + 3u));
        }
        var largest = 0u;
        for (var n = 0u; n < TILE * COLUMNS / THREADS; n++) {
            let i = n * THREADS + thread;
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
            for (var j = 0u; j < TILE + params.zero; j++) { // rolled: slow path for non-finite values
                let v = value_tile[j * COLUMNS + thread % COLUMNS];
                for (var r = 0u; r < 4u; r++) {
                    let weight = weight_tile[(own_rows + r) * STRIDE + j / 4u][j % 4u];
                    if (bitcast<u32>(weight) != 0u) {
                        part[r] = fma(vec4<f32>(exact_weight(weight)), v, part[r]);
                    }
                }
            }
        } else {
            for (var j = 0u; j < TILE + params.zero; j += 4u) {
                let at = j * COLUMNS + thread % COLUMNS;
                let v = array(value_tile[at], value_tile[at + COLUMNS], value_tile[at + 2u * COLUMNS],
                    value_tile[at + 3u * COLUMNS]);
                for (var r = 0u; r < 4u; r++) {
                    let w = weight_tile[(own_rows + r) * STRIDE + j / 4u];
                    let first_two = fma(vec4<f32>(w.y), v[1], fma(vec4<f32>(w.x), v[0], part[r]));
                    part[r] = fma(vec4<f32>(w.w), v[3], fma(vec4<f32>(w.z), v[2], first_two));
                }
            }
        }
        if (first / TILE % PART_TILES == PART_TILES - 1u || first + TILE >= item.keys) {
            for (var r = 0u; r < 4u; r++) {
                acc[r] += part[r];
                part[r] = vec4<f32>(0.0);
            }
        }
    }
    let column = first_column + thread % COLUMNS;
    for (var r = 0u; r < 4u; r++) {
        let local = first_local + thread / COLUMNS * 4u + r;
        let row = params.first_row + local;
        if (local < params.row_count && row < item.rows && column < value_vecs()) {
            store_output(output_row(item, head, row), column * 4u, bitcast<vec4<u32>>(acc[r]));
        }
    }
}
