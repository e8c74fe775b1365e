//! Benchmarks of the parts of a call, to find what became slower: `cargo bench --bench pieces [-- PART_OF_A_NAME]`.

use divan::{Bencher, black_box};
use wgpu_attention::cache::PagePool;
use wgpu_attention::cpu::tiled;
use wgpu_attention::layer::Linear;
use wgpu_attention::plan::{DeviceCaps, Plan, Specialise};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::{Algorithm, Alignment, DType, Dims, HostVec, Inputs, Outputs, Part, Problem, Progress, RowSums, merge};

fn main() {
    // One thread, so that the number of cores does not show.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("the first to ask");
    divan::main();
}

fn data(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn prefill() -> Problem {
    Problem::new(Dims::self_attention(1, 8, 1024, 64)).aligned(Alignment::BottomRight).causal()
}

/// Validates and plans: the cost of a new shape before anything is compiled.
#[divan::bench]
fn plan(bencher: Bencher<'_, '_>) {
    let (problem, caps) = (prefill(), DeviceCaps::webgpu_defaults());
    bencher.bench(|| Plan::new(black_box(&problem), &caps, Algorithm::Fused));
}

/// Composes the WGSL text of a specialised kernel.
#[divan::bench]
fn compose(bencher: Bencher<'_, '_>) {
    let caps = DeviceCaps { specialise: Specialise::Always, ..DeviceCaps::webgpu_defaults() };
    let plan = Plan::new(&prefill(), &caps, Algorithm::Fused).expect("it fits");
    bencher.bench(|| black_box(&plan).shaders());
}

/// Calls the CPU path: overhead of a call, then arithmetic (products and softmax), then memory (reading keys).
#[divan::bench(args = ["nothing 1,1,1,16,16,16", "arithmetic 1,1,1,256,256,64", "memory 1,4,1,1,16384,64"])]
fn cpu_call(bencher: Bencher<'_, '_>, shape: &str) {
    let sizes: Vec<usize> = shape.rsplit(' ').next().unwrap_or_default().split(',').filter_map(|size| size.parse().ok()).collect();
    let [batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim] = sizes[..] else { unreachable!("six sizes") };
    let problem = Problem::new(Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v: head_dim });
    let (query, key, value) = (data(problem.query_len()), data(problem.key_len()), data(problem.value_len()));
    let inputs = Inputs::new(&query, &key, &value);
    let mut outputs = Outputs::default();
    bencher.bench_local(|| tiled::attention_into(&problem, &inputs, &mut outputs, &mut Progress::default()).expect("it is valid"));
}

/// Projects 128 rows with a 512 x 512 matrix.
#[divan::bench]
fn projection(bencher: Bencher<'_, '_>) {
    let linear = Linear::new(data(512 * 512), None, 512).expect("it is valid");
    let x = data(128 * 512);
    bencher.bench(|| linear.forward(black_box(&x)));
}

/// Converts 64 Ki elements from f32 to another storage type.
#[divan::bench(args = [DType::F16, DType::BF16, DType::Q8, DType::Q4])]
fn store(bencher: Bencher<'_, '_>, dtype: DType) {
    let wide = data(1 << 16);
    bencher.bench(|| HostVec::from_f32(dtype, black_box(&wide)));
}

/// Rotates one token's 32 heads of 128.
#[divan::bench]
fn rotate(bencher: Bencher<'_, '_>) {
    let rotary = Rotary::new(Pairing::HalfSplit, 10_000.0, 128, 4096).expect("it is valid");
    let mut token = data(32 * 128);
    bencher.bench_local(|| rotary.apply_tokens(black_box(&mut token), 32, 128, &[1234]));
}

/// Merges 8 parts of 32 rows of 128.
#[divan::bench]
fn merge_parts(bencher: Bencher<'_, '_>) {
    let (output, lse) = (data(32 * 128), data(32));
    let parts: Vec<Part<'_>> = (0..8).map(|_| Part { output: &output, sums: RowSums::Lse(&lse) }).collect();
    bencher.bench(|| merge(black_box(&parts)));
}

/// Appends a token to each of 64 sequences and builds their page table.
#[divan::bench]
fn page_bookkeeping(bencher: Bencher<'_, '_>) {
    let mut pool = PagePool::new(16, 64 * 64).expect("it is valid");
    let ids: Vec<_> = (0..64).map(|_| pool.start()).collect();
    let mut length = 0;
    bencher.bench_local(|| {
        length += 1;
        if length > 1000 {
            ids.iter().for_each(|&id| drop(pool.truncate(id, 0).expect("it is there")));
            length = 1;
        }
        ids.iter().for_each(|&id| drop(pool.append(id, 1).expect("there are pages enough")));
        pool.table(&ids)
    });
}
