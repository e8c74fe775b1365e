//! The backward pass: which kernels, in which shapes, for the gradients that are wanted.

use super::fused::{places, variant};
use super::{DeviceCaps, DeviceClass, Place, Plan, Step, TableLayout, check_addressing, check_bytes, check_kernel, cut, grid};
use crate::problem::Operand;
use crate::shader::{GradientShape, Kernel, KernelKey, KeySide, Params, Slot};
use crate::{Broadcast, Error, Problem, Result, Want, WantGradients};

/// Shapes of the gradient kernels from the fastest to the smallest, with the least of rows or keys for which each is meant.
const TILES: &[(usize, GradientShape)] = &[
    (17, shape(128, 4, 16, 2)),
    (17, shape(128, 4, 16, 1)),
    (9, shape(64, 4, 16, 1)),
    (9, shape(64, 2, 8, 1)),
    (1, shape(32, 2, 8, 1)),
    (1, shape(32, 1, 8, 1)),
    (1, shape(8, 1, 4, 1)),
    (1, shape(4, 1, 2, 1)),
    (1, shape(2, 1, 2, 1)),
];

/// Shapes for a software adapter, with the least of rows or keys and the widest head for which each is meant.
///
/// With Mesa 26.2 lavapipe, 8 heads of 2048 by 2048, in CPU time beside a forward pass of 240 ms: head of 64 by shuffles 4 owned and 4
/// others dQ 310, dK and dV 460 ms; 4 and 8 360 and 480, 4 and 2 400 and 500, 2 and 8 400 and 590; through workgroup memory 870 and 1040;
/// tiles ten times as much. Head of 128, 1024 by 1024, beside 140 ms: 4 and 4 170 and 270, 2 and 4 200 and 300.
const VECTORS: &[(usize, usize, GradientShape)] = &[
    (17, 128, vectors(8, 4, 32, 4, 8)),
    (9, 576, vectors(8, 1, 32, 4, 8)),
    (129, 64, vectors(64, 4, 32, 2, 0)),
    (33, 64, vectors(64, 2, 32, 2, 0)),
    (33, 128, vectors(64, 2, 16, 2, 0)),
    (1, 576, vectors(8, 1, 8, 4, 0)),
];

const fn vectors(threads: u32, own: u32, tile: u32, stream: u32, lanes: u32) -> GradientShape {
    GradientShape::Vectors { threads, own, tile, stream, lanes }
}

/// Whether shuffles among its lanes work, and a kernel of it is compiled in reasonable time: a slow compiler takes seconds for long
/// unrolled code, so that there a thread has no more than 64 numbers of each kind.
fn is_good(shape: GradientShape, widest: usize, caps: &DeviceCaps) -> bool {
    let GradientShape::Vectors { own, lanes, .. } = shape else { return true };
    lanes == 0 || (lanes == caps.subgroup_size && lanes == caps.subgroup_max && (!caps.slow_compiler || own as usize * widest <= 64))
}

/// Shapes of their general variants.
const GENERAL: &[GradientShape] = &[shape(32, 1, 8, 1), shape(8, 1, 4, 1)];

/// Rows and keys of a square in shaders/backward/square.wgsl.
const SQUARE: usize = 16;
/// Squares that a workgroup should go over at most for the gradient of a bias.
const TERMS: usize = 128;
/// Bytes that the parts of that gradient may have.
const SCRATCH_BYTES: u64 = 64 << 20;

const fn shape(threads: u32, own: u32, cols: u32, stream: u32) -> GradientShape {
    GradientShape::Tiles { threads, own, cols, stream }
}

