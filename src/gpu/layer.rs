//! Multi-head layer on a device, and its gradients: projections and attention in one recording each.

use std::borrow::Cow;

use super::buffers::{ReadBack, refilled};
use super::host::{Arguments, Prepared, read_back};
use super::linear::{DeviceLinear, Projection, RowMap, storage_buffer, transpose, uploaded};
use super::{Backward, Dispatches, Gpu, Waiting};
use crate::error::Result;
use crate::plan::BufferRef;
use crate::problem::{Algorithm, Inputs, Outputs, Problem, WantGradients};
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
    (steps, waiting): (bool, Waiting),
) -> Result<(Outputs, Vec<Vec<f32>>)> {
    let gpu = &gpu.for_call();
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
    let attention = prepared.outputs(&bound, &mut Progress::default(), waiting, copy).await?;
    let results = results.read(gpu, None, waiting, |parts| parts.map(bytemuck::pod_collect_to_vec).collect());
    Ok((attention, results.await?))
}

/// Projection Y = X·Wᵀ whose gradients are wanted.
pub(crate) struct ProjectionBackward<'a> {
    /// X [rows, in_features].
    pub(crate) x: Cow<'a, [f32]>,
    /// W [out_features, in_features].
    pub(crate) weight: &'a [f32],
    /// Selectors [sums, rows]: 1 for each row of dY that a sum includes.
    pub(crate) selectors: Vec<f32>,
    pub(crate) sums: usize,
    pub(crate) rows: usize,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
}

/// Data from which the gradients of a layer are computed, checked.
pub(crate) struct LayerBackwardParts<'a> {
    /// Projections to Q, K and V.
    pub(crate) sides: [ProjectionBackward<'a>; 3],
    pub(crate) output: ProjectionBackward<'a>,
    pub(crate) d_output: &'a [f32],
    /// Q, K, V and context.
    pub(crate) steps: [&'a [f32]; 4],
    pub(crate) stats: Option<&'a [[f32; 2]]>,
}

/// Gradients of a layer.
pub(crate) struct LayerBackwardResults {
    /// dX, dW and the sums of selected rows of dY, for the projections to Q, K, V and the output.
    pub(crate) projections: [[Vec<f32>; 3]; 4],
    /// Gradients of bias, relative biases, sinks and the user's tables.
    pub(crate) attention: [Option<Vec<f32>>; 4],
}

/// Recording in progress: its dispatches, and the buffers to read back.
struct Recording<'a> {
    gpu: &'a Gpu,
    bound: Dispatches,
    results: Vec<(wgpu::Buffer, u64)>,
}

impl Recording<'_> {
    /// Creates a buffer that is read back.
    fn result(&mut self, name: &str, len: usize) -> Result<wgpu::Buffer> {
        let buffer = storage_buffer(self.gpu, name, len, wgpu::BufferUsages::COPY_SRC)?;
        self.results.push((buffer.clone(), 4 * len as u64));
        Ok(buffer)
    }

    /// Records y [rows, columns] = x [rows, depth] · weightᵀ, with weight [columns, depth].
    fn multiply(&mut self, [rows, columns, depth]: [usize; 3], x: &wgpu::Buffer, weight: wgpu::Buffer, y: &wgpu::Buffer) -> Result<()> {
        let linear = DeviceLinear::from_buffer(weight, depth, columns);
        self.bound.steps.extend(linear.bind(self.gpu, RowMap::plain(rows), x, y)?);
        Ok(())
    }

    /// Records the transpose of x [rows, columns].
    fn transpose(&mut self, name: &str, [rows, columns]: [usize; 2], x: &wgpu::Buffer) -> Result<wgpu::Buffer> {
        let to = storage_buffer(self.gpu, name, rows * columns, wgpu::BufferUsages::empty())?;
        self.bound.steps.extend(transpose(self.gpu, rows, columns, x, &to)?);
        Ok(to)
    }

    /// Records dX, dW and the selected sums of a projection's dY, which are read back in this order. Returns dX.
    fn project_back(&mut self, side: &ProjectionBackward<'_>, d_y: &wgpu::Buffer) -> Result<wgpu::Buffer> {
        let &ProjectionBackward { sums, rows, in_features, out_features, .. } = side;
        let d_y_t = self.transpose("dYᵀ", [rows, out_features], d_y)?;
        let x_t = self.transpose("Xᵀ", [rows, in_features], &uploaded(self.gpu, "X", &side.x)?)?;
        let weight_t = self.transpose("Wᵀ", [out_features, in_features], &uploaded(self.gpu, "W", side.weight)?)?;
        let d_x = self.result("dX", rows * in_features)?;
        let d_weight = self.result("dW", out_features * in_features)?;
        let summed = self.result("db", sums * out_features)?;
        let selectors = uploaded(self.gpu, "selectors", &side.selectors)?;
        self.multiply([rows, in_features, out_features], d_y, weight_t, &d_x)?;
        self.multiply([out_features, in_features, rows], &d_y_t, x_t, &d_weight)?;
        self.multiply([sums, out_features, rows], &selectors, d_y_t, &summed)?;
        Ok(d_x)
    }
}

