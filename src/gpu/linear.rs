//! Y = X·Wᵀ + b between buffers.

use super::Gpu;
use super::attention::BoundStep;
use super::pipeline::PipelineKey;
use crate::plan::{Piece, check_bytes, grid, pieces};
use crate::shader::{LinearKey, LinearParams, LinearTile};
use crate::{Error, Result};

/// One projection: W [out_features, in_features] row by row, and b.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) in_features: usize,
}

/// A projection in buffers of its own.
pub(super) struct DeviceLinear {
    weight: wgpu::Buffer,
    bias: Option<wgpu::Buffer>,
    in_features: usize,
    out_features: usize,
}

/// Where rows of Y go: `rows` of X, `item_rows` at a time to every `item_stride`-th row of Y.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) item_rows: usize,
    pub(super) item_stride: usize,
}

impl DeviceLinear {
    /// Uploads the weights.
    pub(super) fn new(gpu: &Gpu, name: &str, projection: Projection<'_>) -> Result<Self> {
        let upload = |data: &[f32]| -> Result<wgpu::Buffer> {
            let buffer = storage_buffer(gpu, name, data.len(), wgpu::BufferUsages::COPY_DST)?;
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
            Ok(buffer)
        };
        Ok(Self {
            weight: upload(projection.weight)?,
            bias: projection.bias.map(upload).transpose()?,
            in_features: projection.in_features,
            out_features: projection.weight.len() / projection.in_features,
        })
    }

    /// The dispatches that compute Y from X. The buffers are large enough: a layer makes them.
    pub(super) fn bind(&self, gpu: &Gpu, rows: Rows, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Vec<BoundStep>> {
        let tile = LinearTile::choose(rows.rows, gpu.caps());
        let vectors = self.in_features.is_multiple_of(4);
        let pipeline = gpu.pipelines().get(gpu, PipelineKey::Linear(LinearKey { tile, bias: self.bias.is_some(), vectors }))?;
        let workgroups = grid(rows.rows.div_ceil(tile.tile_m as usize) * self.out_features.div_ceil(tile.tile_n as usize))?;
        let flops = 2.0 * rows.rows as f64 * self.out_features as f64 * self.in_features as f64;
        let base = LinearParams {
            rows: rows.rows as u32,
            columns: self.out_features as u32,
            depth: self.in_features as u32,
            item_rows: rows.item_rows as u32,
            item_stride: rows.item_stride as u32,
            ..Default::default()
        };
        let parts = pieces(workgroups, flops, gpu.caps());
        let stride = (size_of::<LinearParams>() as u32).next_multiple_of(gpu.caps().uniform_alignment);
        let mut bytes = vec![0u8; stride as usize * parts.len().max(1)];
        for (slot, &Piece { first, end, width }) in bytes.chunks_exact_mut(stride as usize).zip(&parts) {
            let params = LinearParams { first_workgroup: first, end_workgroup: end, grid_width: width, ..base };
            slot[..size_of::<LinearParams>()].copy_from_slice(bytemuck::bytes_of(&params));
        }
        let device = gpu.device();
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("linear params"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&params, 0, &bytes);
        let size = wgpu::BufferSize::new(size_of::<LinearParams>() as u64);
        let uniform = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &params, offset: 0, size });
        let mut resources = vec![uniform, x.as_entire_binding(), self.weight.as_entire_binding(), y.as_entire_binding()];
        resources.extend(self.bias.as_ref().map(wgpu::Buffer::as_entire_binding));
        let entry = |(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource };
        let entries: Vec<_> = resources.into_iter().enumerate().map(entry).collect();
        let bind_group =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("linear"), layout: &pipeline.layout, entries: &entries });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(Error::Device { why: error.to_string() });
        }
        let step = |(index, piece): (usize, &Piece)| BoundStep {
            pipeline: pipeline.clone(),
            bind_group: bind_group.clone(),
            params_offset: index as u32 * stride,
            grid: piece.grid(),
            flops: flops * f64::from(piece.end - piece.first) / f64::from(workgroups),
        };
        Ok(parts.iter().enumerate().map(step).collect())
    }
}

/// A buffer of `len` numbers that kernels bind whole.
pub(super) fn storage_buffer(gpu: &Gpu, name: &str, len: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
    let bytes = (4 * len as u64).next_multiple_of(16).max(16);
    check_bytes(name, bytes, gpu.caps())?;
    if u32::try_from(len).is_err() {
        return Err(Error::Limit {
            limit: "elements that a shader can count",
            needed: len as u64,
            available: u32::MAX.into(),
            remedy: format!("split the batch so that `{name}` gets smaller, or use Backend::Cpu"),
        });
    }
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let usage = usage | wgpu::BufferUsages::STORAGE;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some(name), size: bytes, usage, mapped_at_creation: false });
    match pollster::block_on(scope.pop()) {
        Some(error) => Err(Error::Device { why: error.to_string() }),
        None => Ok(buffer),
    }
}
