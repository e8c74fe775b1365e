//! Random cases over every option of [`Problem`], and the reduction of failing cases to small ones.

use crate::custom::ARE_READ;
use crate::error::{Error, Result};
use crate::gpu::block_on;
use crate::numbers::{DType, Hadamard, Random};
use crate::problem::{
    Alignment, Dims, Layout, Operand, Paged, Problem, Returns, ScoreOrder, ScoreStage, Strides, SummedRows, TensorSpec, Varlen,
};
use crate::terms::TERMS;
use crate::verify::case::{Case, Extreme, Fill};
use crate::verify::user_terms;

/// Draws a case small enough for the oracle. Equal seeds return equal cases.
pub fn random(seed: u64) -> Result<Case> {
    random_of(seed, seed)
}

/// Draws a small case of a kind. Cases of one kind differ in lengths and data, so that most of them share kernels.
pub fn random_of(kind: u64, seed: u64) -> Result<Case> {
    let (problem, fill) = small(kind, seed);
    Case::new(format!("random-{kind}-{seed}"), problem, fill)
}

/// Draws a case of a kind, small or of sizes at which kernels change, with a random text as its only user's term. Returns
/// the reason if the text is refused: it is too long with its loops unrolled.
pub fn random_text_of(kind: u64, seed: u64, is_large: bool) -> Result<std::result::Result<Case, Error>> {
    let (mut problem, mut fill) = if is_large { large(kind, seed) } else { small(kind, seed) };
    problem.user_terms.clear();
    match user_terms::random_text(&mut Random::new(kind ^ 0x7e475)) {
        Ok(term) => {
            // Squares of such scores are infinite in f32, and NaN soon after; the oracle's arithmetic is f64.
            if term.functions().score.is_some() && matches!(fill.extreme, Extreme::Bias(_)) {
                fill.extreme = Extreme::Nothing;
            }
            problem.user_terms.push(term);
        }
        Err(error) => return Ok(Err(error)),
    }
    let alignment = problem.visibility.alignment.unwrap_or(Alignment::BottomRight);
    problem.visibility.alignment = problem.uses_position().then_some(alignment);
    Case::new(format!("text-{kind}-{seed}"), problem, fill).map(Ok)
}

fn small(kind: u64, seed: u64) -> (Problem, Fill) {
    let (kind_source, rest) = (&mut Random::new(kind ^ 0x5eed), &mut Random::new(seed ^ 0x5eed5));
    let dims = small_dims(kind_source, rest);
    let (problem, fill) = options(seed, dims, kind_source, rest);
    (rotate(problem, fill, kind), fill)
}

/// Draws a case of a kind, as [`random_of`], of sizes at which kernels change: several tiles, split keys, wide heads. Keys
/// and values are of two types now and then, of which one or both are quantised.
pub fn random_large_of(kind: u64, seed: u64) -> Result<Case> {
    let (problem, fill) = large(kind, seed);
    Case::new(format!("large-{kind}-{seed}"), problem, fill)
}

fn large(kind: u64, seed: u64) -> (Problem, Fill) {
    let (kind_source, rest) = (&mut Random::new(kind ^ 0x1a26e), &mut Random::new(seed ^ 0x1a26e5));
    let dims = large_dims(kind_source, rest);
    let (problem, fill) = options(seed, dims, kind_source, rest);
    let (dtype, layout) = (kind_source.pick(&DType::QUANTISED), kind_source.pick(&[Layout::Bhsd, Layout::Bshd]));
    let is_quantised = kind_source.one_in(6);
    let other = kind_source.pick(&[dtype, dtype, DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4]);
    let [key, value] = if kind_source.one_in(2) { [dtype, other] } else { [other, dtype] }.map(|dtype| TensorSpec::new(dtype, layout));
    let blocks = Problem { key, value, ..problem.clone() };
    let problem = if is_quantised && blocks.check().is_ok() { blocks } else { problem };
    (rotate(problem, fill, kind), fill)
}

/// Takes keys and values of some kinds as stored rotated, where their widths have blocks. Sums of elements near the limits of
/// f32 would overflow.
fn rotate(problem: Problem, fill: Fill, kind: u64) -> Problem {
    let random = &mut Random::new(kind ^ 0x407a7e);
    let [key, value] = [problem.dims.head_dim, problem.dims.head_dim_v].map(|width| random.one_in(3) && Hadamard::of(width).is_some());
    if matches!(fill.extreme, Extreme::Values(_) | Extreme::Overflow) { problem } else { problem.hadamard(key, value) }
}

