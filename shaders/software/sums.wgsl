// Defines: Sums, add_values: sums of weighted values, whole rows per thread, values broadcast across the subgroup.
// Expects: load_value, any_thread; consts LANES, ROWS, STEP, VALUE_VECS.
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
