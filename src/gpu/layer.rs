//! Multi-head layer on a device: its weights stay there, and a run is one upload and one recording.

use super::buffers::ReadBack;
use super::host::Prepared;
use super::linear::{DeviceLinear, Projection, RowMap, storage_buffer};
use super::{Dispatches, Gpu, Waiting};
use crate::error::Result;
use crate::plan::BufferRef;
use crate::problem::{Algorithm, Inputs, Outputs, Problem};
use crate::progress::Progress;

/// Parts of a layer, as plain data that has been checked.
pub(crate) struct LayerParts<'a> {
    /// W_Q, W_K, W_V, W_O.
    pub(crate) projections: [Projection<'a>; 4],
    /// Rows appended to every item of K and of V: whole rows, equally many of each.
    pub(crate) appended: [Vec<f32>; 2],
    /// Number of rows appended to an item.
    pub(crate) appended_rows: usize,
}

/// Layer prepared for one problem.
pub(crate) struct Layer {
    gpu: Gpu,
    prepared: Prepared,
    bound: Dispatches,
    /// X_q, X_k, X_v; only X_q in self-attention.
    x: Vec<wgpu::Buffer>,
    /// Results that are read back after the attention's own: Y, and with `steps` Q, K, V.
    results: ReadBack,
}

impl Layer {
    /// Uploads the weights and compiles the pipelines that are missing. With `self_attention`, X_k and X_v are X_q;
    /// with `steps`, Q, K and V are read back too.
    pub(crate) fn new(
        gpu: &Gpu,
        problem: &Problem,
        algorithm: Algorithm,
        parts: &LayerParts<'_>,
        self_attention: bool,
        steps: bool,
    ) -> Result<Self> {
        let prepared = Prepared::forward(gpu, problem, algorithm)?;
        let [to_query, to_key, to_value, context] =
            [BufferRef::Query, BufferRef::Key, BufferRef::Value, BufferRef::Output].map(|place| prepared.buffer(place).clone());
        let d = &problem.dims;
        let own_keys = d.seq_len_kv - parts.appended_rows;
        let (rows_q, rows_kv) = match problem.varlen {
            Some(varlen) => (varlen.tokens_q, varlen.tokens_kv),
            None => (d.batch * d.seq_len_q, d.batch * own_keys),
        };
        let plain = |rows| RowMap { rows, item_rows: rows, item_stride: rows };
        let keys = match problem.varlen {
            Some(_) => plain(rows_kv),
            None => RowMap { rows: rows_kv, item_rows: own_keys, item_stride: d.seq_len_kv },
        };
        let [query, key, value, output] = parts.projections;
        let mut x = vec![storage_buffer(gpu, "query", rows_q * query.in_features, wgpu::BufferUsages::COPY_DST)?];
        if !self_attention {
            x.push(storage_buffer(gpu, "key", rows_kv * key.in_features, wgpu::BufferUsages::COPY_DST)?);
            x.push(storage_buffer(gpu, "value", rows_kv * value.in_features, wgpu::BufferUsages::COPY_DST)?);
        }
        let columns = output.weight.len() / output.in_features;
        let y = storage_buffer(gpu, "output", rows_q * columns, wgpu::BufferUsages::COPY_SRC)?;

        let mut bound = Dispatches { steps: Vec::new() };
        for (index, (name, projection, rows, to)) in
            [("w_q", query, plain(rows_q), &to_query), ("w_k", key, keys, &to_key), ("w_v", value, keys, &to_value)].into_iter().enumerate()
        {
            let from = if self_attention { &x[0] } else { &x[index] };
            bound.steps.extend(DeviceLinear::new(gpu, name, projection)?.bind(gpu, rows, from, to)?);
        }
        for (buffer, rows) in [(&to_key, &parts.appended[0]), (&to_value, &parts.appended[1])] {
            let width = rows.len() / parts.appended_rows.max(1);
            for item in 0..if rows.is_empty() { 0 } else { d.batch } {
                let at = 4 * ((item * d.seq_len_kv + own_keys) * width) as u64;
                gpu.guarded(|| gpu.queue().write_buffer(buffer, at, bytemuck::cast_slice(rows)))?;
            }
        }
        let mut prepared = prepared;
        bound.steps.append(&mut prepared.bound.steps);
        bound.steps.extend(DeviceLinear::new(gpu, "w_o", output)?.bind(gpu, plain(rows_q), &context, &y)?);

        let numbers = |buffer: &wgpu::Buffer, len: usize| (buffer.clone(), 4 * len as u64);
        let mut results = vec![numbers(&y, rows_q * columns)];
        if steps {
            results.push(numbers(&to_query, problem.query_len()));
            results.push(numbers(&to_key, problem.key_len()));
            results.push(numbers(&to_value, problem.value_len()));
        }
        Ok(Self { gpu: gpu.clone(), prepared, bound, x, results: ReadBack::new(gpu, results)? })
    }

    /// Returns the attention's outputs, then Y, and with `steps` Q, K, V. `inputs` has been checked.
    pub(crate) async fn run(&self, inputs: &Inputs<'_>, control: &mut Progress<'_>) -> Result<(Outputs, Vec<Vec<f32>>)> {
        self.gpu.guarded(|| {
            for (buffer, x) in self.x.iter().zip([inputs.query, inputs.key, inputs.value]) {
                self.gpu.queue().write_buffer(buffer, 0, x.bytes());
            }
            self.prepared.upload_options(inputs);
        })?;
        let copy = |encoder: &mut wgpu::CommandEncoder| self.results.copy(encoder);
        let attention = self.prepared.outputs(&self.bound, control, Waiting::Blocking, copy).await?;
        let results = self.results.read(&self.gpu, None, Waiting::Blocking, |parts| parts.map(bytemuck::pod_collect_to_vec).collect());
        Ok((attention, results.await?))
    }
}
