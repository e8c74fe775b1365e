//! Calls from host slices to host vectors: upload, run, read back. Buffers are kept for the problem's next call.

use std::ops::Range;
use std::sync::Arc;

use futures_intrusive::channel::shared::{OneshotSender, oneshot_channel};

use super::buffers::{Options, ReadBack, refilled, storage, whole, write};
use super::{Attention, Bindings, Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::numbers::{HostSlice, HostVec};
use crate::problem::{Algorithm, Inputs, Operand, Outputs, Problem};
use crate::progress::Progress;

/// Problem with buffers of its own.
pub(super) struct Prepared {
    pub(super) problem: Problem,
    algorithm: Algorithm,
    pub(super) bound: Dispatches,
    pub(super) query: wgpu::Buffer,
    pub(super) key: wgpu::Buffer,
    pub(super) value: wgpu::Buffer,
    pub(super) output: wgpu::Buffer,
    options: Options,
    /// Output, then the other wanted results: lse, stats, scores, weights.
    results: ReadBack,
    scratch_bytes: u64,
}

impl Gpu {
    /// Computes `problem` on host data. Both have been checked.
    pub(crate) async fn attention(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        algorithm: Algorithm,
        waiting: Waiting,
        control: &mut Progress<'_>,
    ) -> Result<Outputs> {
        let kept = self.prepared().take(|kept| kept.problem == *problem && kept.algorithm == algorithm);
        let ready = match kept {
            Some(ready) => ready,
            None => Prepared::new(self, problem, algorithm)?,
        };
        ready.upload(self, inputs)?;
        let result = ready.run(self, &ready.bound, control, waiting, |_| {}).await;
        if !matches!(result, Err(Error::Device { .. } | Error::Lost { .. })) {
            let bytes = ready.bytes();
            self.prepared().keep(ready, bytes);
        }
        result
    }

    /// True if a call of this problem is prepared and not running.
    pub(crate) fn is_prepared(&self, problem: &Problem, algorithm: Algorithm) -> bool {
        self.prepared().has(|kept| kept.problem == *problem && kept.algorithm == algorithm)
    }

    /// Number of pipelines compiled so far.
    pub fn pipelines_compiled(&self) -> usize {
        self.pipelines().len()
    }
}

impl Prepared {
    pub(super) fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        Self::of(gpu, problem, algorithm, &Attention::of_plan(gpu, problem, gpu.plan(problem, algorithm)?, None)?)
    }

    /// Prepares buffers for an attention that was created from `problem`.
    pub(super) fn of(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, attention: &Attention) -> Result<Self> {
        // A layer also reads back its queries, keys and values.
        let operand = refilled(gpu) | wgpu::BufferUsages::COPY_SRC;
        let result = wgpu::BufferUsages::COPY_SRC;
        let size = |operand| problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64;
        let query = storage(gpu, "query", size(Operand::Query), operand)?;
        let key = storage(gpu, "key", size(Operand::Key), operand)?;
        let value = storage(gpu, "value", size(Operand::Value), operand)?;
        let output = storage(gpu, "output", size(Operand::Output), result)?;
        let options = Options::new(gpu, problem, attention.plan().table_words())?;
        let mut results = vec![(output.clone(), size(Operand::Output))];
        let mut wanted = |wanted: bool, label: &str, len: usize| {
            let buffer = wanted.then(|| storage(gpu, label, 4 * len as u64, result)).transpose()?;
            results.extend(buffer.iter().map(|buffer| (buffer.clone(), 4 * len as u64)));
            Ok::<_, Error>(buffer)
        };
        let lse = wanted(problem.want.lse, "lse", problem.lse_len())?;
        let stats = wanted(problem.want.stats, "stats", 2 * problem.lse_len())?;
        let scores = wanted(problem.want.scores.is_some(), "scores", problem.scores_len())?;
        let weights = wanted(problem.want.weights, "weights", problem.scores_len())?;
        let bound = attention.bind(&Bindings {
            tables: whole(&options.tables),
            bias: whole(&options.bias),
            mask: whole(&options.mask),
            lse: whole(&lse),
            stats: whole(&stats),
            scores: whole(&scores),
            weights: whole(&weights),
            ..Bindings::new(&query, &key, &value, &output)
        })?;
        let results = ReadBack::new(gpu, results)?;
        let scratch_bytes = attention.plan().scratch_bytes();
        Ok(Self { problem: *problem, algorithm, bound, query, key, value, output, options, results, scratch_bytes })
    }

    /// Bytes of all buffers.
    fn bytes(&self) -> u64 {
        let operands: u64 = [&self.query, &self.key, &self.value].map(wgpu::Buffer::size).iter().sum();
        self.scratch_bytes + operands + self.options.bytes() + self.results.bytes()
    }

    /// Runs `bound`, which ends in this problem's output, and reads the outputs back. `copy` may record more copies.
    pub(super) async fn run(
        &self,
        gpu: &Gpu,
        bound: &Dispatches,
        control: &mut Progress<'_>,
        waiting: Waiting,
        copy: impl Fn(&mut wgpu::CommandEncoder),
    ) -> Result<Outputs> {
        let submission = submit(gpu, bound, control, waiting, |encoder| {
            self.results.copy(encoder);
            copy(encoder);
        })
        .await?;
        let Problem { want, output, .. } = self.problem;
        let take = |parts: &mut dyn Iterator<Item = &[u8]>| {
            let output = HostVec::from_bytes(output.dtype, parts.next().unwrap_or_default());
            let mut next = |wanted: bool| if wanted { parts.next() } else { None };
            let f32s = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
            let lse = next(want.lse).map(f32s);
            let stats = next(want.stats).map(bytemuck::pod_collect_to_vec::<u8, [f32; 2]>);
            let scores = next(want.scores.is_some()).map(f32s);
            Outputs { output, lse, stats, scores, weights: next(want.weights).map(f32s) }
        };
        let outputs = self.results.read(gpu, submission, waiting, take).await?;
        control.report(1.0)?;
        Ok(outputs)
    }

    pub(super) fn upload(&self, gpu: &Gpu, inputs: &Inputs<'_>) -> Result<()> {
        gpu.guarded(|| {
            for (operand, buffer, slice) in [
                (Operand::Query, &self.query, inputs.query),
                (Operand::Key, &self.key, inputs.key),
                (Operand::Value, &self.value, inputs.value),
            ] {
                let used = self.problem.spec(operand).dtype.bytes(self.problem.operand_len(operand));
                write(gpu, buffer, &HostSlice::bytes(&slice)[..used]);
            }
            self.upload_options(gpu, inputs);
        })
    }

    /// Uploads everything but query, key and value. Call it within [`Gpu::guarded`].
    pub(super) fn upload_options(&self, gpu: &Gpu, inputs: &Inputs<'_>) {
        self.options.upload(gpu, &self.problem, inputs);
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
        // Two pieces are in flight: the device stays busy, and a cancellation waits for two at most.
        if let Some(before) = index.checked_sub(1) {
            finished(gpu, submitted[before].clone(), waiting).await?;
            control.report(index as f64 / pieces.len() as f64)?;
        }
    }
    Ok(submitted.pop())
}

