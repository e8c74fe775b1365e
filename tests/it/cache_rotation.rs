//! Caches whose keys and values are stored rotated: their errors, steps on devices, and refusals.

use crate::common::STORAGE;
use crate::common::engines;
use crate::common::replay::Replay;
use crate::common::stack::gpus;
use wgpu_attention::cache::{CachePlan, CacheShape, CacheSize, KvCache, LayerShape, Queries};
use wgpu_attention::plan::DeviceCaps;
use wgpu_attention::rotary::Pairing;
use wgpu_attention::verify::Expected;
use wgpu_attention::{Algorithm, AttentionFn, DType, Dims, Error, Hadamard, Inputs, Layout, Problem, WantGradients, oracle};

const KEYS: usize = 512;
const HEADS: usize = 4;

/// Queries, keys and values, [heads, seq, head_dim]: normally distributed, a channel in a hundred of keys and values
/// `outlier` times as large.
fn data(seed: u64, head_dim: usize, rows: usize, outlier: f32) -> [Vec<f32>; 3] {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut normal = || (-2.0 * (1.0 - rng.f32()).ln()).sqrt() * (std::f32::consts::TAU * rng.f32()).cos();
    let mut some = |seq: usize| (0..HEADS * seq * head_dim).map(|_| normal()).collect::<Vec<f32>>();
    let [query, mut key, mut value] = [some(rows), some(KEYS), some(KEYS)];
    let channels = (head_dim / 100).max(1);
    for (data, first) in [(&mut key, 5), (&mut value, 41)] {
        for row in data.chunks_exact_mut(head_dim) {
            // Far apart, so that each makes a block of its own coarse.
            (0..channels).for_each(|channel| row[(first + 67 * channel) % head_dim] *= outlier);
        }
    }
    [query, key, value]
}

/// Root mean square error of attention over a cache, by the root mean square of the exact output.
fn error(attend: &AttentionFn<'_>, layer: LayerShape, [query, key, value]: &[Vec<f32>; 3]) -> f64 {
    let (head_dim, rows) = (layer.head_dim, query.len() / HEADS / layer.head_dim);
    let dims = Dims { seq_len_q: rows, ..Dims::self_attention(1, HEADS, KEYS, head_dim) };
    let exact = oracle::attention(&Problem::new(dims), &Inputs::new(query, key, value)).expect("valid").output;
    let mut cache = KvCache::new(CacheShape::uniform(1, layer).page_size(KEYS).pages(1)).expect("valid");
    let id = cache.pool_mut().start();
    cache.extend(id, KEYS).expect("a page");
    // Tokens have their heads side by side.
    let tokens = |data: &[f32]| -> Vec<f32> {
        let row = |token: usize, head: usize| &data[(head * KEYS + token) * head_dim..][..head_dim];
        (0..KEYS).flat_map(|token| (0..HEADS).flat_map(move |head| row(token, head).iter().copied())).collect()
    };
    cache.append(0, id, (&tokens(key)).into(), (&tokens(value)).into()).expect("room");
    let table = cache.pool().table(&[id]).expect("there");
    let problem = cache.problem(0, &table, Queries { num_heads: HEADS, seq_len: rows }).expect("a layer");
    let (key, value) = (cache.key(0).expect("a layer"), cache.value(0).expect("a layer"));
    let inputs = Inputs { kv_lengths: &table.kv_lengths, page_table: &table.entries, ..Inputs::new(query, key, value) };
    let got = attend(&problem, &inputs).expect("valid").output.to_f32();
    let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
    let wrong = square(&mut got.iter().zip(&exact).map(|(&got, exact)| f64::from(got) - exact));
    (wrong / square(&mut exact.iter().copied())).sqrt()
}

/// Ratio of the errors without and with rotation, over several seeds.
fn gain(attend: &AttentionFn<'_>, dtype: DType, head_dim: usize, outlier: f32, seeds: u64) -> f64 {
    let layer = LayerShape::new(HEADS, head_dim).stored(dtype, dtype);
    let of = |layer| (0..seeds).map(|seed| error(attend, layer, &data(seed, head_dim, 32, outlier)).powi(2)).sum::<f64>().sqrt();
    let gain = of(layer) / of(layer.hadamard(true, true));
    println!("{dtype}, heads of {head_dim}, channels {outlier} times as large: the error is {gain:.2} times smaller");
    gain
}

/// Channels of keys and values that are 20 times larger than the others: q4's error falls at least 1.6 times, q8's 2.5.
#[test]
fn rotation_mends_outliers() {
    for backend in engines() {
        for (dtype, least) in [(DType::Q4, 1.6), (DType::Q8, 2.5)] {
            let gain = gain(&*backend.attend, dtype, 128, 20.0, 2);
            assert!(gain >= least, "{}, {dtype}: {gain}", backend.name);
        }
    }
}

/// Without outliers, nothing that rounds gets worse by more than 5 %.
#[test]
fn rotation_does_no_harm() {
    let cpu = crate::common::cpu();
    for dtype in STORAGE.into_iter().filter(|&dtype| dtype != DType::F32) {
        for head_dim in [32, 64, 96, 128, 256] {
            let gain = gain(&*cpu.attend, dtype, head_dim, 1.0, 6);
            assert!(gain >= 1.0 / 1.05, "{dtype}, heads of {head_dim}: {gain}");
        }
    }
}

