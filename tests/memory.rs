//! Calls leak no memory. A process of its own, because it measures the whole process.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "only some of it is needed here")]
#[path = "it/common/buffers.rs"]
mod buffers;

use buffers::{draw, empty};
use wgpu_attention::gpu::{Attention, Bindings, ShaderOptions};
use wgpu_attention::{Algorithm, Alignment, BackwardInputs, Dims, Engine, Inputs, Problem, WantGradients, wgpu};

/// Maximum growth of the process from call 200 to call 1,000, in bytes.
const MOST: i64 = 8 << 20;

/// Returns the resident memory of this process, in bytes.
fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    4096 * pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<i64>().ok()).expect("a number of pages")
}

/// Returns the growth of the process from call 200 to call 1,000, in bytes.
fn growth(mut call: impl FnMut(usize)) -> i64 {
    (0..200).for_each(&mut call);
    let before = resident();
    (200..1000).for_each(&mut call);
    resident() - before
}

fn problem(seq_len_q: usize, seq_len_kv: usize) -> Problem {
    Problem::new(Dims { num_kv_heads: 1, seq_len_q, seq_len_kv, ..Dims::self_attention(1, 2, 1, 16) })
        .aligned(Alignment::BottomRight)
        .causal()
}

fn forward(engine: &Engine, problem: &Problem, data: &[f32]) {
    let [query, key, value] = [problem.query_len(), problem.key_len(), problem.value_len()].map(|len| &data[..len]);
    engine.attention(problem, &Inputs::new(query, key, value)).expect("valid");
}

fn backward(engine: &Engine, problem: &Problem, data: &[f32]) {
    let [query, key, value, output] =
        [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()].map(|len| &data[..len]);
    let given = BackwardInputs::new(output, output);
    engine.backward(problem, &Inputs::new(query, key, value), &given, &WantGradients::default()).expect("valid");
}

/// Measures an app's own loop: one attention, bound once, then recorded and submitted repeatedly.
fn replays(engine: &Engine, problem: &Problem) -> Option<i64> {
    let gpu = engine.gpu()?;
    let (device, queue) = (gpu.device(), gpu.queue());
    let [query, key, value, output] =
        [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()].map(|len| empty(device, len));
    let attention = Attention::new(gpu, problem, Algorithm::Auto).expect("planned");
    let bound = attention.bind(&Bindings::new(&query, &key, &value, &output)).expect("bound");
    Some(growth(|_| {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        bound.record(&mut encoder);
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is there");
    }))
}

#[test]
fn a_thousand_calls_leave_memory_as_it_was() {
    let leak = growth(|_| std::mem::forget(std::hint::black_box(vec![1u8; 16 << 10])));
    assert!(leak > MOST, "16 KiB a call are not seen: {leak} bytes");

    let data = draw(1, 4096);
    let one = problem(9, 71);
    // Sizes differ but hardly grow, because the buffers of the last 16 problems are kept.
    let many: Vec<Problem> = (0..1000).map(|i| problem(1 + i % 25, 60 + i / 25)).collect();
    for engine in Engine::every(ShaderOptions::default()).0 {
        let kinds = [
            ("calls of one shape", Some(growth(|_| forward(&engine, &one, &data)))),
            ("calls of different shapes", Some(growth(|at| forward(&engine, &many[at], &data)))),
            ("gradients of one shape", Some(growth(|_| backward(&engine, &one, &data)))),
            ("gradients of different shapes", Some(growth(|at| backward(&engine, &many[at], &data)))),
            ("recordings of one attention", replays(&engine, &one)),
        ];
        for (kind, grown) in kinds {
            let Some(grown) = grown else { continue };
            println!("{}: {kind}: {} KiB", engine.chosen(), grown >> 10);
            assert!(grown < MOST, "{}: 800 {kind} leave {} KiB", engine.chosen(), grown >> 10);
        }
    }
}