fn small_dims(kind: &mut Random, rest: &mut Random) -> Dims {
    let kv_heads = rest.pick(&[1, 1, 2, 3]);
    let head_dim = kind.pick(&[1, 2, 3, 4, 5, 8, 8, 12, 16, 16, 24, 32, 40, 64, 72]);
    let lengths = [1, 1, 2, 3, 5, 7, 8, 11, 15, 16, 17, 23, 31, 32, 33, 47, 63, 64, 65];
    Dims {
        batch: rest.pick(&[1, 1, 2, 3]),
        num_heads: kv_heads * rest.pick(&[1, 1, 2, 3, 4]),
        num_kv_heads: kv_heads,
        seq_len_q: if rest.one_in(40) { 0 } else { rest.pick(&lengths) },
        seq_len_kv: if rest.one_in(40) { 0 } else { rest.pick(&lengths) },
        head_dim,
        head_dim_v: if kind.one_in(3) { kind.pick(&[1, 3, 8, 20, 32, 64]) } else { head_dim },
    }
}

fn large_dims(kind: &mut Random, rest: &mut Random) -> Dims {
    let head_dim = match kind.below(4) {
        0 => 1 + kind.below(70),
        1 => kind.pick(&[65, 95, 127, 129, 160, 192, 255, 256, 257, 511, 512, 513, 576, 600]),
        _ => kind.pick(&[32, 64, 64, 80, 96, 128, 128]),
    };
    let head_dim_v = if kind.one_in(4) { kind.pick(&[1, 20, 32, 64, 72, 128, 130, 257]) } else { head_dim };
    loop {
        let kv_heads = rest.pick(&[1, 1, 1, 2, 3]);
        let dims = Dims {
            batch: rest.pick(&[1, 1, 1, 2, 3]),
            num_heads: kv_heads * rest.pick(&[1, 1, 2, 4, 7, 8]),
            num_kv_heads: kv_heads,
            seq_len_q: rest.pick(&[1, 1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 257, 300]),
            seq_len_kv: if rest.one_in(3) {
                rest.below(2100)
            } else {
                rest.pick(&[1, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1024, 1025, 2048])
            },
            head_dim,
            head_dim_v,
        };
        if dims.scores_shape().iter().product::<usize>() * (dims.head_dim + dims.head_dim_v) < 3_000_000 {
            return dims;
        }
    }
}

/// Draws everything except the sizes: what kernels depend on from `kind`, everything else from `rest`.
fn options(seed: u64, dims: Dims, kind: &mut Random, rest: &mut Random) -> (Problem, Fill) {
    let mut p = Problem::new(dims);
    // The longest sequence may have all of the padded length.
    let mut tokens = |longest: usize| longest + rest.below((dims.batch - 1) * longest + 1);
    p.varlen = kind.one_in(5).then(|| Varlen { tokens_q: tokens(dims.seq_len_q), tokens_kv: tokens(dims.seq_len_kv) });
    p.scale = rest.one_in(4).then(|| rest.pick(&[0.0, 0.1, 1.0, -0.3]));
    p.sinks = kind.one_in(5);
    p.visibility.kv_lengths = p.varlen.is_none() && kind.one_in(4);
    TERMS.iter().for_each(|term| (term.draw)(&mut p, kind, rest));
    if p.uses_position() {
        let near = rest.below(2 * dims.seq_len_kv + 3) as i32 - dims.seq_len_kv as i32 / 2;
        let offset = if rest.one_in(12) { rest.pick(&[1 << 29, -(1 << 29)]) } else { near };
        p.visibility.alignment = Some(rest.pick(&[Alignment::TopLeft, Alignment::BottomRight, Alignment::Offset(offset)]));
    }
    if !p.visibility.segments && kind.one_in(6) {
        let page_size = rest.pick(&[1, 2, 4, 5, 8, 16, 32, 64]);
        let pages_per_item = dims.seq_len_kv.div_ceil(page_size) + rest.below(2);
        p.paged = Some(Paged { page_size, pages: dims.batch * pages_per_item + rest.below(3), pages_per_item });
        p.visibility.kv_lengths = true;
        p.varlen = p.varlen.map(|varlen| Varlen { tokens_kv: 0, ..varlen });
    }
    let dtype = kind.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]);
    let mixed = kind.one_in(12);
    [p.query, p.key, p.value, p.output] = Operand::ALL.map(|operand| {
        let dtype = if mixed { kind.pick(&DType::FLOATS) } else { dtype };
        let layout = layout(p.shape(operand), kind, rest);
        // The offset modulo 4 depends on the kind, because rows of whole vec4s take other kernels.
        let offset = if !kind.one_in(4) { 0 } else { 4 * rest.below(3) + kind.below(4) };
        TensorSpec { dtype, layout, offset }
    });
    if kind.one_in(6) && ARE_READ {
        user_terms::draw(&mut p, kind);
    }
    p.want = Returns {
        lse: kind.one_in(2),
        stats: kind.one_in(8),
        scores: kind.one_in(6).then(|| rest.pick(&[ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked])),
        weights: kind.one_in(6),
        key_sums: None,
    };
    p.allow_bf16_weights = Random::new(seed ^ 0xbf16).one_in(3);
    p.dropout = kind.one_in(8).then(|| rest.pick(&[0.0, 0.1, 0.5, 0.9]));
    let amplitude = rest.pick(&[0.3, 1.0, 1.0, 1.0, 4.0]);
    let mut fill = Fill { seed, amplitude, poison: !rest.one_in(4), nan: rest.one_in(16), extreme: Extreme::Nothing };
    if rest.one_in(8) {
        fill.extreme = extreme(&p, rest);
    }
    p.want.key_sums = kind.one_in(5).then(|| rest.pick(&[SummedRows::All, SummedRows::All, SummedRows::Last(1), SummedRows::Last(8)]));
    (p, fill)
}

