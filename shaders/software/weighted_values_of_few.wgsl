// Defines: main: as staged/weighted_values.wgsl for few rows, with a vec4 column per thread, weights broadcast across the
//          subgroup.
// Expects: lib/*, software/lanes.wgsl, load_value, store_output, scores (read); consts THREADS, LANES, ROWS, VALUE_VECS.
// See: staged/weighted_values.wgsl; src/oracle/forward.rs has the formulas.
//
// A workgroup, one subgroup, computes THREADS vec4 columns of ROWS rows of a group, THREADS keys at a time.

const COLUMN_TILES: u32 = (VALUE_VECS + THREADS - 1u) / THREADS;
const PART: u32 = 512u; // keys that are summed before they join the total

const_assert THREADS == LANES;
const_assert PART % THREADS == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let row_tiles = (params.group * params.row_count + ROWS - 1u) / ROWS;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    // Parts of the score matrix hold whole groups.
    let first_pair = params.first_pair + index / (COLUMN_TILES * row_tiles) * params.group;
    let item = item_of(first_pair / params.num_heads);
    let first_head = first_pair % params.num_heads;
    let kv_head = first_head / params.group;
    let first = index / COLUMN_TILES % row_tiles * ROWS; // row of the group
    let column = index % COLUMN_TILES * THREADS + lane;
    let matrix_row = (first_pair - params.first_pair) * params.row_count + first;

    // Sums have two levels, because the error of one chain would grow with the number of keys. Infinite and NaN values are
    // kept apart, so that 0 * NaN never reaches a row that masks the key.
    var sums: array<vec4<f32>, ROWS>;
    var part: array<vec4<f32>, ROWS>;
    var special: array<vec4<f32>, ROWS>;
    for (var first_key = 0u; first_key < item.keys; first_key += THREADS) {
        var weight: array<f32, ROWS>; // of key first_key + lane
        for (var r = 0u; r < ROWS; r++) {
            let key = first_key + lane;
            let row = first + r;
            if (key < item.keys && row < params.group * params.row_count) {
                let stored = scores[(matrix_row + r) * params.seq_len_kv + key];
                let at = pair_of(item, first_head + row / params.row_count, params.first_row + row % params.row_count, key);
                weight[r] = visible_weight(dropped_out(bitcast<f32>(stored), dropout_scale(at)), stored != 0u);
            }
        }
        for (var j = 0u; j < THREADS; j++) {
            let key = min(first_key + j, item.keys - 1u); // past the end, weights are 0
            let v = load_value(value_row(item, kv_head, key), min(column, VALUE_VECS - 1u) * 4u);
            for (var r = 0u; r < ROWS; r++) {
                part[r] = fma(vec4<f32>(subgroupShuffle(weight[r], j)), finite_part(v), part[r]);
            }
            if (any_thread(!is_finite(v), lane)) {
                for (var r = 0u; r < ROWS; r++) {
                    let own = subgroupShuffle(weight[r], j);
                    if (bitcast<u32>(own) != 0u) {
                        special[r] += exact_weight(own) * special_part(v);
                    }
                }
            }
        }
        if ((first_key + THREADS) % PART == 0u || first_key + THREADS >= item.keys) {
            for (var r = 0u; r < ROWS; r++) {
                sums[r] += part[r];
                part[r] = vec4<f32>(0.0);
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let head = first_head + (first + r) / params.row_count;
        let row = params.first_row + (first + r) % params.row_count;
        if (first + r < params.group * params.row_count && row < item.rows && column < VALUE_VECS) {
            store_output(output_row(item, head, row), column * 4u, bitcast<vec4<u32>>(sums[r] + special[r]));
        }
    }
}
