//! Lost devices: every call reports the loss, every time; nothing panics, and the app keeps its hooks. A process of its
//! own, because a device is destroyed in the middle of a call, and a driver that takes others with it must show here.

#[allow(dead_code, reason = "only some of it is needed here")]
#[path = "it/common/buffers.rs"]
mod buffers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buffers::{devices, draw, empty};
use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{
    Attention, Backward, BackwardBindings, Bindings, CacheSize, DeviceCache, DeviceRotary, Dispatches, Gpu, Growth, Merge, MergeBindings,
    NewTokens, QueryBindings, Rows,
};
use wgpu_attention::layer::{LayerOutputs, Linear, MultiHead};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::{
    Algorithm, BackwardInputs, DType, Dims, Engine, Error, Inputs, Layout, Problem, Progress, TensorSpec, WantGradients, wgpu,
};

/// Number of calls of the app's own hooks.
#[derive(Default)]
struct Hooks {
    errors: AtomicUsize,
    losses: AtomicUsize,
}

fn hook(device: &wgpu::Device) -> Arc<Hooks> {
    let hooks = Arc::new(Hooks::default());
    let seen = Arc::clone(&hooks);
    device.on_uncaptured_error(Arc::new(move |error| {
        eprintln!("uncaptured: {error}");
        seen.errors.fetch_add(1, Ordering::SeqCst);
    }));
    let seen = Arc::clone(&hooks);
    device.set_device_lost_callback(move |_, _| {
        seen.losses.fetch_add(1, Ordering::SeqCst);
    });
    hooks
}

