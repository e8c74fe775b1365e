//! The oracle: the formulas of [`Problem`] in f64, one line after the other, with every matrix stored.
//!
//! Written to be checked by reading. It shares no visibility arithmetic, tiling or tables with the fast paths, but it
//! shares the decoding of operands and the random words of dropout.

use super::walk;
use crate::custom::Term;
use crate::error::Result;
use crate::numbers::HostVec;
use crate::problem::{
    Alibi, Alignment, BroadcastShape, Inputs, Operand, Outputs, PageTable, Problem, ScoreOrder, ScoreStage, SummedRows, gather,
};

/// All results of the oracle, dense, in f64.
///
/// Past the lengths of a varlen or paged item, lse, raw, capped and masked are -inf, stats `[f32::MIN, 0]`, the rest 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// [batch, num_heads, seq_len_q, head_dim_v].
    pub output: Vec<f64>,
    /// [batch, num_heads, seq_len_q].
    pub lse: Vec<f64>,
    /// [batch, num_heads, seq_len_q], m and l: see [`Outputs::stats`].
    pub stats: Vec<[f64; 2]>,
    /// [batch, num_heads, seq_len_q, seq_len_kv]: `scale * q.k`.
    pub raw: Vec<f64>,
    /// `raw` after softcap, if that comes before the biases; else `raw`.
    pub capped: Vec<f64>,
    /// Scores after softcap, biases and the user's terms; -inf where masked.
    pub masked: Vec<f64>,
    /// Scores before the user's terms; -inf where masked.
    pub before_terms: Vec<f64>,
    /// Derivative of `masked` by `before_terms`.
    pub slopes: Vec<f64>,
    /// Softmax weights, before dropout.
    pub weights: Vec<f64>,
}

/// Statistics of a row without visible keys and without a sink.
const NOTHING_SEEN: [f64; 2] = [f32::MIN as f64, 0.0];

/// Location of an item of the batch, and the position of its row 0.
pub(super) struct Item {
    /// Batch index in the query and output: 0 for varlen sequences, which are one item.
    pub(super) stored: usize,
    pub(super) first_q: usize,
    pub(super) rows: usize,
    /// Stored keys.
    pub(super) keys: usize,
    /// Keys that are not padding.
    length: usize,
    pub(super) offset: i64,
}

impl Item {
    pub(super) fn new(problem: &Problem, inputs: &Inputs<'_>, b: usize) -> Self {
        let d = &problem.dims;
        let (mut stored, mut first_q, mut rows, mut keys) = (b, 0, d.seq_len_q, d.seq_len_kv);
        if problem.varlen.is_some() {
            (stored, first_q) = (0, inputs.cu_seqlens_q[b] as usize);
            rows = inputs.cu_seqlens_q[b + 1] as usize - first_q;
        }
        if problem.paged.is_some() {
            keys = inputs.kv_lengths[b] as usize;
        } else if problem.varlen.is_some() {
            keys = (inputs.cu_seqlens_kv[b + 1] - inputs.cu_seqlens_kv[b]) as usize;
        }
        let length = if problem.visibility.kv_lengths { inputs.kv_lengths[b] as usize } else { keys };
        let offset = match problem.visibility.alignment {
            None | Some(Alignment::TopLeft) => 0,
            Some(Alignment::BottomRight) => length as i64 - rows as i64,
            Some(Alignment::Offset(offset)) => i64::from(offset),
        };
        Self { stored, first_q, rows, keys, length, offset }
    }

    /// Index of the lse of row i of head h, of item b.
    pub(super) fn lse_place(&self, problem: &Problem, [b, h, i]: [usize; 3]) -> usize {
        let d = &problem.dims;
        match problem.varlen {
            Some(_) => (self.first_q + i) * d.num_heads + h,
            None => (b * d.num_heads + h) * d.seq_len_q + i,
        }
    }

