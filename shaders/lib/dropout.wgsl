// Defines: dropout_scale: factor of dropout on a weight: 0, or 1 / (1 - probability).
// Expects: params, table, Pair; the switch is_dropping.
// See: src/problem/dropout.rs, which cites the source.

// Product a * b in 64 bits: low word and high word.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    return vec2<u32>(a * b, (a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u));
}

fn dropout_scale(at: Pair) -> f32 {
    if (!is_dropping()) {
        return 1.0;
    }
    let key = u32(at.key);
    let head = u32(at.batch) * params.num_heads + u32(at.head);
    var counter = vec4<u32>(key / 4u, u32(at.row), head, table(params.table_dropout + 2u));
    var seed = vec2<u32>(table(params.table_dropout), table(params.table_dropout + 1u));
    for (var i = 0u; i < rolled(10u); i++) {
        let first = wide_product(0xd2511f53u, counter.x);
        let second = wide_product(0xcd9e8d57u, counter.z);
        counter = vec4<u32>(second.y ^ counter.y ^ seed.x, second.x, first.y ^ counter.w ^ seed.y, first.x);
        seed += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    let pair = select(counter.xy, counter.zw, (key & 2u) != 0u);
    return select(params.dropout_factor, 0.0, select(pair.x, pair.y, (key & 1u) != 0u) < params.dropout_threshold);
}
