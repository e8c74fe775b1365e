//! Wrong ways to compute gradients: each is the oracle with one mistake that real kernels have made.

use wgpu_attention::oracle;
use wgpu_attention::verify::backward_oracle;
use wgpu_attention::{
    BackwardInputs, BroadcastShape, DType, Dropout, Gradients, HostSlice, HostVec, Inputs, Layout, Problem, Result, ScoreOrder, TensorSpec,
    Term, WantGradients,
};

/// Mistake, and the backward pass that makes it.
pub(crate) struct GradientBug {
    pub(crate) name: &'static str,
    pub(crate) backward: fn(&Problem, &Inputs<'_>, &BackwardInputs<'_>, &WantGradients) -> Result<Gradients>,
}

/// All mistakes.
pub(crate) const GRADIENT_BUGS: &[GradientBug] = &[
    GradientBug { name: "softcap's derivative left out", backward: |p, x, b, w| of_pairs(p, x, b, w, p.softcap.is_some(), false) },
    GradientBug { name: "the delta term left out", backward: |p, x, b, w| of_pairs(p, x, b, w, p.softcap.is_none(), true) },
    GradientBug { name: "dK not summed over the group", backward: first_head_of_the_group },
    GradientBug {
        name: "dropout mask different in backward",
        backward: |p, x, b, w| {
            let dropout = Dropout { offset: x.dropout.offset + 1, ..x.dropout };
            backward_oracle(p, &Inputs { dropout, ..*x }, b, w)
        },
    },
    GradientBug {
        name: "dropout ignored in backward",
        backward: |p, x, b, w| backward_oracle(&Problem { dropout: None, ..p.clone() }, x, b, w),
    },
    GradientBug { name: "scale applied twice", backward: |p, x, b, w| scaled(p, x, b, w, p.effective_scale()) },
    GradientBug { name: "scale left out", backward: |p, x, b, w| scaled(p, x, b, w, 1.0 / p.effective_scale()) },
    GradientBug { name: "weights from one f32 lse", backward: weights_from_lse },
    GradientBug {
        name: "dlse ignored",
        backward: |p, x, b, w| {
            let zeros = vec![0.0; p.lse_len()];
            backward_oracle(p, x, &BackwardInputs { d_lse: b.d_lse.map(|_| &zeros[..]), ..*b }, w)
        },
    },
    GradientBug { name: "slopes of later terms left out of a table's gradient", backward: without_later_slopes },
    GradientBug {
        name: "a table's gradient one element off",
        backward: |p, x, b, w| {
            let mut got = backward_oracle(p, x, b, w)?;
            got.term_tables.iter_mut().for_each(|elements| elements.rotate_right(1));
            Ok(got)
        },
    },
    GradientBug {
        name: "sinks ignored in backward",
        backward: |p, x, b, w| {
            let without = Problem { sinks: false, ..p.clone() };
            let mut got = backward_oracle(&without, &Inputs { sinks: &[], ..*x }, b, &WantGradients { sinks: false, ..*w })?;
            got.sinks = w.sinks.then(|| vec![0.0; x.sinks.len()]);
            Ok(got)
        },
    },
];

/// True if the tensors are plain, so that a mistake can be made by hand.
fn is_plain(p: &Problem) -> bool {
    let plain = TensorSpec::new(DType::F32, Layout::Bhsd);
    [p.query, p.key, p.value, p.output] == [plain; 4] && p.varlen.is_none() && p.paged.is_none()
}

