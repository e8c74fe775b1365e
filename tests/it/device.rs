//! Recording only: an app with its own device, encoder and buffers.

use crate::common::buffers::{devices, draw, empty, read, upload};
use crate::common::cpu_and_adapters;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wgpu_attention::gpu::{Attention, Bindings, Gpu, MATRIX_FEATURES, Merge, MergeBindings, ShaderOptions, Timestamps, matrix_size};
use wgpu_attention::plan::DeviceClass;
use wgpu_attention::verify::{Case, Data, Fill, Verdict, check};
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{
    Algorithm, Alignment, DType, Dims, Engine, Error, HostVec, Inputs, Layout, Part, Problem, Progress, RowSums, TensorSpec, WantGradients,
    merge, oracle,
};

/// Records the app's own work between two attentions: multiplies every element by -2.
fn app_dispatch(device: &wgpu::Device, pass: &mut wgpu::ComputePass<'_>, from: &wgpu::Buffer, to: &wgpu::Buffer, len: usize) {
    let source = "@group(0) @binding(0) var<storage, read> a: array<f32>;
        @group(0) @binding(1) var<storage, read_write> b: array<f32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            if (id.x < arrayLength(&a)) { b[id.x] = a[id.x] * -2.0; }
        }";
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let entries = [from, to].map(wgpu::Buffer::as_entire_binding);
    let entries: Vec<_> =
        entries.into_iter().enumerate().map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource }).collect();
    let layout = pipeline.get_bind_group_layout(0);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups((len as u32).div_ceil(64), 1, 1);
}

#[test]
fn two_attentions_and_a_dispatch_of_the_app_in_one_encoder() {
    let dims = Dims { num_kv_heads: 1, seq_len_kv: 45, ..Dims::self_attention(2, 2, 37, 16) };
    let mut first = Problem::new(dims).aligned(Alignment::BottomRight).causal();
    // Key and value are in one buffer: the value at an aligned offset, the start of the key at an odd one.
    first.key = TensorSpec { offset: 3, ..TensorSpec::new(DType::F32, Layout::Bshd) };
    let second = Problem { scale: Some(0.7), ..first.clone() };
    let (query, shared) = (draw(1, first.query_len()), draw(2, 4096 + first.value_len()));
    let oracle = |problem: &Problem, query: &[f32]| {
        let inputs = Inputs::new(query, &shared[..2048], &shared[4096..]);
        oracle::attention(problem, &inputs).expect("valid").into_outputs(problem, &inputs).output.to_f32()
    };
    let between: Vec<f32> = oracle(&first, &query).into_iter().map(|x| x * -2.0).collect();
    let expected = oracle(&second, &between);

    for (device, queue) in devices(wgpu::Adapter::limits) {
        let errors = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&errors);
        device.on_uncaptured_error(Arc::new(move |error| {
            eprintln!("uncaptured: {error}");
            seen.fetch_add(1, Ordering::SeqCst);
        }));
        let gpu = Gpu::from_device(device.clone(), queue.clone());
        let query = upload(&device, &queue, &query);
        let shared = upload(&device, &queue, &shared);
        let [out, scaled, result] = [(); 3].map(|()| empty(&device, first.output_len()));
        let value = wgpu::BufferBinding { buffer: &shared, offset: 4 * 4096, size: None };

        let [first, second] = [&first, &second].map(|problem| Attention::new(&gpu, problem, Algorithm::Auto).expect("planned"));
        let bindings = Bindings { value: value.clone(), ..Bindings::new(&query, &shared, &shared, &out) };
        let first = first.bind(&bindings).expect("bound");
        let second = second.bind(&Bindings { value, ..Bindings::new(&scaled, &shared, &shared, &result) }).expect("bound");

        let mut encoder = device.create_command_encoder(&Default::default());
        first.record(&mut encoder);
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            app_dispatch(&device, &mut pass, &out, &scaled, expected.len());
            second.record_in(&mut pass);
        }
        assert!(read(&device, &queue, &result).iter().all(|&x| x == 0.0), "something ran before the app submitted");
        queue.submit([encoder.finish()]);
        let got = read(&device, &queue, &result);
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() < 1e-5, "{}: element {at}: {got} instead of {expected}", gpu.name());
        }
        // The app's error handler is still installed.
        let _ = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: BufferUsages::MAP_READ | BufferUsages::MAP_WRITE | BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        assert_eq!(errors.load(Ordering::SeqCst), 1, "{}: only the app's own mistake is reported to it", gpu.name());
    }
}

