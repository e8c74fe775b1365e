//! Host slices in, host vectors out: upload, run, read back, with the buffers kept for the next call of the same problem.

use std::ops::Range;

use futures_intrusive::channel::shared::oneshot_channel;

use super::{Attention, Bindings, Bound, Gpu};
use crate::plan::table_bytes;
use crate::problem::Operand;
use crate::{Algorithm, Control, Error, HostSlice, HostVec, Inputs, Outputs, Problem, Result};

/// Problems kept ready on a device; the least recently used go first.
const KEPT: usize = 16;
/// Bytes of buffers kept ready, besides the most recent problem's.
const KEPT_BYTES: u64 = 512 << 20;

/// A problem with buffers of its own.
pub(super) struct Prepared {
    pub(super) problem: Problem,
    algorithm: Algorithm,
    pub(super) bound: Bound,
    pub(super) query: wgpu::Buffer,
    pub(super) key: wgpu::Buffer,
    pub(super) value: wgpu::Buffer,
    pub(super) output: wgpu::Buffer,
    tables: Option<wgpu::Buffer>,
    bias: Option<wgpu::Buffer>,
    mask: Option<wgpu::Buffer>,
    /// What is read back after the output, with the place of each in `staging`.
    extras: Vec<(Extra, wgpu::Buffer, Range<u64>)>,
    staging: wgpu::Buffer,
    output_bytes: u64,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    Lse,
    Scores,
    Weights,
}

impl Gpu {
    /// Computes `problem` on host data. Both have been checked.
    pub(crate) async fn attention(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        algorithm: Algorithm,
        waiting: Waiting,
        control: &mut Control<'_>,
    ) -> Result<Outputs> {
        let kept = {
            let mut prepared = self.prepared();
            let found = prepared.iter().position(|p| p.problem == *problem && p.algorithm == algorithm);
            found.map(|at| prepared.remove(at))
        };
        let ready = match kept {
            Some(ready) => ready,
            None => Prepared::new(self, problem, algorithm)?,
        };
        ready.upload(self, inputs);
        let result = ready.run(self, &ready.bound, control, waiting, |_| {}).await;
        if !matches!(result, Err(Error::Device { .. } | Error::Lost { .. })) {
            let mut prepared = self.prepared();
            prepared.push(ready);
            let mut bytes: u64 = prepared.iter().map(|p| p.bytes).sum();
            while prepared.len() > KEPT || (prepared.len() > 1 && bytes > KEPT_BYTES) {
                bytes -= prepared.remove(0).bytes;
            }
        }
        result
    }

    /// Pipelines compiled so far.
    pub fn pipelines_compiled(&self) -> usize {
        self.pipelines().len()
    }
}