fn get(data: HostSlice<'_>, row: usize, width: usize) -> impl Iterator<Item = f64> + '_ {
    (row * width..(row + 1) * width).map(move |at| data.get(at).into())
}

/// Computes dQ and dK from the gradient of a bias of every pair, which lacks the softcap's derivative. Without delta
/// they are too large by p * delta. The answer is right if `applies` is false or the problem has biases.
fn of_pairs(p: &Problem, x: &Inputs<'_>, b: &BackwardInputs<'_>, w: &WantGradients, applies: bool, no_delta: bool) -> Result<Gradients> {
    let mut got = backward_oracle(p, x, b, w)?;
    if !applies || !is_plain(p) || p.bias.is_some() || p.alibi.is_some() || p.relative_bias_max_distance.is_some() || p.scores_len() == 0 {
        return Ok(got);
    }
    let d = p.dims;
    let every_pair = Problem { bias: Some(BroadcastShape(d.scores_shape())), score_order: ScoreOrder::SoftcapThenBias, ..p.clone() };
    let zeros = vec![0.0; p.scores_len()];
    let wanted = WantGradients { bias: true, ..*w };
    let mut pairs = backward_oracle(&every_pair, &Inputs { bias: &zeros, ..*x }, b, &wanted)?.bias.unwrap_or_default();
    if no_delta {
        let weights = oracle::attention(p, x)?.weights;
        for (at, pair) in pairs.iter_mut().enumerate().filter(|&(at, _)| weights[at] > 0.0) {
            let row = at / d.seq_len_kv;
            let delta: f64 = get(b.d_output, row, d.head_dim_v).zip(get(b.output, row, d.head_dim_v)).map(|(x, y)| x * y).sum();
            *pair += (weights[at] * delta) as f32;
        }
    }
    let scale = f64::from(p.effective_scale());
    let (mut query, mut key) = (vec![0.0; p.query_len()], vec![0.0; p.key_len()]);
    for (at, &pair) in pairs.iter().enumerate().filter(|&(_, &pair)| pair != 0.0) {
        let (row, j) = (at / d.seq_len_kv, at % d.seq_len_kv);
        let (item, head) = (row / d.seq_len_q / d.num_heads, row / d.seq_len_q % d.num_heads);
        let kv_row = (item * d.num_kv_heads + head / d.group()) * d.seq_len_kv + j;
        for (e, (q, k)) in get(x.query, row, d.head_dim).zip(get(x.key, kv_row, d.head_dim)).enumerate() {
            query[row * d.head_dim + e] += (scale * f64::from(pair) * k) as f32;
            key[kv_row * d.head_dim + e] += (scale * f64::from(pair) * q) as f32;
        }
    }
    (got.query, got.key) = (Some(HostVec::F32(query)), Some(HostVec::F32(key)));
    Ok(got)
}

/// Computes the gradients of tables as if the slopes of the terms after their own were 1.
fn without_later_slopes(p: &Problem, x: &Inputs<'_>, b: &BackwardInputs<'_>, w: &WantGradients) -> Result<Gradients> {
    let mut flat = p.clone();
    for term in flat.user_terms.iter_mut().skip(1).filter(|term| term.has_score() && !term.text().contains("fn slope")) {
        let text = format!("{}\nfn slope(x: f32, y: f32, at: Pair) -> f32 {{ return 1.0; }}", term.text());
        *term = Term::with_tables(&text, &term.tables().collect::<Vec<_>>())?;
    }
    let term_tables = backward_oracle(&flat, x, b, w)?.term_tables;
    let mut got = backward_oracle(p, x, b, w)?;
    got.term_tables = term_tables;
    Ok(got)
}

/// Computes dK from the first query head of each group alone.
fn first_head_of_the_group(p: &Problem, x: &Inputs<'_>, b: &BackwardInputs<'_>, w: &WantGradients) -> Result<Gradients> {
    let mut got = backward_oracle(p, x, b, w)?;
    if is_plain(p) {
        let head = p.dims.seq_len_q * p.dims.head_dim_v;
        let mut d_output: Vec<f32> = (0..b.d_output.len()).map(|at| b.d_output.get(at)).collect();
        for (index, head) in d_output.chunks_mut(head.max(1)).enumerate() {
            if !(index % p.dims.num_heads).is_multiple_of(p.dims.group()) {
                head.fill(0.0);
            }
        }
        got.key = backward_oracle(p, x, &BackwardInputs { d_output: (&d_output).into(), ..*b }, w)?.key;
    }
    Ok(got)
}

/// Computes weights as exp(score - lse) with a rounded lse: a row's weights and gradients are all off by one factor.
fn weights_from_lse(p: &Problem, x: &Inputs<'_>, b: &BackwardInputs<'_>, w: &WantGradients) -> Result<Gradients> {
    if !is_plain(p) {
        return backward_oracle(p, x, b, w);
    }
    let lse = oracle::attention(p, x)?.lse;
    let factor = |row: usize| if lse[row].is_finite() { (lse[row] - f64::from(lse[row] as f32)).exp() } else { 1.0 };
    let d_output = (0..b.d_output.len()).map(|at| (f64::from(b.d_output.get(at)) * factor(at / p.dims.head_dim_v)) as f32);
    let d_output: Vec<f32> = d_output.collect();
    backward_oracle(p, x, &BackwardInputs { d_output: (&d_output).into(), ..*b }, w)
}

fn scaled(p: &Problem, x: &Inputs<'_>, b: &BackwardInputs<'_>, w: &WantGradients, factor: f32) -> Result<Gradients> {
    let mut got = backward_oracle(p, x, b, w)?;
    for gradient in [&mut got.query, &mut got.key].into_iter().flatten() {
        let dtype = gradient.as_slice().dtype();
        *gradient = HostVec::from_f32(dtype, &gradient.to_f32().iter().map(|x| x * factor).collect::<Vec<_>>());
    }
    Ok(got)
}
