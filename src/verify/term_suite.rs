//! Verification of users' own terms: one term, or several in their order, on problems with the options of attention.

use crate::custom::Term;
use crate::error::Result;
use crate::numbers::DType;
use crate::problem::{Alibi, Alignment, BroadcastShape, Dims, Layout, Paged, Problem, ScoreOrder, ScoreStage, TableData, Varlen};
use crate::progress::Progress;
use crate::verify::case::{Case, Fill};
use crate::verify::suite::{Candidate, Row, run_backward_case, run_case, run_derivatives};

/// Changes the sizes and options of a problem.
type Change = fn(&mut Problem);

/// Problems that a term is verified on, by name: several tiles of uneven lengths, each with other options.
const PROBLEMS: [(&str, Change); 13] = [
    ("grouped heads", |_| {}),
    ("self-attention", |p| (p.dims.seq_len_q, p.dims.seq_len_kv) = (64, 64)),
    ("rows before the keys", |p| p.visibility.alignment = Some(Alignment::Offset(-5))),
    ("causal, window", |p| (p.visibility.causal, p.visibility.window_left) = (true, Some(20))),
    ("bias, softcap", |p| {
        (p.bias, p.softcap) = (Some(BroadcastShape(p.dims.scores_shape())), Some(5.0));
        p.score_order = ScoreOrder::BiasThenSoftcap;
    }),
    ("alibi, sinks, dropout", |p| (p.alibi, p.sinks, p.dropout) = (Some(Alibi::Symmetric), true, Some(0.25))),
    ("segments, lengths", |p| (p.visibility.segments, p.visibility.kv_lengths) = (true, true)),
    ("varlen", |p| {
        let Dims { batch, seq_len_q, seq_len_kv, .. } = p.dims;
        p.varlen = Some(Varlen { tokens_q: batch * seq_len_q - 9, tokens_kv: batch * seq_len_kv - 21 });
    }),
    ("pages", |p| {
        p.paged = Some(Paged { page_size: 16, pages: 14, pages_per_item: 6 });
        p.visibility.kv_lengths = true;
    }),
    ("decoding, split keys", |p| (p.dims.seq_len_q, p.dims.seq_len_kv, p.dims.num_heads) = (1, 1500, 8)),
    ("scores, weights", |p| (p.want.scores, p.want.weights, p.want.lse) = (Some(ScoreStage::Masked), true, true)),
    ("odd widths", |p| (p.dims.head_dim, p.dims.head_dim_v) = (5, 3)),
    ("f16", |p| *p = p.clone().stored(DType::F16, Layout::Bshd)),
];

/// Runs users' terms, with the data of their tables, on each candidate: outputs, gradients where it has an engine, and
/// each derivative against differences in f64. Only problems whose name contains `filter` run; `seed` changes the data.
///
/// Errors: tables that are missing or do not fit; terms that no problem can have together.
///
/// ```
/// use wgpu_attention::verify::{Candidate, Verdict, run_terms};
/// use wgpu_attention::{Backend, Engine, EngineOptions, Inputs, Problem, Progress, Table, TableData, Term};
///
/// let text = "fn score(x: f32, at: Pair) -> f32 { return x * rates[at.head]; }";
/// let term = Term::with_tables(text, &[Table::f32("rates", 4)])?;
/// let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
/// let attend = |problem: &Problem, inputs: &Inputs<'_>| engine.attention(problem, inputs);
/// let cpu = Candidate { name: "cpu", attend: &attend, engine: Some(&engine) };
/// let tables = [("rates", TableData::F32(&[0.5, 1.0, 2.0, 4.0]))];
/// for row in run_terms(&[term], &tables, &[cpu], 1, "causal", &mut Progress::default())? {
///     println!("{}, {} on {}: {}", row.suite, row.case, row.backend, row.verdict);
///     assert_eq!(row.verdict, Verdict::Passed);
/// }
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
pub fn run_terms(
    terms: &[Term],
    tables: &[(&str, TableData<'_>)],
    candidates: &[Candidate<'_>],
    seed: u64,
    filter: &str,
    control: &mut Progress<'_>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (at, (name, change)) in PROBLEMS.into_iter().enumerate() {
        if name.contains(filter) {
            // Gradients of every storage type run on software adapters with a seed that is a multiple of 20.
            let fill = Fill::seed(20 * (seed.wrapping_add(at as u64) % (1 << 32)));
            let problem = problem(terms, change);
            let words = problem.term_tables(tables)?;
            let case = Case::with_term_tables(name, problem, fill, Some(&words))?;
            rows.extend(run_derivatives(&case)?);
            rows.extend(run_case("terms", &case, candidates)?);
            rows.extend(run_backward_case(&case, candidates)?);
        }
        control.report((at + 1) as f64 / PROBLEMS.len() as f64)?;
    }
    Ok(rows)
}

fn problem(terms: &[Term], change: Change) -> Problem {
    let dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 37, seq_len_kv: 83, head_dim: 16, head_dim_v: 16 };
    let mut problem = Problem { user_terms: terms.to_vec(), ..Problem::new(dims).with_lse() };
    change(&mut problem);
    let alignment = problem.visibility.alignment.unwrap_or(Alignment::BottomRight);
    problem.visibility.alignment = problem.uses_position().then_some(alignment);
    problem
}
