//! Y = X·Wᵀ + b between buffers, and transposition.

use std::sync::Arc;

use super::Gpu;
use super::buffers::{filled, storage, whole_vec4s};
use super::pipeline::{Pipeline, PipelineKey};
use super::steps::{BoundDispatch, dispatches};
use crate::error::{Error, Result};
use crate::plan::{Piece, check_bytes, grid, pieces};
use crate::wgsl::{LinearKey, LinearParams, LinearTile};

/// Projection with W [out_features, in_features] in row-major order, and b.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) in_features: usize,
}

/// Projection in buffers of its own.
pub(super) struct DeviceLinear {
    weight: wgpu::Buffer,
    bias: Option<wgpu::Buffer>,
    in_features: usize,
    out_features: usize,
}

/// Rows of Y: of each item its own rows, one for each row of X, then appended ones, which a projection leaves alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMap {
    pub(crate) items: usize,
    pub(crate) own: usize,
    pub(crate) appended: usize,
}

impl RowMap {
    pub(crate) const fn plain(rows: usize) -> Self {
        Self { items: 1, own: rows, appended: 0 }
    }

    /// Number of rows of X.
    pub(crate) const fn own(self) -> usize {
        self.items * self.own
    }

    /// Number of rows of Y.
    pub(crate) const fn all(self) -> usize {
        self.items * (self.own + self.appended)
    }
}

impl DeviceLinear {
    /// Uploads the weights.
    pub(super) fn new(gpu: &Gpu, name: &str, projection: Projection<'_>) -> Result<Self> {
        Ok(Self {
            weight: uploaded(gpu, name, projection.weight)?,
            bias: projection.bias.map(|bias| uploaded(gpu, name, bias)).transpose()?,
            in_features: projection.in_features,
            out_features: projection.weight.len() / projection.in_features,
        })
    }

    /// Wraps a W that is already in a buffer, without b.
    pub(super) fn from_buffer(weight: wgpu::Buffer, in_features: usize, out_features: usize) -> Self {
        Self { weight, bias: None, in_features, out_features }
    }

