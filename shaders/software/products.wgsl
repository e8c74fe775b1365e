// Defines: Queries, load_query_row; products: of whole query rows per thread and STEP keys, broadcast across the subgroup.
// Expects: load_query, load_key; consts LANES, ROWS, STEP, HEAD_VECS.
// See: sums.wgsl, the other product.
//
// A thread keeps ROWS whole rows. Of the keys that all threads need, each lane loads every LANES-th vec4, which is then
// broadcast: a shuffle by a constant costs one instruction, a load shared by all lanes about twelve. Subgroups have
// exactly LANES threads. Arrays are nested like the loops, to be unrolled into registers.

const HEAD_SLICES: u32 = (HEAD_VECS + LANES - 1u) / LANES;

alias Queries = array<array<array<vec4<f32>, LANES>, HEAD_SLICES>, ROWS>;

fn load_query_row(query: ptr<function, Queries>, r: u32, at: u32) {
    for (var i = 0u; i < HEAD_SLICES; i++) {
        for (var j = 0u; j < LANES; j++) {
            if (i * LANES + j < HEAD_VECS) {
                (*query)[r][i][j] = load_query(at, (i * LANES + j) * 4u) * params.scale;
            }
        }
    }
}

// array<array<f32, STEP>, ROWS> of the queries and the keys from `first` on. Keys from `end` on are that before it.
fn products(query: ptr<function, Queries>, item: Item, kv_head: u32, first: u32, end: u32, lane: u32) -> array<array<f32, STEP>, ROWS> {
    var score: array<array<f32, STEP>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        for (var c = 0u; c < STEP; c++) {
            score[r][c] = 0.0;
        }
    }
    for (var i = 0u; i < HEAD_SLICES; i++) {
        var k: array<vec4<f32>, STEP>;
        for (var c = 0u; c < STEP; c++) {
            k[c] = load_key(key_row(item, kv_head, min(first + c, end - 1u)), min(i * LANES + lane, HEAD_VECS - 1u) * 4u);
        }
        for (var j = 0u; j < LANES; j++) {
            if (i * LANES + j < HEAD_VECS) {
                for (var c = 0u; c < STEP; c++) {
                    let own = subgroupShuffle(k[c], j);
                    for (var r = 0u; r < ROWS; r++) {
                        score[r][c] = dot_add(score[r][c], (*query)[r][i][j], own);
                    }
                }
            }
        }
    }
    return score;
}
