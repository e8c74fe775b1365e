//! Times of dispatches, measured by the device.

use super::buffers::{ReadBack, storage};
use super::{Dispatches, Gpu, Waiting, block_on};
use crate::error::{Error, Result};

/// Dispatches that the device times one by one, for profilers.
///
/// Each has a compute pass of its own, between two timestamps. All together they take longer than in one pass.
#[derive(Debug)]
#[must_use = "nothing is computed until the dispatches are recorded"]
pub struct Timestamps {
    gpu: Gpu,
    dispatches: Dispatches,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    read_back: ReadBack,
}

/// Time of one dispatch.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DispatchTime {
    /// Name of the kernel.
    pub kernel: String,
    /// Time from the first to the last operation of its pass, as exact as the device's clock.
    pub nanoseconds: f64,
}

impl Timestamps {
    /// Prepares to time `dispatches`.
    ///
    /// Errors: a device without [`wgpu::Features::TIMESTAMP_QUERY`], no dispatch, more dispatches than a query set has room
    /// for (2,048).
    pub fn new(gpu: &Gpu, dispatches: &Dispatches) -> Result<Self> {
        if !gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::unsupported("timestamps on this device", "request wgpu::Features::TIMESTAMP_QUERY"));
        }
        let count = 2 * dispatches.dispatches() as u32;
        if !(2..=wgpu::QUERY_SET_MAX_QUERIES).contains(&count) {
            return Err(Error::invalid("dispatches", format!("are {}, must be 1 to 2,048", count / 2)));
        }
        let descriptor = wgpu::QuerySetDescriptor { label: Some("attention timestamps"), ty: wgpu::QueryType::Timestamp, count };
        let queries = gpu.guarded(|| gpu.device().create_query_set(&descriptor))?;
        let bytes = 8 * u64::from(count);
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = storage(gpu, "attention timestamps", bytes, usage)?;
        let read_back = ReadBack::new(gpu, [(resolved.clone(), bytes)])?;
        Ok(Self { gpu: gpu.clone(), dispatches: dispatches.clone(), queries, resolved, read_back })
    }

    /// Records the dispatches and their timestamps, like [`Dispatches::record`].
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        for (index, kernel) in self.dispatches.kernels().enumerate() {
            let first = 2 * index as u32;
            let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(kernel), timestamp_writes });
            self.dispatches.record_steps(index..index + 1, &mut pass);
        }
        encoder.resolve_query_set(&self.queries, 0..2 * self.dispatches.dispatches() as u32, &self.resolved, 0);
        self.read_back.copy(encoder);
    }

    /// Waits until all submitted work is done. Returns the times of the last recording, one per dispatch; zeros if none
    /// was submitted. In browsers: [`Self::read_async`].
    pub fn read(&self) -> Result<Vec<DispatchTime>> {
        block_on(self.times(Waiting::Blocking), "Timestamps::read_async")
    }

    /// [`Self::read`] without blocking.
    pub async fn read_async(&self) -> Result<Vec<DispatchTime>> {
        self.times(Waiting::Async).await
    }

    async fn times(&self, waiting: Waiting) -> Result<Vec<DispatchTime>> {
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        let times = |parts: &mut dyn Iterator<Item = &[u8]>| {
            let ticks: Vec<u64> = parts.flat_map(bytemuck::pod_collect_to_vec::<u8, u64>).collect();
            let nanoseconds = ticks.chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period);
            let kernels = self.dispatches.kernels().map(str::to_string);
            kernels.zip(nanoseconds).map(|(kernel, nanoseconds)| DispatchTime { kernel, nanoseconds }).collect()
        };
        self.read_back.read(&self.gpu, None, waiting, times).await
    }
}