impl Plan {
    /// Plans the gradients of `problem` that are wanted for a device with `caps`, from query, key, value, output, lse and the
    /// gradient of the output.
    ///
    /// Nothing of size seq_len_q x seq_len_kv is stored: the scores are computed anew, once for dQ and once for dK and dV.
    /// Errors are those of [`Plan::new`], and [`Error::Unsupported`] for keys in pages and for operands of which elements share places.
    pub fn backward(problem: &Problem, want: &WantGradients, caps: &DeviceCaps) -> Result<Self> {
        let problem = &Problem { want: Want { lse: true, ..Want::default() }, ..*problem };
        problem.check()?;
        want.check(problem)?;
        check_addressing(problem, caps)?;
        let (layout, table_words) = TableLayout::new(problem).unwrap_or_default(); // checked before
        for operand in Operand::ALL {
            let dtype = if operand == Operand::Output { problem.output.dtype } else { want.dtype(problem, operand) };
            let larger = dtype.bytes(problem.operand_len(operand)).max(problem.spec(operand).dtype.bytes(problem.operand_len(operand)));
            check_bytes(operand.name(), larger as u64, caps)?;
        }
        let row_words = 2 * problem.lse_len() as u64 + u64::from(table_words);
        check_bytes("ends of rows", 4 * row_words, caps)?;
        let first_table = grid(2 * problem.lse_len())?;
        let mut plan = Planner {
            problem,
            caps,
            special: caps.specialises(2.5 * problem.dims.flops()),
            params: Params { table_words, first_table, ..Params::new(problem, layout.shifted(first_table)) },
            steps: Vec::new(),
            scratch: vec![4 * row_words],
        };
        plan.row_ends(layout, table_words)?;
        if want.query {
            plan.query(want)?;
        }
        plan.keys(want)?;
        if want.bias {
            plan.bias()?;
        }
        if want.relative_bias {
            plan.relative_bias()?;
        }
        if want.sinks {
            plan.push(
                Kernel::SinkGradient,
                plan.params,
                problem.dims.num_heads,
                10.0 * problem.lse_len() as f64,
                [None, Some(Place::DSinks)],
            )?;
        }
        let scratch = std::mem::take(&mut plan.scratch);
        for step in &plan.steps {
            check_kernel(&step.key, caps)?;
        }
        let names: Vec<String> = plan.steps.iter().map(|step| step.key.kernel.to_string()).collect();
        let summary = format!(
            "backward: {}{}, {} B scratch",
            if plan.special { "" } else { "general " },
            names.join("; "),
            scratch.iter().sum::<u64>()
        );
        let steps = plan.steps.into_iter().flat_map(|step| cut(step, caps)).collect();
        Ok(Self { steps, scratch, table_words, summary })
    }
}

/// A plan in the making.
struct Planner<'a> {
    problem: &'a Problem,
    caps: &'a DeviceCaps,
    special: bool,
    /// With the tables where the gradient kernels find them.
    params: Params,
    steps: Vec<Step>,
    /// First the ends of rows.
    scratch: Vec<u64>,
}