/// Computes the gradients of a layer.
pub(crate) async fn layer_backward(
    gpu: &Gpu,
    problem: &Problem,
    inputs: &Inputs<'_>,
    parts: &LayerBackwardParts<'_>,
    waiting: Waiting,
) -> Result<LayerBackwardResults> {
    let gpu = &gpu.for_call();
    let want = WantGradients::all(problem);
    let mut recording = Recording { gpu, bound: Dispatches { steps: Vec::new() }, results: Vec::new() };
    let d_output = uploaded(gpu, "dY", parts.d_output)?;
    let d_context = recording.project_back(&parts.output, &d_output)?;
    let [query, key, value, context] = parts.steps;
    let projected = Inputs { query: query.into(), key: key.into(), value: value.into(), ..*inputs };
    let mut computed = None;
    if parts.stats.is_none() {
        let forward = Prepared::forward(gpu, &problem.for_stats(), Algorithm::Auto)?;
        forward.upload(&projected)?;
        computed = forward.outputs(&forward.bound, &mut Progress::default(), waiting, |_| {}).await?.stats;
    }
    let stats = parts.stats.or(computed.as_deref()).unwrap_or_default();
    let (d_operands, extras) = attention(&mut recording, problem, &projected, (context, stats), &want, d_context)?;
    for (side, d_y) in parts.sides.iter().zip(&d_operands) {
        recording.project_back(side, d_y)?;
    }
    let mut results = read_back(gpu, &recording.bound, recording.results, waiting).await?.into_iter();
    let mut next = || results.next().unwrap_or_default();
    let output = [next(), next(), next()];
    let attention = extras.map(|wanted| wanted.then(&mut next));
    let [query, key, value] = [(); 3].map(|()| [next(), next(), next()]);
    Ok(LayerBackwardResults { projections: [query, key, value, output], attention })
}

/// Records the backward pass of the attention. Returns dQ, dK, dV, and which other gradients are read back.
fn attention(
    recording: &mut Recording<'_>,
    problem: &Problem,
    inputs: &Inputs<'_>,
    (context, stats): (&[f32], &[[f32; 2]]),
    want: &WantGradients,
    d_context: wgpu::Buffer,
) -> Result<([wgpu::Buffer; 3], [bool; 4])> {
    let gpu = recording.gpu;
    let ready = Backward::of(gpu, problem, want)?.0;
    let uploaded = ready.plan.arguments(false).filter(|&(place, _)| place != BufferRef::DOutput);
    let mut read = Arguments::new(gpu, uploaded, refilled(gpu))?;
    read.upload(gpu, problem, inputs, |place| match place {
        BufferRef::Output => Some(bytemuck::cast_slice(context)),
        BufferRef::Stats => Some(bytemuck::cast_slice(stats)),
        _ => None,
    })?;
    let bytes = d_context.size();
    read.0.push((BufferRef::DOutput, d_context, bytes));
    let written = Arguments::new(gpu, ready.plan.arguments(true), wgpu::BufferUsages::COPY_SRC)?;
    recording.bound.steps.extend(read.bind(&ready, &written)?.steps);
    let mut gradients = written.0.into_iter().map(|(_, buffer, bytes)| (buffer, bytes));
    let d_operands = [gradients.next(), gradients.next(), gradients.next()].map(|gradient| gradient.expect("all are wanted").0);
    recording.results.extend(gradients);
    Ok((d_operands, [want.bias, want.relative_bias, want.sinks, want.term_tables]))
}
