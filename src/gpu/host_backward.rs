//! The backward pass from host slices to host vectors.

use std::ops::Range;

use super::host::{Waiting, map, submit, write};
use super::{Backward, BackwardBindings, Bound, Gpu};
use crate::plan::table_bytes;
use crate::problem::Operand;
use crate::{BackwardInputs, Control, Error, Gradients, HostVec, Inputs, Problem, Result, WantGradients};

/// Backward passes kept ready on a device; the least recently used go first.
const KEPT: usize = 16;
/// Bytes of buffers kept ready, besides the most recent one's.
const KEPT_BYTES: u64 = 512 << 20;

/// A backward pass with buffers of its own.
pub(super) struct PreparedBackward {
    problem: Problem,
    want: WantGradients,
    bound: Bound,
    /// query, key, value, output, d_output.
    operands: [wgpu::Buffer; 5],
    lse: wgpu::Buffer,
    tables: Option<wgpu::Buffer>,
    bias: Option<wgpu::Buffer>,
    mask: Option<wgpu::Buffer>,
    /// What is read back, with the place of each in `staging`.
    results: Vec<(Gradient, wgpu::Buffer, Range<u64>)>,
    staging: wgpu::Buffer,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradient {
    Query,
    Key,
    Value,
    Bias,
    RelativeBias,
    Sinks,
}

impl Gpu {
    /// Computes the gradients of `problem` that are wanted on host data. All has been checked.
    pub(crate) async fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        waiting: Waiting,
        control: &mut Control<'_>,
    ) -> Result<Gradients> {
        let kept = {
            let mut prepared = self.prepared_backward();
            let found = prepared.iter().position(|p| p.problem == *problem && p.want == *want);
            found.map(|at| prepared.remove(at))
        };
        let ready = match kept {
            Some(ready) => ready,
            None => PreparedBackward::new(self, problem, want)?,
        };
        ready.upload(self, inputs, backward);
        let result = ready.run(self, waiting, control).await;
        if !matches!(result, Err(Error::Device { .. } | Error::Lost { .. })) {
            let mut prepared = self.prepared_backward();
            prepared.push(ready);
            let mut bytes: u64 = prepared.iter().map(|p| p.bytes).sum();
            while prepared.len() > KEPT || (prepared.len() > 1 && bytes > KEPT_BYTES) {
                bytes -= prepared.remove(0).bytes;
            }
        }
        result
    }
}

