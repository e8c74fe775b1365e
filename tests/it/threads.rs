//! Types and futures that may cross threads.

use wgpu_attention::cache::{KvCache, PagePool};
use wgpu_attention::gpu::{Attention, Backward, DeviceCache, DeviceRotary, Dispatches, Gpu, Tables, Timestamps};
use wgpu_attention::layer::{LayerOutputs, MultiHead};
use wgpu_attention::plan::Plan;
use wgpu_attention::{
    BackwardInputs, Engine, EngineOptions, Error, Gradients, HostVec, Inputs, Outputs, Problem, Progress, Tuned, WantGradients,
};

fn shared<T: Send + Sync>() {}

fn sent<T: Send>(_: T) {}

#[test]
fn public_types_are_send_and_sync() {
    shared::<(Engine, EngineOptions, Error, Problem, Inputs<'_>, Outputs, HostVec)>();
    shared::<(BackwardInputs<'_>, Gradients, WantGradients, Plan, Tuned, MultiHead, KvCache, PagePool)>();
    shared::<(Gpu, Attention, Backward, Dispatches, DeviceCache, DeviceRotary, Tables<'_>, Timestamps)>();
}

/// Compiles only if every future is `Send`.
#[expect(dead_code, reason = "its types are the test")]
fn futures_are_send(
    (engine, layer, gpu): (&Engine, &MultiHead, &Gpu),
    (problem, inputs): (&Problem, &Inputs<'_>),
    (backward, want, forward): (&BackwardInputs<'_>, &WantGradients, &LayerOutputs),
) {
    sent(Engine::new_async(EngineOptions::default()));
    sent(engine.attention_async(problem, inputs, &mut Progress::default()));
    sent(engine.backward_async(problem, inputs, backward, want, &mut Progress::default()));
    sent(engine.check_kernels_async(problem));
    sent(engine.warm_up(problem, None, &mut Progress::default()));
    sent(engine.tune_async(problem, inputs, std::time::Duration::MAX, &mut Progress::default()));
    sent(Engine::every_async(Default::default()));
    sent(layer.forward_with_steps_async(engine, problem, inputs));
    sent(layer.backward_async(engine, problem, inputs, forward, &[]));
    sent(gpu.settled());
    sent(gpu.findings_async());
    sent(wgpu_attention::gpu::list());
    sent(wgpu_attention::gpu::list_with_findings());
}