/// Asserts that a call reports the loss, and does so again.
fn says_lost<T>(name: &str, mut call: impl FnMut() -> Result<T, Error>) {
    for _ in 0..2 {
        match call() {
            Err(Error::Lost { .. }) => {}
            Ok(_) => panic!("{name} went well on a lost device"),
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}

const PROBLEM: Dims = Dims { batch: 1, num_heads: 2, num_kv_heads: 2, seq_len_q: 20, seq_len_kv: 20, head_dim: 16, head_dim_v: 16 };

fn host_calls(engine: &Engine, layer: &MultiHead, x: &[f32], forward: &LayerOutputs) {
    let problem = Problem::new(PROBLEM);
    let data = draw(1, problem.query_len());
    let inputs = Inputs::new(&data, &data, &data);
    let given = BackwardInputs::new(&data, &data);
    let want = WantGradients::default();
    says_lost("attention", || engine.attention(&problem, &inputs));
    let other = Problem { scale: Some(0.3), ..problem.clone() };
    says_lost("attention of a new problem", || engine.attention(&other, &inputs));
    let staged = engine.clone().with_algorithm(Algorithm::Staged);
    says_lost("staged attention", || staged.attention(&problem, &inputs));
    says_lost("attention in the background", || pollster::block_on(engine.attention_async(&problem, &inputs, &mut Progress::default())));
    says_lost("backward", || engine.backward(&problem, &inputs, &given, &want));
    says_lost("tune", || engine.tune(&problem, &inputs, Duration::from_millis(100)));
    let (problem, inputs) = (layer_problem(layer), Inputs::new(x, x, x));
    says_lost("layer", || layer.forward(engine, &problem, &inputs));
    says_lost("gradients of a layer", || layer.backward(engine, &problem, &inputs, forward, x));
}

fn layer_problem(layer: &MultiHead) -> Problem {
    layer.problem(1, 20, 20)
}

fn layer() -> MultiHead {
    let linear = || Linear::new(draw(3, 32 * 32), None, 32).expect("square");
    MultiHead::new(linear(), linear(), linear(), linear(), 2, 2).expect("they fit")
}

/// Objects that an app has ready before the loss.
struct App {
    gpu: Gpu,
    attention: Attention,
    backward: Backward,
    bound: Dispatches,
    cache: DeviceCache,
    buffer: wgpu::Buffer,
}

/// Returns bindings of dQ and dK to two buffers other than the input's.
fn gradients<'a>(input: &'a wgpu::Buffer, results: &[&'a wgpu::Buffer; 2]) -> BackwardBindings<'a> {
    let [d_query, d_key] = results.map(|buffer| Some(buffer.as_entire_buffer_binding()));
    BackwardBindings { d_query, d_key, ..BackwardBindings::new([input; 6]) }
}

fn want() -> WantGradients {
    WantGradients { value: false, ..WantGradients::default() }
}

const SIZE: CacheSize = CacheSize { slots: 2, pages_per_slot: 5 };

fn shape() -> CacheShape {
    CacheShape::uniform(1, LayerShape::new(2, 16)).page_size(4).pages(10)
}

impl App {
    fn new(gpu: Gpu) -> Self {
        let problem = Problem::new(PROBLEM);
        let buffer = empty(gpu.device(), problem.query_len());
        let output = empty(gpu.device(), problem.query_len());
        let attention = Attention::new(&gpu, &problem, Algorithm::Auto).expect("planned");
        let bound = attention.bind(&Bindings::new(&buffer, &buffer, &buffer, &output)).expect("bound");
        let backward = Backward::new(&gpu, &problem, &want()).expect("planned");
        let mut cache = DeviceCache::new(&gpu, shape(), SIZE).expect("a cache");
        cache.start().expect("a slot");
        Self { gpu, attention, backward, bound, cache, buffer }
    }

    fn calls(self) {
        let Self { gpu, attention, backward, bound, mut cache, buffer } = self;
        let (gpu, buffer) = (&gpu, &buffer);
        let whole = || buffer.as_entire_buffer_binding();
        let problem = Problem::new(PROBLEM);
        let output = empty(gpu.device(), problem.query_len());
        says_lost("Attention::new", || Attention::new(gpu, &problem, Algorithm::Auto));
        says_lost("Backward::new", || Backward::new(gpu, &problem, &want()));
        says_lost("Attention::bind", || attention.bind(&Bindings::new(buffer, buffer, buffer, &output)));
        let merge = MergeBindings {
            partial_output: whole(),
            partial_lse: whole(),
            output: output.as_entire_buffer_binding(),
            lse: output.as_entire_buffer_binding(),
        };
        says_lost("merge", || {
            let bindings = MergeBindings { lse: cache.lengths().as_entire_buffer_binding(), ..merge.clone() };
            Merge { parts: 2, rows: 3, head_dim_v: 4 }.bind(gpu, &bindings)
        });
        says_lost("DeviceCache::new", || DeviceCache::new(gpu, shape(), SIZE));
        let rotary = Rotary::new(Pairing::HalfSplit, 1e4, 16, 20).expect("valid");
        says_lost("DeviceRotary::new", || DeviceRotary::new(gpu, &rotary));
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let new = NewTokens { slots: 0..1, seq_len: 1, key: Rows::new(buffer, spec), value: Rows::new(buffer, spec), rotation: None };
        says_lost("append", || cache.append(0, &new));
        says_lost("cache attention", || {
            let problem = cache.problem(0, 0..1, Queries { num_heads: 2, seq_len: 1 })?;
            cache.attention(0, &problem, 0..1, Algorithm::Auto)?.bind(&cache, 0, &QueryBindings::new(buffer, &output))
        });
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        says_lost("start", || cache.start());
        says_lost("extend", || cache.extend(Growth { tokens: &[1, 0], steps: 1 }, &mut encoder));
        says_lost("grow", || cache.grow(4, &mut encoder));
        says_lost("free", || cache.free(0));
        says_lost("Backward::bind", || backward.bind(&gradients(buffer, &[&cache.pools(0).expect("a layer")[0][0], &output])));
        // Recording returns nothing; it must do no harm.
        bound.record(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
    }
}

#[test]
fn every_call_says_that_the_device_is_lost() {
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let hooks = hook(&device);
        let gpu = Gpu::from_device(device.clone(), queue);
        println!("{}", gpu.name());
        let engine = Engine::on_gpu(gpu.clone());
        let problem = Problem::new(PROBLEM);
        let data = draw(1, problem.query_len());
        engine.attention(&problem, &Inputs::new(&data, &data, &data)).expect("the device is there");
        assert!(!gpu.is_lost());
        let (layer, x) = (layer(), draw(2, 20 * 32));
        let forward = layer.forward_with_steps(&engine, &layer_problem(&layer), &Inputs::new(&x, &x, &x)).expect("the device is there");
        let app = App::new(gpu.clone());

        device.destroy();
        assert!(gpu.is_lost());
        host_calls(&engine, &layer, &x, &forward);
        app.calls();
        device.poll(wgpu::PollType::Poll).expect("polled");
        assert_eq!(hooks.errors.load(Ordering::SeqCst), 0, "{}: the app's handler saw an error", gpu.name());
        assert_eq!(hooks.losses.load(Ordering::SeqCst), 1, "{}: the app was not told of the loss", gpu.name());
    }
}

#[test]
fn a_call_in_flight_ends() {
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let engine = Engine::on_gpu(Gpu::from_device(device.clone(), queue));
        let long = Problem::new(Dims { seq_len_q: 1500, seq_len_kv: 1500, num_heads: 8, num_kv_heads: 8, ..PROBLEM });
        let data = draw(1, long.query_len());
        let inputs = Inputs::new(&data, &data, &data);
        let outcome = std::thread::scope(|scope| {
            let running = scope.spawn(|| engine.attention(&long, &inputs));
            std::thread::sleep(Duration::from_millis(100));
            device.destroy();
            running.join().expect("no panic")
        });
        // The call was fast enough, or it reports the loss.
        assert!(matches!(outcome, Ok(_) | Err(Error::Lost { .. })), "{}: {outcome:?}", engine.chosen());
        says_lost("afterwards", || engine.attention(&long, &inputs));
    }
}
