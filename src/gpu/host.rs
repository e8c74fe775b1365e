//! Calls from host slices to host vectors: buffers, upload, run, read back.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use web_time::Instant;

use super::buffers::{ReadBack, refilled, storage, whole_vec4s, write};
use super::steps::Ready;
use super::wait::{Waiting, finished};
use super::{Backward, Dispatches, Gpu, Phase};
use crate::error::Result;
use crate::numbers::HostVec;
use crate::plan::{BufferRef, Plan};
use crate::problem::{Algorithm, BackwardInputs, Gradients, Inputs, Operand, Outputs, Problem, WantGradients, table_bytes};
use crate::progress::Progress;

/// Bytes of all buffers of a call from host memory, before there are any.
pub(super) fn call_bytes(plan: &Plan) -> u64 {
    let padded = |written: bool| -> u64 { plan.arguments(written).map(|(_, bytes)| whole_vec4s(bytes)).sum() };
    plan.scratch_bytes() + padded(false) + 2 * padded(true)
}

/// Buffers of a problem's arguments, each with the bytes of it that are used.
pub(super) struct Arguments(pub(super) Vec<(BufferRef, wgpu::Buffer, u64)>);

impl Arguments {
    /// Creates buffers of these sizes in bytes.
    pub(super) fn new(gpu: &Gpu, arguments: impl Iterator<Item = (BufferRef, u64)>, usage: wgpu::BufferUsages) -> Result<Self> {
        let make = |(place, bytes): (BufferRef, u64)| Ok((place, storage(gpu, place.name(), bytes, usage)?, bytes));
        arguments.map(make).collect::<Result<_>>().map(Self)
    }

    /// Binds a plan to the buffers of what it reads and writes.
    pub(super) fn bind(&self, ready: &Ready, written: &Self) -> Result<Dispatches> {
        let all = || self.0.iter().chain(&written.0);
        let bindings: Vec<_> = all().map(|(_, buffer, _)| buffer.as_entire_buffer_binding()).collect();
        ready.bind(&all().zip(&bindings).map(|((place, ..), binding)| (*place, Some(binding))).collect::<Vec<_>>())
    }

    /// Uploads the data of `inputs` and, where a pass reads more, of `others`.
    pub(super) fn upload<'a>(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        inputs: &Inputs<'_>,
        others: impl Fn(BufferRef) -> Option<&'a [u8]>,
    ) -> Result<()> {
        let write = || {
            self.write(gpu, |place| match place {
                BufferRef::Query => Some(inputs.query.bytes().into()),
                BufferRef::Key => Some(inputs.key.bytes().into()),
                BufferRef::Value => Some(inputs.value.bytes().into()),
                place => others(place).map(Cow::from).or_else(|| option_bytes(problem, inputs, place)),
            });
        };
        gpu.timed(Phase::Upload, || gpu.guarded(write))
    }

    /// Writes the arguments for which `bytes_of` has bytes, which may be longer than what is used of them. Call it
    /// within [`Gpu::guarded`].
    fn write<'a>(&self, gpu: &Gpu, bytes_of: impl Fn(BufferRef) -> Option<Cow<'a, [u8]>>) {
        for (place, buffer, used) in &self.0 {
            if let Some(bytes) = bytes_of(*place) {
                write(gpu, buffer, &bytes[..*used as usize]);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, buffer, _)| buffer.size()).sum()
    }
}

/// Data of an argument besides the problem's tensors.
fn option_bytes<'a>(problem: &Problem, inputs: &Inputs<'a>, place: BufferRef) -> Option<Cow<'a, [u8]>> {
    match place {
        BufferRef::Tables => Some(table_bytes(problem, inputs).into()),
        BufferRef::Bias => Some(bytemuck::cast_slice(inputs.bias).into()),
        BufferRef::Mask => Some(bytemuck::cast_slice(inputs.mask).into()),
        _ => None,
    }
}

/// Forward or backward pass of a problem with buffers of its own.
pub(super) struct Prepared {
    pub(super) gpu: Gpu,
    problem: Problem,
    /// Storage of the gradients, if it is a backward pass.
    want: Option<WantGradients>,
    pub(super) bound: Dispatches,
    inputs: Arguments,
    results: Arguments,
    read_back: ReadBack,
    scratch_bytes: u64,
}

impl Prepared {
    /// Prepares attention. `gpu` is the handle of the call.
    pub(super) fn forward(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        Self::new(&Ready::new(gpu, problem, None, gpu.plan(problem, algorithm)?, None)?)
    }

