//! `attn bench --overheads`: costs of a call besides the arithmetic.

use std::io::Write;
use std::time::Instant;

use serde_json::json;
use wgpu_attention::gpu::{Attention, Bindings, Gpu};
use wgpu_attention::wgpu;
use wgpu_attention::{Algorithm, Backend, Dims, Problem};

use super::check;
use super::decode_device::{Until, buffer, shortest};
use super::first_calls::FirstCalls;
use super::machine::milliseconds;
use super::task::bytes;
use crate::backend;
use crate::failure::Failure;
use crate::terminal::Terminal;

/// Number of recordings per encoder.
const TIMES: u32 = 100;

/// Measures each backend: cold start, bytes copied by a host call, and recording compared with a bare dispatch.
pub(super) fn run(backends: &[Backend], json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let problem = Problem::new(Dims { seq_len_q: 1, ..Dims::self_attention(1, 8, 512, 64) });
    let tensors = check::tensors(&problem)?;
    for backend in backends {
        let started = Instant::now();
        let engine = backend::open_fused(backend, false)?;
        let open_ms = milliseconds(started);
        let mut calls = Vec::new();
        for _ in 0..20 {
            let started = Instant::now();
            engine.attention(&problem, &tensors.inputs())?;
            calls.push(milliseconds(started));
        }
        let first_ms = calls[0];
        let call_ms = calls.iter().copied().fold(f64::INFINITY, f64::min);
        let recorded = engine.gpu().map(|gpu| recording(gpu, &problem)).transpose()?;
        let first_calls = FirstCalls::measure(backend)?;
        let moved = if recorded.is_some() { bytes(&problem) } else { 0.0 };
        if json {
            let line = json!({
                "overheads": engine.chosen(), "open_ms": open_ms, "first_call_ms": first_ms, "call_ms": call_ms, "bytes_copied": moved,
                "record_us": recorded.map(|r| r.attention_us), "dispatches": recorded.map(|r| r.dispatches),
                "bare_dispatch_us": recorded.map(|r| r.bare_us), "first_calls": first_calls.as_ref().map(FirstCalls::as_json),
            });
            terminal.json(&line, false)?;
            continue;
        }
        writeln!(terminal, "  {}, 1 query row, 512 keys, 8 heads of 64", engine.chosen())?;
        let mut rows = vec![
            format!("adapter and device\t{open_ms:.2}\tms"),
            format!("first call\t{first_ms:.2}\tms, with its kernels compiled unless the driver kept them"),
            format!("shortest later call\t{call_ms:.3}\tms, host to host, {:.0} kB copied", moved / 1e3),
        ];
        if let Some(Recorded { attention_us, dispatches, bare_us }) = recorded {
            rows.push(format!("recorded on own buffers\t{attention_us:.2}\tus of CPU time for {dispatches} dispatches, nothing copied"));
            rows.push(format!("recorded bare dispatch\t{bare_us:.2}\tus of CPU time"));
        }
        terminal.table(4, &rows)?;
        writeln!(terminal)?;
        if let Some(first_calls) = first_calls {
            writeln!(
                terminal,
                "  First calls, 2 heads of 64. The first of each pass is on a fresh device; a process tries a kernel once."
            )?;
            for table in first_calls.tables() {
                terminal.table(4, &table)?;
                writeln!(terminal)?;
            }
            writeln!(terminal, "    {}\n", first_calls.growing())?;
        }
    }
    Ok(())
}

/// CPU time per recording, in us, from the creation of the encoder to the submission.
#[derive(Clone, Copy)]
struct Recorded {
    attention_us: f64,
    dispatches: usize,
    bare_us: f64,
}

fn recording(gpu: &Gpu, problem: &Problem) -> Result<Recorded, Failure> {
    let device = gpu.device();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
    let of_len = |len: usize| buffer(gpu, (4 * len as u64).max(512), usage);
    let [query, key, value, output] = [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()].map(of_len);
    let attention = Attention::new(gpu, problem, Algorithm::Fused)?;
    let bound = attention.bind(&Bindings::new(&query, &key, &value, &output))?;

    // The bare dispatch binds as many buffers as the attention and does nothing.
    let source = "@group(0) @binding(0) var<uniform> a: vec4<u32>;
        @group(0) @binding(1) var<storage, read> b: array<f32>;
        @group(0) @binding(2) var<storage, read> c: array<f32>;
        @group(0) @binding(3) var<storage, read> d: array<f32>;
        @group(0) @binding(4) var<storage, read_write> e: array<f32>;
        @compute @workgroup_size(64) fn main() { if (a.x == 1u) { e[0] = b[0] + c[0] + d[0]; } }";
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("bare"),
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let params = of_len(4);
    let entries = [&params, &query, &key, &value, &output].map(wgpu::Buffer::as_entire_binding);
    let entries: Vec<_> = (0..).zip(entries).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
    let layout = pipeline.get_bind_group_layout(0);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });

    let us = |record: &dyn Fn(&mut wgpu::ComputePass<'_>)| {
        let seconds = shortest(gpu, 8, Until::Submitted, |encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..TIMES).for_each(|_| record(&mut pass));
            Ok(())
        });
        seconds.map(|seconds| seconds * 1e6 / f64::from(TIMES))
    };
    let attention_us = us(&|pass| bound.record_in(pass))?;
    let bare_us = us(&|pass| {
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    })?;
    Ok(Recorded { attention_us, dispatches: bound.dispatches(), bare_us })
}
