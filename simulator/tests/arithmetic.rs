//! Arithmetic and memory of the evaluator compared with Rust: each operation that our kernels use, and related ones.

use wgpu_attention_simulator::{Binding, Buffer, Options, Shader};

/// Evaluates `expression` of `a` and `b` for four invocations, each with its element of both.
fn evaluate(ty: &str, expression: &str, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> numbers: array<{ty}>;
         @group(0) @binding(1) var<storage, read_write> output: array<u32>;
         struct Numbers {{ first: u32, second: u32 }}
         struct Pair {{ first: {ty}, second: {ty} }}
         fn constant_pair() -> u32 {{ var p = Numbers(2u, 3u); return p.first + p.second; }}
         fn twice(x: {ty}) -> {ty} {{ return x + x; }}
         fn grow(x: ptr<function, array<{ty}, 3>>, by: {ty}) {{ (*x)[1] += by; }}
         @compute @workgroup_size(4) fn main(@builtin(local_invocation_index) i: u32) {{
             let a = numbers[i];
             let b = numbers[4u + i];
             {expression}
         }}"
    );
    let shader = Shader::new(&text).unwrap_or_else(|error| panic!("{error}"));
    let bytes: Vec<u8> = a.iter().chain(&b).flat_map(|word| word.to_le_bytes()).collect();
    let mut buffers = [Buffer::filled(&bytes), Buffer::unwritten(16, 0)];
    let bindings = [0, 1].map(|at| Binding { binding: at as u32, buffer: at, offset: 0, size: 64 });
    let report = shader.dispatch(&mut buffers, &bindings, [1, 1, 1], &Options::default()).expect("it runs");
    assert_eq!(report.findings, [], "{expression}");
    let words = buffers[1].bytes();
    [0, 1, 2, 3].map(|at| u32::from_le_bytes([words[4 * at], words[4 * at + 1], words[4 * at + 2], words[4 * at + 3]]))
}

