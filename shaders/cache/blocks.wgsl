// Defines: quantise: 32 elements of 8 or 4 bits as one block, which is the first bits + 1 words.
// Expects: nothing.
// See: src/numbers/blocks.rs (narrow_block), bit by bit; it explains why a division that is a little off does no harm.

fn quantise(numbers: ptr<function, array<f32, 32>>, bits: u32) -> array<u32, 9> {
    var block: array<u32, 9>;
    var top = 0u;
    var sign = 0u;
    for (var i = 0u; i < 32u; i++) {
        let x = bitcast<u32>((*numbers)[i]);
        if ((x & 0x7fffffffu) > top) {
            top = x & 0x7fffffffu;
            sign = x & 0x80000000u;
        }
    }
    if (top >= 0x7f000000u) {
        block[0] = 0x7fc00000u;
        return block;
    }
    if (top < (27u << 23u)) {
        return block;
    }
    let factor = select(0.0078740157186985, 0.125, bits == 4u);
    let least = select(-127, -8, bits == 4u);
    let most = select(127, 7, bits == 4u);
    let magnitude = (bitcast<u32>(bitcast<f32>(top) * factor) + 0xffu) & 0xffffff00u;
    block[0] = select(magnitude, magnitude | (sign ^ 0x80000000u), bits == 4u);
    let scale = bitcast<f32>(block[0]);
    let half = 0.5 * bitcast<f32>(magnitude);
    for (var w = 0u; w < bits; w++) {
        var word = 0u;
        for (var n = 0u; n < 32u / bits; n++) {
            let x = (*numbers)[w * (32u / bits) + n];
            let guess = i32(x / scale);
            let away = select(-1, 1, (x < 0.0) == (scale < 0.0));
            let q = clamp(select(guess, guess + away, abs(x - scale * f32(guess)) >= half), least, most);
            word |= (bitcast<u32>(q) & ((1u << bits) - 1u)) << (n * bits);
        }
        block[w + 1u] = word;
    }
    return block;
}
