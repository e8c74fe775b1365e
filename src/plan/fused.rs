//! The fused algorithm: choice of kernel and shape, splits of the keys, merge of the results.

use super::ranges::{KeyRange, of_parts, parts};
use super::{BufferRef, DeviceCaps, Plan, Step, TableLayout, check_bytes, cut, grid, loops, matrix, software};
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

pub(super) const ANY: usize = usize::MAX;

/// Shape of a kernel, with the problems that it is meant for. The first of a table that suits and fits is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suited<S> {
    /// Fewest rows (or keys, if those are owned).
    pub(super) min_rows: usize,
    pub(super) max_rows: usize,
    /// Widest head.
    pub(super) max_dim: usize,
    pub(super) shape: S,
}

impl<S: Copy> Suited<S> {
    pub(super) const fn suits(&self, rows: usize, widest: usize) -> bool {
        self.min_rows <= rows && rows <= self.max_rows && widest <= self.max_dim
    }

    pub(super) fn map<T>(&self, change: impl Fn(S) -> T) -> Suited<T> {
        let &Self { min_rows, max_rows, max_dim, shape } = self;
        Suited { min_rows, max_rows, max_dim, shape: change(shape) }
    }
}

/// Shapes of the tiles kernel's generic variants.
const GENERIC: &[TileShape] = &[TileShape { threads: 32, cols: 8, ..TILE }, TileShape { threads: 8, cols: 4, ..TILE }];

/// Fewest keys of a split that are worth its merge.
const KEYS_PER_SPLIT: usize = 256;

/// Query heads of a group that are packed into the rows of one block: all of them where these are few rows, else one.
pub(super) fn heads_packed(d: &Dims) -> usize {
    if d.seq_len_q * d.group() <= 64 { d.group() } else { 1 }
}

/// Most keys of an invocation. The error of a chain of sums grows with its length; longer sums are merged from chains.
///
/// Relative error on lavapipe of 131,072 keys with 0.1 in every value: one chain 6.5e-4; chains of 4,096 keys 2.1e-5 to
/// 3.9e-5, depending on the kernel; chains of 2,048 keys at most 2e-5.
pub(crate) const CHAIN: usize = 2048;

/// Most bytes of partial results for which splits are preferred to consecutive steps.
const SCRATCH_BYTES: u64 = 64 << 20;

/// Plans the fused algorithm with the kernel `wanted` if it is one of [`candidates`], else with the first choice.
pub(super) fn plan(problem: &Problem, caps: &DeviceCaps, wanted: Option<Kernel>) -> Result<Plan> {
    let d = &problem.dims;
    let pack = heads_packed(d);
    let wanted = wanted.filter(|wanted| candidates(problem, caps).contains(wanted));
    let mut key = match wanted {
        Some(kernel) => KernelKey::new(kernel, problem),
        None => choose(problem, caps, pack * d.seq_len_q)?,
    };
    let (layout, table_words) = TableLayout::new(problem).unwrap_or_default(); // checked before
    let block_rows = key.kernel.block_rows() as usize;
    let item_blocks = item_blocks(problem, Operand::Query, pack, block_rows);
    let items = if problem.varlen.is_some() { 1 } else { d.batch };
    let blocks = item_blocks * (d.num_heads / pack) * items;
    let (splits, most_keys) = splits(problem, caps, &key, blocks);
    let parts = parts(problem, caps, most_keys)?;
    let turns = parts.iter().map(|part| part.turn + 1).max().unwrap_or(1);
    let workgroups = grid(blocks.saturating_mul(splits))?;

    let mut params = Params {
        pack: pack as u32,
        splits: splits as u32,
        item_blocks: grid(item_blocks)?,
        end_workgroup: workgroups,
        ..Params::new(problem, layout)
    };
    let in_place = |slot| match slot {
        Slot::Lse if problem.want.stats => BufferRef::Stats,
        slot => BufferRef::of(slot).unwrap_or(BufferRef::Scratch(if slot == Slot::PartialOutput { 0 } else { 1 })),
    };
    let rows = problem.lse_len();
    let width = 4 * d.head_dim_v.div_ceil(4);
    let mut scratch = Vec::new();
    let mut merge = None;
    if splits > 1 || turns > 1 || (problem.want.lse && problem.want.stats) {
        let whole_rows = every_row(problem, Operand::Query, params);
        let last_stats = if turns.is_multiple_of(2) { splits * rows } else { 0 };
        let merged = Params { end_workgroup: grid((rows * (width / 4)).div_ceil(64))?, lse_split_stride: rows as u32, ..whole_rows };
        let key_of_merge = variant(key.generic, Kernel::Merge, problem);
        let of_merge = |slot| if slot == Slot::Lse { BufferRef::Lse } else { in_place(slot) };
        merge = Some(Step {
            places: places(&key_of_merge, of_merge),
            key: key_of_merge,
            params: Params { stats_from: grid(last_stats)?, ..merged },
            bound: None,
            flops: 2.0 * (splits * rows * width) as f64,
        });
        // Partial outputs are stored in scratch as rows of whole vec4s, in the order of the lse.
        (key.partial, key.output) = (true, Storage::SCRATCH);
        params.offsets[3] = 0;
        let width = width as u32;
        params.output_strides = match problem.varlen {
            Some(_) => [0, width, d.num_heads as u32 * width, 1],
            None => [(d.num_heads * d.seq_len_q) as u32 * width, d.seq_len_q as u32 * width, width, 1],
        };
        params.output_split_stride = grid(rows)? * width;
        params.lse_split_stride = rows as u32;
        scratch = vec![4 * (splits * rows) as u64 * u64::from(width), 8 * (splits * rows * turns.min(2)) as u64];
        scratch.iter().try_for_each(|&bytes| check_bytes("partial results", bytes, caps))?;
    }
    let to_scratch = |slot| match slot {
        Slot::Output if key.partial => BufferRef::Scratch(0),
        Slot::Lse if key.partial => BufferRef::Scratch(1),
        other => in_place(other),
    };
    let step = Step { places: places(&key, to_scratch), key: key.clone(), params, bound: None, flops: problem.flops() };
    let summary = format!(
        "fused {}{}, heads packed {pack}, key splits {splits}{}, {workgroups} workgroups, {} B workgroup memory, {} B scratch",
        if key.generic { "generic " } else { "" },
        key.kernel,
        in_parts(&parts, turns),
        key.workgroup_bytes(),
        scratch.iter().sum::<u64>(),
    );
    let steps = of_parts(problem, step, &parts, splits * rows).into_iter().chain(merge).collect();
    Ok(Plan { steps, scratch, table_words, summary })
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
    let dims = Dims { seq_len_q: rows, seq_len_kv: 0, ..Dims::self_attention(1, 1, rows, head_dim_v) };
    let problem = Problem::new(dims);
    problem.check()?;
    let columns = head_dim_v.div_ceil(4);
    let partial_bytes = [parts, rows, 16 * columns].iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    check_bytes("partial outputs", partial_bytes.unwrap_or(u64::MAX), caps)?;
    if parts == 0 || rows == 0 {
        return Err(Error::invalid("parts", format!("{parts} parts of {rows} rows: there is nothing to merge")));
    }
    let params = Params {
        splits: parts as u32,
        lse_split_stride: rows as u32,
        end_workgroup: grid((rows * columns).div_ceil(64))?,
        ..Params::new(&problem, TableLayout::default())
    };
    let key = KernelKey { partial: true, ..KernelKey::new(Kernel::Merge, &problem) };
    Ok(cut(Step { key, params, places: Vec::new(), bound: None, flops: 2.0 * (parts * rows * 4 * columns) as f64 }, caps))
}

