// Defines: pairs_of_square: gradients of the biases, 16 rows x 16 keys, four pairs per thread; own_pair; square_tile.
// Expects: lib/*, pair.wgsl, load_query, load_key, load_value, load_d_output; head_vecs, value_vecs.
// See: src/oracle/backward.rs has the formulas.
//
// Operands of both products pass through workgroup memory, CHUNK vec4s of each row at a time.

const THREADS: u32 = 64u;
const SIDE: u32 = 16u; // rows and keys of a square
const CHUNK: u32 = 8u;

const_assert THREADS <= SIDE * (CHUNK + 1u);

var<workgroup> row_chunk: array<vec4<f32>, SIDE * (CHUNK + 1u)>; // queries, then output gradients
var<workgroup> key_chunk: array<vec4<f32>, SIDE * (CHUNK + 1u)>; // keys, then values
var<workgroup> square_tile: array<f32, SIDE * SIDE>; // one element per pair during a reduction

var<private> pair_sums: array<f32, 4>; // sums over all squares so far, for this thread's pairs

// Row and key of a thread's pair n in the square.
fn own_pair(thread: u32, n: u32) -> vec2<u32> {
    return vec2<u32>(thread / 8u + n / 2u * 8u, thread % 8u + n % 2u * 8u);
}

fn products(item: Item, head: u32, first: vec2<u32>, thread: u32, of_scores: bool) -> array<f32, 4> {
    var sums = array<f32, 4>(0.0, 0.0, 0.0, 0.0);
    let last = vec2<u32>(item.rows, item.stored_keys) - 1u;
    let kv_head = head / params.group;
    let vecs = select(value_vecs(), head_vecs(), of_scores);
    for (var chunk = 0u; chunk < vecs; chunk += CHUNK) {
        workgroupBarrier(); // between the last chunk being read and this one being written
        for (var i = thread; i < SIDE * CHUNK; i += THREADS) {
            let row = min(first.x + i / CHUNK, last.x);
            let key = min(first.y + i / CHUNK, last.y);
            let column = chunk + i % CHUNK;
            var x = vec4<f32>(0.0);
            var y = vec4<f32>(0.0);
            if (column < vecs) {
                if (of_scores) {
                    x = load_query(query_row(item, head, row), column * 4u) * params.scale;
                    y = load_key(key_row(item, kv_head, key), column * 4u);
                } else {
                    x = load_d_output(output_row(item, head, row), column * 4u);
                    y = load_value(value_row(item, kv_head, key), column * 4u);
                }
            }
            row_chunk[i / CHUNK * (CHUNK + 1u) + i % CHUNK] = x;
            key_chunk[i / CHUNK * (CHUNK + 1u) + i % CHUNK] = y;
        }
        workgroupBarrier(); // between the chunk written and read
        for (var d = 0u; d < CHUNK; d++) {
            for (var n = 0u; n < 4u; n++) {
                let pair = own_pair(thread, n);
                let x = row_chunk[pair.x * (CHUNK + 1u) + d];
                let y = key_chunk[pair.y * (CHUNK + 1u) + d];
                sums[n] = dot_add(sums[n], x, y);
            }
        }
    }
    return sums;
}

// Adds the gradients of the square whose first row and key are `first` to `pair_sums`. Call in uniform control flow.
fn pairs_of_square(item: Item, head: u32, first: vec2<u32>, thread: u32) {
    if (first.x >= item.rows || first.y >= item.stored_keys) {
        return;
    }
    let low = interval_of(item, first.x);
    let high = interval_of(item, min(first.x + SIDE, item.rows) - 1u);
    if (first.y >= high.end || first.y + SIDE <= low.start) {
        return;
    }
    let scaled = products(item, head, first, thread, true);
    let weighted = products(item, head, first, thread, false);
    // Products pass through workgroup memory, so that the loop over pairs stays rolled: its body is long.
    workgroupBarrier(); // between the last chunk read and the products written
    row_chunk[thread] = vec4<f32>(scaled[0], scaled[1], scaled[2], scaled[3]);
    key_chunk[thread] = vec4<f32>(weighted[0], weighted[1], weighted[2], weighted[3]);
    for (var n = 0u; n < 4u + params.zero; n++) {
        let at = first + own_pair(thread, n);
        let row = min(at.x, item.rows - 1u);
        let keys = interval_of(item, row);
        let inside = at.x < item.rows && at.y >= keys.start && at.y < keys.end;
        let key = min(at.y, item.stored_keys - 1u);
        let end = row_stats_of(item, head, row);
        let pair = pair_of(item, head, row, key);
        let gradient = pair_gradient(row_chunk[thread][n], key_chunk[thread][n], end, pair, inside);
        row_chunk[thread][n] = gradient.d_bias;
    }
    for (var n = 0u; n < 4u; n++) {
        pair_sums[n] += row_chunk[thread][n];
    }
}
