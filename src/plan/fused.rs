//! The fused algorithm: choice of kernel and shape, splits of the keys, merge of the results.

use super::builder::Builder;
use super::key_sums::{self, From};
use super::limits::{CHAIN, check_bytes, fits, grid};
use super::ranges::{KeyRange, of_parts, parts};
use super::step::{BufferRef, Plan, Step};
use super::suited::{ANY, Suited};
use super::{DeviceCaps, loops, matrix, software, tile_list};
use crate::error::{Error, Result};
use crate::problem::{Dims, Operand, Problem};
use crate::wgsl::{Kernel, KernelKey, Params, Slot, Storage, TileShape};

/// Shapes of the tiles kernel, from fastest to smallest, with the fewest rows and the widest head each is meant for.
///
/// Chosen by the compilers' output (benches/record/lab-*.md) and by the cost of reading workgroup memory:
/// - Elements read per multiply-add, query times key: 4x4 0.5, 4x2 0.75, 2x2 1; weight times value with 4 rows: 0.5
///   with 16 threads a row and a head of 64, 0.375 with 8, 0.31 with 8 and a head of 128. AMD sustains 0.5 at its full
///   rate. 8x4 reads 0.375 and 0.25, but then one multiprocessor holds one or two waves.
/// - Registers: 4x4 takes 108 on AMD and 112 on NVIDIA with a head of 64, 156 with 128. On Apple, in halves, 4x2 takes
///   199 and 4x4 231; 4x2 with a head of 128 spills, so 2x2 is used.
/// - Few rows are memory-bound: one or two rows a thread, keys prefetched, at most eight vec4s a thread and tile.
const TILES: &[Suited<TileShape>] = &[
    Suited { min_rows: 33, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 256, rows: 4, cols: 16, keys: 4, ..TILE } },
    Suited { min_rows: 33, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 4, cols: 8, keys: 4, ..TILE } },
    Suited { min_rows: 33, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 4, cols: 8, keys: 2, ..TILE } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 4, cols: 16, keys: 2, ..TILE } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 2, cols: 8, keys: 2, ..TILE } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: 128, shape: TileShape { threads: 64, rows: 4, cols: 8, keys: 1, ..TILE } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: 128, shape: TileShape { threads: 128, rows: 2, cols: 16, keys: 2, ..TILE } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 2, cols: 16, keys: 1, ..TILE } },
    Suited { min_rows: 5, max_rows: ANY, max_dim: 64, shape: TileShape { threads: 64, rows: 2, cols: 16, keys: 2, ..TILE } },
    Suited { min_rows: 5, max_rows: ANY, max_dim: 128, shape: TileShape { threads: 128, rows: 1, cols: 16, keys: 2, ..TILE } },
    Suited { min_rows: 5, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 1, cols: 16, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: 64, shape: TileShape { threads: 64, rows: 1, cols: 16, keys: 2, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: 128, shape: TileShape { threads: 64, rows: 1, cols: 16, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 128, rows: 1, cols: 16, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 64, rows: 1, cols: 16, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 32, rows: 1, cols: 8, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 16, rows: 1, cols: 8, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 8, rows: 1, cols: 4, keys: 1, ..TILE } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: TileShape { threads: 4, rows: 1, cols: 2, keys: 1, ..TILE } },
];

/// Defaults of a table's shapes.
const TILE: TileShape = TileShape { threads: 1, rows: 1, cols: 1, keys: 1, subgroups: false };

/// Shapes of the tiles kernel's generic variants.
const GENERIC: &[TileShape] = &[TileShape { threads: 32, cols: 8, ..TILE }, TileShape { threads: 8, cols: 4, ..TILE }];

/// Fewest keys of a split that are worth its merge.
const KEYS_PER_SPLIT: usize = 256;

/// Query heads of a group that are packed into the rows of one block: all of them where these are few rows, else one.
pub(super) fn heads_packed(d: &Dims) -> usize {
    if d.seq_len_q * d.group() <= 64 { d.group() } else { 1 }
}

/// Most bytes of partial results for which splits are preferred to consecutive steps.
const SCRATCH_BYTES: u64 = 64 << 20;