    /// Dispatches that compute Y from X. The layer that creates the buffers makes them large enough.
    pub(super) fn bind(&self, gpu: &Gpu, rows: RowMap, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Vec<BoundDispatch>> {
        self.bind_tiles(gpu, LinearTile::choose(rows.own(), gpu.caps()), rows, x, y)
    }

    fn bind_tiles(&self, gpu: &Gpu, tile: LinearTile, rows: RowMap, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Vec<BoundDispatch>> {
        let vectors = self.in_features.is_multiple_of(4);
        let pipeline = gpu.pipeline(PipelineKey::Linear(LinearKey { tile, bias: self.bias.is_some(), vectors }))?;
        let workgroups = grid(rows.own().div_ceil(tile.tile_m as usize) * self.out_features.div_ceil(tile.tile_n as usize))?;
        let flops = 2.0 * rows.own() as f64 * self.out_features as f64 * self.in_features as f64;
        let params = LinearParams {
            rows: rows.own() as u32,
            columns: self.out_features as u32,
            depth: self.in_features as u32,
            item_rows: rows.own as u32,
            item_stride: (rows.own + rows.appended) as u32,
            ..Default::default()
        };
        let buffers: Vec<&wgpu::Buffer> = [x, &self.weight, y].into_iter().chain(&self.bias).collect();
        in_pieces(gpu, &pipeline, params, (workgroups, flops), &buffers)
    }
}

/// Dispatches that write X [rows, columns] transposed to Y.
pub(super) fn transpose(gpu: &Gpu, rows: usize, columns: usize, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Vec<BoundDispatch>> {
    let pipeline = gpu.pipeline(PipelineKey::Transpose)?;
    let workgroups = grid(rows.div_ceil(16) * columns.div_ceil(16))?;
    let params = LinearParams { rows: rows as u32, columns: columns as u32, ..Default::default() };
    in_pieces(gpu, &pipeline, params, (workgroups, (rows * columns) as f64), &[x, y])
}

/// Dispatches of a kernel, cut to be short. `flops` is the work of all workgroups; buffers begin at binding 1.
fn in_pieces(
    gpu: &Gpu,
    pipeline: &Arc<Pipeline>,
    base: LinearParams,
    (workgroups, flops): (u32, f64),
    buffers: &[&wgpu::Buffer],
) -> Result<Vec<BoundDispatch>> {
    let piece = |piece: Piece| {
        let params = LinearParams { first_workgroup: piece.first, end_workgroup: piece.end, grid_width: piece.width, ..base };
        (params, piece.grid(), flops * f64::from(piece.end - piece.first) / f64::from(workgroups))
    };
    let each: Vec<_> = pieces(workgroups, flops, gpu.caps()).into_iter().map(piece).collect();
    let buffers: Vec<_> = (1..).zip(buffers.iter().map(|buffer| buffer.as_entire_buffer_binding())).collect();
    dispatches(gpu, pipeline, &buffers, &each)
}

/// Creates a buffer of `len` elements that kernels bind whole.
pub(super) fn storage_buffer(gpu: &Gpu, name: &str, len: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
    storage(gpu, name, checked_bytes(gpu, name, len)?, usage)
}

/// Creates a buffer with these elements that kernels bind whole.
pub(super) fn uploaded(gpu: &Gpu, name: &str, numbers: &[f32]) -> Result<wgpu::Buffer> {
    checked_bytes(gpu, name, numbers.len())?;
    filled(gpu, name, wgpu::BufferUsages::STORAGE, bytemuck::cast_slice(numbers))
}

/// Bytes of a buffer of `len` elements, if a device can bind it whole and a shader can count the elements.
fn checked_bytes(gpu: &Gpu, name: &str, len: usize) -> Result<u64> {
    let bytes = whole_vec4s(4 * len as u64);
    check_bytes(name, bytes, gpu.caps())?;
    if u32::try_from(len).is_err() {
        let remedy = format!("split the batch so that `{name}` gets smaller, or use Backend::Cpu");
        return Err(Error::limit("elements that a shader can count", len, u32::MAX as usize, remedy));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::host::read_back;
    use super::super::{Dispatches, Waiting, choose_every};
    use super::*;

    /// Computes Y on the device.
    fn run(gpu: &Gpu, tile: LinearTile, linear: &DeviceLinear, rows: RowMap, x: &[f32]) -> Vec<f32> {
        let len = rows.all() * linear.out_features;
        let from = uploaded(gpu, "x", x).expect("it fits");
        let to = storage_buffer(gpu, "y", len, wgpu::BufferUsages::COPY_SRC).expect("it fits");
        let bound = Dispatches { steps: linear.bind_tiles(gpu, tile, rows, &from, &to).expect("it is valid") };
        pollster::block_on(read_back(gpu, &bound, [(to, 4 * len as u64)], Waiting::Blocking)).expect("the device is there").remove(0)
    }

    /// Tests every kernel with tails on every adapter: whole vec4s with bias and gaps after items, or none of these.
    #[test]
    fn every_tile_agrees_with_three_loops() {
        let adapters = pollster::block_on(choose_every());
        assert!(!adapters.is_empty() || std::env::var_os("CI").is_none(), "NO GPU ADAPTER: install a (software) driver");
        let number = |at: usize| (at * 7 % 23) as f32 / 16.0 - 0.6875; // products and sums of these are exact in f32
        for chosen in &adapters {
            let gpu = pollster::block_on(Gpu::open(chosen, crate::gpu::ShaderOptions::default())).expect("it opens");
            for (m, n, k, biased) in [(17, 33, 5, false), (68, 131, 36, true)] {
                let weight: Vec<f32> = (0..n * k).map(number).collect();
                let bias: Vec<f32> = (0..n).map(number).collect();
                let x: Vec<f32> = (0..m * k).map(|at| number(at + 5)).collect();
                let rows = if biased { RowMap { items: 2, own: m / 2, appended: 1 } } else { RowMap::plain(m) };
                for tile in LinearTile::ALL {
                    let projection = Projection { weight: &weight, bias: biased.then_some(&bias), in_features: k };
                    let linear = DeviceLinear::new(&gpu, "w", projection).expect("it fits");
                    let y = run(&gpu, tile, &linear, rows, &x);
                    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                        let products = (0..k).map(|i| x[row * k + i] * weight[column * k + i]);
                        let expected = products.sum::<f32>() + if biased { bias[column] } else { 0.0 };
                        let got = y[(row + row / rows.own * rows.appended) * n + column];
                        assert_eq!(got, expected, "{tile:?} {m}x{n}x{k} at {row}, {column} on {}", gpu.name());
                    }
                }
            }
        }
    }
}