    /// The pair [b, h, i, j] as users' terms see it: batch, head, kv_head, row, key, position, key_position, len_q, len_kv.
    pub(super) fn pair(&self, problem: &Problem, [b, h, i, j]: [usize; 4]) -> [i32; 9] {
        let kv_head = h / (problem.dims.num_heads / problem.dims.num_kv_heads);
        let position = (i as i64 + self.offset) as i32;
        [b as i32, h as i32, kv_head as i32, i as i32, j as i32, position, j as i32, self.rows as i32, self.length as i32]
    }
}

/// Computes `problem` as written. Time and memory grow with batch x num_heads x seq_len_q x seq_len_kv.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>) -> Result<Reference> {
    problem.check()?;
    inputs.check(problem)?;
    let d = problem.dims;
    let tokens_q = problem.shape(Operand::Query)[2];
    let query = gather(inputs.query, &problem.query, problem.shape(Operand::Query));
    let key = gather(inputs.key, &problem.key, problem.shape(Operand::Key));
    let value = gather(inputs.value, &problem.value, problem.shape(Operand::Value));
    let scale = f64::from(problem.effective_scale());
    let cap = |score: f64| problem.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
    // A sum that f32 cannot hold is infinite with or without biases.
    let held = |sum: f64| if (sum as f32).is_infinite() { f64::from(sum as f32) } else { sum };

    let (rows, pairs) = (d.batch * d.num_heads * d.seq_len_q, problem.scores_len());
    let mut out = Reference {
        output: vec![0.0; rows * d.head_dim_v],
        lse: vec![f64::NEG_INFINITY; rows],
        stats: vec![NOTHING_SEEN; rows],
        raw: vec![f64::NEG_INFINITY; pairs],
        capped: vec![f64::NEG_INFINITY; pairs],
        masked: vec![f64::NEG_INFINITY; pairs],
        before_terms: vec![f64::NEG_INFINITY; pairs],
        slopes: vec![0.0; pairs],
        weights: vec![0.0; pairs],
    };
    for b in 0..d.batch {
        let item = Item::new(problem, inputs, b);
        for (h, i) in (0..d.num_heads).flat_map(|h| (0..item.rows).map(move |i| (h, i))) {
            let kv_head = h / (d.num_heads / d.num_kv_heads);
            let row = (b * d.num_heads + h) * d.seq_len_q + i;
            let q = &query[((item.stored * d.num_heads + h) * tokens_q + item.first_q + i) * d.head_dim..][..d.head_dim];
            let q = q.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let q = if problem.key_hadamard { hadamard(&q) } else { q };
            let mut seen = Vec::new();
            for j in 0..item.keys {
                let at = row * d.seq_len_kv + j;
                let k = &key[key_row(problem, inputs, b, kv_head, j) * d.head_dim..][..d.head_dim];
                let dot: f64 = q.iter().zip(k).map(|(&x, &y)| x * f64::from(y)).sum();
                let cap_first = problem.score_order == ScoreOrder::SoftcapThenBias;
                out.raw[at] = scale * dot;
                out.capped[at] = if cap_first { cap(scale * dot) } else { scale * dot };
                // The biases are added in their order, each sum rounded to f32.
                let biases = biases(problem, inputs, &item, [b, h, i, j]);
                let sum = held(biases.iter().fold(out.capped[at], |sum, &bias| f64::from(sum as f32 + bias)));
                // A bias of -inf masks the pair, whatever it is added to, and so does a sum that overflows to -inf.
                let is_masked = biases.contains(&f32::NEG_INFINITY) || sum == f64::NEG_INFINITY;
                let visible = is_visible(problem, inputs, &item, [b, h, i, j]) && !is_masked;
                let before = if cap_first { sum } else { cap(sum) };
                let score = visible.then(|| user_score(problem, inputs, before, item.pair(problem, [b, h, i, j])));
                if let Some((score, slope)) = score.filter(|&(score, _)| score != f64::NEG_INFINITY) {
                    (out.before_terms[at], out.masked[at], out.slopes[at]) = (before, score, slope);
                    seen.push(j);
                }
            }

            // Softmax over the visible keys; the sink is one more term of the denominator.
            let score = |out: &Reference, j: usize| out.masked[row * d.seq_len_kv + j];
            let sink = problem.sinks.then(|| f64::from(inputs.sinks[h]));
            let max = seen.iter().map(|&j| score(&out, j)).chain(sink).fold(f64::NEG_INFINITY, f64::max);
            if max == f64::NEG_INFINITY && seen.iter().all(|&j| !score(&out, j).is_nan()) {
                continue;
            }
            let sum: f64 = seen.iter().map(|&j| score(&out, j)).chain(sink).map(|score| (score - max).exp()).sum();
            out.lse[row] = max + sum.ln();
            out.stats[row] = [max, sum];
            for j in seen {
                let weight = (score(&out, j) - max).exp() / sum;
                out.weights[row * d.seq_len_kv + j] = weight;
                let from = key_row(problem, inputs, b, kv_head, j) * d.head_dim_v;
                let kept = dropout_scale(problem, inputs, [b, h, i, j]);
                for e in 0..d.head_dim_v {
                    out.output[row * d.head_dim_v + e] += kept * weight * f64::from(value[from + e]);
                }
            }
            if problem.value_hadamard {
                let output = &mut out.output[row * d.head_dim_v..][..d.head_dim_v];
                output.copy_from_slice(&hadamard(output));
            }
        }
    }
    Ok(out)
}