/// Plans the fused algorithm with the kernel `key`.
pub(super) fn plan(mut plan: Builder<'_>, mut key: KernelKey) -> Result<Plan> {
    let problem = plan.problem;
    let d = &problem.dims;
    let pack = heads_packed(d);
    let item_blocks = item_blocks(problem, Operand::Query, pack, key.kernel.block_rows() as usize);
    let items = if problem.varlen.is_some() { 1 } else { d.batch };
    let blocks = item_blocks * (d.num_heads / pack) * items;
    let (splits, most_keys) = splits(problem, plan.caps, &key, blocks);
    let parts = parts(problem, plan.caps, most_keys)?;
    let turns = parts.iter().map(|part| part.turn + 1).max().unwrap_or(1);
    let workgroups = grid(blocks.saturating_mul(splits))?;
    let mut params =
        Params { pack: pack as u32, splits: splits as u32, item_blocks: grid(item_blocks)?, end_workgroup: workgroups, ..plan.params() };
    let all = params;
    let rows = problem.lse_len();
    let width = 4 * d.head_dim_v.div_ceil(4);
    // The merge also rotates back the output of rotated values.
    let writes_parts = splits > 1 || turns > 1 || (problem.want.lse && problem.want.needs_stats()) || problem.value_hadamard;
    if writes_parts {
        (key.partial, key.output) = (true, Storage::SCRATCH);
        params = to_scratch_rows(problem, params);
        params.output_split_stride = grid(rows)? * width as u32;
        params.lse_split_stride = rows as u32;
        plan.scratch("partial results", 4 * (splits * rows * width) as u64)?;
        plan.scratch("partial results", 8 * (splits * rows * turns.min(2)) as u64)?;
    }
    let list = tile_list::forward(&mut plan, params)?;
    if let Some((with_list, _)) = list {
        (key.listed, key.tables, params) = (true, true, with_list);
    }
    let stats = key_sums::stats(&mut plan)?;
    let stats_or_lse = if problem.want.needs_stats() { stats } else { BufferRef::Lse };
    for (params, share, bound) in of_parts(problem, params, &parts, splits * rows) {
        plan.push_bound(key.clone(), params, share * problem.flops(), bound, |slot| match slot {
            Slot::Output if writes_parts => Some(BufferRef::Scratch(0)),
            Slot::Lse if writes_parts => Some(BufferRef::Scratch(1)),
            Slot::Lse => Some(stats_or_lse),
            Slot::Tables => list.map(|(_, bits)| bits),
            _ => None,
        })?;
    }
    if writes_parts {
        let params = Params {
            end_workgroup: grid((rows * (width / 4)).div_ceil(64))?,
            lse_split_stride: rows as u32,
            stats_from: grid(if turns.is_multiple_of(2) { splits * rows } else { 0 })?,
            ..every_row(problem, Operand::Query, all)
        };
        let merge = plan.key(key.generic, Kernel::Merge);
        let place = |slot| if slot == Slot::Stats { Some(stats) } else { partial_results(slot) };
        plan.push(merge, params, 2.0 * (splits * rows * width) as f64, place)?;
    }
    key_sums::push(&mut plan, key.generic, From { stats, list })?;
    let summary = format!(
        "fused {}{}{}, heads packed {pack}, key splits {splits}{}, {workgroups} workgroups, {} B workgroup memory, {} B scratch",
        if key.generic { "generic " } else { "" },
        key.kernel,
        if list.is_some() { " by a list of visible tiles" } else { "" },
        in_parts(&parts, turns),
        key.workgroup_bytes(),
        plan.scratch_bytes(),
    );
    Ok(plan.finish(None, summary))
}

/// Params of a kernel whose output is scratch: rows of whole vec4s, in the order of the lse.
pub(super) fn to_scratch_rows(problem: &Problem, mut params: Params) -> Params {
    let d = &problem.dims;
    let width = d.head_dim_v.next_multiple_of(4) as u32;
    params.offsets[3] = 0;
    params.output_strides = match problem.varlen {
        Some(_) => [0, width, d.num_heads as u32 * width, 1],
        None => [(d.num_heads * d.seq_len_q) as u32 * width, d.seq_len_q as u32 * width, width, 1],
    };
    params
}