/// Draws elements near the limits of the problem's storage types.
fn extreme(p: &Problem, r: &mut Random) -> Extreme {
    if p.bias.is_some() {
        return Extreme::Bias(r.pick(&[-1e9, f32::MIN, -1e4, 7e7, 1e30]));
    }
    let is_wide = Operand::ALL.iter().all(|&operand| matches!(p.spec(operand).dtype, DType::F32 | DType::BF16));
    match r.below(4) {
        0 if is_wide => Extreme::Values(r.pick(&[1e30, 1e-39])),
        1 => Extreme::All(0.1),
        // A softcap before the biases leaves such pairs visible, at a slope that f32 rounds to 0 beside infinite gradients.
        2 if is_wide && (p.softcap.is_none() || p.score_order == ScoreOrder::BiasThenSoftcap) => Extreme::Overflow,
        _ => Extreme::Scores(r.pick(&[3000.0, 30.0])),
    }
}

/// Draws a layout: contiguous in either order, permuted, with gaps, or a view of packed QKV.
fn layout(shape: [usize; 4], kind: &mut Random, rest: &mut Random) -> Layout {
    match kind.below(6) {
        0 | 1 => Layout::Bhsd,
        2 => Layout::Bshd,
        3 => packed_qkv(shape),
        _ => {
            let mut order = [0, 1, 2, 3];
            for last in (1..4).rev() {
                order.swap(last, kind.below(last + 1));
            }
            let gaps = kind.one_in(2);
            let (mut steps, mut step) = ([0; 4], 1);
            for axis in order {
                steps[axis] = step;
                step = step * shape[axis].max(1) + if gaps { rest.below(3) } else { 0 };
            }
            let [batch, head, seq, dim] = steps;
            Layout::Strided(Strides { batch, head, seq, dim })
        }
    }
}

/// Layout of a view of packed QKV: one of three equal parts of each token's row.
pub(crate) const fn packed_qkv([_, heads, seq, dim]: [usize; 4]) -> Layout {
    let row = 3 * heads * dim;
    Layout::Strided(Strides { batch: seq * row, head: dim, seq: row, dim: 1 })
}

/// Returns cases simpler by one step, the largest steps first: an option less, a smaller size, a plainer layout.
pub fn shrink(case: &Case) -> impl Iterator<Item = Case> + use<> {
    let (name, fill, p) = (case.name.clone(), case.fill, case.problem.clone());
    let mut simpler: Vec<(Problem, Fill)> = Vec::new();
    for change in TERMS.iter().map(|term| term.remove).chain(PLAINER) {
        let mut q = p.clone();
        change(&mut q);
        if !q.uses_position() {
            q.visibility.alignment = None;
        }
        simpler.push((q, fill));
    }
    for set in DIMS {
        let now = *set(&mut { p.dims });
        // Not to 0: an empty problem is no smaller case of a failure.
        for next in [1, now / 2, now.saturating_sub(1)].into_iter().filter(|next| (1..now).contains(next)) {
            let mut q = p.clone();
            *set(&mut q.dims) = next;
            // Other sizes have other elements, whose luck should not keep the case large.
            simpler.extend([(q.clone(), fill), (q, Fill { seed: fill.seed.wrapping_add(1), ..fill })]);
        }
    }
    let same_group = Dims { num_heads: p.dims.group(), num_kv_heads: 1, ..p.dims };
    simpler.extend([
        (Problem { dims: same_group, ..p.clone() }, fill),
        (p.clone(), Fill { poison: false, ..fill }),
        (p.clone(), Fill { nan: false, ..fill }),
        (p.clone(), Fill { extreme: Extreme::Nothing, ..fill }),
        (p.clone(), Fill { amplitude: 1.0, ..fill }),
    ]);
    // Cases that contradict themselves after the step are dropped: Case::new checks them.
    let before = (p.clone(), fill);
    let simpler = simpler.into_iter().filter(move |step| *step != before);
    simpler.filter_map(move |(q, fill)| Case::new(name.clone(), fit(q, &p), fill).ok())
}

