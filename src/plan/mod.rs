//! Planner: (problem, device capabilities) -> kernels, their tiles and their buffers. Pure: no device is touched.

mod backward;
mod export;
mod fused;
mod loops;
mod matrix;
mod ranges;
mod shader;
mod software;
mod staged;
mod tune;

pub(crate) use fused::{CHAIN, candidates, merge_steps};
pub(crate) use ranges::{BindingRange, of_slot};
pub(crate) use tune::{class_of, kernel_text, read_kernel};

pub(crate) use crate::problem::TableLayout;
pub use crate::wgsl::{DeviceCaps, DeviceClass, Specialise};
pub use export::{BindingExport, BufferExport, DispatchExport, KernelExport, PlanExport};
pub use shader::{Shader, cache_shaders, linear_shaders};

use crate::error::{Error, Result};
use crate::problem::{Algorithm, Operand, Problem};
use crate::wgsl::{Kernel, KernelKey, Params, Slot, compose};

/// Buffer that a binding of a step refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferRef {
    Query,
    Key,
    Value,
    Output,
    Lse,
    /// (m, l) of each row, wanted by [`crate::Returns::stats`].
    Stats,
    Tables,
    Bias,
    Mask,
    /// Scores at the stage that [`crate::Returns::scores`] asks for.
    Scores,
    /// Softmax weights, wanted by [`crate::Returns::weights`].
    Weights,
    /// State of a device cache.
    Cache,
    /// Gradient of the output, an input of the backward pass.
    DOutput,
    DQuery,
    DKey,
    DValue,
    DBias,
    DRelativeBias,
    DSinks,
    /// Scratch buffer of the plan, by index.
    Scratch(usize),
}

impl BufferRef {
    /// Returns the tensor that a slot refers to; `None` where the plan decides: params, scores, partial results.
    fn of(slot: Slot) -> Option<Self> {
        match slot {
            Slot::Query => Some(Self::Query),
            Slot::Key => Some(Self::Key),
            Slot::Value => Some(Self::Value),
            Slot::Output | Slot::Result => Some(Self::Output),
            Slot::Lse => Some(Self::Lse),
            Slot::Stats | Slot::ForwardStats => Some(Self::Stats),
            Slot::Tables => Some(Self::Tables),
            Slot::Bias => Some(Self::Bias),
            Slot::Mask => Some(Self::Mask),
            Slot::Cache => Some(Self::Cache),
            Slot::DOutput => Some(Self::DOutput),
            Slot::DQuery => Some(Self::DQuery),
            Slot::DKey => Some(Self::DKey),
            Slot::DValue => Some(Self::DValue),
            Slot::Params | Slot::Scores | Slot::PartialOutput | Slot::PartialStats | Slot::RowStats | Slot::Parts | Slot::Sums => None,
        }
    }
}

/// One kernel over one grid.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: KernelKey,
    /// Parameters; `first_workgroup..end_workgroup` covers the whole grid.
    pub(crate) params: Params,
    /// Buffer of each binding except the params, in the order of [`KernelKey::bindings`].
    pub(crate) places: Vec<(Slot, BufferRef)>,
    /// Ranges of key and value that are bound; `None` binds both whole.
    pub(crate) bound: Option<[BindingRange; 2]>,
    /// Floating-point operations, by which long steps are cut.
    pub(crate) flops: f64,
}

/// Kernels, parameters and scratch with which a device computes a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Sizes of the scratch buffers in bytes.
    pub(crate) scratch: Vec<u64>,
    pub(crate) table_words: u32,
    pub(crate) summary: String,
}

impl Plan {
    /// Plans `problem` for a device with `caps`.
    ///
    /// Errors name the limit that is exceeded, what the problem needs and what would help.
    pub fn new(problem: &Problem, caps: &DeviceCaps, algorithm: Algorithm) -> Result<Self> {
        Self::with_kernel(problem, caps, algorithm, None)
    }

    /// Plans like [`Self::new`], but prefers `kernel`, found fastest by autotuning, where it works.
    pub(crate) fn with_kernel(problem: &Problem, caps: &DeviceCaps, algorithm: Algorithm, kernel: Option<Kernel>) -> Result<Self> {
        problem.check()?;
        check_addressing(problem, caps)?;
        let wants_matrix = problem.want.scores.is_some() || problem.want.weights;
        let mut plan = match algorithm {
            Algorithm::Fused if wants_matrix => {
                return Err(Error::unsupported(
                    "scores or weights from the fused algorithm, which never has them in memory",
                    "ask for Algorithm::Staged or Auto",
                ));
            }
            Algorithm::Staged => staged::plan(problem, caps, "asked for")?,
            Algorithm::Auto if wants_matrix => staged::plan(problem, caps, "scores or weights are wanted")?,
            Algorithm::Fused => fused::plan(problem, caps, kernel)?,
            Algorithm::Auto => match fused::plan(problem, caps, kernel) {
                Err(Error::Limit { limit: "max_compute_workgroup_storage_size", .. }) => {
                    staged::plan(problem, caps, "the head is too wide for the fused kernel's workgroup memory")?
                }
                other => other?,
            },
        };
        for step in &plan.steps {
            check_kernel(&step.key, caps)?;
            loops::check(step, problem, caps)?;
        }
        plan.steps = plan.steps.into_iter().flat_map(|step| cut(step, caps)).collect();
        Ok(plan)
    }

