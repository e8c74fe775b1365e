// Defines: Sums, add_values: sums of weighted values, whole rows per thread, values broadcast across the subgroup; special,
//          add_special_values: those of values that are not finite.
// Expects: load_value, any_thread, exact_weight; consts LANES, ROWS, STEP, VALUE_VECS.
// See: products.wgsl, the other product.

const VALUE_SLICES: u32 = (VALUE_VECS + LANES - 1u) / LANES;

alias Sums = array<array<array<vec4<f32>, LANES>, VALUE_SLICES>, ROWS>;

// Multiplies the sums of the rows by `scale` and adds the weighted finite values of the keys from `first` on. Keys from `end`
// on are that before it. True if some value is not finite.
fn add_values(sums: ptr<function, Sums>, scale: ptr<function, array<f32, ROWS>>, weight: ptr<function, array<array<f32, STEP>, ROWS>>, item: Item,
    kv_head: u32, first: u32, end: u32, lane: u32) -> bool {
    var infinite = false;
    for (var i = 0u; i < VALUE_SLICES; i++) {
        var v: array<vec4<f32>, STEP>;
        for (var c = 0u; c < STEP; c++) {
            let loaded = load_value(value_row(item, kv_head, min(first + c, end - 1u)), min(i * LANES + lane, VALUE_VECS - 1u) * 4u);
            infinite = infinite || !is_finite(loaded);
            v[c] = finite_part(loaded);
        }
        for (var j = 0u; j < LANES; j++) {
            if (i * LANES + j < VALUE_VECS) {
                var sum: array<vec4<f32>, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    sum[r] = (*sums)[r][i][j] * (*scale)[r];
                }
                for (var c = 0u; c < STEP; c++) {
                    let own = subgroupShuffle(v[c], j);
                    for (var r = 0u; r < ROWS; r++) {
                        sum[r] = fma(vec4<f32>((*weight)[r][c]), own, sum[r]);
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    (*sums)[r][i][j] = sum[r];
                }
            }
        }
    }
    return any_thread(infinite, lane);
}

// Output from infinite and NaN values, kept apart so that 0 * NaN never reaches a row that masks the key. Rare.
var<private> special: array<vec4<f32>, ROWS * VALUE_VECS>;

// Adds what add_values leaves out.
fn add_special_values(weight: ptr<function, array<array<f32, STEP>, ROWS>>, item: Item, kv_head: u32, first: u32, end: u32) {
    for (var c = 0u; c < STEP; c++) {
        let at = value_row(item, kv_head, min(first + c, end - 1u));
        for (var e = 0u; e < VALUE_VECS + params.zero; e++) { // rolled: slow path
            let v = special_part(load_value(at, e * 4u));
            for (var r = 0u; r < ROWS; r++) {
                if (bitcast<u32>((*weight)[r][c]) != 0u) {
                    special[r * VALUE_VECS + e] += exact_weight((*weight)[r][c]) * v;
                }
            }
        }
    }
}