    /// Prepares gradients. `gpu` is the handle of the call.
    pub(super) fn backward(gpu: &Gpu, problem: &Problem, want: &WantGradients) -> Result<Self> {
        Self::new(&Backward::of(gpu, problem, want)?.0)
    }

    /// Creates buffers for a planned problem.
    pub(super) fn new(ready: &Ready) -> Result<Self> {
        ready.gpu.timed(Phase::Buffers, || Self::create(ready))
    }

    fn create(ready: &Ready) -> Result<Self> {
        let (gpu, plan) = (ready.gpu.clone(), &ready.plan);
        // A layer also reads back its queries, keys and values.
        let inputs = Arguments::new(&gpu, plan.arguments(false), refilled(&gpu) | wgpu::BufferUsages::COPY_SRC)?;
        let results = Arguments::new(&gpu, plan.arguments(true), wgpu::BufferUsages::COPY_SRC)?;
        let bound = inputs.bind(ready, &results)?;
        let read_back = ReadBack::new(&gpu, results.0.iter().map(|(_, buffer, bytes)| (buffer.clone(), *bytes)))?;
        let scratch_bytes = ready.plan.scratch_bytes();
        Ok(Self { gpu, problem: ready.problem.clone(), want: ready.want, bound, inputs, results, read_back, scratch_bytes })
    }

    /// Buffer of an argument that every problem has.
    pub(super) fn buffer(&self, place: BufferRef) -> &wgpu::Buffer {
        let argument = self.inputs.0.iter().chain(&self.results.0).find(|&&(other, ..)| other == place);
        &argument.expect("every problem has it").1
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.scratch_bytes + self.inputs.bytes() + self.results.bytes() + self.read_back.staging.size()
    }

    /// Uploads the data of a forward pass.
    pub(super) fn upload(&self, inputs: &Inputs<'_>) -> Result<()> {
        self.inputs.upload(&self.gpu, &self.problem, inputs, |_| None)
    }

    /// Uploads the data of a backward pass.
    pub(super) fn upload_backward(&self, inputs: &Inputs<'_>, backward: &BackwardInputs<'_>, stats: &[[f32; 2]]) -> Result<()> {
        self.inputs.upload(&self.gpu, &self.problem, inputs, |place| match place {
            BufferRef::Output => Some(backward.output.bytes()),
            BufferRef::DOutput => Some(backward.d_output.bytes()),
            BufferRef::DLse => backward.d_lse.map(bytemuck::cast_slice),
            BufferRef::Stats => Some(bytemuck::cast_slice(stats)),
            _ => None,
        })
    }

    /// Uploads everything but query, key and value. Call it within [`Gpu::guarded`].
    pub(super) fn upload_options(&self, inputs: &Inputs<'_>) {
        self.inputs.write(&self.gpu, |place| option_bytes(&self.problem, inputs, place));
    }

    /// Runs `bound`, which ends in this problem's output, and reads the outputs back. `copy` may record more copies.
    pub(super) async fn outputs(
        &self,
        bound: &Dispatches,
        control: &mut Progress<'_>,
        waiting: Waiting,
        copy: impl Fn(&mut wgpu::CommandEncoder),
    ) -> Result<Outputs> {
        let decode = |results: &Results<'_>| Outputs {
            output: HostVec::from_bytes(self.problem.output.dtype, results.bytes(BufferRef::Output).unwrap_or_default()),
            lse: results.elements(BufferRef::Lse),
            stats: results.elements(BufferRef::Stats),
            scores: results.elements(BufferRef::Scores),
            weights: results.elements(BufferRef::Weights),
            key_sums: results.elements(BufferRef::KeySums),
        };
        self.run(bound, control, waiting, copy, decode).await
    }

    /// Runs a backward pass and reads the gradients back.
    pub(super) async fn gradients(&self, control: &mut Progress<'_>, waiting: Waiting) -> Result<Gradients> {
        let decode = |results: &Results<'_>| {
            let dtype = |operand| self.want.unwrap_or_default().dtype(&self.problem, operand);
            let stored = |place, operand| results.bytes(place).map(|bytes| HostVec::from_bytes(dtype(operand), bytes));
            Gradients {
                query: stored(BufferRef::DQuery, Operand::Query),
                key: stored(BufferRef::DKey, Operand::Key),
                value: stored(BufferRef::DValue, Operand::Value),
                bias: results.elements(BufferRef::DBias),
                relative_bias: results.elements(BufferRef::DRelativeBias),
                sinks: results.elements(BufferRef::DSinks),
                term_tables: results.elements(BufferRef::DTermTables),
            }
        };
        self.run(&self.bound, control, waiting, |_| {}, decode).await
    }

    /// Runs `bound` and passes the results to `decode`.
    async fn run<T>(
        &self,
        bound: &Dispatches,
        control: &mut Progress<'_>,
        waiting: Waiting,
        copy: impl Fn(&mut wgpu::CommandEncoder),
        decode: impl FnOnce(&Results<'_>) -> T,
    ) -> Result<T> {
        let submitting = submit(&self.gpu, bound, control, waiting, |encoder| {
            self.read_back.copy(encoder);
            copy(encoder);
        });
        let submission = self.gpu.timed_async(Phase::Run, submitting).await?;
        let take =
            |parts: &mut dyn Iterator<Item = &[u8]>| decode(&Results(self.results.0.iter().map(|&(place, ..)| place).zip(parts).collect()));
        let results = self.read_back.read(&self.gpu, submission, waiting, take).await?;
        control.report(1.0)?;
        Ok(results)
    }
}