impl PreparedBackward {
    fn new(gpu: &Gpu, problem: &Problem, want: &WantGradients) -> Result<Self> {
        let backward = Backward::new(gpu, problem, want)?;
        let device = gpu.device();
        let mut bytes = backward.plan().scratch_bytes();
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut buffer = |label: &str, size: u64, usage: wgpu::BufferUsages| {
            let size = size.next_multiple_of(16).max(16);
            bytes += size;
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        let input = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let result = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let size = |operand| problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64;
        let gradient = |operand| want.dtype(problem, operand).bytes(problem.operand_len(operand)) as u64;
        let operands = [Operand::Query, Operand::Key, Operand::Value, Operand::Output, Operand::Output]
            .map(|operand| buffer(operand.name(), size(operand), input));
        let lse = buffer("lse", 4 * problem.lse_len() as u64, input);
        let table_bytes = 4 * u64::from(backward.plan().table_words());
        let tables = (table_bytes > 0).then(|| buffer("tables", table_bytes, input));
        let bias = problem.bias.map(|shape| buffer("bias", 4 * shape.elements().unwrap_or(0) as u64, input));
        let mask = problem.visibility.mask.map(|shape| buffer("mask", shape.elements().unwrap_or(0) as u64, input));
        let mut end = 0;
        let mut results = Vec::new();
        for (wanted, gradient, label, size) in [
            (want.query, Gradient::Query, "d_query", gradient(Operand::Query)),
            (want.key, Gradient::Key, "d_key", gradient(Operand::Key)),
            (want.value, Gradient::Value, "d_value", gradient(Operand::Value)),
            (want.bias, Gradient::Bias, "d_bias", 4 * problem.bias.and_then(crate::Broadcast::elements).unwrap_or(0) as u64),
            (want.relative_bias, Gradient::RelativeBias, "d_relative_bias", 4 * problem.relative_bias_len() as u64),
            (want.sinks, Gradient::Sinks, "d_sinks", 4 * problem.dims.num_heads as u64),
        ] {
            if wanted {
                results.push((gradient, buffer(label, size, result), end..end + size));
                end = (end + size).next_multiple_of(16);
            }
        }
        let staging = buffer("read back", end, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        if let Some(error) = [pollster::block_on(validation.pop()), pollster::block_on(scope.pop())].into_iter().flatten().next() {
            return Err(Error::Device { why: error.to_string() });
        }
        let of = |wanted: Gradient| {
            results.iter().find(|(gradient, ..)| *gradient == wanted).map(|(_, buffer, _)| buffer.as_entire_buffer_binding())
        };
        let bound = backward.bind(&BackwardBindings {
            query: operands[0].as_entire_buffer_binding(),
            key: operands[1].as_entire_buffer_binding(),
            value: operands[2].as_entire_buffer_binding(),
            output: operands[3].as_entire_buffer_binding(),
            d_output: operands[4].as_entire_buffer_binding(),
            lse: lse.as_entire_buffer_binding(),
            tables: tables.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            bias: bias.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            mask: mask.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            d_query: of(Gradient::Query),
            d_key: of(Gradient::Key),
            d_value: of(Gradient::Value),
            d_bias: of(Gradient::Bias),
            d_relative_bias: of(Gradient::RelativeBias),
            d_sinks: of(Gradient::Sinks),
        })?;
        Ok(Self { problem: *problem, want: *want, bound, operands, lse, tables, bias, mask, results, staging, bytes })
    }

    fn upload(&self, gpu: &Gpu, inputs: &Inputs<'_>, backward: &BackwardInputs<'_>) {
        let slices = [inputs.query, inputs.key, inputs.value, backward.output, backward.d_output];
        let operands = [Operand::Query, Operand::Key, Operand::Value, Operand::Output, Operand::Output];
        for ((buffer, slice), operand) in self.operands.iter().zip(slices).zip(operands) {
            let used = self.problem.spec(operand).dtype.bytes(self.problem.operand_len(operand));
            write(gpu, buffer, &slice.bytes()[..used]);
        }
        write(gpu, &self.lse, bytemuck::cast_slice(backward.lse));
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

    async fn run(&self, gpu: &Gpu, waiting: Waiting, control: &mut Control<'_>) -> Result<Gradients> {
        let copy = |encoder: &mut wgpu::CommandEncoder| {
            for (_, buffer, place) in &self.results {
                let size = (place.end - place.start).next_multiple_of(4);
                encoder.copy_buffer_to_buffer(buffer, 0, &self.staging, place.start, size);
            }
        };
        let submission = submit(gpu, &self.bound, control, waiting, copy).await?;
        map(gpu, &self.staging, submission, waiting).await?;
        let gradients = {
            let view = self.staging.get_mapped_range(..).map_err(|error| Error::Device { why: error.to_string() })?;
            let bytes = |wanted: Gradient| {
                let (_, _, place) = self.results.iter().find(|(gradient, ..)| *gradient == wanted)?;
                Some(&view[place.start as usize..place.end as usize])
            };
            let dtype = |operand| self.want.dtype(&self.problem, operand);
            Gradients {
                query: bytes(Gradient::Query).map(|bytes| HostVec::from_bytes(dtype(Operand::Query), bytes)),
                key: bytes(Gradient::Key).map(|bytes| HostVec::from_bytes(dtype(Operand::Key), bytes)),
                value: bytes(Gradient::Value).map(|bytes| HostVec::from_bytes(dtype(Operand::Value), bytes)),
                bias: bytes(Gradient::Bias).map(bytemuck::pod_collect_to_vec),
                relative_bias: bytes(Gradient::RelativeBias).map(bytemuck::pod_collect_to_vec),
                sinks: bytes(Gradient::Sinks).map(bytemuck::pod_collect_to_vec),
            }
        };
        self.staging.unmap();
        control.report(1.0)?;
        Ok(gradients)
    }
}