/// Expression, and its expected value for `a` and `b`.
type Case<T> = (&'static str, fn(T, T) -> u32);

const A: [f32; 4] = [1.5, -2.25, 0.75, 100.0];
const B: [f32; 4] = [0.5, 3.0, -0.75, 7.0];

#[test]
fn floats() {
    let cases: &[Case<f32>] = &[
        ("a + b", |a, b| (a + b).to_bits()),
        ("a - b", |a, b| (a - b).to_bits()),
        ("a * b", |a, b| (a * b).to_bits()),
        ("a / b", |a, b| (a / b).to_bits()),
        ("a % b", |a, b| (a % b).to_bits()),
        ("-a", |a, _| (-a).to_bits()),
        ("fma(a, b, 2.0)", |a, b| a.mul_add(b, 2.0).to_bits()),
        ("max(a, b)", |a, b| a.max(b).to_bits()),
        ("min(a, b)", |a, b| a.min(b).to_bits()),
        ("clamp(a, -1.0, 2.0)", |a, _| a.clamp(-1.0, 2.0).to_bits()),
        ("abs(a)", |a, _| a.abs().to_bits()),
        ("sign(a)", |a, _| a.signum().to_bits()),
        ("exp(b)", |_, b| b.exp().to_bits()),
        ("exp2(b)", |_, b| b.exp2().to_bits()),
        ("log(abs(a))", |a, _| a.abs().ln().to_bits()),
        ("sqrt(abs(a))", |a, _| a.abs().sqrt().to_bits()),
        ("tanh(b)", |_, b| b.tanh().to_bits()),
        ("floor(a)", |a, _| a.floor().to_bits()),
        ("round(a)", |a, _| a.round_ties_even().to_bits()),
        ("trunc(a)", |a, _| a.trunc().to_bits()),
        ("fract(a)", |a, _| (a - a.floor()).to_bits()),
        ("step(a, b)", |a, b| if a <= b { 1f32.to_bits() } else { 0 }),
        ("select(a, b, a < b)", |a, b| if a < b { b } else { a }.to_bits()),
        ("dot(vec2<f32>(a, b), vec2<f32>(b, 2.0))", |a, b| (a * b + b * 2.0).to_bits()),
        ("vec4<f32>(a, b, 3.0, 4.0).wzyx.w", |a, _| a.to_bits()),
        ("(vec2<f32>(a, b) * 2.0).y", |_, b| (b * 2.0).to_bits()),
        ("f32(i32(a))", |a, _| (a as i32 as f32).to_bits()),
        ("f32(u32(abs(a)))", |a, _| (a.abs() as u32 as f32).to_bits()),
        ("f32(a > b)", |a, b| f32::from(u8::from(a > b)).to_bits()),
        ("twice(a) + b", |a, b| (a + a + b).to_bits()),
        ("Pair(a, b).second", |_, b| b.to_bits()),
        ("unpack2x16float(pack2x16float(vec2<f32>(a, b))).y", |_, b| b.to_bits()),
    ];
    for (expression, expected) in cases {
        let statement = format!("output[i] = bitcast<u32>({expression});");
        let got = evaluate("f32", &statement, A.map(f32::to_bits), B.map(f32::to_bits));
        let right: Vec<u32> = A.iter().zip(B).map(|(&a, b)| expected(a, b)).collect();
        assert_eq!(got.as_slice(), right, "{expression}");
    }
}

#[test]
fn comparisons() {
    let cases: &[Case<f32>] = &[
        ("a < b", |a, b| (a < b).into()),
        ("a >= b && !(a == b)", |a, b| (a > b).into()),
        ("a != b || b > a", |a, b| (a != b).into()),
        ("all(vec2<bool>(a > 0.0, b > 0.0))", |a, b| (a > 0.0 && b > 0.0).into()),
        ("any(vec2<f32>(a, b) < vec2<f32>(0.0))", |a, b| (a < 0.0 || b < 0.0).into()),
    ];
    for (expression, expected) in cases {
        let got = evaluate("f32", &format!("output[i] = select(0u, 1u, {expression});"), A.map(f32::to_bits), B.map(f32::to_bits));
        let right: Vec<u32> = A.iter().zip(B).map(|(&a, b)| expected(a, b)).collect();
        assert_eq!(got.as_slice(), right, "{expression}");
    }
}

#[test]
fn integers() {
    let (a, b) = ([5u32, 0xffff_fff0, 1 << 31, 77], [3u32, 31, 1, 13]);
    let unsigned: &[Case<u32>] = &[
        ("a + b", u32::wrapping_add),
        ("a - b", u32::wrapping_sub),
        ("a * b", u32::wrapping_mul),
        ("a / b", |a, b| a / b),
        ("a % b", |a, b| a % b),
        ("a << b", u32::wrapping_shl),
        ("a >> b", u32::wrapping_shr),
        ("a & b", |a, b| a & b),
        ("a | b", |a, b| a | b),
        ("a ^ b", |a, b| a ^ b),
        ("~a", |a, _| !a),
        ("min(a, b)", u32::min),
        ("max(a, b)", u32::max),
        ("countOneBits(a)", |a, _| a.count_ones()),
        ("firstTrailingBit(a)", |a, _| a.trailing_zeros()),
        ("firstLeadingBit(a)", |a, _| 31 - a.leading_zeros()),
        ("countLeadingZeros(a)", |a, _| a.leading_zeros()),
        ("reverseBits(a)", |a, _| a.reverse_bits()),
        ("extractBits(a, 4u, 8u)", |a, _| a >> 4 & 0xff),
        ("insertBits(a, b, 4u, 8u)", |a, b| (a & !0xff0) | (b & 0xff) << 4),
        ("select(7u, 9u, a < b)", |a, b| if a < b { 9 } else { 7 }),
        ("vec4<u32>(a, b, 1u, 2u)[b % 4u]", |a, b| [a, b, 1, 2][b as usize % 4]),
    ];
    for (expression, expected) in unsigned {
        let got = evaluate("u32", &format!("output[i] = {expression};"), a, b);
        assert_eq!(got.as_slice(), a.iter().zip(b).map(|(&a, b)| expected(a, b)).collect::<Vec<_>>(), "{expression}");
    }
    let signed: &[Case<i32>] = &[
        ("a / 3", |a, _| (a / 3) as u32),
        ("a % 3", |a, _| (a % 3) as u32),
        ("a >> 2u", |a, _| (a >> 2) as u32),
        ("min(a, b)", |a, b| a.min(b) as u32),
        ("max(a, b)", |a, b| a.max(b) as u32),
        ("clamp(a, -9, 9)", |a, _| a.clamp(-9, 9) as u32),
        ("abs(a)", |a, _| a.wrapping_abs() as u32),
        ("-a", |a, _| a.wrapping_neg() as u32),
        ("select(0, 1, a < b)", |a, b| (a < b).into()),
        ("i32(f32(a))", |a, _| (a as f32 as i32) as u32),
        ("extractBits(a, 28u, 4u)", |a, _| (a >> 28) as u32),
    ];
    for (expression, expected) in signed {
        let got = evaluate("i32", &format!("output[i] = u32({expression});"), a, b);
        assert_eq!(got.as_slice(), a.iter().zip(b).map(|(&a, b)| expected(a as i32, b as i32)).collect::<Vec<_>>(), "{expression}");
    }
}

#[test]
fn variables_branches_and_loops() {
    let (a, b) = ([1u32, 2, 3, 4], [4u32, 0, 7, 2]);
    let cases: &[Case<u32>] = &[
        (
            "var sum = 0u; for (var k = 0u; k < b; k++) { if k == 2u { continue; } if k > 5u { break; } sum += a; } output[i] = sum;",
            |a, b| (0..b.min(6)).filter(|&k| k != 2).map(|_| a).sum(),
        ),
        ("var x = a; loop { x += 1u; continuing { x *= 2u; break if x > 40u; } } output[i] = x;", |a, _| {
            let mut x = a;
            loop {
                x = (x + 1) * 2;
                if x > 40 {
                    return x;
                }
            }
        }),
        ("switch b { case 0u: { output[i] = 10u; } case 2u, 4u: { output[i] = 20u; } default: { output[i] = a; } }", |a, b| match b {
            0 => 10,
            2 | 4 => 20,
            _ => a,
        }),
        ("var x: array<u32, 3>; x[a % 3u] = b; grow(&x, 5u); output[i] = x[0] + 10u * x[1] + 100u * x[2];", |a, b| {
            let mut x = [0; 3];
            x[a as usize % 3] = b;
            x[1] += 5;
            x[0] + 10 * x[1] + 100 * x[2]
        }),
        ("var p = Pair(a, b); p.first += 3u; let q = p; p.second = 0u; output[i] = q.first * 16u + q.second + p.second;", |a, b| {
            (a + 3) * 16 + b
        }),
        ("var p = Pair(7u, 3u); if a > 1u { p.first += b; } output[i] = constant_pair() + p.first * 16u + p.second;", |a, b| {
            5 + (if a > 1 { 7 + b } else { 7 }) * 16 + 3
        }),
        ("var v = vec3<u32>(a, b, 9u); v.y = 7u; v[a % 3u] += 1u; let w = v; output[i] = w.x + 16u * w.y + 256u * w.z;", |a, _| {
            let mut v = [a, 7, 9];
            v[a as usize % 3] += 1;
            v[0] + 16 * v[1] + 256 * v[2]
        }),
    ];
    for (statements, expected) in cases {
        let got = evaluate("u32", statements, a, b);
        assert_eq!(got.as_slice(), a.iter().zip(b).map(|(&a, b)| expected(a, b)).collect::<Vec<_>>(), "{statements}");
    }
}

/// Structs in buffers have WGSL's layout: a vec3 takes four words unless a scalar follows it.
#[test]
fn buffers_have_the_layout_of_the_host() {
    let text = "struct Inner { v: vec3<f32>, s: f32, w: vec3<f32> }
        struct Outer { n: u32, inner: array<Inner, 2>, tail: vec2<f32> }
        @group(0) @binding(0) var<uniform> outer: Outer;
        @group(0) @binding(1) var<storage, read_write> output: array<f32>;
        @compute @workgroup_size(1) fn main() {
            let all = outer.inner;
            output[0] = all[1].w.z;
            output[1] = outer.inner[1].s;
            output[2] = outer.tail.y;
            output[3] = outer.inner[0].v.y;
            output[4] = f32(arrayLength(&output));
        }";
    let shader = Shader::new(text).expect("it is valid");
    let bytes: Vec<u8> = (0..24u32).flat_map(|at| (at as f32).to_le_bytes()).collect();
    let mut buffers = [Buffer::filled(&bytes), Buffer::unwritten(20, 0)];
    let bindings = [0, 1].map(|at| Binding { binding: at as u32, buffer: at, offset: 0, size: 96 });
    let report = shader.dispatch(&mut buffers, &bindings, [1, 1, 1], &Options::default()).expect("it runs");
    assert_eq!(report.findings, []);
    let words = buffers[1].bytes();
    let got = [0, 1, 2, 3, 4].map(|at| f32::from_le_bytes([words[4 * at], words[4 * at + 1], words[4 * at + 2], words[4 * at + 3]]));
    // Inner has 8 words, and the first is at word 4; tail is at word 20.
    assert_eq!(got, [18.0, 15.0, 21.0, 5.0, 5.0]);
    assert_eq!(buffers[1].words_unwritten(), 0);
}

/// Compares subgroup operations with results computed by hand, with lanes in any order.
#[test]
fn subgroups() {
    let text = "@group(0) @binding(0) var<storage, read_write> output: array<u32>;
        @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32, @builtin(subgroup_invocation_id) lane: u32) {
            let at = i * 8u;
            output[at] = subgroupAdd(i + 1u);
            output[at + 1u] = subgroupMax(i);
            output[at + 2u] = subgroupExclusiveAdd(1u) - lane;
            output[at + 3u] = subgroupBallot(i % 2u == 0u).x;
            output[at + 4u] = countOneBits(output[at + 3u]);
            output[at + 5u] = subgroupShuffle(lane, 3u);
            output[at + 6u] = subgroupShuffleXor(lane, 1u) ^ lane;
            output[at + 7u] = subgroupBroadcast(lane, 2u) + subgroupInclusiveMul(1u);
        }";
    let shader = Shader::new(text).expect("it is valid");
    let mut buffers = [Buffer::unwritten(256, 0)];
    let options = Options { subgroup_size: 8, seed: 5, ..Options::default() };
    let report = shader.dispatch(&mut buffers, &[Binding { binding: 0, buffer: 0, offset: 0, size: 256 }], [1, 1, 1], &options);
    assert_eq!(report.expect("it runs").findings, []);
    for words in buffers[0].bytes().chunks_exact(32) {
        let words: Vec<u32> = words.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        assert_eq!([words[0], words[1], words[2], words[4], words[5], words[6], words[7]], [36, 7, 0, 4, 3, 1, 3]);
    }
}
