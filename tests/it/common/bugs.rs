//! Wrong ways to compute attention: each is the oracle with one mistake that real kernels have made.

use wgpu_attention::oracle;
use wgpu_attention::verify::oracle;
use wgpu_attention::{
    Alibi, Alignment, BroadcastShape, DType, Hadamard, HostVec, Inputs, Layout, Outputs, Paged, Problem, Result, ScoreOrder, ScoreStage,
    SummedRows, TensorSpec, gather,
};

/// Mistake, and the attention that makes it.
pub(crate) struct Bug {
    pub(crate) name: &'static str,
    pub(crate) attend: fn(&Problem, &Inputs<'_>) -> Result<Outputs>,
}

/// All mistakes.
pub(crate) const BUGS: &[Bug] = &[
    Bug { name: "alignment flipped", attend: |p, x| changed(p, x, flip_alignment) },
    Bug { name: "causal one key too far", attend: |p, x| changed(p, x, |p| shift_alignment(p, 1)) },
    Bug { name: "causal one key short", attend: |p, x| changed(p, x, |p| shift_alignment(p, -1)) },
    Bug { name: "causal ignored", attend: |p, x| changed(p, x, |p| (p.visibility.causal, p.visibility.prefix_lengths) = (false, false)) },
    Bug {
        name: "window one too wide to the left",
        attend: |p, x| changed(p, x, |p| p.visibility.window_left = p.visibility.window_left.map(|n| n + 1)),
    },
    Bug {
        name: "window one too wide to the right",
        attend: |p, x| changed(p, x, |p| p.visibility.window_right = p.visibility.window_right.map(|n| n + 1)),
    },
    Bug {
        name: "window exclusive",
        attend: |p, x| changed(p, x, |p| p.visibility.window_left = p.visibility.window_left.map(|n| n.saturating_sub(1))),
    },
    Bug { name: "left window ignored", attend: |p, x| changed(p, x, |p| p.visibility.window_left = None) },
    Bug { name: "right window ignored", attend: |p, x| changed(p, x, |p| p.visibility.window_right = None) },
    Bug {
        name: "window sides swapped",
        attend: |p, x| changed(p, x, |p| std::mem::swap(&mut p.visibility.window_left, &mut p.visibility.window_right)),
    },
    Bug { name: "window of the first row for all", attend: first_row_window },
    Bug { name: "chunk ignored", attend: |p, x| changed(p, x, |p| p.visibility.chunk = None) },
    Bug { name: "block-causal ignored", attend: |p, x| changed(p, x, |p| p.visibility.block_causal = None) },
    Bug {
        name: "block-causal as causal",
        attend: |p, x| changed(p, x, |p| p.visibility.causal |= p.visibility.block_causal.take().is_some()),
    },
    Bug { name: "kv_lengths ignored", attend: |p, x| longer(p, x, u32::MAX) },
    Bug { name: "kv_lengths one too long", attend: |p, x| longer(p, x, 1) },
    Bug { name: "alignment by the padded length", attend: padded_alignment },
    Bug { name: "prefix ignored", attend: prefix_ignored },
    Bug { name: "segments ignored", attend: segments_ignored },
    Bug { name: "block list ignored", attend: |p, x| listed(p, x, |_, _| u32::MAX) },
    Bug { name: "block list one key tile too far", attend: |p, x| listed(p, x, |_, word| word << 1) },
    Bug { name: "block list of the line after", attend: |p, x| listed(p, x, |at, _| x.block_list[(at + 1) % x.block_list.len()]) },
    Bug { name: "mask ignored", attend: mask_ignored },
    Bug {
        name: "mask broadcast along the wrong axis",
        attend: |p, x| changed(p, x, |p| p.visibility.mask = p.visibility.mask.map(|m| swap_axes(p, m))),
    },
    Bug { name: "bias ignored", attend: bias_ignored },
    Bug { name: "bias broadcast along the wrong axis", attend: |p, x| changed(p, x, |p| p.bias = p.bias.map(|b| swap_axes(p, b))) },
    Bug { name: "scale ignored", attend: |p, x| changed(p, x, |p| p.scale = None) },
    Bug { name: "no scale", attend: |p, x| changed(p, x, |p| p.scale = Some(1.0)) },
    Bug { name: "softcap ignored", attend: |p, x| changed(p, x, |p| p.softcap = None) },
    Bug { name: "softcap and biases in the other order", attend: |p, x| changed(p, x, flip_order) },
    Bug { name: "ALiBi of the other kind", attend: |p, x| changed(p, x, flip_alibi) },
    Bug { name: "ALiBi ignored", attend: |p, x| oracle(&Problem { alibi: None, ..p.clone() }, &Inputs { alibi_slopes: &[], ..*x }) },
    Bug {
        name: "relative bias ignored",
        attend: |p, x| oracle(&Problem { relative_bias_max_distance: None, ..p.clone() }, &Inputs { relative_bias: &[], ..*x }),
    },
    Bug { name: "relative bias mirrored", attend: mirrored_relative_bias },
    Bug { name: "sinks ignored", attend: |p, x| oracle(&Problem { sinks: false, ..p.clone() }, &Inputs { sinks: &[], ..*x }) },
    Bug { name: "sink not in the lse", attend: sink_not_in_lse },
    Bug { name: "heads tiled instead of grouped", attend: heads_tiled },
    Bug { name: "last key of a tail dropped", attend: tail_dropped },
    Bug {
        name: "last row of a tail not written",
        attend: |p, x| {
            edited(p, x, |i, row, _| {
                if i % 16 != 15 && i + 1 == p.dims.seq_len_q {
                    row.fill(0.0)
                }
            })
        },
    },
    Bug { name: "last column not written", attend: |p, x| edited(p, x, |_, row, _| *row.last_mut().expect("head_dim_v >= 1") = 0.0) },
    Bug { name: "empty row is the mean of the values", attend: mean_of_empty_rows },
    Bug {
        name: "empty row is NaN",
        attend: |p, x| {
            edited(p, x, |_, row, lse| {
                if *lse == f32::NEG_INFINITY {
                    row.fill(f32::NAN)
                }
            })
        },
    },
    Bug { name: "lse of an empty row is -1e30", attend: |p, x| edited(p, x, |_, _, lse| *lse = lse.max(-1e30)) },
    Bug { name: "lse in base 2", attend: |p, x| edited(p, x, |_, _, lse| *lse *= std::f32::consts::LOG2_E) },
    Bug { name: "masked NaN leaks through a weight of 0", attend: masked_leaks },
    Bug {
        name: "visible NaN swallowed",
        attend: |p, x| edited(p, x, |_, row, _| row.iter_mut().filter(|y| y.is_nan()).for_each(|y| *y = 0.0)),
    },
    Bug {
        name: "no maximum subtracted before exp",
        attend: |p, x| {
            edited(p, x, |_, row, lse| {
                if *lse > 88.0 {
                    row.fill(f32::NAN)
                }
            })
        },
    },
    Bug { name: "parts merged by one f32 lse each", attend: |p, x| summed(p, x, merged_by_lse) },
    Bug { name: "one f32 chain over all keys", attend: |p, x| summed(p, x, one_chain) },
    Bug { name: "query and key rounded to f16", attend: rounded_to_f16 },
    Bug { name: "values stored as the keys are", attend: values_as_keys },
    Bug { name: "query of rotated keys not rotated", attend: |p, x| changed(p, x, |p| p.key_hadamard = false) },
    Bug { name: "output of rotated values not rotated back", attend: |p, x| changed(p, x, |p| p.value_hadamard = false) },
    Bug { name: "rotated in blocks of half the width", attend: half_blocks },
    Bug { name: "scores returned at another stage", attend: other_stage },
    Bug { name: "key sums over all rows", attend: |p, x| changed(p, x, |p| p.want.key_sums = p.want.key_sums.map(|_| SummedRows::All)) },
    Bug { name: "key sums without the last row", attend: |p, x| other_sums(p, x, |_, i, rows| i + 1 != rows) },
    Bug { name: "key sums of the first head of a group", attend: |p, x| other_sums(p, x, |h, _, _| h.is_multiple_of(p.dims.group())) },
    Bug { name: "key sums without the sink", attend: sums_without_sink },
    Bug { name: "varlen sequences see each other", attend: varlen_as_one },
    Bug { name: "pages in the order of the pool", attend: |p, x| other_pages(p, x, |_, at| at) },
    Bug { name: "pages of the first item for all", attend: |p, x| other_pages(p, x, |p, at| x.page_table[at % p.pages_per_item] as usize) },
];

fn changed(p: &Problem, x: &Inputs<'_>, change: impl FnOnce(&mut Problem)) -> Result<Outputs> {
    let mut problem = p.clone();
    change(&mut problem);
    oracle(&problem, x)
}

fn flip_alignment(p: &mut Problem) {
    p.visibility.alignment = p.visibility.alignment.map(|alignment| match alignment {
        Alignment::TopLeft => Alignment::BottomRight,
        Alignment::BottomRight => Alignment::TopLeft,
        Alignment::Offset(offset) => Alignment::Offset(offset.wrapping_neg()),
    });
}

/// Shifts the alignment, but only where the position is the same for all items.
fn shift_alignment(p: &mut Problem, by: i32) {
    let (v, d) = (&mut p.visibility, p.dims);
    if !v.causal || v.kv_lengths || p.varlen.is_some() || v.window_left.is_some() || p.alibi.is_some() {
        return;
    }
    let offset = v.alignment.map_or(0, |alignment| alignment.offset(d.seq_len_q, d.seq_len_kv));
    v.alignment = Some(Alignment::Offset((offset as i32).wrapping_add(by)));
}

fn flip_order(p: &mut Problem) {
    p.score_order = match p.score_order {
        ScoreOrder::SoftcapThenBias => ScoreOrder::BiasThenSoftcap,
        ScoreOrder::BiasThenSoftcap => ScoreOrder::SoftcapThenBias,
    };
}

fn flip_alibi(p: &mut Problem) {
    p.alibi = p.alibi.map(|alibi| if alibi == Alibi::Signed { Alibi::Symmetric } else { Alibi::Signed });
}

/// Swaps batch with heads and rows with keys, where both are equally long.
fn swap_axes(p: &Problem, BroadcastShape(mut shape): BroadcastShape) -> BroadcastShape {
    let full = p.dims.scores_shape();
    for (a, b) in [(0, 1), (2, 3)] {
        if full[a] == full[b] {
            shape.swap(a, b);
        }
    }
    BroadcastShape(shape)
}

fn first_row_window(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let (v, d) = (&p.visibility, p.dims);
    let Some(left) = v.window_left.filter(|_| p.varlen.is_none() && !v.kv_lengths && v.mask.is_none()) else { return oracle(p, x) };
    let first = v.alignment.map_or(0, |alignment| alignment.offset(d.seq_len_q, d.seq_len_kv)) - i64::from(left);
    let mut problem = p.clone();
    problem.visibility.window_left = None;
    problem.visibility.mask = Some(BroadcastShape([1, 1, 1, d.seq_len_kv]));
    let mask: Vec<bool> = (0..d.seq_len_kv).map(|j| j as i64 >= first).collect();
    oracle(&problem, &Inputs { mask: &mask, ..*x })
}

fn longer(p: &Problem, x: &Inputs<'_>, by: u32) -> Result<Outputs> {
    let lengths: Vec<u32> = x.kv_lengths.iter().map(|&length| length.saturating_add(by).min(p.dims.seq_len_kv as u32)).collect();
    oracle(p, &Inputs { kv_lengths: &lengths, ..*x })
}

fn padded_alignment(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let mut problem = p.clone();
    if p.visibility.kv_lengths && p.visibility.alignment == Some(Alignment::BottomRight) {
        problem.visibility.alignment = Some(Alignment::Offset(p.dims.seq_len_kv as i32 - p.dims.seq_len_q as i32));
    }
    oracle(&problem, x)
}

fn prefix_ignored(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let mut problem = p.clone();
    problem.visibility.prefix_lengths = false;
    oracle(&problem, &Inputs { prefix_lengths: &[], ..*x })
}

fn segments_ignored(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let mut problem = p.clone();
    problem.visibility.segments = false;
    oracle(&problem, &Inputs { segment_ids_q: &[], segment_ids_kv: &[], ..*x })
}

fn listed(p: &Problem, x: &Inputs<'_>, word: impl Fn(usize, u32) -> u32) -> Result<Outputs> {
    let words: Vec<u32> = x.block_list.iter().enumerate().map(|(at, &old)| word(at, old)).collect();
    oracle(p, &Inputs { block_list: &words, ..*x })
}

fn mask_ignored(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let mut problem = p.clone();
    problem.visibility.mask = None;
    oracle(&problem, &Inputs { mask: &[], ..*x })
}

fn bias_ignored(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    oracle(&Problem { bias: None, ..p.clone() }, &Inputs { bias: &[], ..*x })
}

fn mirrored_relative_bias(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let columns = p.relative_bias_max_distance.map_or(1, |max| 2 * max as usize + 1);
    let mirrored: Vec<f32> = x.relative_bias.chunks(columns).flat_map(|head| head.iter().rev().copied().collect::<Vec<f32>>()).collect();
    oracle(p, &Inputs { relative_bias: &mirrored, ..*x })
}

fn sink_not_in_lse(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let without = oracle(&Problem { sinks: false, ..p.clone() }, &Inputs { sinks: &[], ..*x })?;
    let mut outputs = oracle(p, x)?;
    outputs.lse = without.lse;
    Ok(outputs)
}

fn heads_tiled(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let d = p.dims;
    let (items, tokens) = match (p.paged, p.varlen) {
        (Some(paged), _) => (paged.pages, paged.page_size),
        (None, Some(varlen)) => (1, varlen.tokens_kv),
        (None, None) => (d.batch, d.seq_len_kv),
    };
    let tile = |data, spec: &TensorSpec, dim: usize| {
        let dense = gather(data, spec, [items, d.num_kv_heads, tokens, dim]);
        let head = |item: usize, h: usize| &dense[(item * d.num_kv_heads + h % d.num_kv_heads) * tokens * dim..][..tokens * dim];
        (0..items).flat_map(|item| (0..d.num_heads).flat_map(move |h| head(item, h).iter().copied())).collect::<Vec<f32>>()
    };
    let (key, value) = (tile(x.key, &p.key, d.head_dim), tile(x.value, &p.value, d.head_dim_v));
    let mut problem = p.clone();
    problem.dims.num_kv_heads = d.num_heads;
    problem.key = TensorSpec::new(DType::F32, Layout::Bhsd);
    problem.value = problem.key;
    oracle(&problem, &Inputs { key: key[..].into(), value: value[..].into(), ..*x })
}

/// Computes attention with a mask in addition to the problem's own.
fn masked(p: &Problem, x: &Inputs<'_>, visible: impl Fn(usize) -> bool) -> Result<Outputs> {
    let shape = p.dims.scores_shape();
    let keys = shape[3];
    let strides = p.visibility.mask.map(BroadcastShape::strides);
    let mask: Vec<bool> = (0..shape.iter().product())
        .map(|at: usize| {
            let index = [at / (shape[1] * shape[2] * keys), at / (shape[2] * keys) % shape[1], at / keys % shape[2], at % keys];
            let own = strides.is_none_or(|strides| x.mask[index.iter().zip(strides).map(|(i, step)| i * step).sum::<usize>()]);
            own && visible(index[3])
        })
        .collect();
    let mut problem = p.clone();
    problem.visibility.mask = Some(BroadcastShape(shape));
    oracle(&problem, &Inputs { mask: &mask, ..*x })
}

fn tail_dropped(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let keys = p.dims.seq_len_kv;
    masked(p, x, |j| keys.is_multiple_of(16) || j + 1 != keys)
}

/// Edits each row (its index, output and lse) of the oracle's answer, unless the batch is varlen or paged.
fn edited(p: &Problem, x: &Inputs<'_>, mut edit: impl FnMut(usize, &mut [f32], &mut f32)) -> Result<Outputs> {
    edited_at(p, x, |_, _, i, row, lse| edit(i, row, lse))
}

fn edited_at(p: &Problem, x: &Inputs<'_>, mut edit: impl FnMut(usize, usize, usize, &mut [f32], &mut f32)) -> Result<Outputs> {
    if p.varlen.is_some() || p.paged.is_some() {
        return oracle(p, x);
    }
    let mut outputs = oracle(&p.clone().with_lse(), x)?;
    let d = p.dims;
    let strides = p.output.strides([d.batch, d.num_heads, d.seq_len_q, d.head_dim_v]);
    let mut output = outputs.output.to_f32();
    let mut lse = outputs.lse.take().unwrap_or_default();
    for (at, lse) in lse.iter_mut().enumerate() {
        let (b, h, i) = (at / (d.num_heads * d.seq_len_q), at / d.seq_len_q % d.num_heads, at % d.seq_len_q);
        let place = |e: usize| p.output.offset + b * strides.batch + h * strides.head + i * strides.seq + e * strides.dim;
        let mut row: Vec<f32> = (0..d.head_dim_v).map(|e| output[place(e)]).collect();
        edit(b, h, i, &mut row, lse);
        row.into_iter().enumerate().for_each(|(e, number)| output[place(e)] = number);
    }
    (outputs.output, outputs.lse) = (HostVec::from_f32(p.output.dtype, &output), p.want.lse.then_some(lse));
    Ok(outputs)
}

/// Returns the values of a padded batch; none if the batch is varlen or paged.
fn dense_values(p: &Problem, x: &Inputs<'_>) -> Vec<f32> {
    let d = p.dims;
    if p.varlen.is_some() || p.paged.is_some() {
        return vec![];
    }
    gather(x.value, &p.value, [d.batch, d.num_kv_heads, d.seq_len_kv, d.head_dim_v])
}

/// Returns every key's value for one item and query head.
fn values(p: &Problem, dense: &[f32], b: usize, h: usize) -> Vec<Vec<f32>> {
    let d = p.dims;
    let head = (b * d.num_kv_heads + h / d.group()) * d.seq_len_kv;
    (head..head + d.seq_len_kv).map(|at| dense[at * d.head_dim_v..(at + 1) * d.head_dim_v].to_vec()).collect()
}

/// Computes each element of the output anew from the scores of its row and its column of the values. Only for padded
/// batches without sinks and dropout; other problems get the oracle's answer.
fn summed(p: &Problem, x: &Inputs<'_>, sum: fn(&[(f64, f32)]) -> f64) -> Result<Outputs> {
    let dense = dense_values(p, x);
    if p.sinks || p.dropout.is_some() || dense.is_empty() {
        return oracle(p, x);
    }
    let keys = p.dims.seq_len_kv;
    let scores = oracle::attention(p, x)?.masked;
    edited_at(p, x, |b, h, i, row, lse| {
        if !lse.is_finite() {
            return;
        }
        let values = values(p, &dense, b, h);
        let scores = &scores[((b * p.dims.num_heads + h) * p.dims.seq_len_q + i) * keys..][..keys];
        for (e, number) in row.iter_mut().enumerate() {
            let visible = scores.iter().zip(&values).filter(|(score, _)| **score != f64::NEG_INFINITY);
            *number = sum(&visible.map(|(&score, value)| (score, value[e])).collect::<Vec<_>>()) as f32;
        }
    })
}

/// Merges the means of a third of the keys and of the others, each weighted by exp of its f32 lse.
fn merged_by_lse(keys: &[(f64, f32)]) -> f64 {
    let (first, rest) = keys.split_at(keys.len() / 3);
    let parts = [first, rest].map(|part| {
        let max = part.iter().map(|key| key.0).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = part.iter().map(|key| (key.0 - max).exp()).sum();
        let mean = part.iter().map(|key| (key.0 - max).exp() * f64::from(key.1)).sum::<f64>() / sum;
        (f64::from((max + sum.ln()) as f32), mean)
    });
    let parts = || parts.iter().filter(|part| part.0 != f64::NEG_INFINITY);
    let max = parts().map(|part| part.0).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = parts().map(|part| (part.0 - max).exp()).sum();
    parts().map(|part| (part.0 - max).exp() * part.1).sum::<f64>() / total
}

fn one_chain(keys: &[(f64, f32)]) -> f64 {
    let max = keys.iter().map(|key| key.0).fold(f64::NEG_INFINITY, f64::max);
    let (mut weights, mut sum) = (0.0f32, 0.0f32);
    for &(score, value) in keys {
        let weight = (score - max).exp() as f32;
        weights += weight;
        sum += weight * value;
    }
    f64::from(sum / weights)
}

fn mean_of_empty_rows(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let dense = dense_values(p, x);
    edited_at(p, x, |b, h, _, row, lse| {
        if *lse == f32::NEG_INFINITY {
            let values = values(p, &dense, b, h);
            row.iter_mut().enumerate().for_each(|(e, y)| *y = values.iter().map(|v| v[e]).sum::<f32>() / values.len().max(1) as f32);
        }
    })
}

fn masked_leaks(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let dense = dense_values(p, x);
    edited_at(p, x, |b, h, _, row, _| {
        let values = values(p, &dense, b, h);
        row.iter_mut().enumerate().for_each(|(e, y)| *y += values.iter().map(|v| 0.0 * v[e]).sum::<f32>());
    })
}

fn rounded_to_f16(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let round = |data: wgpu_attention::HostSlice<'_>| {
        let wide: Vec<f32> = (0..data.len()).map(|at| data.get(at)).collect();
        HostVec::from_f32(DType::F16, &wide)
    };
    let (query, key) = (round(x.query), round(x.key));
    let mut problem = p.clone();
    (problem.query.dtype, problem.key.dtype) = (DType::F16, DType::F16);
    oracle(&problem, &Inputs { query: query.as_slice(), key: key.as_slice(), ..*x })
}

