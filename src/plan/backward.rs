//! Plan of the backward pass: kernels and shapes for the gradients that are wanted.

use super::builder::Builder;
use super::fused::{every_row, item_blocks};
use super::gradient_shapes::{GENERIC, TILES};
use super::limits::{CHAIN, check_bytes, fits, grid};
use super::step::{BufferRef, Plan};
use super::{DeviceCaps, loops, software, tile_list};
use crate::error::{Error, Result};
use crate::numbers::DType;
use crate::problem::{BlockList, BroadcastShape, Operand, Problem, Returns, WantGradients};
use crate::wgsl::{Flags, GradientShape, Kernel, KernelKey, KeySide, Params, ROW_STATS, Slot};

/// Rows and keys of a square in shaders/backward/square.wgsl.
pub(super) const SQUARE: usize = 16;
/// Most squares that a workgroup should sum for the gradient of a bias or of a table.
pub(super) const TERMS: usize = 128;
/// Most bytes of partial sums of a gradient.
pub(super) const SCRATCH_BYTES: u64 = 64 << 20;

impl Plan {
    /// Plans the wanted gradients of `problem` from query, key, value, output, (m, l) and the gradients of
    /// output and, if wanted, lse.
    ///
    /// Nothing of size seq_len_q x seq_len_kv is stored: scores are recomputed, once for dQ and once for dK and dV.
    /// Errors: those of [`Plan::new`], and [`Error::Unsupported`] for paged keys and operands whose elements overlap.
    pub fn backward(problem: &Problem, want: &WantGradients, caps: &DeviceCaps) -> Result<Self> {
        problem.check()?;
        want.check(problem)?;
        Self::of_backward(problem, want, caps)
    }

    /// [`Self::backward`] for what has been checked.
    pub(crate) fn of_backward(problem: &Problem, want: &WantGradients, caps: &DeviceCaps) -> Result<Self> {
        let problem = &Problem { want: Returns { stats: true, ..Returns::default() }, ..problem.clone() };
        let mut plan = Planner::new(problem, want, caps)?;
        plan.preprocess()?;
        plan.list_tiles()?;
        if want.query {
            plan.query()?;
        }
        plan.keys()?;
        if want.bias {
            plan.bias()?;
        }
        if want.relative_bias {
            plan.relative_bias()?;
        }
        if want.sinks {
            plan.sinks()?;
        }
        if want.term_tables {
            plan.term_tables()?;
        }
        let generic = if plan.specialised { "" } else { "generic " };
        let summary = format!("backward: {generic}{}, {} B scratch", plan.steps.kernels().join("; "), plan.steps.scratch_bytes());
        Ok(plan.steps.finish(Some(want), summary))
    }
}

/// Elements of a bias, whose first pair is at `first`.
pub(super) struct Elements {
    pub(super) first: u32,
    pub(super) len: usize,
    /// True if some elements have no pairs.
    pub(super) has_gaps: bool,
}

/// Work of a gradient kernel: the operand that it owns, the operand that it streams, its heads and its cost.
struct Work {
    owned: Operand,
    stream: Operand,
    heads: usize,
    flops: f64,
}

/// Backward plan under construction.
pub(super) struct Planner<'a> {
    pub(super) problem: &'a Problem,
    want: &'a WantGradients,
    pub(super) caps: &'a DeviceCaps,
    specialised: bool,
    /// List of visible tiles, behind the tables.
    list: Option<BlockList>,
    /// Parameters, with the tables behind the row words.
    pub(super) params: Params,
    /// The steps; the first scratch buffer holds the row words of the backward preprocess.
    pub(super) steps: Builder<'a>,
}

impl<'a> Planner<'a> {
    fn new(problem: &'a Problem, want: &'a WantGradients, caps: &'a DeviceCaps) -> Result<Self> {
        let mut steps = Builder::new(problem, caps, None)?;
        for operand in Operand::ALL {
            let dtype = if operand == Operand::Output { problem.output.dtype } else { want.dtype(problem, operand) };
            let larger = dtype.bytes(problem.operand_len(operand)).max(problem.spec(operand).dtype.bytes(problem.operand_len(operand)));
            check_bytes(operand.name(), larger as u64, caps)?;
        }
        let row_stats = ROW_STATS as u64 * problem.lse_len() as u64;
        let list = tile_list::wanted(problem, usize::from(want.query) + usize::from(want.key || want.value));
        let list_words = list.map_or(0, |list| list.words(&problem.dims) as u64);
        let bytes = 4 * (row_stats + u64::from(steps.table_words));
        let list = list.filter(|_| bytes + 4 * list_words <= steps.scratch_left().min(caps.binding_bytes));
        steps.scratch("statistics of rows", bytes + list.map_or(0, |_| 4 * list_words))?;
        let first_table = grid(row_stats as usize)?;
        let params = Params::new(problem, steps.tables.shifted(first_table));
        let mut params = Params { table_words: steps.table_words, first_table, ..params };
        if let Some(list) = list {
            params = tile_list::placed(params, problem, list, (first_table + steps.table_words) as usize)?;
        }
        Ok(Self { problem, want, caps, specialised: caps.specialises(2.5 * problem.flops()), list, params, steps })
    }

