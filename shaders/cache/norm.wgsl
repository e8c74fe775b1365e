// Defines: measure_row; load_new_key, load_query: elements of the measured row after the norm.
// Expects: cache/params.wgsl; raw_row, norm_words: weights of queries, weights of keys, eps.
// See: src/rotary/norm.rs (QkNorm).

const PARTS: u32 = 8u;

// Sums of squares, of the elements that a thread takes, then of PARTS threads: [THREADS], [THREADS / PARTS].
var<workgroup> squares: array<f32, THREADS>;
var<workgroup> square_sums: array<f32, THREADS / PARTS>;

// First element of the measured row, the place of its first weight, and the factor of its elements.
var<private> row_start: u32;
var<private> row_weights: u32;
var<private> row_factor: f32;

// Computes the factor 1 / sqrt(mean(x^2) + eps) of a row, with all threads of the workgroup.
fn measure_row(is_query: bool, at: u32, thread: u32) {
    var sum = 0.0;
    for (var i = thread; i < cache.head_dim; i += THREADS) {
        let x = raw_row(is_query, at + i);
        sum += x * x;
    }
    squares[thread] = sum;
    workgroupBarrier(); // all squares are there
    if (thread < THREADS / PARTS) {
        sum = 0.0;
        for (var part = 0u; part < PARTS; part++) {
            sum += squares[thread * PARTS + part];
        }
        square_sums[thread] = sum;
    }
    workgroupBarrier(); // all sums are there
    sum = 0.0;
    for (var part = 0u; part < THREADS / PARTS; part++) {
        sum += square_sums[part];
    }
    row_start = at;
    row_weights = select(cache.head_dim, 0u, is_query);
    row_factor = inverseSqrt(sum / f32(cache.head_dim) + norm_words[2u * cache.head_dim]);
}

fn normalised(x: f32, i: u32) -> f32 {
    return x * row_factor * norm_words[row_weights + i - row_start];
}

fn load_new_key(i: u32) -> f32 {
    return normalised(raw_row(false, i), i);
}

fn load_query(i: u32) -> f32 {
    return normalised(raw_row(true, i), i);
}
