//! Steps that sum the weights of each key, after a forward pass that has written the softmax statistics.

use super::builder::Builder;
use super::gradient_shapes::{FEW, FEW_ROWS, GENERIC, TILES};
use super::limits::{CHAIN, check_bytes, fits, grid};
use super::step::BufferRef;
use super::{loops, software};
use crate::error::{Error, Result};
use crate::problem::SummedRows;
use crate::wgsl::{Flags, GradientShape, Kernel, KernelKey, Params, Slot};

/// Buffers that the sums are computed from.
pub(super) struct From {
    /// (m, l) of the rows.
    pub(super) stats: BufferRef,
    /// Params and buffer of a list of visible tiles, in place of the tables.
    pub(super) list: Option<(Params, BufferRef)>,
}

/// Returns the buffer for the statistics, if a kernel of the plan writes any: the caller's, else scratch.
pub(super) fn stats(plan: &mut Builder<'_>) -> Result<BufferRef> {
    let want = plan.problem.want;
    if want.stats || want.key_sums.is_none() {
        return Ok(BufferRef::Stats);
    }
    plan.scratch("softmax statistics", 8 * plan.problem.lse_len() as u64)
}

/// Adds the sums that the problem wants, in the generic or specialised variant. A workgroup owns some keys of a key/value
/// head and visits the summed rows of its query heads, in steps that add up.
pub(super) fn push(plan: &mut Builder<'_>, generic: bool, from: From) -> Result<()> {
    let problem = plan.problem;
    let Some(summed) = problem.want.key_sums else { return Ok(()) };
    let d = &problem.dims;
    check_bytes("key", problem.key.dtype.bytes(problem.key_len()) as u64, plan.caps)?;
    let rows = summed.of(d.seq_len_q);
    let (key, shape) = choose(plan, generic, rows, from.list.is_some())?;
    let blocks = d.seq_len_kv.div_ceil(shape.block_own() as usize);
    let at_once = (loops::stream_at_once(&key, shape, plan.caps).min(CHAIN) / d.group().max(1)).max(1);
    // Banks of a cache write to parts of one buffer.
    let [heads, first_head] = plan.cache.map_or([d.num_kv_heads, 0], |words| words.kv_heads(problem));
    check_bytes("key_sums", 4 * (d.batch * heads * d.seq_len_kv) as u64, plan.caps)?;
    let pairs = (rows * d.batch * d.num_heads) as f64 * d.seq_len_kv as f64;
    let (base, bits) = from.list.map_or((plan.params(), None), |(params, bits)| (params, Some(bits)));
    for step in 0..rows.div_ceil(at_once).max(1) {
        let range = [step * at_once, rows.min((step + 1) * at_once)];
        let params = Params {
            pack: 1,
            splits: 1,
            head_dim_v: 1,
            sums_strides: [grid(heads * d.seq_len_kv)?, d.seq_len_kv as u32, 0, 1],
            sums_start: grid(first_head * d.seq_len_kv)?,
            item_blocks: grid(blocks)?,
            end_workgroup: grid(d.batch * d.num_kv_heads * blocks)?,
            range_start: range[0] as u32,
            range_end: range[1] as u32,
            summed_rows: if summed == SummedRows::All { u32::MAX } else { rows as u32 },
            flags: base.flags | if step > 0 { Flags::ADDS } else { 0 },
            ..base
        };
        let share = (range[1] - range[0]) as f64 / rows.max(1) as f64;
        plan.push(key.clone(), params, share * 2.0 * pairs * (d.head_dim + 1) as f64, |slot| match slot {
            Slot::ForwardStats => Some(from.stats),
            Slot::Sums => Some(BufferRef::KeySums),
            Slot::Tables => bits,
            _ => None,
        })?;
    }
    Ok(())
}

/// Returns the first shape that is meant for so many rows and for the problem's keys, and fits the device.
fn choose(plan: &Builder<'_>, generic: bool, rows: usize, listed: bool) -> Result<(KernelKey, GradientShape)> {
    let (d, caps) = (&plan.problem.dims, plan.caps);
    let of = |shape: GradientShape| {
        let key = plan.key(generic, Kernel::KeySums(shape));
        (KernelKey { listed, tables: key.tables || listed, ..key }, shape)
    };
    let few = FEW_ROWS.iter().copied().filter(|_| rows <= FEW);
    let suited = software::gradients(d.head_dim, caps).chain(few).chain(TILES.iter().copied());
    let suited = suited.filter(|suited| !generic && suited.suits(d.seq_len_kv, d.head_dim)).map(|suited| suited.shape);
    let by_generic = GENERIC.iter().copied().filter(|_| generic);
    // The smallest is there for the widest heads, generic or not, and for few keys.
    let smallest = TILES.last().map(|suited| suited.shape);
    let found = by_generic.chain(suited).chain(smallest).map(of).find(|(key, _)| fits(key, caps));
    found.ok_or_else(|| Error::Limit {
        limit: "max_compute_workgroup_storage_size",
        needed: smallest.map_or(0, |shape| of(shape).0.workgroup_bytes().into()),
        available: caps.workgroup_bytes.into(),
        remedy: "use a smaller head_dim or Backend::Cpu".into(),
    })
}
