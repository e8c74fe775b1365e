//! Tests of matrix products: instructions against their twin, and products against f64.

use std::ops::Range;

use super::kernel::Isa;
use super::matrix::{BlockOfC, Configured, Engine, KEEP, LANES, LARGEST, MatrixProduct, PAIRS, PackedRows, ROWS, SMALLEST, TILE};
use super::matrix_pack::{PackedPanel, Packing};
use super::pack::Rows;
use super::product::Start;
use super::shared::Buffer;
use crate::numbers::Random;

/// Instruction sets with matrix products.
fn with_engines() -> impl Iterator<Item = (Isa, Engine)> {
    Isa::available().filter_map(|isa| Some((isa, isa.engine()?)))
}

/// Random f32 with exponents in a range, a tenth of them 0.
fn random(random: &mut Random, exponents: Range<i32>) -> f32 {
    let exponent = 127 + exponents.start + random.below(exponents.len()) as i32;
    let bits = (random.below(2) as u32) << 31 | (exponent as u32) << 23 | random.below(1 << 23) as u32;
    if random.one_in(10) { 0.0 } else { f32::from_bits(bits) }
}

/// Contents of c before a product.
const START: f32 = 7.0;

/// Tiles compute what their twin does, bit by bit: the order of sums, their rounding, and what becomes of subnormal numbers.
#[test]
fn tiles_are_their_twin() {
    let mut source = Random::new(1);
    // Ordinary numbers; products that are subnormal; elements that are subnormal, which exponent -127 stands for.
    for [of_a, of_b] in [[-2..3, -2..3], [-20..20, -20..20], [-75..-50, -75..-50], [-127..-120, -4..30]] {
        for (is_wide, adds) in [(false, false), (true, false), (false, true), (true, true)] {
            let columns = 3 * PAIRS;
            let mut words = |len: usize, exponents: &Range<i32>| -> Vec<f32> {
                let mut upper = || random(&mut source, exponents.clone()).to_bits() >> 16;
                (0..len).map(|_| f32::from_bits(upper() | upper() << 16)).collect()
            };
            let (a, b) = (words(ROWS * columns, &of_a), words(3 * 2 * TILE, &of_b));
            let (pairs, tile) = (PAIRS as u32, TILE as u32);
            let steps = [[0, 0], [2 * pairs, 4 * tile], [KEEP, 2 * tile], [pairs, KEEP], [KEEP, KEEP]];
            let of_engine = |engine: Engine| {
                let mut c = vec![START; ROWS * 2 * LANES];
                let (c_step, of_c) = (2 * LANES, c.as_mut_ptr());
                let block = BlockOfC { a: a.as_ptr(), a_step: columns, b: b.as_ptr(), steps: &steps, is_wide, adds, c: of_c, c_step };
                // SAFETY: all tiles of the steps are inside a and b, and c has the rows; the machine has the engine.
                unsafe {
                    let _configured = Configured::new(engine);
                    engine.compute(block);
                }
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let twin = of_engine(Engine::Twin);
            let is_untouched = |row: &[u32]| row[LANES..].iter().all(|bits| *bits == START.to_bits());
            // A sum may vanish beside a large c.
            let is_alone = twin.chunks_exact(2 * LANES).all(is_untouched);
            assert!(is_alone != is_wide || adds, "a narrow block leaves the second group alone");
            assert!(is_alone || is_wide);
            let nonzero = twin.iter().filter(|bits| **bits << 1 != 0).count();
            assert!(nonzero > ROWS * LANES / 2, "{nonzero} with exponents {of_a:?} and {of_b:?}");
            #[cfg(target_arch = "x86_64")]
            if with_engines().any(|(_, engine)| engine == Engine::Tiles) {
                let differs = twin.iter().zip(of_engine(Engine::Tiles)).filter(|&(&a, b)| a != b).count();
                assert_eq!(differs, 0, "of {} elements with exponents {of_a:?} and {of_b:?}", twin.len());
            }
        }
    }
}

/// The twin treats subnormal numbers as 0, and flushes subnormal results.
#[test]
fn subnormal_numbers_are_flushed() {
    let product = |x: f32, y: f32, more: f32| {
        let word = |x: f32, y: f32| f32::from_bits(x.to_bits() >> 16 | y.to_bits() & 0xffff_0000);
        let (mut a, mut b) = (vec![0.0; ROWS * PAIRS], vec![0.0; TILE]);
        (a[0], b[0]) = (word(x, more), word(y, 1.0));
        let mut c = vec![0.0; ROWS * LANES];
        let (steps, of_c) = ([[0, 0]], c.as_mut_ptr());
        let block =
            BlockOfC { a: a.as_ptr(), a_step: PAIRS, b: b.as_ptr(), steps: &steps, is_wide: false, adds: false, c: of_c, c_step: LANES };
        // SAFETY: one tile of each operand, and a whole block of c.
        unsafe { Engine::Twin.compute(block) };
        c[0]
    };
    let (tiny, small) = (f32::from_bits(1 << 22), f32::MIN_POSITIVE);
    assert_eq!(product(tiny, 2f32.powi(60), 0.0), 0.0, "a subnormal element");
    assert_eq!(product(small, 0.5, 0.0), 0.0, "a subnormal product");
    assert_eq!(product(1.5 * small, 1.0, -small), 0.0, "a subnormal sum");
    assert_eq!(product(small, 1.0, small), 2.0 * small);
}

/// Product of packed operands on an instruction set. `a` is packed by columns if it is transposed.
fn product(
    (isa, engine): (Isa, Engine),
    [m, n, k]: [usize; 3],
    parts: [usize; 2],
    [a, b]: [&[f32]; 2],
    is_transposed: bool,
    start: Start<'_>,
) -> Option<Vec<f32>> {
    let (count, width) = if is_transposed { (k, m) } else { (m, k) };
    let from = Rows { data: a, count, width, step: width };
    // SAFETY: the machine has the engine of an available instruction set.
    let engine = &unsafe { Configured::new(engine) };
    let packing = Packing { engine, isa, parts: parts[0], is_transposed, smallest: SMALLEST };
    let (mut of_a, mut of_b) = (Buffer::default(), PackedPanel::default());
    of_a.take(PackedRows::words(parts[0], m, k)).fill(f32::NAN);
    let fits = packing.pack(from, &mut of_a);
    if !(fits & of_b.pack(isa, b, n, parts[1], SMALLEST)) {
        return None;
    }
    let mut c = vec![1.0; m.next_multiple_of(ROWS) * n];
    isa.run(MatrixProduct {
        a: packing.packed(count, width, &mut of_a),
        b: of_b.parts(),
        chunks: k.div_ceil(2 * PAIRS),
        rows: m.next_multiple_of(ROWS),
        width: n,
        c: &mut c,
        start,
    });
    c.truncate(m * n);
    Some(c)
}

/// Products of all shapes of tiles, parts and starts, within the rounding of f32 sums.
#[test]
fn products_are_right() {
    let mut source = Random::new(2);
    for (case, (m, n, k)) in [(1, 16, 1), (32, 32, 32), (33, 48, 31), (70, 64, 33), (5, 16, 600), (64, 64, 128)].into_iter().enumerate() {
        for (bits, parts) in
            [([8, 8], [1, 1]), ([8, 24], [1, 3]), ([11, 8], [2, 1]), ([11, 11], [2, 2]), ([24, 11], [3, 2]), ([24, 24], [3, 3])]
        {
            let mut fill = |len: usize, bits: u32| -> Vec<f32> {
                (0..len).map(|_| f32::from_bits(random(&mut source, -3..3).to_bits() & (!0 << (24 - bits)))).collect()
            };
            let (a, b) = (fill(m * k, bits[0]), fill(k * n, bits[1]));
            let alpha: Vec<f32> = (0..n).map(|lane| lane as f32 / 16.0).collect();
            for (isa, engine) in with_engines() {
                for is_transposed in [false, true] {
                    let start = [Start::Nothing, Start::There, Start::Scaled(&alpha)][case % 3];
                    let c = product((isa, engine), [m, n, k], parts, [&a, &b], is_transposed, start).expect("all elements are in range");
                    for (at, &got) in c.iter().enumerate() {
                        let (row, lane) = (at / n, at % n);
                        let of_a = |k_: usize| f64::from(if is_transposed { a[k_ * m + row] } else { a[row * k + k_] });
                        let terms = (0..k).map(|k| of_a(k) * f64::from(b[k * n + lane]));
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x: f64| (sum + x, size + x.abs()));
                        let first = match start {
                            Start::Nothing => 0.0,
                            Start::There => 1.0,
                            Start::Scaled(alpha) => f64::from(alpha[lane]),
                        };
                        let allowed = 2f64.powi(-23) * (4.0 + (k as f64).sqrt()) * (size + first);
                        let error = (f64::from(got) - sum - first).abs();
                        assert!(error <= allowed, "{isa:?} {m}x{n}x{k} {parts:?} at {row},{lane}: {error:e} > {allowed:e}");
                    }
                }
            }
        }
    }
}