/// Multiplies each block of a row by the normalised Hadamard matrix. The blocks are as wide as the largest power of two up
/// to 256 that divides the row's width. A block with NaN or infinity becomes NaN.
pub(crate) fn hadamard(row: &[f64]) -> Vec<f64> {
    let n = 1 << row.len().trailing_zeros().min(8);
    let sign = |a: usize, b: usize| if (a & b).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let element = |block: &[f64], a: usize| (0..n).map(|b| sign(a, b) * block[b]).sum::<f64>() / (n as f64).sqrt();
    let of_block = |block: &[f64]| match block.iter().all(|x| x.is_finite()) {
        true => (0..n).map(|a| element(block, a)).collect::<Vec<f64>>(),
        false => vec![f64::NAN; n],
    };
    row.chunks_exact(n).flat_map(of_block).collect()
}

/// Index of each stored pair in [batch, num_heads, seq_len_q, seq_len_kv], and the pair as users' terms see it.
#[cfg(feature = "verify")]
pub(crate) fn pairs_of<'a>(problem: &'a Problem, inputs: &'a Inputs<'_>) -> impl Iterator<Item = (usize, [i32; 9])> + 'a {
    let d = problem.dims;
    let all = (0..d.batch).flat_map(move |b| (0..d.num_heads).map(move |h| (b, h)));
    all.flat_map(move |(b, h)| {
        let item = Item::new(problem, inputs, b);
        (0..item.rows * item.keys).map(move |at| {
            let (i, j) = (at / item.keys, at % item.keys);
            (((b * d.num_heads + h) * d.seq_len_q + i) * d.seq_len_kv + j, item.pair(problem, [b, h, i, j]))
        })
    })
}

/// Score after the user's terms, rounded to f32 where it overflows, and its derivative by the score before them.
fn user_score(problem: &Problem, inputs: &Inputs<'_>, x: f64, pair: [i32; 9]) -> (f64, f64) {
    let mut scored = (x, 1.0);
    for (index, term) in problem.user_terms.iter().enumerate() {
        let (y, slope) = walk::score(term.functions(), &problem.tables_of(index, inputs.term_tables), scored.0, pair);
        let held = if (y as f32).is_infinite() { f64::from(y as f32) } else { y };
        if held == f64::NEG_INFINITY {
            return (held, 0.0);
        }
        // A derivative of 0 makes 0, even of what is infinite.
        scored = (held, if slope == 0.0 || scored.1 == 0.0 { 0.0 } else { scored.1 * slope });
    }
    scored
}

