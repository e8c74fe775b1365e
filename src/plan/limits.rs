//! Limits of a device and of the arithmetic in shaders, and dispatches short enough for a device.

use super::DeviceCaps;
use crate::error::{Error, Result};
use crate::problem::{Alignment, BroadcastShape, Operand, Problem, TableLayout};
use crate::wgsl::KernelKey;

/// Most keys of an invocation. The error of a chain of sums grows with its length; longer sums are merged from chains.
///
/// Relative error on lavapipe of 131,072 keys with 0.1 in every value: one chain 6.5e-4; chains of 4,096 keys 2.1e-5 to
/// 3.9e-5, depending on the kernel; chains of 2,048 keys at most 2e-5.
pub(crate) const CHAIN: usize = 2048;

/// Checks that shaders can address `problem`, with `table_words` words of tables: they count elements in u32, positions
/// in i32, and bind whole tensors.
pub(super) fn check_addressing(problem: &Problem, table_words: u32, caps: &DeviceCaps) -> Result<()> {
    let mut buffers: Vec<(&'static str, u64, u64)> = Operand::ALL
        .map(|operand| {
            let len = problem.operand_len(operand);
            (operand.name(), len as u64, problem.spec(operand).dtype.bytes(len) as u64)
        })
        .to_vec();
    buffers.push(("lse", problem.lse_len() as u64, 4 * problem.lse_len() as u64));
    buffers.push(("tables", table_words.into(), 4 * u64::from(table_words)));
    let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0) as u64;
    buffers.push(("mask", elements(problem.visibility.mask), elements(problem.visibility.mask)));
    buffers.push(("bias", elements(problem.bias), 4 * elements(problem.bias)));
    if problem.want.weights || problem.want.scores.is_some() {
        buffers.push(("weights or scores", problem.scores_len() as u64, 4 * problem.scores_len() as u64));
    }
    if problem.want.key_sums.is_some() {
        buffers.push(("key_sums", problem.key_sums_len() as u64, 4 * problem.key_sums_len() as u64));
    }
    for (name, elements, bytes) in buffers {
        if elements > u32::MAX.into() {
            return Err(too_many(name, elements));
        }
        // Keys and values may be bound in parts.
        let parts = ["key", "value"].contains(&name);
        let binding_bytes = if parts { u64::MAX } else { caps.binding_bytes };
        check_bytes(name, bytes, &DeviceCaps { binding_bytes, ..caps.clone() })?;
    }
    const FARTHEST: u64 = 1 << 29;
    let offset = if let Some(Alignment::Offset(offset)) = problem.visibility.alignment { offset.unsigned_abs().into() } else { 0 };
    let longest = offset.max(problem.dims.seq_len_q as u64).max(problem.dims.seq_len_kv as u64);
    if longest > FARTHEST {
        return Err(Error::Limit {
            limit: "positions in a shader",
            needed: longest,
            available: FARTHEST,
            remedy: "use shorter sequences or a smaller alignment offset".into(),
        });
    }
    Ok(())
}

/// Places the vectors of `problem` in the tables buffer, and returns its size in words.
pub(super) fn place_tables(problem: &Problem) -> Result<(TableLayout, u32)> {
    TableLayout::new(problem).ok_or_else(|| too_many("tables", u64::MAX))
}

fn too_many(name: &str, elements: u64) -> Error {
    Error::Limit {
        limit: "elements that a shader can count",
        needed: elements,
        available: u32::MAX.into(),
        remedy: format!("split the batch or the heads so that `{name}` gets smaller, or use Backend::Cpu"),
    }
}

/// Checks that one buffer of `bytes` can be created and bound.
pub(crate) fn check_bytes(name: &str, bytes: u64, caps: &DeviceCaps) -> Result<()> {
    for (limit, available) in [("max_storage_buffer_binding_size", caps.binding_bytes), ("max_buffer_size", caps.buffer_bytes)] {
        if bytes > available {
            return Err(Error::Limit {
                limit,
                needed: bytes,
                available,
                remedy: format!(
                    "`{name}` does not fit one binding: split the batch, the heads or the keys, store it as f16, or use Backend::Cpu"
                ),
            });
        }
    }
    Ok(())
}

/// Checks limits of a kernel that wgpu 30 does not check or reports late.
pub(super) fn check_kernel(key: &KernelKey, caps: &DeviceCaps) -> Result<()> {
    let storage_buffers = key.bindings().len() as u64 - 1;
    for (limit, needed, available, remedy) in [
        ("max_compute_workgroup_storage_size", key.workgroup_bytes().into(), u64::from(caps.workgroup_bytes), "use a smaller head_dim"),
        ("max_compute_invocations_per_workgroup", key.threads().into(), caps.workgroup_threads.into(), "request the adapter's own limits"),
        (
            "max_storage_buffers_per_shader_stage",
            storage_buffers,
            caps.storage_buffers.into(),
            "request the adapter's own limits, or drop the mask by putting it in the bias as -inf",
        ),
    ] {
        if needed > available {
            return Err(Error::Limit { limit, needed, available, remedy: format!("{remedy}, or use Backend::Cpu") });
        }
    }
    Ok(())
}

/// True if a workgroup of the kernel fits the device.
pub(super) fn fits(key: &KernelKey, caps: &DeviceCaps) -> bool {
    key.workgroup_bytes() <= caps.workgroup_bytes && key.threads() <= caps.workgroup_threads
}

/// Workgroups of one dispatch, in lines of `width`.
pub(crate) struct Piece {
    pub(crate) first: u32,
    pub(crate) end: u32,
    pub(crate) width: u32,
}

impl Piece {
    /// Workgroups along x and y.
    pub(crate) fn grid(&self) -> [u32; 2] {
        [self.width, (self.end - self.first).div_ceil(self.width)]
    }
}

/// Cuts `total` workgroups, `flops` in all, into dispatches that are short enough, with grids that the device allows.
pub(crate) fn pieces(total: u32, flops: f64, caps: &DeviceCaps) -> Vec<Piece> {
    let total = u64::from(total);
    let by_time = (flops / caps.dispatch_flops()).ceil().clamp(1.0, total.max(1) as f64) as u64;
    let width = u64::from(caps.workgroups_per_dimension);
    let by_size = total.div_ceil(width * width);
    let count = total.div_ceil(by_time.max(by_size)).max(1);
    (0..total.div_ceil(count))
        .map(|part| {
            let first = part * count;
            let end = (first + count).min(total);
            let lines = (end - first).div_ceil(width);
            Piece { first: first as u32, end: end as u32, width: (end - first).div_ceil(lines) as u32 }
        })
        .collect()
}

/// Converts `workgroups` to the grid of a step; an error where a shader cannot count them.
pub(crate) fn grid(workgroups: usize) -> Result<u32> {
    u32::try_from(workgroups).ok().filter(|&count| count < u32::MAX).ok_or(Error::Limit {
        limit: "workgroups that a shader can count",
        needed: workgroups as u64,
        available: u64::from(u32::MAX) - 1,
        remedy: "split the batch or the heads".into(),
    })
}
