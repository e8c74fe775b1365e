//! The CPU path allocates nothing from a problem's second call on. A process of its own, because the allocator that
//! counts is global.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use wgpu_attention::{Alignment, Backend, DType, Dims, Engine, EngineOptions, HostVec, Inputs, Outputs, Problem, Returns};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn from_the_second_call_on() {
    let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU is there");
    let square = Problem::new(Dims::self_attention(2, 3, 300, 40));
    let decode = Problem::new(Dims { num_kv_heads: 1, seq_len_q: 1, ..Dims::self_attention(1, 4, 5000, 64) });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads can be started");
    for problem in [
        square.clone().aligned(Alignment::TopLeft).causal(),
        Problem { want: Returns { lse: true, ..Returns::default() }, softcap: Some(5.0), ..square.clone() },
        square.stored(DType::F16, wgpu_attention::Layout::Bshd),
        decode.clone(),
        decode.stored(DType::BF16, wgpu_attention::Layout::Bhsd),
    ] {
        let data = |len: usize, dtype| HostVec::from_f32(dtype, &(0..len).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>());
        let query = data(problem.query_len(), problem.query.dtype);
        let key = data(problem.key_len(), problem.key.dtype);
        let value = data(problem.value_len(), problem.value.dtype);
        let inputs = Inputs::new(query.as_slice(), key.as_slice(), value.as_slice());
        let expected = engine.attention(&problem, &inputs).expect("valid");
        // Run inside the pool: rayon may allocate when work is handed to a pool from outside.
        pool.install(|| {
            let mut outputs = Outputs::default();
            let mut call = || engine.attention_into(&problem, &inputs, &mut outputs).expect("valid");
            // Threads get units by chance and allocate for the first of each kind; then a batch allocates nothing.
            let batch = |_| {
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                (0..20).for_each(|_| call());
                ALLOCATIONS.load(Ordering::Relaxed) - before
            };
            let least = (0..50).map(batch).find(|&count| count == 0);
            assert_eq!(least, Some(0), "{problem:?}");
            assert_eq!(outputs, expected);
        });
    }
}
