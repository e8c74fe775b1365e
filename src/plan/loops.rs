//! Limits on the work of an invocation, for devices that end all its loops after a number of iterations.
//!
//! Mesa's llvmpipe did so up to a version between 22.3 and 25.0 (65,535 iterations), and silently skipped the rest.

use super::DeviceCaps;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::wgsl::{GradientShape, Kernel, KernelKey, LaneShape, Lines, Params, StagedShape};

/// Most iterations over the words of a block list for a tile of so many rows: a tile of the list may be one row or key.
fn list_test(key: &KernelKey, rows: u32, keys: u32) -> u32 {
    let has_lists = key.terms.iter().any(|(_, term)| term.status.is_some());
    if has_lists { rows * (keys / 32 + 3) } else { 0 }
}

/// Most keys that an invocation of a fused kernel may visit, in whole blocks.
pub(super) fn keys_at_once(key: &KernelKey, caps: &DeviceCaps) -> usize {
    let [head, value] = [key.head_dim, key.head_dim_v].map(|dim| dim.div_ceil(4));
    let (keys, iterations) = match key.kernel {
        Kernel::Tiles(shape) => {
            let turns = |vecs: u32| (shape.block_keys() * vecs).div_ceil(shape.threads);
            let pairs = shape.rows * shape.keys;
            let skip_test = (shape.block_rows() * shape.block_keys()).div_ceil(shape.threads);
            let dropout = if key.is_switched() || key.dropout { 10 * pairs } else { 0 };
            let once = head + turns(head) + turns(value) + skip_test + shape.rows + 2 * pairs + dropout;
            (shape.block_keys(), once + shape.block_keys() * (1 + shape.rows))
        }
        Kernel::Lanes(shape) => {
            let slices = (head + value).div_ceil(shape.lanes) + 2;
            (shape.keys, shape.keys / shape.step * (2 + slices * (1 + shape.lanes) + 2 * shape.step * shape.rows) + shape.rows * shape.keys)
        }
        Kernel::Rows(shape) => {
            let dropout = if key.is_switched() || key.dropout { 10 * shape.step } else { 0 };
            (shape.keys, shape.keys / shape.step * (2 + (head + value) * (1 + shape.step) + 6 * shape.step + dropout))
        }
        Kernel::Decode(shape) => {
            let slices = head.div_ceil(shape.lanes) + value.div_ceil(shape.lanes);
            let skip_test = 4 * shape.rows;
            (shape.block_keys(), skip_test + 4 * (1 + shape.lanes * (2 + shape.rows + slices * (1 + shape.rows))))
        }
        Kernel::Matrix(shape) => (shape.keys, 64 * shape.keys),
        _ => return usize::MAX,
    };
    at_once(keys, iterations + list_test(key, key.kernel.block_rows(), keys), caps)
}

/// Most rows or keys that an invocation of a gradient kernel may stream, counted over all query heads of a group.
pub(super) fn stream_at_once(key: &KernelKey, shape: GradientShape, caps: &DeviceCaps) -> usize {
    let vecs = key.head_dim.div_ceil(4) + key.head_dim_v.div_ceil(4);
    let stream = shape.block_stream();
    let iterations = match shape {
        GradientShape::Tiles { threads, own, cols, stream: of_thread } => {
            let pairs = own * of_thread;
            let skip_test = (shape.block_own() * stream).div_ceil(threads);
            let dropout = if key.is_switched() || key.dropout { 10 * pairs } else { 0 };
            let sums = stream * own * (2 + 2 * vecs.div_ceil(cols));
            vecs + (stream * vecs).div_ceil(threads) + skip_test + 3 * pairs + dropout + sums
        }
        GradientShape::Vectors { lanes, own, stream: of_thread, .. } => {
            let slices = 2 * (vecs.div_ceil(lanes) + 2);
            stream / of_thread * (2 + slices * (1 + lanes) + 4 * of_thread * own) + own * stream
        }
    };
    let list_test = list_test(key, shape.block_own().max(stream), shape.block_own().min(stream));
    at_once(stream, iterations + list_test, caps)
}

/// Most elements in whole blocks of `size`, each of `iterations`. Half of the limit is left for work not counted here.
fn at_once(size: u32, iterations: u32, caps: &DeviceCaps) -> usize {
    caps.loop_iterations.map_or(usize::MAX, |most| ((most / 2 / iterations.max(1)) as usize).max(1) * size as usize)
}

