//! Multi-head layer on a device: one upload and one recording.

use super::buffers::ReadBack;
use super::host::Prepared;
use super::linear::{DeviceLinear, Projection, RowMap, storage_buffer, uploaded};
use super::{Dispatches, Gpu, Waiting};
use crate::error::Result;
use crate::plan::BufferRef;
use crate::problem::{Algorithm, Inputs, Outputs, Problem};
use crate::progress::Progress;

/// Parts of a layer and its inputs, as plain data that has been checked.
pub(crate) struct LayerParts<'a> {
    /// X_q, X_k, X_v, none of them empty.
    pub(crate) x: [&'a [f32]; 3],
    /// W_Q, W_K, W_V, W_O.
    pub(crate) projections: [Projection<'a>; 4],
    /// Rows of Q, and of K and V.
    pub(crate) rows: [RowMap; 2],
    /// Rows appended to every item of K and of V.
    pub(crate) appended: [Vec<f32>; 2],
}

/// Computes a layer. Returns the attention's outputs, then Y, and with `steps` Q, K, V. `inputs` has the options' data.
pub(crate) async fn layer(
    gpu: &Gpu,
    problem: &Problem,
    algorithm: Algorithm,
    inputs: &Inputs<'_>,
    parts: &LayerParts<'_>,
    steps: bool,
) -> Result<(Outputs, Vec<Vec<f32>>)> {
    let mut prepared = Prepared::forward(gpu, problem, algorithm)?;
    let [to_query, to_key, to_value, context] =
        [BufferRef::Query, BufferRef::Key, BufferRef::Value, BufferRef::Output].map(|place| prepared.buffer(place).clone());
    let ([rows_q, rows_kv], output) = (parts.rows, parts.projections[3]);
    let mut bound = Dispatches { steps: Vec::new() };
    let mut last: Option<(&[f32], wgpu::Buffer)> = None;
    for (([name, weight], rows, to), (&projection, x)) in
        [(["query", "w_q"], rows_q, &to_query), (["key", "w_k"], rows_kv, &to_key), (["value", "w_v"], rows_kv, &to_value)]
            .into_iter()
            .zip(parts.projections.iter().zip(parts.x))
    {
        // In self-attention the three are one slice.
        let from = match last.take() {
            Some((same, buffer)) if std::ptr::eq(same, x) => buffer,
            _ => uploaded(gpu, name, x)?,
        };
        bound.steps.extend(DeviceLinear::new(gpu, weight, projection)?.bind(gpu, rows, &from, to)?);
        last = Some((x, from));
    }
    for (buffer, rows) in [&to_key, &to_value].into_iter().zip(&parts.appended).filter(|(_, rows)| !rows.is_empty()) {
        let width = rows.len() / rows_kv.appended;
        for item in 0..rows_kv.items {
            let at = 4 * ((item * (rows_kv.own + rows_kv.appended) + rows_kv.own) * width) as u64;
            gpu.guarded(|| gpu.queue().write_buffer(buffer, at, bytemuck::cast_slice(rows)))?;
        }
    }
    let columns = output.weight.len() / output.in_features;
    let y = storage_buffer(gpu, "output", rows_q.all() * columns, wgpu::BufferUsages::COPY_SRC)?;
    bound.steps.append(&mut prepared.bound.steps);
    bound.steps.extend(DeviceLinear::new(gpu, "w_o", output)?.bind(gpu, RowMap::plain(rows_q.all()), &context, &y)?);

    let wanted =
        [(&y, rows_q.all() * columns), (&to_query, problem.query_len()), (&to_key, problem.key_len()), (&to_value, problem.value_len())];
    let wanted = wanted.into_iter().take(if steps { 4 } else { 1 });
    let results = ReadBack::new(gpu, wanted.map(|(buffer, len)| (buffer.clone(), 4 * len as u64)))?;
    gpu.guarded(|| prepared.upload_options(inputs))?;
    let copy = |encoder: &mut wgpu::CommandEncoder| results.copy(encoder);
    let attention = prepared.outputs(&bound, &mut Progress::default(), Waiting::Blocking, copy).await?;
    let results = results.read(gpu, None, Waiting::Blocking, |parts| parts.map(bytemuck::pod_collect_to_vec).collect());
    Ok((attention, results.await?))
}
