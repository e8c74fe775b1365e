//! Backward pass from host slices to host vectors.

use super::buffers::{Options, ReadBack, refilled, storage, whole, write};
use super::host::{Waiting, submit};
use super::{Backward, BackwardBindings, Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::numbers::HostVec;
use crate::problem::{Algorithm, BackwardInputs, Gradients, Inputs, Operand, Problem, Returns, WantGradients};
use crate::progress::Progress;

/// Backward pass with buffers of its own.
pub(super) struct PreparedBackward {
    problem: Problem,
    want: WantGradients,
    bound: Dispatches,
    /// Query, key, value, output, d_output.
    operands: [wgpu::Buffer; 5],
    stats: wgpu::Buffer,
    options: Options,
    /// Gradients that are wanted, in the order query, key, value, bias, relative biases, sinks.
    results: ReadBack,
    scratch_bytes: u64,
}

impl Gpu {
    /// Computes the wanted gradients of `problem` on host data. Everything has been checked.
    pub(crate) async fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        waiting: Waiting,
        control: &mut Progress<'_>,
    ) -> Result<Gradients> {
        let made = if backward.stats.is_some() { None } else { Some(self.stats_of(problem, inputs, waiting).await?) };
        let stats = backward.stats.or(made.as_deref()).unwrap_or_default();
        let kept = self.prepared_backward().take(|kept| kept.problem == *problem && kept.want == *want);
        let ready = match kept {
            Some(ready) => ready,
            None => PreparedBackward::of(self, problem, want, &Backward::of(self, problem, want)?)?,
        };
        ready.upload(self, inputs, backward, stats)?;
        let result = ready.run(self, waiting, control).await;
        if !matches!(result, Err(Error::Device { .. } | Error::Lost { .. })) {
            let bytes = ready.bytes();
            self.prepared_backward().keep(ready, bytes);
        }
        result
    }

    /// True if a call for these gradients is prepared and not running.
    pub(crate) fn is_backward_prepared(&self, problem: &Problem, want: &WantGradients) -> bool {
        self.prepared_backward().has(|kept| kept.problem == *problem && kept.want == *want)
    }

    /// Softmax statistics by a forward pass over all keys.
    pub(super) async fn stats_of(&self, problem: &Problem, inputs: &Inputs<'_>, waiting: Waiting) -> Result<Vec<[f32; 2]>> {
        let problem = Problem { want: Returns { stats: true, ..Returns::default() }, dropout: None, ..*problem };
        let forward = self.attention(&problem, inputs, Algorithm::Auto, waiting, &mut Progress::default()).await?;
        Ok(forward.stats.unwrap_or_default())
    }
}

