//! Multi-head layer on a device: its weights stay there, and a run is one upload and one recording.

use super::buffers::ReadBack;
use super::host::{Prepared, Waiting};
use super::linear::{DeviceLinear, Projection, RowMap, storage_buffer};
use super::{Dispatches, Gpu};
use crate::error::Result;
use crate::problem::{Algorithm, Inputs, Outputs, Problem};
use crate::progress::Progress;

/// Parts of a layer, as plain data that has been checked.
pub(crate) struct LayerParts<'a> {
    /// W_Q, W_K, W_V, W_O.
    pub(crate) projections: [Projection<'a>; 4],
    /// Rows of Q, and of K and V.
    pub(crate) rows: [RowMap; 2],
    /// Rows appended to every item of K and of V.
    pub(crate) appended: [Vec<f32>; 2],
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
        let mut prepared = Prepared::new(gpu, problem, algorithm)?;
        let [query, key, value, output] = parts.projections;
        let [rows_q, rows_kv] = parts.rows;
        let columns = output.weight.len() / output.in_features;
        let y = storage_buffer(gpu, "output", rows_q.all() * columns, wgpu::BufferUsages::COPY_SRC)?;
        let (mut x, mut bound) = (Vec::new(), Dispatches { steps: Vec::new() });
        for ([name, weight], projection, rows, to) in [
            (["query", "w_q"], query, rows_q, &prepared.query),
            (["key", "w_k"], key, rows_kv, &prepared.key),
            (["value", "w_v"], value, rows_kv, &prepared.value),
        ] {
            if x.is_empty() || !self_attention {
                x.push(storage_buffer(gpu, name, rows.own() * projection.in_features, wgpu::BufferUsages::COPY_DST)?);
            }
            bound.steps.extend(DeviceLinear::new(gpu, weight, projection)?.bind(gpu, rows, &x[x.len() - 1], to)?);
        }
        for (buffer, rows) in [&prepared.key, &prepared.value].into_iter().zip(&parts.appended).filter(|(_, rows)| !rows.is_empty()) {
            let width = rows.len() / rows_kv.appended;
            for item in 0..rows_kv.items {
                let at = 4 * ((item * (rows_kv.own + rows_kv.appended) + rows_kv.own) * width) as u64;
                gpu.guarded(|| gpu.queue().write_buffer(buffer, at, bytemuck::cast_slice(rows)))?;
            }
        }
        bound.steps.append(&mut prepared.bound.steps);
        bound.steps.extend(DeviceLinear::new(gpu, "w_o", output)?.bind(gpu, RowMap::plain(rows_q.all()), &prepared.output, &y)?);

        let numbers = |buffer: &wgpu::Buffer, len: usize| (buffer.clone(), 4 * len as u64);
        let mut results = vec![numbers(&y, rows_q.all() * columns)];
        if steps {
            results.push(numbers(&prepared.query, problem.query_len()));
            results.push(numbers(&prepared.key, problem.key_len()));
            results.push(numbers(&prepared.value, problem.value_len()));
        }
        Ok(Self { gpu: gpu.clone(), prepared, bound, x, results: ReadBack::new(gpu, results)? })
    }

    /// Returns the attention's outputs, then Y, and with `steps` Q, K, V. `inputs` has been checked.
    pub(crate) async fn run(&self, inputs: &Inputs<'_>, control: &mut Progress<'_>) -> Result<(Outputs, Vec<Vec<f32>>)> {
        self.gpu.guarded(|| {
            for (buffer, x) in self.x.iter().zip([inputs.query, inputs.key, inputs.value]) {
                self.gpu.queue().write_buffer(buffer, 0, x.bytes());
            }
            self.prepared.upload_options(&self.gpu, inputs);
        })?;
        let copy = |encoder: &mut wgpu::CommandEncoder| self.results.copy(encoder);
        let attention = self.prepared.run(&self.gpu, &self.bound, control, Waiting::Blocking, copy).await?;
        let results = self.results.read(&self.gpu, None, Waiting::Blocking, |parts| parts.map(bytemuck::pod_collect_to_vec).collect());
        Ok((attention, results.await?))
    }
}