/// Biases of the pair [b, h, i, j], in the order in which they are added.
fn biases(problem: &Problem, inputs: &Inputs<'_>, item: &Item, [b, h, i, j]: [usize; 4]) -> Vec<f32> {
    let distance = j as i64 - (i as i64 + item.offset);
    let mut biases = Vec::new();
    if let Some(shape) = problem.bias {
        biases.push(inputs.bias[broadcast(shape, [b, h, i, j])]);
    }
    match problem.alibi {
        None => {}
        Some(Alibi::Signed) => biases.push(inputs.alibi_slopes[h] * distance as f32),
        Some(Alibi::Symmetric) => biases.push(-inputs.alibi_slopes[h] * distance.abs() as f32),
    }
    if let Some(max) = problem.relative_bias_max_distance.map(i64::from) {
        let column = (-distance).clamp(-max, max) + max;
        biases.push(inputs.relative_bias[h * (2 * max as usize + 1) + column as usize]);
    }
    biases
}

/// True if no rule of [`crate::Visibility`] but the biases masks the pair [b, h, i, j].
fn is_visible(problem: &Problem, inputs: &Inputs<'_>, item: &Item, [b, h, i, j]: [usize; 4]) -> bool {
    let (d, v) = (problem.dims, &problem.visibility);
    let (key, p) = (j as i64, i as i64 + item.offset);
    let mut visible = j < item.length;
    if v.causal {
        visible &= key <= p || v.prefix_lengths && j < inputs.prefix_lengths[b] as usize;
    }
    if let Some(left) = v.window_left {
        visible &= p - i64::from(left) <= key;
    }
    if let Some(right) = v.window_right {
        visible &= key <= p + i64::from(right);
    }
    if let Some(size) = v.chunk.map(i64::from) {
        visible &= key.div_euclid(size) == p.div_euclid(size);
    }
    if let Some(size) = v.block_causal.map(i64::from) {
        visible &= key < (p.div_euclid(size) + 1) * size;
    }
    if v.segments {
        visible &= inputs.segment_ids_q[b * d.seq_len_q + i] == inputs.segment_ids_kv[b * d.seq_len_kv + j];
    }
    if let Some(list) = v.block_list {
        // The list of the pair's item and head, then the word and the bit of its tile.
        let [item, head] = [if list.batch == 1 { 0 } else { b }, h / (d.num_heads / list.heads)];
        let [row_tile, key_tile] = [i / list.rows as usize, j / list.keys as usize];
        let line = (item * list.heads + head) * d.seq_len_q.div_ceil(list.rows as usize) + row_tile;
        let words = d.seq_len_kv.div_ceil(list.keys as usize).div_ceil(32);
        visible &= inputs.block_list[line * words + key_tile / 32] & (1 << (key_tile % 32)) != 0;
    }
    if let Some(shape) = v.mask {
        visible &= inputs.mask[broadcast(shape, [b, h, i, j])];
    }
    let pair = item.pair(problem, [b, h, i, j]);
    let shows = |(index, term): (usize, &Term)| walk::visible(term.functions(), &problem.tables_of(index, inputs.term_tables), pair);
    visible && problem.user_terms.iter().enumerate().all(shows)
}

