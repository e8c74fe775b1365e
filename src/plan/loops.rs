//! Keys and rows that one invocation may go over on a device that ends every loop of an invocation after so many iterations in all.
//!
//! Mesa's llvmpipe did so until some version between 22.3 and 25.0 (65,535 iterations): what a kernel had left then was left out without a word.

use super::DeviceCaps;
use crate::shader::{GradientShape, Kernel, KernelKey};

/// Keys that an invocation of a fused kernel may go over, whole blocks of them.
pub(super) fn keys_at_once(key: &KernelKey, caps: &DeviceCaps) -> usize {
    let [head, value] = [key.head_dim, key.head_dim_v].map(|dim| dim.div_ceil(4));
    let (keys, iterations) = match key.kernel {
        Kernel::Tiles(shape) => {
            let turns = |vecs: u32| (shape.block_keys() * vecs).div_ceil(shape.threads);
            let pairs = shape.rows * shape.keys;
            let shown = (shape.block_rows() * shape.block_keys()).div_ceil(shape.threads);
            let dropout = if key.general || key.dropout { 10 * pairs } else { 0 };
            let once = head + turns(head) + turns(value) + shown + shape.rows + 2 * pairs + dropout;
            (shape.block_keys(), once + shape.block_keys() * (1 + shape.rows))
        }
        Kernel::Rows(shape) => {
            let slices = (head + value).div_ceil(shape.lanes) + 2;
            (shape.keys, shape.keys / shape.step * (2 + slices * (1 + shape.lanes) + 2 * shape.step * shape.rows) + shape.rows * shape.keys)
        }
        Kernel::Few(shape) => {
            let slices = head.div_ceil(shape.lanes) + value.div_ceil(shape.lanes);
            let shown = 4 * shape.rows;
            (shape.block_keys(), shown + 4 * (1 + shape.lanes * (2 + shape.rows + slices * (1 + shape.rows))))
        }
        Kernel::Matrix(shape) => (shape.keys, 64 * shape.keys),
        _ => return usize::MAX,
    };
    at_once(keys, iterations, caps)
}

/// Rows or keys, counted over all query heads of a group, that an invocation of a gradient kernel may go over.
pub(super) fn stream_at_once(key: &KernelKey, shape: GradientShape, caps: &DeviceCaps) -> usize {
    let vecs = key.head_dim.div_ceil(4) + key.head_dim_v.div_ceil(4);
    let stream = shape.block_stream();
    let iterations = match shape {
        GradientShape::Tiles { threads, own, cols, stream: of_thread } => {
            let pairs = own * of_thread;
            let shown = (shape.block_own() * stream).div_ceil(threads);
            let dropout = if key.general || key.dropout { 10 * pairs } else { 0 };
            let sums = stream * own * (2 + 2 * vecs.div_ceil(cols));
            vecs + (stream * vecs).div_ceil(threads) + shown + 3 * pairs + dropout + sums
        }
        GradientShape::Vectors { lanes, own, stream: of_thread, .. } => {
            let slices = 2 * (vecs.div_ceil(lanes) + 2);
            stream / of_thread * (2 + slices * (1 + lanes) + 4 * of_thread * own) + own * stream
        }
    };
    at_once(stream, iterations, caps)
}

/// Whole blocks of `size`, each of so many iterations. Half of what the device does is left for what is not counted here.
fn at_once(size: u32, iterations: u32, caps: &DeviceCaps) -> usize {
    caps.loop_iterations.map_or(usize::MAX, |most| ((most / 2 / iterations.max(1)) as usize).max(1) * size as usize)
}

#[cfg(test)]
mod tests {
    use crate::plan::{DeviceCaps, DeviceClass, Plan};
    use crate::{Algorithm, Alignment, Dims, Packed, Problem, WantGradients};

    fn caps(class: DeviceClass, loop_iterations: Option<u32>) -> DeviceCaps {
        let (subgroup_size, subgroup_max) = if class == DeviceClass::Software { (8, 8) } else { (32, 32) };
        let (workgroup_bytes, buffer_bytes) = (32768, 1 << 30);
        DeviceCaps { class, subgroup_size, subgroup_max, loop_iterations, workgroup_bytes, buffer_bytes, ..DeviceCaps::webgpu_defaults() }
    }

    /// However long the context, an invocation goes over no more keys than the chain and the device allow, and the ranges join without a gap.
    #[test]
    fn invocations_are_short() {
        for (rows, keys, dim) in [(1, 1 << 20, 64), (16, 8192, 128), (5000, 100_000, 64), (1, 131_072, 576)] {
            let problem = Problem::new(Dims { seq_len_q: rows, ..Dims::square(1, 2, keys, dim) });
            for caps in
                [caps(DeviceClass::Software, None), caps(DeviceClass::Software, Some(65_535)), caps(DeviceClass::Discrete, Some(65_535))]
            {
                let plan = Plan::new(&problem, &caps, Algorithm::Fused).expect("it fits");
                let steps = plan.steps.iter().filter(|step| step.key.partial);
                let most = super::keys_at_once(&plan.steps[0].key, &caps).min(super::super::fused::CHAIN);
                let mut last = 0..0;
                for step in steps {
                    let range = step.params.range_start as usize..(step.params.range_end as usize).min(keys);
                    assert!(range.len().div_ceil(step.params.splits as usize) <= most, "{}", plan.summary());
                    // Other heads may be bound with the keys of the last range.
                    assert!(range.start == last.end || range == last, "{}", plan.summary());
                    last = range;
                }
                assert_eq!(last.end, keys, "{}", plan.summary());
            }
        }
    }

    /// One long sequence among many short ones is planned by the tokens that there are.
    #[test]
    fn varlen_is_planned_by_tokens() {
        let tokens = 2048 + 1023 * 8;
        let dims = Dims { batch: 1024, ..Dims::square(1024, 8, 2048, 64) };
        let packed = Some(Packed { tokens_q: tokens, tokens_kv: tokens });
        let problem = Problem { packed, ..Problem::new(dims).causal(Alignment::TopLeft) };
        let caps = caps(DeviceClass::Software, None);
        let plan = Plan::new(&problem, &caps, Algorithm::Fused).expect("it fits");
        assert!(plan.dispatches() <= 10, "{} dispatches: {}", plan.dispatches(), plan.summary());
        let blocks = tokens.div_ceil(plan.kernel().block_rows() as usize) + 1024;
        assert!(plan.steps.iter().map(|step| step.params.end_workgroup).max() <= Some(8 * blocks as u32), "{}", plan.summary());
        let plan = Plan::backward(&problem, &WantGradients::default(), &caps).expect("it fits");
        assert!(plan.dispatches() <= 30, "{} dispatches: {}", plan.dispatches(), plan.summary());
    }
}