/// Returns the generic or specialised variant of `kernel` for `problem`.
pub(super) fn variant(generic: bool, kernel: Kernel, problem: &Problem) -> KernelKey {
    if generic { KernelKey::generic(kernel, problem) } else { KernelKey::new(kernel, problem) }
}

pub(super) fn places(key: &KernelKey, place: impl Fn(Slot) -> BufferRef) -> Vec<(Slot, BufferRef)> {
    key.bindings().into_iter().skip(1).map(|(slot, _)| (slot, place(slot))).collect()
}

/// Returns the tiles kernel of a shape; rows are reduced by shuffles where a subgroup holds all their threads.
fn tiles(shape: TileShape, caps: &DeviceCaps) -> Kernel {
    Kernel::Tiles(TileShape { subgroups: caps.subgroup_size >= shape.cols, ..shape })
}

/// True if a workgroup of the kernel fits the device.
pub(super) fn fits(key: &KernelKey, caps: &DeviceCaps) -> bool {
    key.workgroup_bytes() <= caps.workgroup_bytes && key.threads() <= caps.workgroup_threads
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

/// True if a backward pass recomputes the kernel's scores bit by bit, or if its statistics are not wanted. With scores
/// of millions, sums in another order change weights by factors of e.
fn sums_in_order(kernel: Kernel, problem: &Problem) -> bool {
    !problem.want.stats || !matches!(kernel, Kernel::Decode(_) | Kernel::Matrix(_))
}

/// Returns the first kernel that is meant for `rows` rows and fits the device.
fn choose(problem: &Problem, caps: &DeviceCaps, rows: usize) -> Result<KernelKey> {
    let widest = problem.dims.head_dim.max(problem.dims.head_dim_v);
    // Generic kernels compute whole blocks of rows.
    let whole = rows.next_multiple_of(GENERIC[0].block_rows() as usize) as f64 / rows as f64;
    let by_matrix = matrix::kernels(problem, caps, rows).filter(|_| caps.prefer_matrices);
    let by_lanes = software::kernels(problem, caps).filter(|suited| suited.suits(rows, widest)).map(|suited| suited.shape);
    let by_tiles = TILES.iter().filter(|suited| suited.suits(rows, widest)).map(|suited| tiles(suited.shape, caps));
    let by_tiles = by_tiles.map(|kernel| KernelKey::new(kernel, problem));
    let fits = |key: &KernelKey| fits(key, caps);
    let found = if caps.specialises(whole * problem.flops()) {
        let best = by_matrix.chain(by_lanes).filter(|&kernel| sums_in_order(kernel, problem));
        best.map(|kernel| KernelKey::new(kernel, problem)).chain(by_tiles).find(fits)
    } else {
        let generic = GENERIC.iter().map(|&shape| KernelKey::generic(Kernel::Tiles(shape), problem));
        generic.chain(by_tiles).find(fits)
    };
    found.ok_or_else(|| Error::Limit {
        limit: "max_compute_workgroup_storage_size",
        needed: TILES.last().map_or(0, |last| KernelKey::new(tiles(last.shape, caps), problem).workgroup_bytes().into()),
        available: caps.workgroup_bytes.into(),
        remedy: "use a smaller head_dim, Algorithm::Staged, or Backend::Cpu".into(),
    })
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
    let at_once = loops::keys_at_once(key, caps).min(CHAIN);
    let to_be_exact = keys.div_ceil(at_once).min(that_fit(SCRATCH_BYTES));
    let splits = to_fill
        .max(to_be_short)
        .min(keys / KEYS_PER_SPLIT)
        .max(to_be_exact)
        .min(that_fit(caps.binding_bytes.min(caps.buffer_bytes)))
        .max(1);
    (splits, if keys <= splits * at_once { d.seq_len_kv } else { splits * at_once })
}
