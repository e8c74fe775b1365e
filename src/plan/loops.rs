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