/// Returns the scratch buffers of a merge.
const fn partial_results(slot: Slot) -> Option<BufferRef> {
    match slot {
        Slot::PartialOutput => Some(BufferRef::Scratch(0)),
        Slot::PartialStats => Some(BufferRef::Scratch(1)),
        _ => None,
    }
}

/// Describes the parts in words; empty for a single part.
fn in_parts(parts: &[KeyRange], turns: usize) -> String {
    match parts {
        [_] => String::new(),
        [first, ..] => {
            let kind = if first.bound.is_some() { "bindings" } else { "steps" };
            format!(", {} {kind} of keys in {turns} ranges", parts.len())
        }
        [] => ", no keys".into(),
    }
}

/// Most blocks of `size` rows or keys of an item, or of all varlen items: block_of in shaders/lib/addressing.wgsl.
pub(super) fn item_blocks(problem: &Problem, of: Operand, pack: usize, size: usize) -> usize {
    let d = &problem.dims;
    let len = if of == Operand::Query { d.seq_len_q } else { d.seq_len_kv };
    match problem.varlen {
        None => (pack * len).div_ceil(size),
        Some(varlen) => pack * if of == Operand::Query { varlen.tokens_q } else { varlen.tokens_kv } / size + d.batch,
    }
}

/// Params of a kernel that visits all rows of an operand and nothing else; varlen sequences count as one item.
pub(super) fn every_row(problem: &Problem, of: Operand, params: Params) -> Params {
    let [batch, heads, len, _] = problem.shape(of);
    Params { batch: batch as u32, num_heads: heads as u32, seq_len_q: len as u32, ..params }
}

/// Returns the steps that merge `parts` partial results of `rows` rows: one head of one item, f32.
pub(crate) fn merge_steps([parts, rows, head_dim_v]: [usize; 3], caps: &DeviceCaps) -> Result<Vec<Step>> {
    if parts == 0 || rows == 0 {
        return Err(Error::invalid("parts", format!("{parts} parts of {rows} rows: there is nothing to merge")));
    }
    let problem = Problem::new(Dims { seq_len_kv: 0, ..Dims::self_attention(1, 1, rows, head_dim_v) });
    problem.check()?;
    let columns = head_dim_v.div_ceil(4);
    let partial_bytes = [parts, rows, 16 * columns].iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    check_bytes("partial outputs", partial_bytes.unwrap_or(u64::MAX), caps)?;
    let mut plan = Builder::new(&problem, caps, None)?;
    let params = Params {
        splits: parts as u32,
        lse_split_stride: rows as u32,
        end_workgroup: grid((rows * columns).div_ceil(64))?,
        ..plan.params()
    };
    let key = KernelKey { partial: true, ..plan.key(false, Kernel::Merge) };
    plan.push(key, params, 2.0 * (parts * rows * 4 * columns) as f64, partial_results)?;
    Ok(plan.finish(None, String::new()).steps)
}

/// Returns the tiles kernel of a shape; rows are reduced by shuffles where a subgroup holds all their threads.
fn tiles(shape: TileShape, caps: &DeviceCaps) -> Kernel {
    Kernel::Tiles(TileShape { subgroups: caps.subgroup_size >= shape.cols, ..shape })
}

/// Returns all kernels that autotuning tries: they fit the device and compile in reasonable time, at any size.
pub(crate) fn candidates(problem: &Problem, caps: &DeviceCaps) -> Vec<Kernel> {
    let by_lanes = software::kernels(problem, caps).map(|suited| suited.shape);
    let tiles = TILES.iter().map(|suited| tiles(suited.shape, caps));
    let rows_there = heads_packed(&problem.dims) * problem.dims.seq_len_q;
    let mut found = Vec::new();
    for kernel in by_lanes.chain(tiles).chain(matrix::kernels(problem, caps, rows_there)) {
        if !found.contains(&kernel) && sums_in_order(kernel, problem) && fits(&KernelKey::new(kernel, problem), caps) {
            found.push(kernel);
        }
    }
    found
}

/// True if a pass over its statistics recomputes the kernel's scores bit by bit, or if there is none. With scores
/// of millions, sums in another order change weights by factors of e.
fn sums_in_order(kernel: Kernel, problem: &Problem) -> bool {
    !problem.want.needs_stats() || !matches!(kernel, Kernel::Decode(_) | Kernel::Matrix(_))
}

