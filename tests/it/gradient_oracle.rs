//! Gradient oracle, tested against central differences of the forward oracle. `conformance.rs` compares it with PyTorch.

use crate::common::buffers::draw;
use wgpu_attention::oracle;
use wgpu_attention::{
    Alibi, Alignment, BroadcastShape, DType, Dims, Inputs, Layout, Owner, Problem, ScoreOrder, Strides, Table, TensorSpec, Term, Varlen,
    Visibility, gather,
};

/// Step of the differences.
const STEP: f32 = 1.0 / 32.0;

/// Problem with its data.
#[derive(Clone)]
struct Case {
    name: &'static str,
    problem: Problem,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    mask: Vec<bool>,
    bias: Vec<f32>,
    alibi_slopes: Vec<f32>,
    relative_bias: Vec<f32>,
    sinks: Vec<f32>,
    term_tables: Vec<f32>,
    kv_lengths: Vec<u32>,
    prefix_lengths: Vec<u32>,
    segment_ids_q: Vec<i32>,
    segment_ids_kv: Vec<i32>,
    cu_seqlens: [Vec<u32>; 2],
    output_gradient: Vec<f32>,
    d_lse: Vec<f32>,
}

impl Case {
    fn new(name: &'static str, problem: Problem) -> Self {
        let d = problem.dims;
        let v = &problem.visibility.clone();
        let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0);
        let when = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let table = problem.relative_bias_max_distance.map_or(0, |max| d.num_heads * (2 * max as usize + 1));
        let segments = |len: usize| (0..when(v.segments, d.batch * len)).map(|at| (at % len / 2) as i32).collect::<Vec<_>>();
        Self {
            name,
            problem: problem.clone(),
            query: draw(1, problem.query_len()),
            key: draw(2, problem.key_len()),
            value: draw(3, problem.value_len()),
            mask: (0..elements(v.mask)).map(|at| at % 3 != 1).collect(),
            bias: draw(4, elements(problem.bias)),
            alibi_slopes: draw(5, when(problem.alibi.is_some(), d.num_heads)),
            relative_bias: draw(6, table),
            sinks: draw(7, when(problem.sinks, d.num_heads)),
            term_tables: draw(10, problem.user_terms.iter().flat_map(Term::tables).map(|table| table.len).sum()),
            kv_lengths: (0..when(v.kv_lengths, d.batch)).map(|b| (d.seq_len_kv - 2 * b - 1) as u32).collect(),
            prefix_lengths: vec![2; when(v.prefix_lengths, d.batch)],
            segment_ids_q: segments(d.seq_len_q),
            segment_ids_kv: segments(d.seq_len_kv),
            cu_seqlens: if problem.varlen.is_some() { [vec![0, 1, 1, 5], vec![0, 3, 4, 9]] } else { Default::default() },
            output_gradient: draw(8, problem.output_len()),
            d_lse: draw(9, problem.lse_len()),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            mask: &self.mask,
            bias: &self.bias,
            alibi_slopes: &self.alibi_slopes,
            relative_bias: &self.relative_bias,
            sinks: &self.sinks,
            term_tables: bytemuck::cast_slice(&self.term_tables),
            kv_lengths: &self.kv_lengths,
            prefix_lengths: &self.prefix_lengths,
            segment_ids_q: &self.segment_ids_q,
            segment_ids_kv: &self.segment_ids_kv,
            cu_seqlens_q: &self.cu_seqlens[0],
            cu_seqlens_kv: &self.cu_seqlens[1],
            ..Inputs::new(&self.query, &self.key, &self.value)
        }
    }

    /// Returns sum(output * output_gradient) + sum(lse * d_lse), in f64. An lse of -inf counts as 0.
    fn loss(&self) -> f64 {
        let d = self.problem.dims;
        let oracle::Reference { output, lse, .. } = oracle::attention(&self.problem, &self.inputs()).expect("a valid problem");
        let (items, tokens) = self.problem.varlen.map_or((d.batch, d.seq_len_q), |varlen| (1, varlen.tokens_q));
        let gradient = gather((&self.output_gradient).into(), &self.problem.output, [items, d.num_heads, tokens, d.head_dim_v]);
        let mut loss = 0.0;
        for b in 0..d.batch {
            let cu = &self.cu_seqlens[0];
            let (item, first, rows) = if cu.is_empty() { (b, 0, d.seq_len_q) } else { (0, cu[b] as usize, (cu[b + 1] - cu[b]) as usize) };
            for h in 0..d.num_heads {
                for i in 0..rows {
                    let row = (b * d.num_heads + h) * d.seq_len_q + i;
                    let of_lse = if cu.is_empty() { row } else { (first + i) * d.num_heads + h };
                    loss += if lse[row].is_finite() { lse[row] * f64::from(self.d_lse[of_lse]) } else { 0.0 };
                }
                for at in 0..rows * d.head_dim_v {
                    let place = ((item * d.num_heads + h) * tokens + first) * d.head_dim_v + at;
                    loss += output[(b * d.num_heads + h) * d.seq_len_q * d.head_dim_v + at] * f64::from(gradient[place]);
                }
            }
        }
        loss
    }

    /// Computes the derivative of the loss with respect to one element, from two points on each side.
    fn difference(&self, at: usize, of: impl Fn(&mut Case) -> &mut Vec<f32>) -> f64 {
        let mut moved = self.clone();
        let x = of(&mut moved)[at];
        let mut slope = |step: f32| {
            let (above, below) = (x + step, x - step);
            let [loss_above, loss_below] = [above, below].map(|x| {
                of(&mut moved)[at] = x;
                moved.loss()
            });
            (loss_above - loss_below) / (f64::from(above) - f64::from(below))
        };
        (4.0 * slope(STEP) - slope(2.0 * STEP)) / 3.0
    }

    /// Compares a whole gradient with differences; `index[n]` is the position of its element n in the stored tensor.
    fn compare(&self, what: &str, gradient: &[f64], index: &[usize], of: impl Fn(&mut Case) -> &mut Vec<f32>) {
        assert_eq!(gradient.len(), index.len(), "{}: {what}", self.name);
        for (n, (&got, &at)) in gradient.iter().zip(index).enumerate() {
            // Errors: the fifth derivative times STEP⁴/30, and the rounding of biased scores to f32 divided by STEP.
            let expected = self.difference(at, &of);
            assert!((got - expected).abs() < 2e-5, "{}: d{what}[{n}] is {got}, differences are {expected}", self.name);
        }
    }

    fn check(&self) {
        let gradients =
            oracle::gradients(&self.problem, &self.inputs(), (&self.output_gradient).into(), Some(&self.d_lse)).expect("a valid problem");
        let d = self.problem.dims;
        let (items, tokens_q, tokens_kv) =
            self.problem.varlen.map_or((d.batch, d.seq_len_q, d.seq_len_kv), |varlen| (1, varlen.tokens_q, varlen.tokens_kv));
        let query = places(&self.problem.query, [items, d.num_heads, tokens_q, d.head_dim]);
        let key = places(&self.problem.key, [items, d.num_kv_heads, tokens_kv, d.head_dim]);
        let value = places(&self.problem.value, [items, d.num_kv_heads, tokens_kv, d.head_dim_v]);
        self.compare("query", &gradients.query, &query, |case| &mut case.query);
        self.compare("key", &gradients.key, &key, |case| &mut case.key);
        self.compare("value", &gradients.value, &value, |case| &mut case.value);
        let all = |len: usize| (0..len).collect::<Vec<_>>();
        self.compare("bias", &gradients.bias, &all(self.bias.len()), |case| &mut case.bias);
        self.compare("term_tables", &gradients.term_tables, &all(self.term_tables.len()), |case| &mut case.term_tables);
        self.compare("relative_bias", &gradients.relative_bias, &all(self.relative_bias.len()), |case| &mut case.relative_bias);
        self.compare("sinks", &gradients.sinks, &all(self.sinks.len()), |case| &mut case.sinks);
    }
}