impl Prepared {
    pub(super) fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        Self::of(gpu, problem, algorithm, &Attention::new(gpu, problem, algorithm)?)
    }

    /// For an attention that was made of `problem`.
    pub(super) fn of(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, attention: &Attention) -> Result<Self> {
        let device = gpu.device();
        let mut bytes = attention.plan().scratch_bytes();
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut buffer = |label: &str, size: u64, usage: wgpu::BufferUsages| {
            let size = size.next_multiple_of(16).max(16);
            bytes += size;
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        let input = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        // A layer reads its queries, keys and values back too.
        let operand = input | wgpu::BufferUsages::COPY_SRC;
        let result = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let size = |operand| problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64;
        let query = buffer("query", size(Operand::Query), operand);
        let key = buffer("key", size(Operand::Key), operand);
        let value = buffer("value", size(Operand::Value), operand);
        let output_bytes = size(Operand::Output);
        let output = buffer("output", output_bytes, result);
        let table_bytes = 4 * u64::from(attention.plan().table_words());
        let tables = (table_bytes > 0).then(|| buffer("tables", table_bytes, input));
        let bias = problem.bias.map(|shape| buffer("bias", 4 * shape.elements().unwrap_or(0) as u64, input));
        let mask = problem.visibility.mask.map(|shape| buffer("mask", shape.elements().unwrap_or(0) as u64, input));
        let mut end = output_bytes.next_multiple_of(16);
        let mut extras = Vec::new();
        for (wanted, extra, label, len) in [
            (problem.want.lse, Extra::Lse, "lse", problem.lse_len()),
            (problem.want.scores.is_some(), Extra::Scores, "scores", problem.scores_len()),
            (problem.want.weights, Extra::Weights, "weights", problem.scores_len()),
        ] {
            if wanted {
                let size = 4 * len as u64;
                extras.push((extra, buffer(label, size, result), end..end + size));
                end = (end + size).next_multiple_of(16);
            }
        }
        let staging = buffer("read back", end, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        if let Some(error) = [pollster::block_on(validation.pop()), pollster::block_on(scope.pop())].into_iter().flatten().next() {
            return Err(Error::Device { why: error.to_string() });
        }
        let of = |wanted: Extra| extras.iter().find(|(extra, ..)| *extra == wanted).map(|(_, buffer, _)| buffer.as_entire_buffer_binding());
        let bound = attention.bind(&Bindings {
            tables: tables.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            bias: bias.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            mask: mask.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            lse: of(Extra::Lse),
            scores: of(Extra::Scores),
            weights: of(Extra::Weights),
            ..Bindings::new(&query, &key, &value, &output)
        })?;
        Ok(Self {
            problem: *problem,
            algorithm,
            bound,
            query,
            key,
            value,
            output,
            tables,
            bias,
            mask,
            extras,
            staging,
            output_bytes,
            bytes,
        })
    }

    /// Runs `bound`, which ends in this problem's output, and reads the outputs back; `copy` may record more copies.
    pub(super) async fn run(
        &self,
        gpu: &Gpu,
        bound: &Bound,
        control: &mut Control<'_>,
        waiting: Waiting,
        copy: impl Fn(&mut wgpu::CommandEncoder),
    ) -> Result<Outputs> {
        let submission = submit(gpu, bound, control, waiting, |encoder| {
            self.copy_out(encoder);
            copy(encoder);
        })
        .await?;
        let outputs = self.read_back(gpu, submission, waiting).await?;
        control.report(1.0)?;
        Ok(outputs)
    }

    pub(super) fn upload(&self, gpu: &Gpu, inputs: &Inputs<'_>) {
        for (operand, buffer, slice) in [
            (Operand::Query, &self.query, inputs.query),
            (Operand::Key, &self.key, inputs.key),
            (Operand::Value, &self.value, inputs.value),
        ] {
            let used = self.problem.spec(operand).dtype.bytes(self.problem.operand_len(operand));
            write(gpu, buffer, &HostSlice::bytes(&slice)[..used]);
        }
        self.upload_options(gpu, inputs);
    }

    /// All but query, key and value.
    pub(super) fn upload_options(&self, gpu: &Gpu, inputs: &Inputs<'_>) {
        if let Some(buffer) = &self.tables {
            write(gpu, buffer, &table_bytes(&self.problem, inputs));
        }
        if let Some(buffer) = &self.bias {
            write(gpu, buffer, bytemuck::cast_slice(inputs.bias));
        }
        if let Some(buffer) = &self.mask {
            write(gpu, buffer, bytemuck::cast_slice(inputs.mask));
        }
    }

    fn copy_out(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.copy_buffer_to_buffer(&self.output, 0, &self.staging, 0, self.output_bytes.next_multiple_of(4));
        for (_, buffer, place) in &self.extras {
            encoder.copy_buffer_to_buffer(buffer, 0, &self.staging, place.start, place.end - place.start);
        }
    }

    async fn read_back(&self, gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<Outputs> {
        map(gpu, &self.staging, submission, waiting).await?;
        let outputs = {
            let view = self.staging.get_mapped_range(..).map_err(|error| Error::Device { why: error.to_string() })?;
            let f32s = |wanted: Extra| {
                let (_, _, place) = self.extras.iter().find(|(extra, ..)| *extra == wanted)?;
                Some(bytemuck::pod_collect_to_vec::<u8, f32>(&view[place.start as usize..place.end as usize]))
            };
            Outputs {
                output: HostVec::from_bytes(self.problem.output.dtype, &view[..self.output_bytes as usize]),
                lse: f32s(Extra::Lse),
                scores: f32s(Extra::Scores),
                weights: f32s(Extra::Weights).map(|weights| weights.into_iter().map(|weight| weight + 0.0).collect()),
            }
        };
        self.staging.unmap();
        Ok(outputs)
    }
}

/// Submits `bound` and the copies that `copy` records after it; the last submission.
pub(super) async fn submit(
    gpu: &Gpu,
    bound: &Bound,
    control: &mut Control<'_>,
    waiting: Waiting,
    copy: impl Fn(&mut wgpu::CommandEncoder),
) -> Result<Option<wgpu::SubmissionIndex>> {
    let device = gpu.device();
    let pieces = pieces(gpu, bound);
    let mut submitted: Vec<wgpu::SubmissionIndex> = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention") });
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None });
            bound.record_steps(piece.clone(), &mut pass);
        }
        if index + 1 == pieces.len() {
            copy(&mut encoder);
        }
        submitted.push(gpu.queue().submit([encoder.finish()]));
        // Two pieces in flight: the device stays busy, and a cancel waits for two at most.
        if let Some(before) = index.checked_sub(1) {
            finished(gpu, submitted[before].clone(), waiting).await?;
            control.report(index as f64 / pieces.len() as f64)?;
        }
    }
    Ok(submitted.pop())
}

