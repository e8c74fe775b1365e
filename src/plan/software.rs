//! Kernels for software adapters, where a subgroup is a vector of the CPU: shaders/software/.

use super::suited::{ANY, Suited};
use super::{DeviceCaps, DeviceClass};
use crate::problem::Problem;
use crate::wgsl::{DecodeShape, GradientShape, Kernel, LaneShape, RowShape, StagedShape};

/// Shapes of the prefill kernel, fastest first, for subgroups of any size.
///
/// LLVM 15 (Mesa 22 to 25) compiles unrolled code slowly: a head of 64 takes 15 s with 4 rows and 2.6 s with 2, which
/// run just as fast (15 GFLOP/s; through workgroup memory 2); a head of 128 with 4 rows takes a minute. So there a
/// thread keeps at most 128 elements of queries. GFLOP/s of 2 cores with Mesa 26.2 lavapipe (processor time, host to
/// host), by rows x keys at a time:
/// - 1,8,1024,1024,64: 4x2 73, 4x4 60, 4x8 51, 3x4 52, 6x2 54, 8x2 56; through workgroup memory 38.
/// - 1,4,1024,1024,128: 4x2 64, 4x4 62, 4x8 59, 3x2 61, 3x4 58, 2x2 54, 2x4 51, tiles 7.
/// - Head of 256: 2x2 47 (4x2 48, but twice as long to compile), 1x4 35, tiles 3. Head of 576: 1x2 28.
const PREFILL: &[Suited<LaneShape>] = &[
    Suited { min_rows: 17, max_rows: ANY, max_dim: 128, shape: LaneShape { rows: 4, ..LANES } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: 256, shape: LaneShape { rows: 2, ..LANES } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: 576, shape: LaneShape { rows: 1, ..LANES } },
];

/// Defaults of the prefill shapes.
const LANES: LaneShape = LaneShape { lanes: 0, rows: 1, keys: 32, step: 2 };

/// Rows of the decode kernel, for subgroups of any size.
///
/// Decoding step 1,32:8,1,4096,128, processor ms with upload: Mesa 26.2 lavapipe 21, 512 bits 29 (prefill 50); 25.0.7 23.
const DECODE: &[Suited<u32>] = &[
    Suited { min_rows: 0, max_rows: 1, max_dim: ANY, shape: 1 },
    Suited { min_rows: 0, max_rows: 4, max_dim: ANY, shape: 4 },
    Suited { min_rows: 0, max_rows: 8, max_dim: ANY, shape: 8 },
];

/// Shape of the rows kernel's generic variants, for adapters that compile barriers slowly.
///
/// Through Dawn SwiftShader compiles one in 0.2 to 0.35 s, tiles in 0.8 to 1.1 s; specialised they are no faster than lanes
/// there. The first call on Mesa 22.3 would take 2.3 s instead of 0.8: LLVM unrolls all of it.
const ROWS: RowShape = RowShape { threads: 8, keys: 32, step: 4 };

/// Owned vectors of a thread in the gradient kernels.
///
/// CPU time in ms of dQ / dK and dV with lavapipe (Mesa 26.2), by owned x streamed vectors at a time. 8 heads of 64,
/// 2048 by 2048, forward 240: 4x4 310/460, 4x8 360/480, 4x2 400/500, 2x8 400/590, tiles ten times as much. 8 heads of
/// 128, 1024 by 1024, forward 140: 4x4 170/270, 2x4 200/300.
const GRADIENTS: &[Suited<u32>] =
    &[Suited { min_rows: 17, max_rows: ANY, max_dim: 128, shape: 4 }, Suited { min_rows: 9, max_rows: ANY, max_dim: 576, shape: 1 }];

/// Subgroup size of a software adapter; `None` where it is not fixed or the kernels do not support it.
fn lanes(caps: &DeviceCaps) -> Option<u32> {
    let is_fixed = caps.class == DeviceClass::Software && caps.subgroup_size == caps.subgroup_max;
    (is_fixed && [4, 8, 16].contains(&caps.subgroup_size)).then_some(caps.subgroup_size)
}

/// Returns the forward kernels that work on the device and compile in seconds, fastest first.
pub(super) fn kernels(problem: &Problem, caps: &DeviceCaps) -> impl Iterator<Item = Suited<Kernel>> {
    let widest = problem.dims.head_dim.max(problem.dims.head_dim_v);
    let most = if caps.slow_compiler { 128 } else { usize::MAX };
    lanes(caps).into_iter().flat_map(move |lanes| {
        let decode = DECODE.iter().map(move |suited| suited.map(|rows| Kernel::Decode(DecodeShape { lanes, rows })));
        let prefill = PREFILL.iter().filter(move |suited| suited.shape.rows as usize * widest <= most);
        decode.chain(prefill.map(move |suited| suited.map(|shape| Kernel::Lanes(LaneShape { lanes, ..shape }))))
    })
}

/// Kernel whose generic variants a software adapter compiles fastest, if those are not tiles.
pub(super) fn generic(widest: usize, caps: &DeviceCaps) -> Option<Kernel> {
    // A thread keeps a row of queries and one of output.
    (caps.slow_barriers && widest <= 576).then_some(Kernel::Rows(ROWS))
}

/// Keys of a workgroup that computes scores: enough to be worth the queries that it loads first.
const SCORES_KEYS: u32 = 256;

/// Returns the shape in which the staged algorithm multiplies rows of `dim` elements.
pub(super) fn staged(problem: &Problem, dim: usize, caps: &DeviceCaps) -> Option<StagedShape> {
    let lanes = lanes(caps)?;
    let d = &problem.dims;
    let few = DECODE.iter().find(|suited| suited.suits(d.seq_len_q * d.group(), dim));
    if let Some(few) = few {
        return Some(StagedShape::Few(DecodeShape { lanes, rows: few.shape }));
    }
    let most = if caps.slow_compiler { 128 } else { usize::MAX };
    let fits = |suited: &&Suited<LaneShape>| suited.suits(d.seq_len_q, dim) && suited.shape.rows as usize * dim <= most;
    PREFILL.iter().find(fits).map(|suited| StagedShape::Rows(LaneShape { lanes, keys: SCORES_KEYS, step: 4, ..suited.shape }))
}

/// Returns the shapes of gradient kernels that work on the device and compile in seconds, fastest first. A slow compiler
/// takes seconds for long unrolled code, so there a thread holds at most 64 elements of each array.
pub(super) fn gradients(widest: usize, caps: &DeviceCaps) -> impl Iterator<Item = Suited<GradientShape>> {
    let most = if caps.slow_compiler { 64 } else { usize::MAX };
    lanes(caps).into_iter().flat_map(move |lanes| {
        let shapes = GRADIENTS.iter().filter(move |suited| suited.shape as usize * widest <= most);
        shapes.map(move |suited| suited.map(|own| GradientShape::Vectors { lanes, own, tile: 32, stream: 4 }))
    })
}