/// Refuses a kernel that covers everything in one dispatch and whose invocations would be ended early.
pub(super) fn check(kernel: Kernel, params: &Params, problem: &Problem, caps: &DeviceCaps) -> Result<()> {
    let Some(most) = caps.loop_iterations else { return Ok(()) };
    let needed = iterations(kernel, params, problem);
    if needed <= u64::from(most) {
        return Ok(());
    }
    let staged = matches!(kernel, Kernel::Scores(_) | Kernel::Softmax(_) | Kernel::WeightedValues(_));
    let remedy = if staged { "use Algorithm::Fused, which has neither scores nor weights, or Backend::Cpu" } else { "use Backend::Cpu" };
    Err(Error::Limit { limit: "loop iterations of an invocation", needed, available: most.into(), remedy: remedy.into() })
}

/// Scores and weighted values by whole rows per thread.
fn by_lanes(shape: LaneShape, keys: u64, vecs: u64) -> u64 {
    let [lanes, rows, step] = [shape.lanes, shape.rows, shape.step].map(u64::from);
    keys.div_ceil(step) * (2 + vecs.div_ceil(lanes) * (1 + lanes) + 2 * step * rows) + 64
}

/// True if an invocation of a kernel that covers everything in one dispatch is not ended early.
pub(super) fn fits(kernel: Kernel, params: &Params, problem: &Problem, caps: &DeviceCaps) -> bool {
    caps.loop_iterations.is_none_or(|most| iterations(kernel, params, problem) <= u64::from(most))
}