#[test]
fn wrong_buffers_are_refused() {
    let problem = Problem::new(Dims::self_attention(1, 1, 8, 8)).with_lse();
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let gpu = Gpu::from_device(device.clone(), queue);
        let attention = Attention::new(&gpu, &problem, Algorithm::Auto).expect("planned");
        let right = empty(&device, 64);
        let lse = empty(&device, 8);
        let whole = Bindings { lse: Some(lse.as_entire_buffer_binding()), ..Bindings::new(&right, &right, &right, &right) };
        let argument = |bindings: &Bindings<'_>| match attention.bind(bindings) {
            Err(Error::Invalid { argument, .. }) => argument,
            other => panic!("{:?}", other.map(|_| ())),
        };
        let short = empty(&device, 63);
        assert_eq!(argument(&Bindings { key: short.as_entire_buffer_binding(), ..whole.clone() }), "key");
        assert_eq!(argument(&Bindings { lse: None, ..whole.clone() }), "lse");
        assert_eq!(argument(&Bindings { bias: Some(lse.as_entire_buffer_binding()), ..whole.clone() }), "bias");
        let shifted = wgpu::BufferBinding { buffer: &right, offset: 4, size: None };
        assert_eq!(argument(&Bindings { value: shifted, ..whole.clone() }), "value");
        let usage = BufferUsages::COPY_DST;
        let unusable = device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false });
        assert_eq!(argument(&Bindings { query: unusable.as_entire_buffer_binding(), ..whole.clone() }), "query");
        // wgpu would accept these and panic when the app submits.
        assert_eq!(argument(&whole), "bindings", "the output is the query's buffer");
        let large = empty(&device, 4096);
        let part = |offset| wgpu::BufferBinding { buffer: &large, offset, size: None };
        assert_eq!(argument(&Bindings { output: part(8192), query: part(0), ..whole.clone() }), "bindings", "no overlap, one buffer");
        let lse_in_output = Bindings { output: part(0), lse: Some(part(0)), ..whole.clone() };
        assert_eq!(argument(&lse_in_output), "bindings", "both written, one over the other");
        let (output, lse) = (wgpu::BufferBinding { size: wgpu::BufferSize::new(256), ..part(0) }, Some(part(8192)));
        assert!(attention.bind(&Bindings { output, lse, ..whole }).is_ok(), "both written, beside each other");
    }
}

