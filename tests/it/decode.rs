//! Decoding on every backend: few new tokens, paged and quantised caches, every option; and the error of quantisation.

use crate::common::{STORAGE, agree, engines, gpus};
use fastrand::Rng;
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceClass, Specialise};
use wgpu_attention::verify::Expected;
use wgpu_attention::{
    Alibi, Alignment, AttentionFn, DType, Dims, HostVec, Inputs, Layout, PageTable, Problem, ScoreOrder, TensorSpec, Varlen, oracle,
};

/// Checks a random problem of 1 to 16 new tokens, causal and bottom-right aligned, against the oracle.
fn one(seed: u64, backend: &str, attend: &AttentionFn<'_>) {
    let mut rng = Rng::with_seed(seed);
    let kv_heads = rng.usize(1..=2);
    let group = [1, 2, 4][rng.usize(..3)];
    let dims = Dims {
        batch: rng.usize(1..=3),
        num_heads: kv_heads * group,
        num_kv_heads: kv_heads,
        seq_len_q: 1 + (seed as usize * 7) % 16,
        seq_len_kv: rng.usize(16..300),
        head_dim: [32, 64][rng.usize(..2)],
        head_dim_v: [32, 96][rng.usize(..2)],
    };
    let mut problem = Problem::new(dims).aligned(Alignment::BottomRight).causal().with_lse();
    let cache = STORAGE[seed as usize % 5];
    let layouts = [Layout::Bshd, Layout::Bhsd];
    let spec = TensorSpec::new(cache, layouts[rng.usize(..2)]);
    (problem.key, problem.value) = (spec, TensorSpec { layout: layouts[rng.usize(..2)], ..spec });
    (problem.query.dtype, problem.output.dtype) = (DType::FLOATS[rng.usize(..3)], DType::FLOATS[rng.usize(..3)]);
    problem.visibility.window_left = rng.bool().then(|| rng.u32(0..100));
    problem.softcap = rng.bool().then_some(5.0);
    problem.score_order = if rng.bool() { ScoreOrder::SoftcapThenBias } else { ScoreOrder::BiasThenSoftcap };
    problem.sinks = rng.bool();
    problem.alibi = [None, Some(Alibi::Signed), Some(Alibi::Symmetric)][rng.usize(..3)];
    problem.visibility.kv_lengths = true;
    let lengths: Vec<usize> = (0..dims.batch).map(|_| rng.usize(0..=dims.seq_len_kv)).collect();
    let mut table = PageTable { kv_lengths: lengths.iter().map(|&length| length as u32).collect(), ..PageTable::default() };
    if rng.u8(..3) > 0 {
        let page_size = [1, 3, 16, 64, 256][rng.usize(..5)];
        let mut free: Vec<u32> = (0..dims.batch as u32 * dims.seq_len_kv.div_ceil(page_size) as u32).collect();
        rng.shuffle(&mut free);
        let pages: Vec<Vec<u32>> = lengths.iter().map(|length| free.split_off(free.len() - length.div_ceil(page_size))).collect();
        let pool = pages.iter().map(Vec::len).sum::<usize>() + free.len();
        table = PageTable::new(page_size, pages.iter().map(Vec::as_slice).zip(lengths.iter().copied())).expect("valid");
        problem.paged = Some(table.paged(pool));
        problem.dims.seq_len_kv = table.longest();
    }
    let mut some = |dtype: DType, len: usize| {
        let data: Vec<f32> = (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect();
        HostVec::from_f32(dtype, &data)
    };
    let (key, value) = (some(cache, problem.key_len()), some(cache, problem.value_len()));
    let query = some(problem.query.dtype, problem.query_len());
    let (slopes, sinks) = (some(DType::F32, dims.num_heads).to_f32(), some(DType::F32, dims.num_heads).to_f32());
    let inputs = Inputs {
        kv_lengths: &table.kv_lengths,
        page_table: &table.entries,
        alibi_slopes: if problem.alibi.is_some() { &slopes } else { &[] },
        sinks: if problem.sinks { &sinks } else { &[] },
        ..Inputs::new(query.as_slice(), key.as_slice(), value.as_slice())
    };
    let expected = Expected::of(&problem, &inputs).unwrap_or_else(|error| panic!("{seed}: {error}"));
    let got = attend(&problem, &inputs).unwrap_or_else(|error| panic!("{seed} on {backend}: {error}"));
    let lse = got.lse.expect("asked for");
    for (got, expected) in [(&got.output.to_f32(), &expected.output), (&lse, expected.lse.as_ref().expect("asked for"))] {
        agree(&format!("{seed} on {backend}, {problem:?}"), got, expected);
    }
}

#[test]
fn decoding_with_every_option() {
    for backend in &engines() {
        // The CPU path is fast enough for more problems.
        let seeds = if backend.name == "cpu" { 0..400 } else { 0..15 };
        seeds.for_each(|seed| one(seed, &backend.name, &*backend.attend));
    }
}

/// Runs the specialised kernels of two classes of device.
#[test]
fn decoding_on_specialised_kernels() {
    for class in [DeviceClass::Software, DeviceClass::Discrete] {
        let shaders = ShaderOptions { specialise: Specialise::Always, pretend: Some(class), ..Default::default() };
        for backend in gpus(shaders).iter().filter(|backend| backend.name.contains("fused")) {
            (0..2).for_each(|seed| one(3 + seed, &backend.name, &*backend.attend));
        }
    }
}

/// Compares split keys with one pass. The number of splits depends on the device; scores are in the hundreds, and one
/// item has fewer keys than there may be splits.
#[test]
fn any_number_of_splits() {
    for class in [DeviceClass::Software, DeviceClass::Integrated, DeviceClass::Discrete] {
        let shaders = ShaderOptions { specialise: Specialise::Never, pretend: Some(class), ..Default::default() };
        for backend in gpus(shaders).iter().filter(|backend| backend.name.contains("fused")) {
            for keys in [255, 600, 3000] {
                let mut problem =
                    Problem::new(Dims { batch: 2, num_heads: 2, num_kv_heads: 1, ..Dims::self_attention(2, 2, keys, 32) }).with_lse();
                problem.dims.seq_len_q = 2;
                (problem.scale, problem.sinks, problem.visibility.kv_lengths) = (Some(40.0), true, true);
                let mut rng = Rng::with_seed(keys as u64);
                let mut some = |len: usize| (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect::<Vec<f32>>();
                let (query, key, value) = (some(problem.query_len()), some(problem.key_len()), some(problem.value_len()));
                let inputs = Inputs { sinks: &[300.0, -5.0], kv_lengths: &[keys as u32, 3], ..Inputs::new(&query, &key, &value) };
                let expected = Expected::of(&problem, &inputs).expect("valid");
                let got = (backend.attend)(&problem, &inputs).expect("valid");
                let lse = got.lse.expect("asked for");
                assert!(lse.iter().any(|&lse| lse > 100.0));
                for (got, expected) in [(&got.output.to_f32(), &expected.output), (&lse, expected.lse.as_ref().expect("asked for"))] {
                    agree(&format!("{keys} keys on {} as {class:?}", backend.name), got, expected);
                }
            }
        }
    }
}

/// Measures the error from rounding keys and values, as documented at `DType`: the root mean square of the error over
/// that of the output, for normally distributed data.
#[test]
fn quantisation_errors_are_as_documented() {
    let mut rng = Rng::with_seed(1);
    // Approximately normal: sums of twelve uniform random variables.
    let mut normal = |len: usize| (0..len).map(|_| (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0).collect::<Vec<f32>>();
    let dims = Dims { seq_len_q: 1, ..Dims::self_attention(1, 4, 1024, 128) };
    let (query, key, value) = (normal(4 * 128), normal(4 * 1024 * 128), normal(4 * 1024 * 128));
    let exact = oracle::attention(&Problem::new(dims), &Inputs::new(&query, &key, &value)).expect("valid").output;
    let size = exact.iter().map(|x| x * x).sum::<f64>();
    for (dtype, least, most) in [(DType::F16, 1e-4, 1e-3), (DType::BF16, 1e-3, 8e-3), (DType::Q8, 3e-3, 1.3e-2), (DType::Q4, 5e-2, 0.2)] {
        let (key, value) = (HostVec::from_f32(dtype, &key), HostVec::from_f32(dtype, &value));
        let mut problem = Problem::new(dims);
        (problem.key.dtype, problem.value.dtype) = (dtype, dtype);
        let got = oracle::attention(&problem, &Inputs::new(&query, key.as_slice(), value.as_slice())).expect("valid").output;
        let error = (got.iter().zip(&exact).map(|(x, y)| (x - y) * (x - y)).sum::<f64>() / size).sqrt();
        println!("{dtype}: {error:.2e}");
        assert!((least..most).contains(&error), "{dtype}: {error:.2e}");
    }
}

/// Refuses quantised types where they are not supported.
#[test]
fn quantised_types_are_refused_where_unsupported() {
    let problem = Problem::new(Dims::self_attention(1, 1, 4, 32));
    let with = |change: fn(&mut Problem)| {
        let mut problem = problem.clone();
        change(&mut problem);
        problem.check().is_err()
    };
    assert!(with(|p| p.query.dtype = DType::Q8) && with(|p| p.output.dtype = DType::Q4));
    assert!(with(|p| (p.key.dtype, p.key.offset) = (DType::Q8, 16)));
    assert!(with(|p| (p.value.dtype, p.dims.head_dim_v) = (DType::Q4, 48)));
    assert!(with(
        |p| (p.key.dtype, p.key.layout) = (DType::Q8, Layout::Strided(TensorSpec::default().strides([1, 1, 4, 32].map(|n| n + 1))))
    ));
    assert!(!with(|p| (p.key.dtype, p.value.dtype) = (DType::Q8, DType::Q4)));
    assert!(!with(|p| {
        (p.key.dtype, p.value.dtype) = (DType::Q8, DType::Q8);
        p.varlen = Some(Varlen { tokens_q: 4, tokens_kv: 4 });
    }));
}