/// Elements that are not finite, too small or too large are refused in every place; the limits themselves are not.
#[test]
fn only_elements_in_range_are_used() {
    let good = [0.0, -0.0, SMALLEST, -SMALLEST, LARGEST.next_down(), 1.0];
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, LARGEST, -LARGEST, SMALLEST.next_down(), 1e-40, f32::MIN_POSITIVE];
    for (isa, engine) in with_engines() {
        for (x, is_good) in good.map(|x| (x, true)).into_iter().chain(bad.map(|x| (x, false))) {
            for at in [0, 15, 16, 3 * 21 - 1] {
                let (plain, mut other) = (vec![1.0; 21 * 16], vec![1.0; 3 * 21]);
                other[at] = x;
                for is_transposed in [false, true] {
                    let c = product((isa, engine), [3, 16, 21], [3, 3], [&other, &plain], is_transposed, Start::Nothing);
                    assert_eq!(c.is_some(), is_good, "{isa:?}: {x:e} at {at} of a");
                }
                let mut panel = plain.clone();
                panel[5 * at] = x;
                let c = product((isa, engine), [3, 16, 21], [3, 3], [&[1.0; 3 * 21], &panel], false, Start::Nothing);
                assert_eq!(c.is_some(), is_good, "{isa:?}: {x:e} at {at} of b");
            }
        }
    }
}