    /// Kernel of the first step.
    pub(crate) fn kernel(&self) -> Kernel {
        self.steps[0].key.kernel
    }

    /// Plans a problem whose lengths and page table are words of a cache's state, so that the tables buffer has
    /// neither. The grid covers the longest possible sequences; workgroups that find no keys end at once.
    pub(crate) fn on_cache(
        problem: &Problem,
        caps: &DeviceCaps,
        algorithm: Algorithm,
        kernel: Option<Kernel>,
        words: CacheWords,
    ) -> Result<Self> {
        let mut plan = Self::with_kernel(problem, &caps.for_replays(problem.flops()), algorithm, kernel)?;
        let mut others = *problem;
        (others.paged, others.visibility.kv_lengths) = (None, false);
        others.dims.num_heads = words.num_heads;
        let (mut layout, table_words) = TableLayout::new(&others).ok_or_else(|| too_many("tables", u64::MAX))?;
        plan.table_words = table_words;
        let first_head = words.first_head as u32;
        layout.alibi_slopes += first_head;
        layout.sinks += first_head;
        layout.relative_bias += first_head * problem.relative_bias_columns() as u32;
        layout = TableLayout { kv_lengths: words.kv_lengths, page_table: words.page_table, ..layout };
        for step in &mut plan.steps {
            step.key.cached = true;
            step.key.tables = step.key.generic || table_words > 0;
            step.params = step.params.with_tables(problem, layout);
            let has_tables = step.key.tables;
            step.places.retain(|&(slot, _)| slot != Slot::Tables || has_tables);
            step.places.push((Slot::Cache, BufferRef::Cache));
            check_kernel(&step.key, caps)?;
        }
        Ok(plan)
    }

    /// Summary in words: kernel, tiles, grid, bytes of workgroup memory and of scratch.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// Returns each kernel of the plan once, with its WGSL.
    pub fn shaders(&self) -> Vec<Shader> {
        let mut keys: Vec<&KernelKey> = Vec::new();
        for step in &self.steps {
            if !keys.contains(&&step.key) {
                keys.push(&step.key);
            }
        }
        keys.into_iter().map(|key| Shader::new(key.kernel.to_string(), compose(key), key.workgroup_bytes())).collect()
    }

    /// Total size of the scratch buffers in bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().sum()
    }

    /// Number of dispatches.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Size of the tables buffer in words of four bytes; 0 where the problem has no tables.
    pub fn table_words(&self) -> u32 {
        self.table_words
    }
}

/// Places in a cache's state and tables that attention on the cache reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWords {
    /// First words of the lengths and of the page table in the state.
    pub(crate) kv_lengths: u32,
    pub(crate) page_table: u32,
    /// Number of heads in the tables, and the index among them of the problem's first head.
    pub(crate) num_heads: usize,
    pub(crate) first_head: usize,
}

/// Checks that shaders can address `problem`: they count elements in u32, positions in i32, and bind whole tensors.
fn check_addressing(problem: &Problem, caps: &DeviceCaps) -> Result<()> {
    let mut buffers: Vec<(&'static str, u64, u64)> = Operand::ALL
        .map(|operand| {
            let len = problem.operand_len(operand);
            (operand.name(), len as u64, problem.spec(operand).dtype.bytes(len) as u64)
        })
        .to_vec();
    buffers.push(("lse", problem.lse_len() as u64, 4 * problem.lse_len() as u64));
    let (_, table_words) = TableLayout::new(problem).ok_or_else(|| too_many("tables", u64::MAX))?;
    buffers.push(("tables", table_words.into(), 4 * u64::from(table_words)));
    let elements =
        |shape: Option<crate::problem::BroadcastShape>| shape.and_then(crate::problem::BroadcastShape::elements).unwrap_or(0) as u64;
    buffers.push(("mask", elements(problem.visibility.mask), elements(problem.visibility.mask)));
    buffers.push(("bias", elements(problem.bias), 4 * elements(problem.bias)));
    if problem.want.weights || problem.want.scores.is_some() {
        buffers.push(("weights or scores", problem.scores_len() as u64, 4 * problem.scores_len() as u64));
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
    let offset =
        if let Some(crate::problem::Alignment::Offset(offset)) = problem.visibility.alignment { offset.unsigned_abs().into() } else { 0 };
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
fn check_kernel(key: &KernelKey, caps: &DeviceCaps) -> Result<()> {
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

/// Cuts a step into dispatches that are short enough.
fn cut(step: Step, caps: &DeviceCaps) -> Vec<Step> {
    let before = step.params.first_workgroup;
    let total = step.params.end_workgroup - before;
    pieces(total, step.flops, caps)
        .into_iter()
        .map(|Piece { first, end, width }| {
            let params = Params { first_workgroup: before + first, end_workgroup: before + end, grid_width: width, ..step.params };
            Step { params, flops: step.flops * f64::from(end - first) / f64::from(total), ..step.clone() }
        })
        .collect()
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

impl Step {
    /// Workgroups along x and y.
    pub(crate) fn grid(&self) -> [u32; 2] {
        let count = self.params.end_workgroup - self.params.first_workgroup;
        [self.params.grid_width, count.div_ceil(self.params.grid_width)]
    }
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