/// Ranges of dispatches, one per submit: a single one unless it would keep the device busy for long.
fn pieces(gpu: &Gpu, bound: &Dispatches) -> Vec<Range<usize>> {
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

/// Signal that a call can go on, or why it cannot.
type Signal = OneshotSender<Result<(), String>>;

/// Maps a buffer for reading once `submission` is done.
pub(super) async fn map(gpu: &Gpu, buffer: &wgpu::Buffer, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let start = |signal: Arc<Signal>| {
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = signal.send(result.map_err(|error| error.to_string())); // fails if the call was dropped
        });
    };
    wait(gpu, start, submission, waiting).await
}

/// Waits until `submission` is done.
async fn finished(gpu: &Gpu, submission: wgpu::SubmissionIndex, waiting: Waiting) -> Result<()> {
    #[cfg(not(target_family = "wasm"))]
    if waiting == Waiting::Blocking {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        return super::loss::poll(gpu.device(), wait).map_err(|why| gpu.failure(why));
    }
    // wgpu signals once everything submitted so far is done: polling waits for that, not for `submission`.
    let _ = submission;
    let start = |signal: Arc<Signal>| {
        gpu.queue().on_submitted_work_done(move || {
            let _ = signal.send(Ok(())); // fails if the call was dropped
        });
    };
    wait(gpu, start, None, waiting).await
}

/// Waits for the signal that `start` requests from wgpu. Polls until `submission` is done, or all work without one.
async fn wait(gpu: &Gpu, start: impl FnOnce(Arc<Signal>), submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let (signal, receiver) = oneshot_channel();
    let signal = Arc::new(signal);
    gpu.guarded(|| start(Arc::clone(&signal)))?;
    poll(gpu, submission, waiting, signal);
    match receiver.receive().await {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => Err(gpu.failure(why)),
        None => Err(gpu.failure("the device never answered")),
    }
}

/// Way in which a call waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Polls on the calling thread.
    Blocking,
    /// Polls on a thread of its own while the future is pending; in a browser the event loop drives the device.
    Async,
}

/// Ensures that the device is polled until `submission` is done, and signals if that fails.
#[cfg(not(target_family = "wasm"))]
fn poll(gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting, signal: Arc<Signal>) {
    let device = gpu.device().clone();
    let poll = move || {
        if let Err(why) = super::loss::poll(&device, wgpu::PollType::Wait { submission_index: submission, timeout: None }) {
            let _ = signal.send(Err(why)); // already signalled, or the call was dropped
        }
    };
    match waiting {
        Waiting::Blocking => poll(),
        Waiting::Async => drop(std::thread::spawn(poll)),
    }
}

#[cfg(target_family = "wasm")]
fn poll(_: &Gpu, _: Option<wgpu::SubmissionIndex>, _: Waiting, _: Arc<Signal>) {}