/// A rotation that only one side knows of is far off: the measure of the other tests notices it.
#[test]
fn rotation_on_one_side_alone_is_noticed() {
    let cpu = crate::common::cpu();
    let forget = |problem: &Problem, inputs: &Inputs<'_>| (cpu.attend)(&problem.clone().hadamard(false, problem.value_hadamard), inputs);
    let keep = |problem: &Problem, inputs: &Inputs<'_>| (cpu.attend)(&problem.clone().hadamard(problem.key_hadamard, false), inputs);
    let layer = LayerShape::new(HEADS, 64).hadamard(true, true);
    let data = data(1, 64, 16, 1.0);
    assert!(error(&*cpu.attend, layer, &data) < 1e-5);
    assert!(error(&forget, layer, &data) > 0.5 && error(&keep, layer, &data) > 0.5);
}

/// Layers of one cache on a device, rotated or not, keys and values of different types: recorded once and replayed.
#[test]
fn steps_are_replayed() {
    let layers = |wide: usize, [key, value]: [DType; 2]| {
        let one = LayerShape::new(2, wide).head_dim_v(64).stored(key, value);
        let narrow = LayerShape::new(1, 32).stored(value, key);
        vec![one.hadamard(true, true), one, narrow.hadamard(key != DType::F16, key == DType::F16)]
    };
    for gpu in gpus() {
        let blocks = Replay { layers: layers(128, [DType::Q8, DType::Q4]), page_size: 5, ..Replay::of(DType::F32) };
        blocks.run(&gpu, |_| {});
        let layers = layers(96, [DType::F16, DType::Q4]);
        let pairing = Some(Pairing::HalfSplit);
        Replay { layers, pairing, seq_len_q: 3, layout: Layout::Bshd, ..Replay::of(DType::F32) }.run(&gpu, |p| p.sinks = true);
    }
}

#[test]
fn widths_without_blocks_and_gradients_are_refused() {
    let size = CacheSize { slots: 1, pages_per_slot: 1 };
    let caps = DeviceCaps::webgpu_defaults();
    let argument = |layer: LayerShape| {
        let shape = CacheShape::uniform(1, layer).pages(1);
        let host = KvCache::new(shape.clone()).map(|_| ());
        let device = CachePlan::new(shape, size, &caps).map(|_| ());
        assert_eq!(host, device);
        match host {
            Err(Error::Invalid { argument, .. }) => argument,
            other => panic!("{layer:?}: {other:?}"),
        }
    };
    let layer = LayerShape::new(2, 80).head_dim_v(48);
    assert_eq!((argument(layer.hadamard(true, false)), argument(layer.hadamard(false, true))), ("head_dim", "head_dim_v"));
    let problem = Problem::new(Dims { head_dim_v: 48, ..Dims::self_attention(1, 1, 4, 64) });
    assert!(matches!(problem.clone().hadamard(true, true).check(), Err(Error::Invalid { argument: "head_dim_v", .. })));
    let rotated = problem.hadamard(true, false);
    let cpu = crate::common::cpu().engine.expect("an engine");
    let [query, key, value] = [rotated.query_len(), rotated.key_len(), rotated.value_len()].map(|len| vec![0.5f32; len]);
    let output = vec![0.0f32; rotated.output_len()];
    let backward = wgpu_attention::BackwardInputs::new(&output, &output);
    let gradients = cpu.backward(&rotated, &Inputs::new(&query, &key, &value), &backward, &WantGradients::all(&rotated));
    assert!(matches!(gradients, Err(Error::Unsupported { .. })), "{gradients:?}");
    // A cache's attention is for its own storage.
    let shape = CacheShape::uniform(1, LayerShape::new(1, 64).hadamard(true, true)).pages(1);
    let plan = CachePlan::new(shape, size, &caps).expect("valid");
    let problem = plan.problem(0, 0..1, Queries { num_heads: 1, seq_len: 1 }).expect("a layer");
    assert!(plan.attention(0, &problem, 0..1, Algorithm::Auto).is_ok());
    assert!(plan.attention(0, &problem.hadamard(true, false), 0..1, Algorithm::Auto).is_err());
}

/// Rows of the caller's own, rotated by [`Hadamard`], give the answer of rows that are not.
#[test]
fn callers_may_rotate_rows_themselves() {
    let dims = Dims { seq_len_q: 7, ..Dims::self_attention(1, HEADS, KEYS, 64) };
    let plain = Problem::new(dims).with_lse();
    let [query, key, value] = data(1, 64, 7, 1.0);
    let expected = Expected::of(&plain, &Inputs::new(&query, &key, &value)).expect("valid");
    let rotation = Hadamard::of(64).expect("blocks of 64");
    let [mut rotated_key, mut rotated_value] = [key, value];
    [&mut rotated_key, &mut rotated_value].into_iter().for_each(|rows| rotation.rotate(rows));
    for backend in engines() {
        let got = (backend.attend)(&plain.clone().hadamard(true, true), &Inputs::new(&query, &rotated_key, &rotated_value)).expect("valid");
        let near = |got: &[f32], expected: &[f64]| got.iter().zip(expected).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-5);
        assert!(near(&got.output.to_f32(), &expected.output.values), "{}", backend.name);
        assert!(near(&got.lse.expect("asked for"), &expected.lse.as_ref().expect("asked for").values), "{}", backend.name);
    }
}