/// Grouped heads; the lengths differ, and so do the widths.
const DIMS: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 4, seq_len_kv: 6, head_dim: 3, head_dim_v: 2 };

fn cases() -> Vec<Case> {
    let plain = Problem::new(DIMS);
    let mut cases = vec![
        Case::new("plain", plain.clone()),
        Case::new("scale", Problem { scale: Some(-1.5), ..plain.clone() }),
        Case::new("causal, with empty rows", plain.clone().aligned(Alignment::Offset(-2)).causal()),
        Case::new("causal bottom-right", plain.clone().aligned(Alignment::BottomRight).causal()),
        Case::new("window", plain.clone().aligned(Alignment::BottomRight).window(Some(1), Some(0))),
        Case::new("softcap", Problem { softcap: Some(0.7), ..plain.clone() }),
        Case::new("sinks", Problem { sinks: true, ..plain.clone().aligned(Alignment::Offset(-2)).causal() }),
        Case::new("symmetric alibi", Problem { alibi: Some(Alibi::Symmetric), ..plain.clone().aligned(Alignment::BottomRight).causal() }),
        Case::new("layout", plain.clone().stored(DType::F32, Layout::Bshd)),
    ];
    for shape in [[2, 4, 4, 6], [1, 4, 1, 6], [2, 1, 4, 1], [1, 1, 1, 1]] {
        cases.push(Case::new("bias", Problem { bias: Some(BroadcastShape(shape)), ..plain.clone() }));
    }
    for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
        let position = Visibility { alignment: Some(Alignment::BottomRight), ..Default::default() };
        let everything = Problem {
            softcap: Some(1.5),
            score_order,
            bias: Some(BroadcastShape([1, 4, 4, 6])),
            alibi: Some(Alibi::Signed),
            relative_bias_max_distance: Some(2),
            sinks: true,
            visibility: Visibility {
                causal: true,
                prefix_lengths: true,
                kv_lengths: true,
                segments: true,
                mask: Some(BroadcastShape([2, 1, 1, 6])),
                ..position
            },
            ..plain.clone()
        };
        cases.push(Case::new(
            "relative bias",
            Problem { relative_bias_max_distance: Some(1), visibility: position, score_order, ..plain.clone() },
        ));
        cases.push(Case::new("everything", everything));
    }
    let varlen_dims = Dims { batch: 3, seq_len_kv: 5, ..DIMS };
    let varlen =
        Problem { varlen: Some(Varlen { tokens_q: 5, tokens_kv: 9 }), dims: varlen_dims, ..plain.clone().stored(DType::F32, Layout::Bshd) };
    cases.push(Case::new("varlen", varlen.clone()));
    cases.push(Case::new(
        "varlen causal",
        Problem { sinks: true, relative_bias_max_distance: Some(1), ..varlen.clone().aligned(Alignment::BottomRight).causal() },
    ));
    let strided = TensorSpec { layout: Layout::Strided(Strides { batch: 80, head: 1, seq: 19, dim: 5 }), offset: 3, ..Default::default() };
    cases.push(Case::new("strided", Problem { query: strided, output: strided, ..plain.clone() }));
    cases.extend(table_cases(&plain, &varlen));
    let mut masked = Case::new("bias that masks", Problem { bias: Some(BroadcastShape([1, 1, 4, 6])), ..plain.clone() });
    masked.bias = (0..24).map(|at| if at % 5 == 0 || at / 6 == 2 { f32::NEG_INFINITY } else { 0.25 }).collect();
    cases.push(masked);
    cases
}

