// Defines: main: as staged/weighted_values.wgsl, with whole rows per thread, values broadcast across the subgroup.
// Expects: lib/*, software/lanes.wgsl, software/sums.wgsl, store_output, scores (read); consts THREADS, LANES, ROWS, STEP.
// See: staged/weighted_values.wgsl; src/oracle/forward.rs has the formulas.
//
// A workgroup, one subgroup, computes all columns of THREADS * ROWS rows, STEP keys at a time.

const TILE_ROWS: u32 = THREADS * ROWS;
const PART: u32 = 512u; // keys that are summed before they join the total

const_assert THREADS == LANES;
const_assert PART % STEP == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let row_tiles = (params.row_count + TILE_ROWS - 1u) / TILE_ROWS;
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let pair = params.first_pair + index / row_tiles;
    let head = pair % params.num_heads;
    let kv_head = head / params.group;
    let item = item_of(pair / params.num_heads);
    let first_local = (index % row_tiles) * TILE_ROWS + lane;
    let matrix_row = (pair - params.first_pair) * params.row_count;

    // Sums have two levels, because the error of one chain would grow with the number of keys.
    var sums: Sums;
    var part: Sums;
    var scale: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        scale[r] = 1.0;
    }
    for (var first = 0u; first < item.keys; first += STEP) {
        var weight: array<array<f32, STEP>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let local = first_local + r * THREADS;
            let line = (matrix_row + min(local, params.row_count - 1u)) * params.seq_len_kv;
            for (var c = 0u; c < STEP; c++) {
                let key = min(first + c, item.keys - 1u);
                let stored = select(0u, scores[line + key], first + c < item.keys);
                let factor = dropout_scale(pair_of(item, head, params.first_row + local, key));
                weight[r][c] = visible_weight(dropped_out(bitcast<f32>(stored), factor), stored != 0u);
            }
        }
        if (add_values(&part, &scale, &weight, item, kv_head, first, item.keys, lane)) {
            add_special_values(&weight, item, kv_head, first, item.keys);
        }
        if ((first + STEP) % PART == 0u || first + STEP >= item.keys) {
            for (var r = 0u; r < ROWS; r++) {
                for (var i = 0u; i < VALUE_SLICES; i++) {
                    for (var j = 0u; j < LANES; j++) {
                        sums[r][i][j] += part[r][i][j];
                        part[r][i][j] = vec4<f32>(0.0);
                    }
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let local = first_local + r * THREADS;
        let row = params.first_row + local;
        if (local < params.row_count && row < item.rows) {
            let at = output_row(item, head, row);
            for (var i = 0u; i < VALUE_SLICES; i++) {
                for (var j = 0u; j < LANES; j++) {
                    let e = i * LANES + j;
                    if (e < VALUE_VECS) {
                        store_output(at, e * 4u, bitcast<vec4<u32>>(sums[r][i][j] + special[r * VALUE_VECS + e]));
                    }
                }
            }
        }
    }
}