/// Iterations of the longest invocation if only the loops over a thread's own rows and columns are unrolled.
fn iterations(kernel: Kernel, params: &Params, problem: &Problem) -> u64 {
    let [head, value] = [problem.dims.head_dim, problem.dims.head_dim_v].map(|dim| dim.div_ceil(4) as u64);
    let [rows, keys, batch] = [params.seq_len_q, params.seq_len_kv, params.batch].map(u64::from);
    let chunks = head.div_ceil(8) + value.div_ceil(8);
    let dropping = u64::from(problem.dropout_rule().is_some());
    // Measured on Mesa 22.3: at most 14 iterations for 8 vec4s.
    let square = 14 * chunks + 8 + 40 * dropping;
    match kernel {
        Kernel::Scores(StagedShape::Rows(shape)) => by_lanes(shape, shape.keys.into(), head),
        Kernel::Scores(StagedShape::Few(shape)) => {
            let (all, lanes) = (u64::from(params.group) * rows, u64::from(shape.lanes));
            StagedShape::FEW_KEYS as u64 / lanes * (head + all * (2 + head.div_ceil(lanes) * (1 + lanes))) + 64
        }
        Kernel::WeightedValues(StagedShape::Rows(shape)) => by_lanes(shape, keys, value) + 10 * dropping * u64::from(shape.rows) * keys,
        Kernel::WeightedValues(StagedShape::Few(shape)) => {
            let (of_block, lanes) = (u64::from(shape.rows), u64::from(shape.lanes));
            keys.div_ceil(lanes) * (1 + of_block * (1 + 10 * dropping) + lanes * (2 + 2 * of_block + 4)) + 64
        }
        Kernel::Scores(StagedShape::Tiles) => 64 * head.div_ceil(8) + 64,
        Kernel::Softmax(threads) => 3 * keys.div_ceil(threads.into()) + 16,
        // Measured on Mesa 22.3: 58 iterations for 32 keys.
        Kernel::WeightedValues(StagedShape::Tiles) => (58 + 160 * dropping) * keys.div_ceil(32) + 64,
        Kernel::Preprocess { .. } => value,
        Kernel::BiasGradient | Kernel::PairTableGradient(_) => {
            let extents = [batch, params.num_heads.into(), rows.div_ceil(16), keys.div_ceil(16)];
            let summed = extents.into_iter().zip(params.sums_strides).filter(|&(_, stride)| stride == 0);
            let terms: u64 = summed.map(|(extent, _)| extent).product();
            square * terms.div_ceil(params.splits.max(1).into()) + 64
        }
        Kernel::Diagonals => square * rows.min(keys).div_ceil(16) + 64,
        Kernel::RelativeGradient => batch * (3 * (rows + keys).div_ceil(64) + 1) + 16,
        Kernel::TableLines(lines, _) => {
            let squares = match lines {
                Lines::Rows => keys,
                Lines::Keys => rows,
                Lines::Diagonals => rows.min(keys),
            };
            square * squares.div_ceil(16).div_ceil(params.splits.max(1).into()) + 64
        }
        // One table element may be read by every line.
        Kernel::TableGradient => u64::from(params.splits).div_ceil(64) * u64::from(params.output_split_stride + 1) + 16,
        Kernel::SinkGradient => batch * (rows.div_ceil(64) + 1) + 16,
        Kernel::Sum => params.splits.into(),
        // Kernels that [`keys_at_once`] or [`stream_at_once`] limits, and kernels whose threads have little to do.
        Kernel::Tiles(_)
        | Kernel::Lanes(_)
        | Kernel::Rows(_)
        | Kernel::Decode(_)
        | Kernel::Matrix(_)
        | Kernel::TileList
        | Kernel::Merge
        | Kernel::RotateOutput
        | Kernel::QueryGradient(_)
        | Kernel::KeyGradient(..)
        | Kernel::KeySums(_)
        | Kernel::NarrowGradient(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Error;
    use crate::plan::{DeviceCaps, DeviceClass, Plan};
    use crate::problem::{Algorithm, Alignment, Dims, Problem, Varlen, WantGradients};

    fn caps(class: DeviceClass, loop_iterations: Option<u32>) -> DeviceCaps {
        let (subgroup_size, subgroup_max) = if class == DeviceClass::Software { (8, 8) } else { (32, 32) };
        let (workgroup_bytes, buffer_bytes) = (32768, 1 << 30);
        DeviceCaps { class, subgroup_size, subgroup_max, loop_iterations, workgroup_bytes, buffer_bytes, ..DeviceCaps::webgpu_defaults() }
    }

    /// Invocations visit no more keys than chain and device allow, however long the context; ranges join without a gap.
    #[test]
    fn invocations_are_short() {
        for (rows, keys, dim) in [(1, 1 << 20, 64), (16, 8192, 128), (5000, 100_000, 64), (1, 131_072, 576)] {
            let problem = Problem::new(Dims { seq_len_q: rows, ..Dims::self_attention(1, 2, keys, dim) });
            for caps in
                [caps(DeviceClass::Software, None), caps(DeviceClass::Software, Some(65_535)), caps(DeviceClass::Discrete, Some(65_535))]
            {
                let plan = Plan::new(&problem, &caps, Algorithm::Fused).expect("it fits");
                let steps = plan.steps.iter().filter(|step| step.key.partial);
                let most = super::keys_at_once(&plan.steps[0].key, &caps).min(super::super::limits::CHAIN);
                let mut last = 0..0;
                for step in steps {
                    let range = step.params.range_start as usize..(step.params.range_end as usize).min(keys);
                    assert!(range.len().div_ceil(step.params.splits as usize) <= most, "{}", plan.summary());
                    // Steps of other heads may bind the last range of keys again.
                    assert!(range.start == last.end || range == last, "{}", plan.summary());
                    last = range;
                }
                assert_eq!(last.end, keys, "{}", plan.summary());
            }
        }
    }

    /// Kernels that cover everything in one dispatch are refused where that is too much, with a remedy.
    #[test]
    fn what_is_too_long_is_refused() {
        let old = caps(DeviceClass::Software, Some(65_535));
        let plan = |problem: &Problem, algorithm| Plan::new(problem, &old, algorithm);
        let short = Problem::new(Dims { seq_len_q: 3, ..Dims::self_attention(1, 1, 30_000, 8) });
        let long = Problem { dims: Dims { seq_len_kv: 40_000, ..short.dims }, ..short.clone() };
        plan(&short, Algorithm::Staged).expect("it ends");
        assert!(matches!(plan(&long, Algorithm::Staged), Err(Error::Limit { limit: "loop iterations of an invocation", .. })));
        plan(&long, Algorithm::Auto).expect("fused");
        let want = |problem: &Problem| WantGradients { query: false, key: false, value: false, ..WantGradients::all(problem) };
        for (rows, fits) in [(1_000_000, true), (5_000_000, false)] {
            let problem =
                Problem { sinks: true, ..Problem::new(Dims { seq_len_q: rows, seq_len_kv: 1, ..Dims::self_attention(1, 1, rows, 4) }) };
            assert_eq!(Plan::backward(&problem, &want(&problem), &old).is_ok(), fits);
        }
    }

    /// Batches of one long and many short sequences are planned by their number of tokens.
    #[test]
    fn varlen_is_planned_by_tokens() {
        let tokens = 2048 + 1023 * 8;
        let dims = Dims { batch: 1024, ..Dims::self_attention(1024, 8, 2048, 64) };
        let varlen = Some(Varlen { tokens_q: tokens, tokens_kv: tokens });
        let problem = Problem { varlen, ..Problem::new(dims).aligned(Alignment::TopLeft).causal() };
        let caps = caps(DeviceClass::Software, None);
        let plan = Plan::new(&problem, &caps, Algorithm::Fused).expect("it fits");
        assert!(plan.dispatches() <= 10, "{} dispatches: {}", plan.dispatches(), plan.summary());
        let blocks = tokens.div_ceil(plan.kernel().block_rows() as usize) + 1024;
        assert!(plan.steps.iter().map(|step| step.params.end_workgroup).max() <= Some(8 * blocks as u32), "{}", plan.summary());
        let plan = Plan::backward(&problem, &WantGradients::default(), &caps).expect("it fits");
        assert!(plan.dispatches() <= 30, "{} dispatches: {}", plan.dispatches(), plan.summary());
    }
}
