//! Gradients recorded into an app's own encoder; computed from the host with progress, cancellation and async; memory.

use std::ops::ControlFlow;

use crate::common::{cpu_and_adapters, open};

use crate::common::buffers::{devices, draw, empty, read, upload};
use wgpu_attention::gpu::{Attention, Backward, BackwardBindings, Bindings, Gpu};
use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan};
use wgpu_attention::wgpu::{self, Buffer};
use wgpu_attention::{
    Algorithm, Alignment, Backend, BackwardInputs, Dims, Error, Inputs, Owner, Problem, Progress, Table, Term, WantGradients,
};

fn problem() -> Problem {
    let dims = Dims { num_heads: 4, num_kv_heads: 2, seq_len_kv: 45, ..Dims::self_attention(2, 4, 37, 16) };
    let score = "fn score(x: f32, at: Pair) -> f32 { return x * 0.5 - rates[at.head] * f32(at.position - at.key); }";
    let term = Term::with_tables(score, &[Table::f32("rates", 4).owner(Owner::Head)]).expect("valid");
    Problem { sinks: true, ..Problem::new(dims).aligned(Alignment::BottomRight).causal().with_stats().with_term(term) }
}

/// Records forward and backward into the app's encoder: nothing runs before it submits, and a replay has equal bits.
#[test]
fn forward_and_backward_in_one_encoder() {
    let problem = problem();
    let want = WantGradients::all(&problem);
    let (query, key, value) = (draw(1, problem.query_len()), draw(2, problem.key_len()), draw(3, problem.value_len()));
    let (d_output, sinks, rates) = (draw(4, problem.output_len()), draw(5, 4), draw(6, 4));
    let cpu = open(Backend::Cpu);
    let tables = problem.term_tables(&[("rates", rates[..].into())]).expect("valid");
    let inputs = Inputs { sinks: &sinks, term_tables: &tables, ..Inputs::new(&query, &key, &value) };
    let forward = cpu.attention(&problem, &inputs).expect("valid");
    let backward = BackwardInputs::new(&forward.output, &d_output);
    let expected = cpu.backward(&problem, &inputs, &backward, &want).expect("valid");

    for (device, queue) in devices(wgpu::Adapter::limits) {
        let gpu = Gpu::from_device(device.clone(), queue.clone());
        let up = |data: &[f32]| upload(&device, &queue, data);
        let (query, key, value, d_output, tables) = (up(&query), up(&key), up(&value), up(&d_output), up(&[&sinks[..], &rates].concat()));
        let [output, stats, d_query, d_key, d_value, d_sinks, d_rates] =
            [problem.output_len(), 2 * problem.lse_len(), problem.query_len(), problem.key_len(), problem.value_len(), 4, 4]
                .map(|len| empty(&device, len));
        let whole = Buffer::as_entire_buffer_binding;
        let attention = Attention::new(&gpu, &problem, Algorithm::Fused).expect("planned");
        let (some_stats, some_tables) = (Some(whole(&stats)), Some(whole(&tables)));
        let bindings = Bindings { stats: some_stats, tables: some_tables.clone(), ..Bindings::new(&query, &key, &value, &output) };
        let forward = attention.bind(&bindings).expect("bound");
        let backward = Backward::new(&gpu, &problem, &want).expect("planned");
        let bindings = BackwardBindings {
            tables: some_tables,
            d_query: Some(whole(&d_query)),
            d_key: Some(whole(&d_key)),
            d_value: Some(whole(&d_value)),
            d_sinks: Some(whole(&d_sinks)),
            d_term_tables: Some(whole(&d_rates)),
            ..BackwardBindings::new([&query, &key, &value, &output, &stats, &d_output])
        };
        let bound = backward.bind(&bindings).expect("bound");
        let missing = backward.bind(&BackwardBindings { d_sinks: None, ..bindings.clone() });
        assert!(matches!(missing.err(), Some(Error::Invalid { argument: "d_sinks", .. })));
        let short = backward.bind(&BackwardBindings { d_key: Some(whole(&d_sinks)), ..bindings.clone() });
        assert!(matches!(short.err(), Some(Error::Invalid { argument: "d_key", .. })));

        let results = [&d_query, &d_key, &d_value, &d_sinks, &d_rates];
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            forward.record_in(&mut pass);
            bound.record_in(&mut pass);
        }
        assert!(read(&device, &queue, &d_query).iter().all(|&x| x == 0.0), "something ran before the app submitted");
        queue.submit([encoder.finish()]);
        let got = results.map(|buffer| read(&device, &queue, buffer));
        let stored = [&expected.query, &expected.key, &expected.value].map(|gradient| gradient.as_ref().expect("wanted").to_f32());
        let [e_query, e_key, e_value] = stored;
        let [e_sinks, e_rates] = [&expected.sinks, &expected.term_tables].map(|gradient| gradient.clone().expect("wanted"));
        assert_eq!(problem.d_term_table(&e_rates, "rates"), Ok(&e_rates[..]));
        for (got, expected) in got.iter().zip([e_query, e_key, e_value, e_sinks, e_rates]) {
            assert_eq!(got.len(), expected.len());
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
            assert!(worst < 2e-5, "{worst}");
        }
        let mut encoder = device.create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        queue.submit([encoder.finish()]);
        assert_eq!(results.map(|buffer| read(&device, &queue, buffer)), got, "recorded again");
    }
}

/// Computes from the host: the call reports progress, stops when told to, and can be awaited.
#[test]
fn backward_is_followed_stopped_and_awaited() {
    let problem = Problem::new(Dims::self_attention(2, 2, 90, 16));
    let data = draw(7, problem.query_len());
    let inputs = Inputs::new(&data, &data, &data);
    for engine in cpu_and_adapters() {
        let forward = engine.attention(&problem, &inputs).expect("valid");
        let backward = BackwardInputs::new(&forward.output, &data);
        let want = WantGradients::default();
        let expected = engine.backward(&problem, &inputs, &backward, &want).expect("valid");
        let mut last = 0.0;
        let mut follow = |done: f64| {
            assert!(done >= last);
            last = done;
            ControlFlow::Continue(())
        };
        let control = &mut Progress::new(&mut follow);
        let awaited = pollster::block_on(engine.backward_async(&problem, &inputs, &backward, &want, control)).expect("valid");
        assert_eq!(awaited, expected, "{}", engine.chosen());
        assert_eq!(last, 1.0, "{}", engine.chosen());
        let mut stop = |_: f64| ControlFlow::Break(());
        let stopped = engine.backward_controlled(&problem, &inputs, &backward, &want, &mut Progress::new(&mut stop));
        assert_eq!(stopped, Err(Error::Cancelled), "{}", engine.chosen());
    }
}

/// Plans a backward pass whose scratch memory grows with the rows, not with the pairs.
#[test]
fn a_backward_pass_needs_little_memory() {
    for class in [DeviceClass::Software, DeviceClass::Integrated, DeviceClass::Discrete] {
        let caps = DeviceCaps { class, ..DeviceCaps::webgpu_defaults() };
        let of = |seq_len: usize| {
            let problem = Problem::new(Dims::self_attention(1, 1, seq_len, 64)).aligned(Alignment::TopLeft).causal();
            Plan::backward(&problem, &WantGradients::default(), &caps).expect("it can be planned")
        };
        let operands = 4 * 16_384 * 64 * 4;
        assert!(of(16_384).scratch_bytes() <= operands / 32, "{class:?}: {} B", of(16_384).scratch_bytes());
        assert_eq!(of(16_384).scratch_bytes(), 2 * of(8192).scratch_bytes(), "{class:?}");
    }
}