const PLAINER: [fn(&mut Problem); 17] = [
    |p| (p.key_hadamard, p.value_hadamard) = (false, false),
    |p| p.user_terms.clear(),
    |p| p.dropout = None,
    |p| p.allow_bf16_weights = false,
    |p| p.paged = None,
    |p| p.varlen = None,
    |p| p.sinks = false,
    |p| p.visibility.prefix_lengths = false,
    |p| p.visibility.kv_lengths = false,
    |p| p.scale = None,
    |p| p.want.lse = false,
    |p| p.want.stats = false,
    |p| p.want.scores = None,
    |p| p.want.weights = false,
    |p| p.want.key_sums = None,
    |p| each_spec(p, |spec| spec.dtype = DType::F32),
    |p| each_spec(p, |spec| (spec.layout, spec.offset) = (Layout::Bhsd, 0)),
];

fn each_spec(p: &mut Problem, change: fn(&mut TensorSpec)) {
    [&mut p.query, &mut p.key, &mut p.value, &mut p.output].into_iter().for_each(change);
}

const DIMS: [fn(&mut Dims) -> &mut usize; 7] = [
    |d| &mut d.batch,
    |d| &mut d.seq_len_kv,
    |d| &mut d.seq_len_q,
    |d| &mut d.num_heads,
    |d| &mut d.num_kv_heads,
    |d| &mut d.head_dim,
    |d| &mut d.head_dim_v,
];

/// Adapts broadcast shapes, token counts and pages to the sizes.
fn fit(mut p: Problem, before: &Problem) -> Problem {
    let (old, new) = (before.dims.scores_shape(), p.dims.scores_shape());
    for shape in [&mut p.visibility.mask, &mut p.bias].into_iter().flatten() {
        for axis in 0..4 {
            if shape.0[axis] == old[axis] && old[axis] != 1 {
                shape.0[axis] = new[axis];
            }
        }
    }
    if let Some(list) = &mut p.visibility.block_list {
        list.batch = if list.batch == 1 { 1 } else { new[0] };
        list.heads = if list.heads == 1 { 1 } else { new[1] };
    }
    if let Some(varlen) = &mut p.varlen {
        let d = p.dims;
        varlen.tokens_q = varlen.tokens_q.clamp(d.seq_len_q, d.batch * d.seq_len_q);
        varlen.tokens_kv = varlen.tokens_kv.clamp(d.seq_len_kv, d.batch * d.seq_len_kv);
        if p.paged.is_some() {
            varlen.tokens_kv = 0;
        } else if before.paged.is_some() {
            p.visibility.kv_lengths = false;
        }
    }
    if let Some(paged) = &mut p.paged {
        paged.pages_per_item = p.dims.seq_len_kv.div_ceil(paged.page_size);
        paged.pages = p.dims.batch * paged.pages_per_item;
    }
    p
}

/// Reduces a failing case: takes the first simpler case that still `fails`, until none does.
pub fn minimise(case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let reduced = block_on(async { Ok(reduce(case, async |case| fails(case)).await) }, "");
    reduced.expect("it never waits")
}

/// [`minimise`] with a test that is awaited.
pub(super) async fn reduce(case: Case, fails: impl AsyncFn(&Case) -> bool) -> Case {
    let mut smallest = case;
    // Each step removes an option or reduces a size, so this ends; the bound is for a nondeterministic `fails`.
    for _ in 0..500 {
        let mut simpler = None;
        for candidate in shrink(&smallest) {
            if fails(&candidate).await {
                simpler = Some(candidate);
                break;
            }
        }
        let Some(simpler) = simpler else { break };
        smallest = simpler;
    }
    smallest
}