/// Dispatches that go into one submit: one submit for all of them, unless that would keep the device busy for long.
fn pieces(gpu: &Gpu, bound: &Bound) -> Vec<Range<usize>> {
    let budget = gpu.caps().dispatch_flops();
    let mut pieces = Vec::new();
    let (mut first, mut flops) = (0, 0.0);
    for step in 0..bound.dispatches() {
        if step > first && flops + bound.flops(step) > budget {
            pieces.push(first..step);
            (first, flops) = (step, 0.0);
        }
        flops += bound.flops(step);
    }
    pieces.push(first..bound.dispatches());
    pieces
}

/// Writes bytes of any number; the last word is filled up with zeros.
pub(super) fn write(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) {
    let whole = bytes.len() / 4 * 4;
    gpu.queue().write_buffer(buffer, 0, &bytes[..whole]);
    if whole < bytes.len() {
        let mut word = [0; 4];
        word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        gpu.queue().write_buffer(buffer, whole as u64, &word);
    }
}

/// Maps a buffer for reading, once `submission` is done.
pub(super) async fn map(gpu: &Gpu, buffer: &wgpu::Buffer, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let (sender, receiver) = oneshot_channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |result| {
        let _ = sender.send(result); // nobody listens any more: the call was dropped
    });
    poll(gpu, submission, waiting)?;
    match receiver.receive().await {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(Error::Lost { why: error.to_string() }),
        None => Err(Error::Lost { why: "the read-back never ended".into() }),
    }
}

/// Waits until `submission` is done.
async fn finished(gpu: &Gpu, submission: wgpu::SubmissionIndex, waiting: Waiting) -> Result<()> {
    let (sender, receiver) = oneshot_channel();
    gpu.queue().on_submitted_work_done(move || {
        let _ = sender.send(()); // nobody listens any more: the call was dropped
    });
    // What was submitted later is waited for too only where the callback is the only way to know.
    poll(gpu, Some(submission), waiting)?;
    if waiting == Waiting::Blocking {
        return Ok(());
    }
    receiver.receive().await.ok_or_else(|| Error::Lost { why: "the queue never finished".into() })
}

/// How a call waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// On the calling thread.
    Blocking,
    /// On a thread of its own, while the future is pending; in a browser the event loop drives the device.
    Async,
}

/// Makes sure that somebody polls the device until `submission` is done.
#[cfg(not(target_family = "wasm"))]
fn poll(gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let wait = wgpu::PollType::Wait { submission_index: submission, timeout: None };
    match waiting {
        Waiting::Blocking => gpu.device().poll(wait).map(|_| ()).map_err(|error| Error::Lost { why: error.to_string() }),
        Waiting::Async => {
            let device = gpu.device().clone();
            // A poll that fails leaves its callbacks dropped, which the receiver reports.
            std::thread::spawn(move || device.poll(wait).map(|_| ()));
            Ok(())
        }
    }
}

#[cfg(target_family = "wasm")]
fn poll(_: &Gpu, _: Option<wgpu::SubmissionIndex>, _: Waiting) -> Result<()> {
    Ok(())
}