    /// Adds a kernel in the variant that the problem needs, with the buffers of its `parts` and `sums` bindings.
    pub(super) fn push(
        &mut self,
        kernel: Kernel,
        params: Params,
        workgroups: usize,
        flops: f64,
        [parts, sums]: [Option<BufferRef>; 2],
    ) -> Result<()> {
        let key = self.steps.key(!self.specialised, kernel);
        self.steps.push(key, Params { end_workgroup: grid(workgroups)?, ..params }, flops, |slot| match slot {
            Slot::Parts => parts,
            Slot::Sums => sums,
            _ => None,
        })
    }

    /// Adds a scratch buffer of `numbers` f32.
    pub(super) fn scratch(&mut self, name: &str, numbers: usize) -> Result<BufferRef> {
        self.steps.scratch(name, 4 * numbers as u64)
    }

    /// Adds the backward preprocess: m, 1 / l and delta of each row, and a copy of the tables.
    fn preprocess(&mut self) -> Result<()> {
        let rows = self.problem.lse_len();
        let params = every_row(self.problem, Operand::Query, self.params).with_tables(self.problem, self.steps.tables);
        let flops = 2.0 * (rows * self.problem.dims.head_dim_v) as f64;
        self.push(
            Kernel::Preprocess { through_lse: self.want.through_lse },
            params,
            rows.max(self.steps.table_words as usize).div_ceil(64),
            flops,
            [None; 2],
        )
    }

    /// Adds the list of visible tiles, which the gradients of query, key and value share.
    fn list_tiles(&mut self) -> Result<()> {
        let Some(list) = self.list else { return Ok(()) };
        let params = Params { table_words: 0, ..self.params.with_tables(self.problem, self.steps.tables) };
        tile_list::push(&mut self.steps, params, list, BufferRef::Scratch(0))
    }

    fn query(&mut self) -> Result<()> {
        let d = &self.problem.dims;
        let (key, shape) = self.choose(d.seq_len_q, Kernel::QueryGradient)?;
        let work = Work { owned: Operand::Query, stream: Operand::Key, heads: d.num_heads, flops: 1.5 * self.problem.flops() };
        self.gradients(key, shape, &work, vec![(Operand::Query, BufferRef::DQuery)])
    }

    /// Adds dK and dV: one kernel where its buffers are few enough and both have one storage type, else two.
    fn keys(&mut self) -> Result<()> {
        let d = &self.problem.dims;
        let many_buffers = !self.specialised || (self.problem.bias.is_some() && self.problem.visibility.mask.is_some());
        let are_alike = self.want.dtype(self.problem, Operand::Key) == self.want.dtype(self.problem, Operand::Value);
        let sides: &[(KeySide, f64)] = match (self.want.key, self.want.value) {
            (true, true) if many_buffers || !are_alike => &[(KeySide::Key, 1.5), (KeySide::Value, 1.0)],
            (true, true) => &[(KeySide::Both, 2.0)],
            (true, false) => &[(KeySide::Key, 1.5)],
            (false, true) => &[(KeySide::Value, 1.0)],
            (false, false) => &[],
        };
        let (d_key, d_value) = ((Operand::Key, BufferRef::DKey), (Operand::Value, BufferRef::DValue));
        for &(side, share) in sides {
            let (key, shape) = self.choose(d.seq_len_kv, |shape| Kernel::KeyGradient(shape, side))?;
            let gives = match side {
                KeySide::Both => vec![d_key, d_value],
                KeySide::Key => vec![d_key],
                KeySide::Value => vec![d_value],
            };
            let work = Work { owned: Operand::Key, stream: Operand::Query, heads: d.num_kv_heads, flops: share * self.problem.flops() };
            self.gradients(key, shape, &work, gives)?;
        }
        Ok(())
    }