impl Reference {
    /// Rounds the results and stores them as the problem describes.
    pub fn into_outputs(self, problem: &Problem, inputs: &Inputs<'_>) -> Outputs {
        let d = problem.dims;
        let strides = problem.output.strides(problem.shape(Operand::Output));
        let mut output = vec![0.0f32; problem.output_len()];
        let mut lse = vec![f32::NEG_INFINITY; problem.lse_len()];
        let mut stats = vec![NOTHING_SEEN.map(|x| x as f32); problem.lse_len()];
        for b in 0..d.batch {
            let item = Item::new(problem, inputs, b);
            for (h, i) in (0..d.num_heads).flat_map(|h| (0..item.rows).map(move |i| (h, i))) {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let token = item.first_q + i;
                let at = problem.output.offset + item.stored * strides.batch + h * strides.head + token * strides.seq;
                for e in 0..d.head_dim_v {
                    output[at + e * strides.dim] = self.output[row * d.head_dim_v + e] as f32;
                }
                let place = item.lse_place(problem, [b, h, i]);
                lse[place] = self.lse[row] as f32;
                // l is rescaled to the rounded m.
                let [max, sum] = self.stats[row];
                let kept = max as f32;
                stats[place] = [kept, if max == f64::from(kept) { sum } else { sum * (max - f64::from(kept)).exp() } as f32];
            }
        }
        let narrow = |data: &[f64]| data.iter().map(|&x| x as f32).collect::<Vec<_>>();
        Outputs {
            output: HostVec::from_f32(problem.output.dtype, &output),
            lse: problem.want.lse.then_some(lse),
            stats: problem.want.stats.then_some(stats),
            scores: problem.want.scores.map(|stage| match stage {
                ScoreStage::Raw => narrow(&self.raw),
                ScoreStage::Capped => narrow(&self.capped),
                ScoreStage::Masked => narrow(&self.masked),
            }),
            weights: problem.want.weights.then(|| narrow(&self.weights)),
            key_sums: problem.want.key_sums.map(|_| narrow(&self.key_sums(problem, inputs))),
        }
    }

    /// Sums the weights of each key over the rows that the problem names, and over the heads of the key's group:
    /// [batch, num_kv_heads, seq_len_kv].
    pub fn key_sums(&self, problem: &Problem, inputs: &Inputs<'_>) -> Vec<f64> {
        let d = problem.dims;
        let mut sums = vec![0.0; problem.key_sums_len()];
        for b in 0..d.batch {
            let rows = Item::new(problem, inputs, b).rows;
            let first = match problem.want.key_sums {
                None => rows,
                Some(SummedRows::All) => 0,
                Some(SummedRows::Last(count)) => rows.saturating_sub(count),
            };
            for (h, i) in (0..d.num_heads).flat_map(|h| (first..rows).map(move |i| (h, i))) {
                let kv_head = h / (d.num_heads / d.num_kv_heads);
                for j in 0..d.seq_len_kv {
                    let weight = self.weights[((b * d.num_heads + h) * d.seq_len_q + i) * d.seq_len_kv + j];
                    sums[(b * d.num_kv_heads + kv_head) * d.seq_len_kv + j] += weight;
                }
            }
        }
        sums
    }
}

/// Row of key j of item b in the gathered keys and values.
pub(crate) fn key_row(problem: &Problem, inputs: &Inputs<'_>, b: usize, kv_head: usize, j: usize) -> usize {
    let heads = problem.dims.num_kv_heads;
    if let Some(paged) = problem.paged {
        let page = match inputs.page_table[b * paged.pages_per_item + j / paged.page_size] {
            PageTable::UNUSED => 0, // the key is masked, whatever its elements are
            page => page as usize,
        };
        return (page * heads + kv_head) * paged.page_size + j % paged.page_size;
    }
    match problem.varlen {
        Some(varlen) => kv_head * varlen.tokens_kv + inputs.cu_seqlens_kv[b] as usize + j,
        None => (b * heads + kv_head) * problem.dims.seq_len_kv + j,
    }
}

/// Dropout factor of the weight of [b, h, i, j]: 0, or 1 / (1 - probability).
pub(super) fn dropout_scale(problem: &Problem, inputs: &Inputs<'_>, [b, h, i, j]: [usize; 4]) -> f64 {
    let Some(probability) = problem.dropout else { return 1.0 };
    let word = inputs.dropout.words(b * problem.dims.num_heads + h, i, j / 4)[j % 4];
    if f64::from(word) < f64::from(probability) * 2f64.powi(32) { 0.0 } else { 1.0 / (1.0 - f64::from(probability)) }
}

/// Index of [b, h, i, j] in a tensor some of whose axes are 1.
pub(super) fn broadcast(shape: BroadcastShape, index: [usize; 4]) -> usize {
    let mut at = 0;
    for (extent, index) in shape.0.into_iter().zip(index) {
        at = at * extent + if extent == 1 { 0 } else { index };
    }
    at
}
