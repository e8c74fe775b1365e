//! Options that reach the branches of a kernel that its first problem does not take.

use wgpu_attention::{
    Algorithm, Alibi, Alignment, BroadcastShape, DType, Layout, Owner, Problem, ScoreOrder, ScoreStage, Table, Term, Varlen,
};

/// Returns problems with other options and the same sizes, which need kernels of the same shapes; with names.
pub(crate) fn variants(problem: &Problem, algorithm: Option<Algorithm>) -> Vec<(&'static str, Problem)> {
    let d = problem.dims;
    let v = &problem.visibility;
    if problem.key_hadamard
        || problem.paged.is_some()
        || problem.key.dtype.is_quantised()
        || problem.value.dtype.is_quantised()
        || v.segments
        || v.kv_lengths
    {
        return Vec::new();
    }
    // No whole vec4s, no whole rounds of threads; biases whose gradients are summed over rows, heads and keys.
    let sized = |head_dim, head_dim_v, bias| Problem {
        dims: wgpu_attention::Dims { head_dim, head_dim_v, ..d },
        bias: Some(bias),
        ..problem.clone()
    };
    let odd = sized(d.head_dim - 5, d.head_dim_v + 3, BroadcastShape([1, 1, 1, d.seq_len_kv]));
    if problem.key.dtype != DType::F32 {
        return vec![("odd", odd)];
    }
    let full = BroadcastShape(d.scores_shape());
    let mut varlen = Problem { dims: wgpu_attention::Dims { batch: 3, ..d }, ..problem.clone() }.stored(DType::F32, Layout::Bshd);
    varlen = varlen.aligned(Alignment::BottomRight).causal().window(Some(30), Some(2)).with_lse();
    varlen.varlen = Some(Varlen { tokens_q: 2 * d.seq_len_q, tokens_kv: 2 * d.seq_len_kv });
    (varlen.softcap, varlen.score_order, varlen.sinks) = (Some(20.0), ScoreOrder::BiasThenSoftcap, true);
    (varlen.alibi, varlen.relative_bias_max_distance, varlen.dropout) = (Some(Alibi::Symmetric), Some(3), Some(0.25));

    let mut padded = Problem { dims: wgpu_attention::Dims { batch: 3, ..d }, ..problem.clone() }.with_lse();
    padded = padded.aligned(Alignment::BottomRight).causal().window(Some(9), Some(40));
    (padded.visibility.kv_lengths, padded.visibility.prefix_lengths, padded.visibility.segments) = (true, true, true);
    padded.visibility.block_causal = Some(5);
    padded.visibility.mask = Some(BroadcastShape([3, 1, d.seq_len_q, d.seq_len_kv]));
    (padded.softcap, padded.sinks, padded.alibi, padded.relative_bias_max_distance) = (Some(5.0), true, Some(Alibi::Signed), Some(16));

    let mut dropped = problem.clone().aligned(Alignment::TopLeft).causal().with_lse();
    (dropped.dropout, dropped.bias, dropped.softcap) = (Some(0.3), Some(full), Some(5.0));
    dropped.visibility.chunk = Some(d.seq_len_kv as u32 / 2 + 3);
    let mut masked = Problem { bias: Some(full_of(3, problem)), dropout: None, alibi: None, ..varlen.clone() };
    masked.visibility.mask = masked.bias;
    (masked.visibility.chunk, masked.visibility.block_causal) = (Some(d.seq_len_kv as u32), Some(7));
    if algorithm.is_some() {
        // All keys, so that they are split.
        (masked.visibility.window_left, masked.visibility.window_right) = (None, None);
    }
    // More heads than a line of the grid has workgroups, and lines that are not full.
    let mut heads = Problem { dims: wgpu_attention::Dims { num_heads: 7, num_kv_heads: 7, ..d }, ..problem.clone() };
    (heads.sinks, heads.bias) = (true, Some(BroadcastShape([1; 4])));
    let mut capped = Problem { softcap: Some(5.0), ..problem.clone() };
    capped.want.scores = Some(ScoreStage::Capped);
    let ragged = sized(d.head_dim + 8, d.head_dim_v - 4, BroadcastShape([1, 1, d.seq_len_q, 1]));
    let mut variants = vec![
        ("varlen", varlen),
        ("varlen, masked", masked),
        ("padded", padded),
        ("dropped", dropped),
        ("odd", odd.clone()),
        ("ragged", ragged),
        ("user terms", with_user_terms(problem.clone())),
    ];
    match algorithm {
        Some(Algorithm::Staged) => variants.push(("capped", capped)),
        None => {
            let mut odd_masked = odd.clone();
            odd_masked.visibility.mask = odd.bias;
            variants.extend([("heads", heads), ("odd, masked", odd_masked)]);
        }
        _ => {}
    }
    variants
}

/// Adds users' terms that mask and change scores, with tables, loops and branches. The slope of the score is nowhere so small
/// that f32 rounds it to 0, which hides a NaN that the oracle has.
pub(crate) fn with_user_terms(problem: Problem) -> Problem {
    let mask = "fn visible(at: Pair) -> bool {
        return at.key <= at.position + 5 && (marks[at.key % 7] != 2 || abs(at.position - at.key) / 3 % 4 == 0);
    }";
    let score = "fn score(x: f32, at: Pair) -> f32 {
        var y = x;
        for (var i = 0; i < 3; i++) { if (at.row % 4 == i) { y += rates[at.head] * f32(at.key - at.position); } }
        y += gates[at.key] + values[5 * at.head + clamp(at.position - at.key, -2, 2) + 2] + biases[at.key + at.row * KEYS];
        return select(30.0 * tanh(y / 30.0), y, at.kv_head == 1);
    }";
    let mask = Term::with_tables(mask, &[Table::i32("marks", 7)]).expect("valid");
    let d = problem.dims;
    let tables = [
        Table::f32("rates", d.num_heads).owner(Owner::Head),
        Table::f32("gates", d.seq_len_kv).owner(Owner::Key),
        Table::f32("values", 5 * d.num_heads).owner(Owner::Distance),
        Table::f32("biases", d.seq_len_q * d.seq_len_kv + 1).owner(Owner::Pair),
    ];
    let score = Term::with_tables(&score.replace("KEYS", &d.seq_len_kv.to_string()), &tables).expect("valid");
    problem.aligned(Alignment::BottomRight).with_term(mask).with_term(score)
}

fn full_of(batch: usize, problem: &Problem) -> BroadcastShape {
    let [_, heads, rows, keys] = problem.dims.scores_shape();
    BroadcastShape([batch, heads, rows, keys])
}
