//! Findings about devices, for their owners to read.

use super::adapter::{choose_every, report};
use super::probe::run;
use super::{AdapterReport, Gpu, ShaderOptions, block_on};
use crate::error::Result;

/// Findings about a device where specifications leave it open. Kernels rely on none of them but `loop_iterations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings {
    /// Iterations after which all loops of an invocation end; `None` if unseen, or on a real GPU, which is not probed.
    pub loop_iterations: Option<u32>,
    /// True if `exp(NaN)` is NaN.
    pub exp_keeps_nan: bool,
    /// True if `max(NaN, 1.0)` is NaN.
    pub max_keeps_nan: bool,
    /// True if NaN differs from itself.
    pub nan_differs: bool,
    /// Bits of 70,000 as an f16 by `pack2x16float`; 0x7c00 is infinity.
    pub half_of_70000: u16,
    /// Number of threads in the first subgroup of a workgroup of 128, if there are subgroups.
    pub subgroup_size: Option<u32>,
    /// True if the lanes of each subgroup are consecutive threads, if there are subgroups.
    pub lanes_in_order: Option<bool>,
}

const NUMBERS: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(1) fn main() {
    let nan = bitcast<f32>(words[0]);
    words[0] = bitcast<u32>(exp(nan));
    words[1] = bitcast<u32>(max(nan, bitcast<f32>(words[1])));
    words[2] = pack2x16float(vec2<f32>(bitcast<f32>(words[2]), 0.0));
    words[3] = u32(nan != nan);
}";

const LANES: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(128) fn main(@builtin(local_invocation_index) at: u32, @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32) {
    words[2u * at] = size;
    words[2u * at + 1u] = lane;
}";

impl Gpu {
    /// Probes the device with a few tiny shaders: compiles, submits and waits. In browsers: [`Self::findings_async`].
    pub fn findings(&self) -> Result<Findings> {
        block_on(self.findings_async(), "Gpu::findings_async")
    }

    /// [`Self::findings`] for browsers, where it does not block.
    pub async fn findings_async(&self) -> Result<Findings> {
        let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
        let try_out =
            async |wgsl: &str, words: &[u32]| run(self.device(), self.queue(), wgsl, words).await.map_err(|why| self.failure(why));
        let numbers = try_out(NUMBERS, &[f32::NAN.to_bits(), 1.0f32.to_bits(), 70_000.0f32.to_bits(), 0]).await?;
        // Standard WGSL, which browsers take, enables subgroups; naga 30 rejects that line.
        let enable = if cfg!(target_family = "wasm") { "enable subgroups;\n" } else { "" };
        let has_lanes = self.caps().subgroup_size > 0;
        let lanes = if has_lanes { try_out(&format!("{enable}{LANES}"), &[0; 256]).await? } else { Vec::new() };
        let ordered = |(at, pair): (u32, &[u32])| pair[0] > 0 && at % pair[0] == pair[1];
        Ok(Findings {
            loop_iterations: self.caps().loop_iterations,
            exp_keeps_nan: is_nan(numbers[0]),
            max_keeps_nan: is_nan(numbers[1]),
            nan_differs: numbers[3] == 1,
            half_of_70000: numbers[2] as u16,
            subgroup_size: lanes.first().copied(),
            lanes_in_order: (!lanes.is_empty()).then(|| (0..).zip(lanes.chunks_exact(2)).all(ordered)),
        })
    }
}

/// [`super::list`] with the findings about each adapter, which is opened and probed.
pub async fn list_with_findings() -> Vec<(AdapterReport, Result<Findings>)> {
    let mut taken = false;
    let mut found = Vec::new();
    for chosen in choose_every().await {
        let findings = match Gpu::open(&chosen, ShaderOptions::default()).await {
            Ok(gpu) => gpu.findings_async().await,
            Err(error) => Err(error),
        };
        found.push((report(&chosen.adapter, &mut taken), findings));
    }
    found
}