    /// Adds the steps of a kernel that owns the rows of one operand and streams those of another. A long stream takes
    /// several steps that add to the sums; sums that are not to be stored as f32 are scratch until the last step.
    fn gradients(&mut self, key: KernelKey, shape: GradientShape, work: &Work, gives: Vec<(Operand, BufferRef)>) -> Result<()> {
        let &Work { owned, stream, heads, flops } = work;
        let d = &self.problem.dims;
        let (len, passes) = if stream == Operand::Key { (d.seq_len_kv, 1) } else { (d.seq_len_q, d.group()) };
        let at_once = (loops::stream_at_once(&key, shape, self.caps).min(CHAIN) / passes).max(1);
        let steps = len.div_ceil(at_once).max(1);
        let stored = |operand| self.want.dtype(self.problem, operand);
        let is_narrow = steps > 1 && gives.iter().any(|&(operand, _)| stored(operand) != DType::F32);
        let dtype = if is_narrow { DType::F32 } else { stored(gives[0].0) };
        let own_dtype = |operand| self.problem.spec(operand).dtype;
        let gradient = gives.iter().any(|&(operand, _)| own_dtype(operand) != dtype).then_some(dtype);
        let key = KernelKey { gradient, ..key };
        let blocks = item_blocks(self.problem, owned, 1, shape.block_own() as usize);
        let items = if self.problem.varlen.is_some() { 1 } else { d.batch };
        let mut sums = gives.clone();
        if is_narrow {
            for (operand, place) in &mut sums {
                *place = self.scratch("sums of gradients", self.problem.operand_len(*operand).next_multiple_of(4))?;
            }
        }
        for step in 0..steps {
            let range = [step * at_once, len.min((step + 1) * at_once)];
            let params = Params {
                item_blocks: grid(blocks)?,
                end_workgroup: grid(items * heads * blocks)?,
                range_start: range[0] as u32,
                range_end: range[1] as u32,
                flags: self.params.flags | if step > 0 { Flags::ADDS } else { 0 },
                ..self.params
            };
            let share = (range[1] - range[0]) as f64 / len.max(1) as f64;
            self.steps.push(key.clone(), params, share * flops, |slot| {
                sums.iter().find(|&&(operand, _)| slot == gradient_slot(operand)).map(|&(_, place)| place)
            })?;
        }
        if is_narrow {
            for (&(operand, to), &(_, from)) in gives.iter().zip(&sums) {
                self.narrow(operand, stored(operand), [from, to])?;
            }
        }
        Ok(())
    }

    /// Adds the step that converts a gradient summed in f32 to its storage type.
    fn narrow(&mut self, operand: Operand, dtype: DType, [from, to]: [BufferRef; 2]) -> Result<()> {
        let [.., width] = self.problem.shape(operand);
        let elements = self.problem.shape(operand).iter().product::<usize>() / width.max(1) * width.div_ceil(4);
        let gradient = Some(dtype).filter(|&dtype| dtype != self.problem.spec(operand).dtype);
        let key = KernelKey { gradient, ..self.steps.key(!self.specialised, Kernel::NarrowGradient(operand)) };
        let params = Params { end_workgroup: grid(elements.div_ceil(64))?, ..every_row(self.problem, operand, self.params) };
        self.steps.push(key, params, 4.0 * elements as f64, |slot| match slot {
            Slot::Parts => Some(from),
            _ => Some(to),
        })
    }

    /// Adds the gradient of the bias.
    fn bias(&mut self) -> Result<()> {
        let shape = self.problem.bias.unwrap_or(BroadcastShape([1; 4]));
        let strides = shape.strides().map(|stride| stride as u32);
        self.pairs(
            Kernel::BiasGradient,
            strides,
            Elements { first: 0, len: shape.elements().unwrap_or(0), has_gaps: false },
            (BufferRef::DBias, 0),
        )
    }