#[test]
fn small_limits_are_kept_or_named() {
    let small = |adapter: &wgpu::Adapter| wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 20,
        max_buffer_size: 1 << 20,
        max_compute_workgroup_storage_size: 16384.min(adapter.limits().max_compute_workgroup_storage_size),
        max_compute_workgroups_per_dimension: 64,
        ..adapter.limits()
    };
    for (device, queue) in devices(small) {
        let engine = wgpu_attention::Engine::on_gpu(Gpu::from_device(device, queue));
        // At least 150 workgroups, 64 per dimension; heads too wide for the fused kernel's workgroup memory are staged.
        for (dims, way) in [(Dims::self_attention(1, 150, 8, 8), "fused"), (Dims::self_attention(1, 1, 40, 2000), "staged")] {
            let problem = Problem::new(dims);
            let plan = engine.explain(&problem).expect("planned");
            assert!(plan.starts_with(way), "{plan}");
            let data = draw(3, problem.query_len());
            let inputs = Inputs::new(&data, &data, &data);
            let got = engine.attention(&problem, &inputs).expect("computed").output.to_f32();
            let expected = oracle::attention(&problem, &inputs).expect("valid").output;
            let worst = got.iter().zip(&expected).map(|(&got, expected)| (f64::from(got) - expected).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-4, "{}: off by {worst}", engine.chosen());
        }
        let large = Problem::new(Dims::self_attention(1, 8, 1024, 64));
        match engine.explain(&large) {
            Err(Error::Limit { limit: "max_storage_buffer_binding_size", needed, available, remedy }) => {
                assert_eq!((needed, available), (8 * 1024 * 64 * 4, 1 << 20));
                assert!(remedy.contains("split"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn long_work_can_be_cancelled_and_the_engine_goes_on() {
    for engine in cpu_and_adapters() {
        let long = Problem::new(Dims::self_attention(1, 4, 2048, 32));
        let data = draw(5, long.query_len());
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            std::ops::ControlFlow::Break(())
        };
        let result = engine.attention_controlled(&long, &Inputs::new(&data, &data, &data), &mut wgpu_attention::Progress::new(&mut stop));
        assert_eq!(result, Err(Error::Cancelled), "{}", engine.chosen());
        assert_eq!(calls, 1, "{}", engine.chosen());

        let short = Problem::new(Dims::self_attention(1, 1, 20, 8));
        let inputs = Inputs::new(&data[..160], &data[160..320], &data[320..480]);
        let expected = engine.attention(&short, &inputs).expect("computed");
        let mut control = Default::default();
        let got = pollster::block_on(engine.attention_async(&short, &inputs, &mut control));
        assert_eq!(got.expect("computed"), expected, "{}", engine.chosen());
    }
}

/// A warm-up compiles all that the next call needs and stops when told to; clearing changes no answer.
#[test]
fn kernels_can_be_compiled_beforehand() {
    let problem = Problem::new(Dims { head_dim_v: 12, ..Dims::self_attention(1, 3, 41, 20) }).aligned(Alignment::TopLeft).causal();
    let data = draw(6, problem.query_len());
    let inputs = Inputs::new(&data, &data, &data[..problem.value_len()]);
    for engine in cpu_and_adapters() {
        let kernels = || engine.gpu().map(Gpu::pipelines_compiled);
        let mut last = 0.0;
        let mut follow = |done: f64| {
            assert!(done > last);
            last = done;
            std::ops::ControlFlow::Continue(())
        };
        pollster::block_on(engine.warm_up(&problem, None, &mut Progress::new(&mut follow))).expect("compiled");
        assert_eq!(last, 1.0, "{}", engine.chosen());
        let compiled = kernels();
        let outputs = engine.attention(&problem, &inputs).expect("computed");
        assert_eq!(kernels(), compiled, "{}", engine.chosen());
        engine.clear();
        assert_eq!(engine.attention(&problem, &inputs).as_ref(), Ok(&outputs), "{}", engine.chosen());

        let mut stop = |_: f64| std::ops::ControlFlow::Break(());
        let want = &WantGradients::all(&problem);
        let stopped = pollster::block_on(engine.warm_up(&problem, Some(want), &mut Progress::new(&mut stop)));
        assert_eq!(stopped, Err(Error::Cancelled), "{}", engine.chosen());
    }
}

/// Errors are returned by the functions themselves where they are known at once, and none are left for later.
#[test]
fn nothing_is_left_to_settle() {
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let gpu = Gpu::from_device(device, queue).with_own_errors();
        Attention::new(&gpu, &Problem::new(Dims::self_attention(1, 1, 9, 8)), Algorithm::Auto).expect("planned");
        assert_eq!(pollster::block_on(gpu.settled()), Ok(()));
    }
}

/// Merges three partial results on the device: two attentions over parts of the keys, and an empty part.
#[test]
fn parts_are_merged_on_the_device() {
    let whole = Problem::new(Dims { num_kv_heads: 1, seq_len_q: 5, ..Dims::self_attention(2, 2, 48, 16) }).with_lse();
    let (rows, output_len) = (whole.lse_len(), whole.output_len());
    let (query, key, value) = (draw(1, whole.query_len()), draw(2, whole.key_len()), draw(3, whole.value_len()));
    let inputs = Inputs::new(&query, &key, &value);
    let expected = oracle::attention(&whole, &inputs).expect("valid").into_outputs(&whole, &inputs);
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let gpu = Gpu::from_device(device.clone(), queue.clone());
        let [q, k, v] = [&query, &key, &value].map(|data| upload(&device, &queue, data));
        let partial_output = upload(&device, &queue, &vec![f32::NAN; 3 * output_len]);
        let partial_lse = upload(&device, &queue, &vec![f32::NEG_INFINITY; 3 * rows]);
        let mut encoder = device.create_command_encoder(&Default::default());
        for (part, keys) in [(0, 0..20), (2, 20..48)] {
            let mut problem = whole.clone();
            problem.dims.seq_len_kv = keys.len();
            // A view of some of the keys.
            problem.key.layout = Layout::Strided(whole.key.strides([2, 1, 48, 16]));
            problem.key.offset = keys.start * 16;
            (problem.value, problem.output.offset) = (problem.key, part * output_len);
            let lse = empty(&device, rows);
            let bindings = Bindings { lse: Some(lse.as_entire_buffer_binding()), ..Bindings::new(&q, &k, &v, &partial_output) };
            let attention = Attention::new(&gpu, &problem, Algorithm::Auto).expect("planned");
            attention.bind(&bindings).expect("bound").record(&mut encoder);
            encoder.copy_buffer_to_buffer(&lse, 0, &partial_lse, 4 * (part * rows) as u64, 4 * rows as u64);
        }
        let [output, lse] = [output_len, rows].map(|len| empty(&device, len));
        let whole_buffer = wgpu::Buffer::as_entire_buffer_binding;
        let bindings = MergeBindings {
            partial_output: whole_buffer(&partial_output),
            partial_lse: whole_buffer(&partial_lse),
            output: whole_buffer(&output),
            lse: whole_buffer(&lse),
        };
        let merged = |parts| Merge { parts, rows, head_dim_v: 16 }.bind(&gpu, &bindings);
        merged(3).expect("bound").record(&mut encoder);
        assert!(matches!(merged(4), Err(Error::Invalid { argument: "partial_output", .. })));
        assert!(merged(0).is_err());
        queue.submit([encoder.finish()]);

        let (output, lse) = (read(&device, &queue, &output), read(&device, &queue, &lse));
        let close = |got: &[f32], expected: &[f32]| got.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(close(&output, &expected.output.to_f32()) && close(&lse, expected.lse.as_deref().expect("asked for")));
        // Merging on the host gives the same result.
        let (parts, lse_parts) = (read(&device, &queue, &partial_output), read(&device, &queue, &partial_lse));
        let parts = parts.chunks(output_len).zip(lse_parts.chunks(rows)).map(|(output, lse)| Part { output, sums: RowSums::Lse(lse) });
        let merged = merge(&parts.collect::<Vec<_>>()).expect("equal sizes");
        assert!(close(&output, &merged.output) && close(&lse, &merged.lse));
    }
}

#[test]
fn an_app_says_which_matrices_its_device_has() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut problem = Problem::new(Dims { head_dim_v: 24, ..Dims::self_attention(1, 2, 40, 32) }).aligned(Alignment::TopLeft).causal();
    for spec in [&mut problem.query, &mut problem.key, &mut problem.value] {
        spec.dtype = DType::F16;
    }
    let half = |len, seed| HostVec::from_f32(DType::F16, &draw(seed, len));
    let (query, key, value) = (half(problem.query_len(), 1), half(problem.key_len(), 2), half(problem.value_len(), 3));
    for adapter in adapters {
        let matrix_size = matrix_size(&adapter);
        if matrix_size == 0 {
            println!("\n*** NO COOPERATIVE MATRICES on {}: not tested there ***\n", adapter.get_info().name);
            continue;
        }
        let descriptor = wgpu::DeviceDescriptor {
            required_features: MATRIX_FEATURES,
            required_limits: adapter.limits(),
            // SAFETY: only `matrix_size` of the adapter's list is used.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        // lavapipe 26 with 128-bit vectors advertises matrices that it refuses, and wgpu-hal panics.
        let requested =
            std::panic::catch_unwind(AssertUnwindSafe(|| pollster::block_on(adapter.request_device(&descriptor)).expect("a device")));
        let Ok((device, queue)) = requested else {
            println!("\n*** COOPERATIVE MATRICES REFUSED by {}: not tested there ***\n", adapter.get_info().name);
            continue;
        };
        let untold = ShaderOptions { pretend: Some(DeviceClass::Discrete), prefer_matrices: true, ..Default::default() };
        for (options, by_matrices) in [(untold, false), (ShaderOptions { matrix_size, ..untold }, true)] {
            let gpu = Gpu::from_device_with(device.clone(), queue.clone(), options);
            let attention = Attention::new(&gpu, &problem, Algorithm::Fused).expect("planned");
            assert_eq!(attention.plan().summary().contains("matrix"), by_matrices, "{}", attention.plan().summary());
            let case = Case {
                name: "an app's matrices".into(),
                problem: problem.clone(),
                fill: Fill::seed(0),
                data: Data::new(query.clone(), key.clone(), value.clone()),
            };
            let engine = Engine::on_gpu(gpu);
            assert_eq!(check(&case, &|problem: &Problem, inputs: &Inputs<'_>| engine.attention(problem, inputs)), Verdict::Passed);
        }
    }
}

/// Times each dispatch, where the device has timestamps.
#[test]
fn dispatches_are_timed() {
    let problem = Problem::new(Dims::self_attention(1, 2, 200, 16));
    let (engines, _) = Engine::every(ShaderOptions::default());
    let without = engines.iter().filter_map(|engine| engine.gpu().cloned());
    let with = devices(wgpu::Adapter::limits).into_iter().map(|(device, queue)| Gpu::from_device(device, queue));
    for gpu in with.chain(without) {
        let [query, output] = [problem.query_len(), problem.output_len()].map(|len| empty(gpu.device(), len));
        let attention = Attention::new(&gpu, &problem, Algorithm::Staged).expect("planned");
        let bound = attention.bind(&Bindings::new(&query, &query, &query, &output)).expect("bound");
        let timestamps = Timestamps::new(&gpu, &bound);
        if !gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            assert!(matches!(timestamps, Err(Error::Unsupported { .. })));
            continue;
        }
        let timestamps = timestamps.expect("the device has them");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        timestamps.record(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
        let times = timestamps.read().expect("the device is there");
        println!("{}: {times:?}", gpu.name());
        assert!(times.iter().map(|time| time.kernel.as_str()).eq(bound.kernels()));
        assert!(times.len() >= 3 && times.iter().any(|time| time.nanoseconds > 0.0));
    }
}

/// Refuses plans with more scratch than the app allows.
#[test]
fn scratch_has_a_budget() {
    let problem = Problem::new(Dims::self_attention(1, 2, 200, 16));
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let with_budget = |scratch_budget| {
            let options = ShaderOptions { scratch_budget: Some(scratch_budget), ..Default::default() };
            let gpu = Gpu::from_device_with(device.clone(), queue.clone(), options);
            Attention::new(&gpu, &problem, Algorithm::Staged).map(|attention| attention.plan().scratch_bytes())
        };
        let needed = with_budget(u64::MAX).expect("no limit");
        assert_eq!(with_budget(needed), Ok(needed));
        let half = with_budget(needed / 2).expect("in parts");
        assert!(0 < half && half <= needed / 2, "{half} of {needed}");
        assert!(matches!(with_budget(64), Err(Error::Limit { limit: "scratch_budget", .. })));
    }
}
