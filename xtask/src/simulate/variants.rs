//! Options that reach the branches of a kernel that its first problem does not take.

use wgpu_attention::{Algorithm, Alibi, Alignment, BroadcastShape, DType, Layout, Problem, ScoreOrder, ScoreStage, Varlen};

/// Returns problems with other options and the same sizes, which need kernels of the same shapes; with names.
pub(crate) fn variants(problem: &Problem, algorithm: Option<Algorithm>) -> Vec<(&'static str, Problem)> {
    let d = problem.dims;
    let v = &problem.visibility;
    if problem.paged.is_some() || problem.key.dtype.is_quantised() || v.segments || v.kv_lengths {
        return Vec::new();
    }
    // No whole vec4s, no whole rounds of threads; biases whose gradients are summed over rows, heads and keys.
    let sized =
        |head_dim, head_dim_v, bias| Problem { dims: wgpu_attention::Dims { head_dim, head_dim_v, ..d }, bias: Some(bias), ..*problem };
    let odd = sized(d.head_dim - 5, d.head_dim_v + 3, BroadcastShape([1, 1, 1, d.seq_len_kv]));
    if problem.key.dtype != DType::F32 {
        return vec![("odd", odd)];
    }
    let full = BroadcastShape(d.scores_shape());
    let mut varlen = Problem { dims: wgpu_attention::Dims { batch: 3, ..d }, ..*problem }.stored(DType::F32, Layout::Bshd);
    varlen = varlen.aligned(Alignment::BottomRight).causal().window(Some(30), Some(2)).with_lse();
    varlen.varlen = Some(Varlen { tokens_q: 2 * d.seq_len_q, tokens_kv: 2 * d.seq_len_kv });
    (varlen.softcap, varlen.score_order, varlen.sinks) = (Some(20.0), ScoreOrder::BiasThenSoftcap, true);
    (varlen.alibi, varlen.relative_bias_max_distance, varlen.dropout) = (Some(Alibi::Symmetric), Some(3), Some(0.25));

    let mut padded = Problem { dims: wgpu_attention::Dims { batch: 3, ..d }, ..*problem }.with_lse();
    padded = padded.aligned(Alignment::BottomRight).causal().window(Some(9), Some(40));
    (padded.visibility.kv_lengths, padded.visibility.prefix_lengths, padded.visibility.segments) = (true, true, true);
    padded.visibility.block_causal = Some(5);
    padded.visibility.mask = Some(BroadcastShape([3, 1, d.seq_len_q, d.seq_len_kv]));
    (padded.softcap, padded.sinks, padded.alibi, padded.relative_bias_max_distance) = (Some(5.0), true, Some(Alibi::Signed), Some(16));

    let mut dropped = problem.clone().aligned(Alignment::TopLeft).causal().with_lse();
    (dropped.dropout, dropped.bias, dropped.softcap) = (Some(0.3), Some(full), Some(5.0));
    dropped.visibility.chunk = Some(d.seq_len_kv as u32 / 2 + 3);
    let mut masked = Problem { bias: Some(full_of(3, problem)), dropout: None, alibi: None, ..varlen };
    masked.visibility.mask = masked.bias;
    (masked.visibility.chunk, masked.visibility.block_causal) = (Some(d.seq_len_kv as u32), Some(7));
    if algorithm.is_some() {
        // All keys, so that they are split.
        (masked.visibility.window_left, masked.visibility.window_right) = (None, None);
    }
    // More heads than a line of the grid has workgroups, and lines that are not full.
    let mut heads = Problem { dims: wgpu_attention::Dims { num_heads: 7, num_kv_heads: 7, ..d }, ..*problem };
    (heads.sinks, heads.bias) = (true, Some(BroadcastShape([1; 4])));
    let mut capped = Problem { softcap: Some(5.0), ..*problem };
    capped.want.scores = Some(ScoreStage::Capped);
    let ragged = sized(d.head_dim + 8, d.head_dim_v - 4, BroadcastShape([1, 1, d.seq_len_q, 1]));
    let mut variants = vec![
        ("varlen", varlen),
        ("varlen, masked", masked),
        ("padded", padded),
        ("dropped", dropped),
        ("odd", odd.clone()),
        ("ragged", ragged),
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

fn full_of(batch: usize, problem: &Problem) -> BroadcastShape {
    let [_, heads, rows, keys] = problem.dims.scores_shape();
    BroadcastShape([batch, heads, rows, keys])
}