/// Rounds values to the type of the keys, if their rows are whole blocks.
fn values_as_keys(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let mut problem = p.clone();
    problem.value.dtype = p.key.dtype;
    if problem.check().is_err() {
        return oracle(p, x);
    }
    let wide: Vec<f32> = (0..x.value.len()).map(|at| x.value.get(at)).collect();
    oracle(&problem, &Inputs { value: HostVec::from_f32(p.key.dtype, &wide).as_slice(), ..*x })
}

/// Rotates the output back in blocks of half the width.
fn half_blocks(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let block = Hadamard::of(p.dims.head_dim_v).map_or(0, Hadamard::block);
    let Some(half) = Hadamard::of(block / 2).filter(|_| p.value_hadamard && p.output.dtype == DType::F32) else { return oracle(p, x) };
    let mut outputs = changed(p, x, |p| p.value_hadamard = false)?;
    if p.output.layout == Layout::Bhsd && p.output.offset == 0 {
        let mut rows = outputs.output.to_f32();
        half.rotate(&mut rows);
        outputs.output = rows.into();
    }
    Ok(outputs)
}

fn other_stage(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    changed(p, x, |p| {
        p.want.scores = p.want.scores.map(|stage| match stage {
            ScoreStage::Raw => ScoreStage::Capped,
            ScoreStage::Capped | ScoreStage::Masked => ScoreStage::Raw,
        });
    })
}