/// Tables of every owner in terms that others follow, beside other options.
fn table_cases(plain: &Problem, varlen: &Problem) -> Vec<Case> {
    let all = [
        (Owner::Scalar, 2, "x * (1.0 + t[1])"),
        (Owner::Head, 4, "x + tanh(t[at.head]) * f32(at.key) * 0.25"),
        (Owner::Row, 8, "x * t[at.batch * 4 + at.row] + t[at.batch * 4 + at.row]"),
        (Owner::Key, 5, "x + sin(t[at.key] * x)"),
        (Owner::Distance, 20, "x + t[5 * at.head + clamp(at.position - at.key, -2, 2) + 2]"),
        (Owner::Pair, 26, "x * exp(0.5 * t[1 + at.key * 4 + at.row])"),
    ];
    let last = Term::wgsl("fn score(x: f32, at: Pair) -> f32 { return 2.0 * tanh(0.5 * x) + 0.1 * x; }").expect("valid");
    let of = |problem: &Problem, (owner, len, body): (Owner, usize, &str)| {
        let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return {body}; }}");
        let term = Term::with_tables(&text, &[Table::f32("t", len).owner(owner)]).expect("valid");
        problem.clone().aligned(Alignment::BottomRight).with_term(term).with_term(last.clone())
    };
    let mut masked = Problem { softcap: Some(1.5), bias: Some(BroadcastShape([1, 4, 4, 6])), sinks: true, ..plain.clone() };
    masked.visibility.causal = true;
    let cases = all.into_iter().flat_map(|table| [plain, varlen, &masked].map(|problem| Case::new("table", of(problem, table))));
    cases.collect()
}