/// Bytes that were read back.
struct Results<'a>(Vec<(BufferRef, &'a [u8])>);

impl Results<'_> {
    fn bytes(&self, place: BufferRef) -> Option<&[u8]> {
        self.0.iter().find(|&&(other, _)| other == place).map(|&(_, bytes)| bytes)
    }

    fn elements<T: bytemuck::Pod>(&self, place: BufferRef) -> Option<Vec<T>> {
        self.bytes(place).map(bytemuck::pod_collect_to_vec)
    }
}

/// Submits `bound`, followed by the copies that `copy` records. Returns the last submission.
pub(super) async fn submit(
    gpu: &Gpu,
    bound: &Dispatches,
    control: &mut Progress<'_>,
    waiting: Waiting,
    copy: impl Fn(&mut wgpu::CommandEncoder),
) -> Result<Option<wgpu::SubmissionIndex>> {
    let device = gpu.device();
    let pieces = pieces(gpu, bound);
    let mut submitted: Vec<wgpu::SubmissionIndex> = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let (first_run, started) = (&bound.steps[piece.start].pipeline.first_run, Instant::now());
        submitted.push(gpu.guarded(|| {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention") });
            {
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None });
                bound.record_steps(piece.clone(), &mut pass);
            }
            if index + 1 == pieces.len() {
                copy(&mut encoder);
            }
            gpu.queue().submit([encoder.finish()])
        })?);
        if first_run.get().is_none() {
            finished(gpu, submitted[index].clone(), waiting).await?;
            let _ = first_run.set(started.elapsed()); // another thread may have told
        }
        // Two pieces are in flight: the device stays busy, and a cancellation waits for two at most.
        if let Some(before) = index.checked_sub(1) {
            finished(gpu, submitted[before].clone(), waiting).await?;
            control.report(index as f64 / pieces.len() as f64)?;
        }
    }
    Ok(submitted.pop())
}

/// Runs `bound` and reads back the given number of bytes of each buffer, in order.
pub(super) async fn read_back(
    gpu: &Gpu,
    bound: &Dispatches,
    parts: impl IntoIterator<Item = (wgpu::Buffer, u64)>,
    waiting: Waiting,
) -> Result<Vec<Vec<f32>>> {
    let results = ReadBack::new(gpu, parts)?;
    let submission = submit(gpu, bound, &mut Progress::default(), waiting, |encoder| results.copy(encoder)).await?;
    results.read(gpu, submission, waiting, |parts| parts.map(bytemuck::pod_collect_to_vec).collect()).await
}

/// Ranges of dispatches, one per submit: a single one unless it would keep the device busy for long. The first dispatch of
/// a kernel is alone, so that its time is known.
fn pieces(gpu: &Gpu, bound: &Dispatches) -> Vec<Range<usize>> {
    let budget = gpu.caps().dispatch_flops();
    let mut pieces = Vec::new();
    let (mut first, mut flops, mut was_new) = (0, 0.0, false);
    for (index, step) in bound.steps.iter().enumerate() {
        let runs_before = || bound.steps[..index].iter().any(|before| Arc::ptr_eq(&before.pipeline, &step.pipeline));
        let is_new = step.pipeline.first_run.get().is_none() && !runs_before();
        if index > first && (is_new || was_new || flops + step.flops > budget) {
            pieces.push(first..index);
            (first, flops) = (index, 0.0);
        }
        flops += step.flops;
        was_new = is_new;
    }
    pieces.push(first..bound.dispatches());
    pieces
}