impl Planner<'_> {
    /// Adds a kernel in the variant that the problem needs; `parts` and `sums` say what those bindings refer to.
    fn push(&mut self, kernel: Kernel, params: Params, workgroups: usize, flops: f64, [parts, sums]: [Option<Place>; 2]) -> Result<()> {
        self.push_key(variant(!self.special, kernel, self.problem), params, workgroups, flops, [parts, sums])
    }

    fn push_key(&mut self, key: KernelKey, params: Params, workgroups: usize, flops: f64, [parts, sums]: [Option<Place>; 2]) -> Result<()> {
        let own = |slot| match slot {
            Slot::Parts => parts,
            Slot::Sums => sums,
            _ => None,
        };
        let places = places(&key, |slot| Place::of(slot).or(own(slot)).unwrap_or(Place::Scratch(0)));
        self.steps.push(Step { key, params: Params { end_workgroup: grid(workgroups)?, ..params }, places, flops, bound: None });
        Ok(())
    }

    /// Another buffer of the plan's own, of so many f32.
    fn scratch(&mut self, name: &str, numbers: usize) -> Result<Place> {
        check_bytes(name, 4 * numbers as u64, self.caps)?;
        self.scratch.push(4 * numbers as u64);
        Ok(Place::Scratch(self.scratch.len() - 1))
    }

    /// lse and delta of the rows, and the tables as they come.
    fn row_ends(&mut self, layout: TableLayout, table_words: u32) -> Result<()> {
        let d = &self.problem.dims;
        let threads = (d.batch * d.num_heads * d.seq_len_q).max(table_words as usize);
        let params = Params { tables: layout, ..self.params };
        let flops = 2.0 * (d.batch * d.num_heads * d.seq_len_q * d.head_dim_v) as f64;
        self.push(Kernel::RowEnds, params, threads.div_ceil(64), flops, [None; 2])
    }

    fn query(&mut self, want: &WantGradients) -> Result<()> {
        let d = &self.problem.dims;
        let (key, block) = self.choose(d.seq_len_q, Kernel::QueryGradient)?;
        let key = KernelKey { gradient: want.dtype.filter(|&dtype| dtype != key.query.dtype), ..key };
        let workgroups = d.batch * d.num_heads * d.seq_len_q.div_ceil(block);
        self.push_key(key, self.params, workgroups, 1.5 * d.flops(), [None; 2])
    }

    /// dK and dV in one kernel where its buffers are few enough, else in two.
    fn keys(&mut self, want: &WantGradients) -> Result<()> {
        let d = &self.problem.dims;
        let many_buffers = !self.special || (self.problem.bias.is_some() && self.problem.visibility.mask.is_some());
        let sides: &[(KeySide, f64)] = match (want.key, want.value) {
            (true, true) if many_buffers => &[(KeySide::Key, 1.5), (KeySide::Value, 1.0)],
            (true, true) => &[(KeySide::Both, 2.0)],
            (true, false) => &[(KeySide::Key, 1.5)],
            (false, true) => &[(KeySide::Value, 1.0)],
            (false, false) => &[],
        };
        for &(side, share) in sides {
            let (key, block) = self.choose(d.seq_len_kv, |shape| Kernel::KeyGradient(shape, side))?;
            let key = KernelKey { gradient: want.dtype.filter(|&dtype| dtype != key.key.dtype || dtype != key.value.dtype), ..key };
            let workgroups = d.batch * d.num_kv_heads * d.seq_len_kv.div_ceil(block);
            self.push_key(key, self.params, workgroups, share * d.flops(), [None; 2])?;
        }
        Ok(())
    }

    /// The gradient of the bias; the terms of its sums in parts where they are many.
    fn bias(&mut self) -> Result<()> {
        let d = &self.problem.dims;
        let squares = [d.batch, d.num_heads, d.seq_len_q.div_ceil(SQUARE), d.seq_len_kv.div_ceil(SQUARE)];
        let shape = self.problem.bias.unwrap_or(Broadcast([1; 4]));
        let along = |of_bias: bool| squares.iter().zip(shape.strides()).filter(move |&(_, stride)| (stride != 0) == of_bias);
        let own: usize = along(true).map(|(&squares, _)| squares).product();
        let terms: usize = along(false).map(|(&squares, _)| squares).product();
        let elements = shape.elements().unwrap_or(0);
        let that_fit = (self.caps.binding_bytes.min(SCRATCH_BYTES) as usize / 4 / elements.max(1)).max(1);
        let splits = terms.div_ceil(TERMS).max(self.caps.full_grid().div_ceil(own.max(1))).min(terms).min(that_fit).max(1);
        let params = Params { splits: splits as u32, output_split_stride: grid(elements)?, ..self.params };
        if splits == 1 {
            return self.push(Kernel::BiasGradient, params, own, d.flops(), [None, Some(Place::DBias)]);
        }
        let parts = self.scratch("parts of the bias's gradient", splits * elements)?;
        self.push(Kernel::BiasGradient, params, own * splits, d.flops(), [None, Some(parts)])?;
        self.push(Kernel::Sum, params, elements.div_ceil(64), (splits * elements) as f64, [Some(parts), Some(Place::DBias)])
    }

    /// The gradient of the relative biases by way of the sums along all diagonals.
    fn relative_bias(&mut self) -> Result<()> {
        let d = &self.problem.dims;
        let bands = (d.seq_len_q.div_ceil(SQUARE) + d.seq_len_kv.div_ceil(SQUARE)).saturating_sub(1);
        let workgroups = d.batch * d.num_heads * bands;
        let columns = self.problem.relative_bias.map_or(0, |max| 2 * max as usize + 1);
        let parts = self.scratch("sums along diagonals", workgroups * 2 * SQUARE)?;
        self.push(Kernel::Diagonals, self.params, workgroups, d.flops(), [None, Some(parts)])?;
        let flops = (d.batch * d.num_heads * (columns + bands * SQUARE)) as f64;
        self.push(Kernel::RelativeGradient, self.params, d.num_heads * columns, flops, [Some(parts), Some(Place::DRelativeBias)])
    }

    /// The first shape meant for so many owned rows or keys that fits the device, and how many a workgroup owns.
    fn choose(&self, owned: usize, kernel: impl Fn(GradientShape) -> Kernel) -> Result<(KernelKey, usize)> {
        let fits = |(key, _): &(KernelKey, usize)| {
            key.workgroup_bytes() <= self.caps.workgroup_bytes && key.threads() <= self.caps.workgroup_threads
        };
        let special = |shape: GradientShape| (KernelKey::new(kernel(shape), self.problem), shape.block_own() as usize);
        let general = |shape: GradientShape| (KernelKey::general(kernel(shape), self.problem), shape.block_own() as usize);
        let widest = self.problem.dims.head_dim.max(self.problem.dims.head_dim_v);
        let is_meant = |&&(least, most_dim, shape): &&(usize, usize, GradientShape)| {
            owned >= least && widest <= most_dim && is_good(shape, widest, self.caps)
        };
        let by_vectors = VECTORS.iter().filter(is_meant);
        let by_vectors = by_vectors.map(|&(.., shape)| special(shape)).filter(|_| self.caps.class == DeviceClass::Software && self.special);
        let by_tiles = TILES.iter().filter(|&&(least, _)| owned >= least).map(|&(_, shape)| special(shape));
        let by_general = GENERAL.iter().map(|&shape| general(shape)).filter(|_| !self.special);
        by_general.chain(by_vectors).chain(by_tiles).find(fits).ok_or_else(|| Error::Limit {
            limit: "max_compute_workgroup_storage_size",
            needed: TILES.last().map_or(0, |&(_, shape)| special(shape).0.workgroup_bytes().into()),
            available: self.caps.workgroup_bytes.into(),
            remedy: "use a smaller head_dim or Backend::Cpu".into(),
        })
    }
}