#[test]
fn gradients_are_central_differences() {
    cases().iter().filter(|case| case.name != "bias that masks").for_each(Case::check);
    // -inf has no differences: its gradient must be 0.
    let mut case = cases().pop().expect("the last case");
    let gradients =
        oracle::gradients(&case.problem, &case.inputs(), (&case.output_gradient).into(), Some(&case.d_lse)).expect("a valid problem");
    for (at, bias) in case.bias.clone().into_iter().enumerate() {
        if bias == f32::NEG_INFINITY {
            assert_eq!(gradients.bias[at], 0.0, "{at}");
        } else {
            let expected = case.difference(at, |case| &mut case.bias);
            assert!((gradients.bias[at] - expected).abs() < 2e-5, "{at}: {} is not {expected}", gradients.bias[at]);
        }
    }
    // The gradient of the bias is checked; the others are checked with a mask in its place.
    let finite = case.bias.clone();
    case.problem.bias = None;
    case.bias = Vec::new();
    case.problem.visibility.mask = Some(BroadcastShape([1, 1, 4, 6]));
    case.mask = finite.iter().map(|&bias| bias != f32::NEG_INFINITY).collect();
    case.check();
}

/// NaN in a masked key, value or bias reaches no gradient; rows without visible keys have gradient 0.
#[test]
fn masked_elements_are_never_read() {
    let mut problem = Problem::new(DIMS).aligned(Alignment::TopLeft).causal();
    problem.visibility.mask = Some(BroadcastShape([1, 1, 1, 6]));
    problem.bias = Some(BroadcastShape([1, 1, 1, 6]));
    let mut case = Case::new("poison", problem);
    case.mask = vec![false, true, true, true, true, false];
    let clean =
        oracle::gradients(&case.problem, &case.inputs(), (&case.output_gradient).into(), Some(&case.d_lse)).expect("a valid problem");
    for key in [0, 4, 5] {
        case.bias[key] = f32::NAN;
        for head in 0..4 {
            case.key[(head * 6 + key) * 3..][..3].fill(f32::NAN);
            case.value[(head * 6 + key) * 2..][..2].fill(f32::INFINITY);
        }
    }
    let poisoned =
        oracle::gradients(&case.problem, &case.inputs(), (&case.output_gradient).into(), Some(&case.d_lse)).expect("a valid problem");
    assert_eq!(clean, poisoned);
    assert!(clean.query.chunks(3).step_by(4).all(|row| row == [0.0; 3]), "row 0 has no visible keys");
}

/// Plants mistakes that the differences must detect.
#[test]
fn the_differences_notice_what_is_wrong() {
    let case = Case::new("softcap", Problem { softcap: Some(0.7), scale: Some(2.0), ..Problem::new(DIMS) });
    let uncapped = Case { problem: Problem { softcap: None, ..case.problem.clone() }, ..case.clone() };
    let scaled_twice = Case { problem: Problem { scale: Some(4.0), ..case.problem.clone() }, ..case.clone() };
    for wrong in [uncapped, scaled_twice] {
        let gradients = oracle::gradients(&wrong.problem, &wrong.inputs(), (&wrong.output_gradient).into(), None).expect("a valid problem");
        let off = |at: usize| (gradients.query[at] - case.difference(at, |case| &mut case.query)).abs() > 2e-4;
        assert!((0..10).any(off), "a wrong gradient passed");
    }
}

/// Returns the position in the stored tensor of each element, in [batch, heads, seq, dim] order.
fn places(spec: &TensorSpec, shape: [usize; 4]) -> Vec<usize> {
    let positions: Vec<f32> = (0..spec.required_len(shape).unwrap_or(0)).map(|at| at as f32).collect();
    gather((&positions).into(), spec, shape).into_iter().map(|at| at as usize).collect()
}