/// Returns the kernel `wanted` if it is one of [`candidates`], else the first one that is meant for the problem's rows
/// and fits the device; `None` where the head is too wide for all of them.
pub(super) fn choose(plan: &Builder<'_>, wanted: Option<Kernel>) -> Option<KernelKey> {
    let (problem, caps) = (plan.problem, plan.caps);
    if let Some(kernel) = wanted.filter(|wanted| candidates(problem, caps).contains(wanted)) {
        return Some(plan.key(false, kernel));
    }
    let rows = heads_packed(&problem.dims) * problem.dims.seq_len_q;
    let widest = problem.dims.head_dim.max(problem.dims.head_dim_v);
    // Generic kernels compute whole blocks of rows.
    let whole = rows.next_multiple_of(GENERIC[0].block_rows() as usize) as f64 / rows as f64;
    let by_matrix = matrix::kernels(problem, caps, rows).filter(|_| caps.prefer_matrices);
    let by_lanes = software::kernels(problem, caps).filter(|suited| suited.suits(rows, widest)).map(|suited| suited.shape);
    let by_tiles = TILES.iter().filter(|suited| suited.suits(rows, widest)).map(|suited| tiles(suited.shape, caps));
    let by_tiles = by_tiles.map(|kernel| plan.key(false, kernel));
    let fits = |key: &KernelKey| fits(key, caps);
    if caps.specialises(whole * problem.flops()) {
        let best = by_matrix.chain(by_lanes).filter(|&kernel| sums_in_order(kernel, problem));
        best.map(|kernel| plan.key(false, kernel)).chain(by_tiles).find(fits)
    } else {
        let by_generic = software::generic(widest, caps).into_iter().chain(GENERIC.iter().map(|&shape| Kernel::Tiles(shape)));
        by_generic.map(|kernel| plan.key(true, kernel)).chain(by_tiles).find(fits)
    }
}

/// Error where no fused kernel has room for the head.
pub(super) fn too_wide(problem: &Problem, caps: &DeviceCaps) -> Error {
    Error::Limit {
        limit: "max_compute_workgroup_storage_size",
        needed: TILES.last().map_or(0, |last| KernelKey::new(tiles(last.shape, caps), problem).workgroup_bytes().into()),
        available: caps.workgroup_bytes.into(),
        remedy: "use a smaller head_dim, Algorithm::Staged, or Backend::Cpu".into(),
    }
}

/// Number of splits of the keys, and most keys of one step. Splits are enough to fill the device and to keep workgroups
/// short, none is too short, and their results fit one buffer.
fn splits(problem: &Problem, caps: &DeviceCaps, key: &KernelKey, blocks: usize) -> (usize, usize) {
    let d = &problem.dims;
    let keys = problem.most_keys(d.seq_len_q.min(key.kernel.block_rows() as usize));
    let to_fill = caps.full_grid().div_ceil(blocks.max(1));
    // A workgroup of very many keys must not take as long as a whole dispatch may.
    let to_be_short = (8.0 * problem.flops() / blocks.max(1) as f64 / caps.dispatch_flops()).ceil() as usize;
    let row_bytes = 16 * d.head_dim_v.div_ceil(4) as u64 * problem.lse_len().max(1) as u64;
    let that_fit = |bytes: u64| (bytes / row_bytes).max(1) as usize;
    let with_stats = |bytes: u64| usize::try_from(bytes / (row_bytes + 16 * problem.lse_len() as u64)).unwrap_or(usize::MAX);
    let at_once = loops::keys_at_once(key, caps).min(CHAIN);
    let to_be_exact = keys.div_ceil(at_once).min(that_fit(SCRATCH_BYTES));
    let splits = to_fill
        .max(to_be_short)
        .min(keys / KEYS_PER_SPLIT)
        .max(to_be_exact)
        .min(that_fit(caps.binding_bytes.min(caps.buffer_bytes)))
        .min(with_stats(caps.scratch_budget))
        .max(1);
    (splits, if keys <= splits * at_once { d.seq_len_kv } else { splits * at_once })
}