    /// Adds the gradient of a bias with these strides, by way of partial sums where the terms of an element are many. Its
    /// first element is at `start` in `to`.
    pub(super) fn pairs(
        &mut self,
        kernel: Kernel,
        sums_strides: [u32; 4],
        Elements { first, len, has_gaps }: Elements,
        (to, start): (BufferRef, usize),
    ) -> Result<()> {
        let d = &self.problem.dims;
        let squares = [d.batch, d.num_heads, d.seq_len_q.div_ceil(SQUARE), d.seq_len_kv.div_ceil(SQUARE)];
        let along = |of_bias: bool| squares.iter().zip(sums_strides).filter(move |&(_, stride)| (stride != 0) == of_bias);
        let own: usize = along(true).map(|(&squares, _)| squares).product();
        let terms: usize = along(false).map(|(&squares, _)| squares).product();
        let room = self.caps.binding_bytes.min(SCRATCH_BYTES).min(self.steps.scratch_left());
        let that_fit = (room as usize / 4 / len.max(1)).max(1);
        let splits = terms.div_ceil(TERMS).max(self.caps.full_grid().div_ceil(own.max(1))).min(terms).min(that_fit).max(1);
        let (sums, sums_start) = if splits > 1 { (self.scratch("parts of a gradient", splits * len)?, 0) } else { (to, grid(start)?) };
        if has_gaps {
            self.sum(0, splits * len, [BufferRef::Scratch(0), sums], sums_start)?;
        }
        let sums_start = sums_start + first;
        let params = Params { splits: splits as u32, sums_strides, output_split_stride: grid(len)?, sums_start, ..self.params };
        self.push(kernel, params, own * splits, d.flops(), [None, Some(sums)])?;
        if splits > 1 { self.sum(splits, len, [sums, to], grid(start)?) } else { Ok(()) }
    }

    /// Adds the sum of some parts of `len` elements: 0 if there are none.
    fn sum(&mut self, parts: usize, len: usize, [from, to]: [BufferRef; 2], sums_start: u32) -> Result<()> {
        let params = Params { splits: parts as u32, output_split_stride: grid(len)?, sums_start, ..self.params };
        self.push(Kernel::Sum, params, len.div_ceil(64), (parts * len) as f64, [Some(from), Some(to)])
    }

    /// Adds the gradient of the relative biases, by way of the sums along all diagonals.
    fn relative_bias(&mut self) -> Result<()> {
        let d = &self.problem.dims;
        let bands = (d.seq_len_q.div_ceil(SQUARE) + d.seq_len_kv.div_ceil(SQUARE)).saturating_sub(1);
        let workgroups = d.batch * d.num_heads * bands;
        let columns = self.problem.relative_bias_columns();
        let parts = self.scratch("sums along diagonals", workgroups * 2 * SQUARE)?;
        self.push(Kernel::Diagonals, self.params, workgroups, d.flops(), [None, Some(parts)])?;
        let flops = (d.batch * d.num_heads * (columns + bands * SQUARE)) as f64;
        self.push(Kernel::RelativeGradient, self.params, d.num_heads * columns, flops, [Some(parts), Some(BufferRef::DRelativeBias)])
    }

    /// Adds the gradient of the sinks.
    fn sinks(&mut self) -> Result<()> {
        let heads = self.problem.dims.num_heads;
        let params = Params { num_heads: heads as u32, ..every_row(self.problem, Operand::Query, self.params) };
        self.push(Kernel::SinkGradient, params, heads, 10.0 * self.problem.lse_len() as f64, [None, Some(BufferRef::DSinks)])
    }

    /// Returns the first shape that is meant for `owned` rows or keys and fits the device.
    fn choose(&self, owned: usize, kernel: impl Fn(GradientShape) -> Kernel) -> Result<(KernelKey, GradientShape)> {
        let fits = |(key, _): &(KernelKey, GradientShape)| fits(key, self.caps);
        let key = |generic, shape| KernelKey { listed: self.list.is_some(), ..self.steps.key(generic, kernel(shape)) };
        let specialised = |shape: GradientShape| (key(false, shape), shape);
        let generic = |shape: GradientShape| (key(true, shape), shape);
        let widest = self.problem.dims.head_dim.max(self.problem.dims.head_dim_v);
        let suited = software::gradients(widest, self.caps).filter(|_| self.specialised).chain(TILES.iter().copied());
        let suited = suited.filter(|suited| suited.suits(owned, widest)).map(|suited| specialised(suited.shape));
        let by_generic = GENERIC.iter().map(|&shape| generic(shape)).filter(|_| !self.specialised);
        by_generic.chain(suited).find(fits).ok_or_else(|| Error::Limit {
            limit: "max_compute_workgroup_storage_size",
            needed: TILES.last().map_or(0, |last| specialised(last.shape).0.workgroup_bytes().into()),
            available: self.caps.workgroup_bytes.into(),
            remedy: "use a smaller head_dim or Backend::Cpu".into(),
        })
    }
}

/// Slot to which a kernel writes the gradient of `operand`.
const fn gradient_slot(operand: Operand) -> Slot {
    match operand {
        Operand::Key => Slot::DKey,
        Operand::Value => Slot::DValue,
        _ => Slot::DQuery,
    }
}
