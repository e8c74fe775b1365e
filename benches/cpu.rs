//! Benchmark of the CPU path on the shapes that its notes quote: `cargo bench --bench cpu [-- NAME_OR_PART_OF_ONE]`.
//!
//! Prints the shortest time of several runs and the GFLOP/s, with one thread and with all.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use wgpu_attention::cpu::tiled;
use wgpu_attention::{Alibi, Alignment, BroadcastShape, DType, Dims, HostVec, Inputs, Layout, Outputs, Problem, Progress};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let all = rayon::current_num_threads();
    println!("{:<34} {:>7} {:>10} {:>9} {:>8}", "problem", "threads", "ms", "GFLOP/s", "check");
    let problems = problems();
    let is_wanted = |name: &str| {
        let exact = |part: &String| problems.iter().any(|(name, _)| name == part);
        wanted.is_empty() || wanted.iter().any(|part| if exact(part) { name == part } else { name.contains(part.as_str()) })
    };
    for (name, problem) in problems.iter().filter(|(name, _)| is_wanted(name)) {
        for threads in if all > 1 { vec![1, all] } else { vec![1] } {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
            let (time, check) = pool.install(|| measure(problem));
            let share = if problem.visibility.causal { 0.5 } else { 1.0 };
            let rate = share * problem.dims.flops() / time.as_secs_f64() / 1e9;
            println!("{name:<34} {threads:>7} {:>10.3} {rate:>9.1} {check:>8.4}", time.as_secs_f64() * 1e3);
        }
    }
}

fn problems() -> Vec<(&'static str, Problem)> {
    let square = |batch, heads, len, dim| Problem::new(Dims::self_attention(batch, heads, len, dim));
    let decode = Dims { num_kv_heads: 8, seq_len_q: 1, ..Dims::self_attention(1, 32, 4096, 128) };
    let long = square(1, 8, 2048, 64);
    vec![
        ("1x8x2048x64", long.clone()),
        ("1x8x2048x64 causal", long.clone().aligned(Alignment::TopLeft).causal()),
        ("1x8x2048x64 f16", long.clone().stored(DType::F16, Layout::Bhsd)),
        ("1x8x2048x64 bf16", long.clone().stored(DType::BF16, Layout::Bhsd)),
        ("1x8x2048x64 [b,s,h,d]", long.clone().stored(DType::F32, Layout::Bshd)),
        ("1x8x2048x64 softcap", Problem { softcap: Some(30.0), ..long.clone() }),
        ("1x8x2048x64 window 256", long.clone().aligned(Alignment::TopLeft).window(Some(255), Some(0))),
        ("1x8x2048x64 alibi", Problem { alibi: Some(Alibi::Signed), ..long.clone().aligned(Alignment::TopLeft).causal() }),
        ("1x8x2048x64 bias", Problem { bias: Some(BroadcastShape([1, 8, 2048, 2048])), ..long.clone() }),
        ("1x4x4096x128", square(1, 4, 4096, 128)),
        ("1x4x4096x128 causal", square(1, 4, 4096, 128).aligned(Alignment::TopLeft).causal()),
        ("8x12x128x64", square(8, 12, 128, 64)),
        ("1x12x512x64", square(1, 12, 512, 64)),
        ("decode 1x32:8x4096x128", Problem::new(decode)),
        ("decode 1x32:8x4096x128 f16", Problem::new(decode).stored(DType::F16, Layout::Bhsd)),
        ("decode 1x8x4096x64", Problem::new(Dims { seq_len_q: 1, ..Dims::self_attention(1, 8, 4096, 64) })),
        ("1x1x16x16", square(1, 1, 16, 16)),
    ]
}

/// Returns the shortest time of a call and the mean of the output, which must be near 1 because values are 1 + noise.
fn measure(problem: &Problem) -> (Duration, f32) {
    let data = |len: usize, dtype, mean: f32| HostVec::from_f32(dtype, &noise(len).map(|x| x + mean).collect::<Vec<_>>());
    let query = data(problem.query_len(), problem.query.dtype, 0.0);
    let key = data(problem.key_len(), problem.key.dtype, 0.0);
    let value = data(problem.value_len(), problem.value.dtype, 1.0);
    let bias: Vec<f32> = noise(problem.bias.and_then(BroadcastShape::elements).unwrap_or(0)).collect();
    let slopes = vec![0.01; problem.alibi.map_or(0, |_| problem.dims.num_heads)];
    let inputs = Inputs { bias: &bias, alibi_slopes: &slopes, ..Inputs::new(query.as_slice(), key.as_slice(), value.as_slice()) };
    let mut outputs = Outputs::default();
    let mut least = Duration::MAX;
    let mut check = 0.0;
    let start = Instant::now();
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(700) {
        let before = Instant::now();
        tiled::attention_into(problem, &inputs, &mut outputs, &mut Progress::default()).expect("the problem is valid");
        least = least.min(before.elapsed());
        let output = black_box(&outputs).output.to_f32();
        check = output.iter().sum::<f32>() / output.len() as f32;
        assert!((check - 1.0).abs() < 0.05, "values around 1 have an output around {check}");
        runs += 1;
    }
    (least, check)
}

/// Generates deterministic noise in -0.5..0.5.
fn noise(len: usize) -> impl Iterator<Item = f32> {
    let mut state = 1u32;
    (0..len).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    })
}