/// Sums the weights of some rows of padded batches: of head, row and number of rows.
fn other_sums(p: &Problem, x: &Inputs<'_>, adds: impl Fn(usize, usize, usize) -> bool) -> Result<Outputs> {
    let mut outputs = oracle(p, x)?;
    if p.want.key_sums.is_some() && p.varlen.is_none() {
        let d = p.dims;
        let mut reference = oracle::attention(p, x)?;
        for (row, weights) in reference.weights.chunks_mut(d.seq_len_kv.max(1)).enumerate() {
            if !adds(row / d.seq_len_q % d.num_heads, row % d.seq_len_q, d.seq_len_q) {
                weights.fill(0.0);
            }
        }
        outputs.key_sums = Some(reference.key_sums(p, x).into_iter().map(|sum| sum as f32).collect());
    }
    Ok(outputs)
}

fn sums_without_sink(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let without = oracle(&Problem { sinks: false, ..p.clone() }, &Inputs { sinks: &[], ..*x })?;
    let mut outputs = oracle(p, x)?;
    outputs.key_sums = without.key_sums;
    Ok(outputs)
}

/// Treats all tokens as one sequence.
fn varlen_as_one(p: &Problem, x: &Inputs<'_>) -> Result<Outputs> {
    let Some(varlen) =
        p.varlen.filter(|_| p.paged.is_none() && p.bias.is_none() && p.visibility.mask.is_none() && !p.visibility.prefix_lengths)
    else {
        return oracle(p, x);
    };
    let mut problem = p.clone();
    (problem.dims.batch, problem.dims.seq_len_q, problem.dims.seq_len_kv) = (1, varlen.tokens_q, varlen.tokens_kv);
    let (q, kv) = ([0, varlen.tokens_q as u32], [0, varlen.tokens_kv as u32]);
    problem.want.scores = None;
    (problem.want.weights, problem.want.key_sums) = (false, None);
    oracle(&problem, &Inputs { cu_seqlens_q: &q, cu_seqlens_kv: &kv, ..*x })
}

/// Replaces the pages in the table by other pages of the pool.
fn other_pages(p: &Problem, x: &Inputs<'_>, page: impl Fn(&Paged, usize) -> usize) -> Result<Outputs> {
    let Some(paged) = p.paged.filter(|paged| paged.pages > 0) else { return oracle(p, x) };
    let table: Vec<u32> = (0..x.page_table.len()).map(|at| (page(&paged, at) % paged.pages) as u32).collect();
    oracle(p, &Inputs { page_table: &table, ..*x })
}