impl PreparedBackward {
    pub(super) fn of(gpu: &Gpu, problem: &Problem, want: &WantGradients, backward: &Backward) -> Result<Self> {
        let (input, result) = (refilled(gpu), wgpu::BufferUsages::COPY_SRC);
        let operand = |label: &str, operand| {
            let bytes = problem.spec(operand).dtype.bytes(problem.operand_len(operand));
            storage(gpu, label, bytes as u64, input)
        };
        let operands = [
            operand("query", Operand::Query)?,
            operand("key", Operand::Key)?,
            operand("value", Operand::Value)?,
            operand("output", Operand::Output)?,
            operand("d_output", Operand::Output)?,
        ];
        let stats = storage(gpu, "stats", 8 * problem.lse_len() as u64, input)?;
        let options = Options::new(gpu, problem, backward.plan().table_words())?;
        let mut results = Vec::new();
        let mut wanted = |wanted: bool, label: &str, bytes: usize| {
            let buffer = wanted.then(|| storage(gpu, label, bytes as u64, result)).transpose()?;
            results.extend(buffer.iter().map(|buffer| (buffer.clone(), bytes as u64)));
            Ok::<_, Error>(buffer)
        };
        let gradient = |operand| want.dtype(problem, operand).bytes(problem.operand_len(operand));
        let d_query = wanted(want.query, "d_query", gradient(Operand::Query))?;
        let d_key = wanted(want.key, "d_key", gradient(Operand::Key))?;
        let d_value = wanted(want.value, "d_value", gradient(Operand::Value))?;
        let d_bias = wanted(want.bias, "d_bias", 4 * problem.bias.and_then(crate::problem::BroadcastShape::elements).unwrap_or(0))?;
        let d_relative_bias = wanted(want.relative_bias, "d_relative_bias", 4 * problem.relative_bias_len())?;
        let d_sinks = wanted(want.sinks, "d_sinks", 4 * problem.dims.num_heads)?;
        let bound = backward.bind(&BackwardBindings {
            query: operands[0].as_entire_buffer_binding(),
            key: operands[1].as_entire_buffer_binding(),
            value: operands[2].as_entire_buffer_binding(),
            output: operands[3].as_entire_buffer_binding(),
            d_output: operands[4].as_entire_buffer_binding(),
            stats: stats.as_entire_buffer_binding(),
            tables: whole(&options.tables),
            bias: whole(&options.bias),
            mask: whole(&options.mask),
            d_query: whole(&d_query),
            d_key: whole(&d_key),
            d_value: whole(&d_value),
            d_bias: whole(&d_bias),
            d_relative_bias: whole(&d_relative_bias),
            d_sinks: whole(&d_sinks),
        })?;
        let results = ReadBack::new(gpu, results)?;
        let scratch_bytes = backward.plan().scratch_bytes();
        Ok(Self { problem: *problem, want: *want, bound, operands, stats, options, results, scratch_bytes })
    }

    /// Bytes of all buffers.
    fn bytes(&self) -> u64 {
        let operands: u64 = self.operands.iter().map(wgpu::Buffer::size).sum();
        self.scratch_bytes + operands + self.stats.size() + self.options.bytes() + self.results.bytes()
    }

    pub(super) fn upload(&self, gpu: &Gpu, inputs: &Inputs<'_>, backward: &BackwardInputs<'_>, stats: &[[f32; 2]]) -> Result<()> {
        let slices = [inputs.query, inputs.key, inputs.value, backward.output, backward.d_output];
        let operands = [Operand::Query, Operand::Key, Operand::Value, Operand::Output, Operand::Output];
        gpu.guarded(|| {
            for ((buffer, slice), operand) in self.operands.iter().zip(slices).zip(operands) {
                let used = self.problem.spec(operand).dtype.bytes(self.problem.operand_len(operand));
                write(gpu, buffer, &slice.bytes()[..used]);
            }
            write(gpu, &self.stats, bytemuck::cast_slice(stats));
            self.options.upload(gpu, &self.problem, inputs);
        })
    }

    pub(super) async fn run(&self, gpu: &Gpu, waiting: Waiting, control: &mut Progress<'_>) -> Result<Gradients> {
        let submission = submit(gpu, &self.bound, control, waiting, |encoder| self.results.copy(encoder)).await?;
        let Self { problem, want, .. } = self;
        let take = |parts: &mut dyn Iterator<Item = &[u8]>| {
            let mut next = |wanted: bool| wanted.then(|| parts.next()).flatten();
            let mut stored = |wanted: bool, operand| next(wanted).map(|bytes| HostVec::from_bytes(want.dtype(problem, operand), bytes));
            let query = stored(want.query, Operand::Query);
            let key = stored(want.key, Operand::Key);
            let value = stored(want.value, Operand::Value);
            let bias = next(want.bias).map(bytemuck::pod_collect_to_vec);
            let relative_bias = next(want.relative_bias).map(bytemuck::pod_collect_to_vec);
            let sinks = next(want.sinks).map(bytemuck::pod_collect_to_vec);
            Gradients { query, key, value, bias, relative_bias, sinks }
        };
        let gradients = self.results.read(gpu, submission, waiting, take).await?;
        control.report(1.0)?;
        Ok(gradients)
    }
}
