//! A problem with its data, made from a seed.

use crate::cpu::naive;
use crate::problem::Operand;
use crate::verify::random::Random;
use crate::{Broadcast, Dropout, HostVec, Inputs, PageTable, Paged, Problem, Result, ScoreStage, TensorSpec};

/// How the data of a case is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fill {
    /// The same seed gives the same data for the same problem.
    pub seed: u64,
    /// Spread of query and key: scores grow with its square.
    pub amplitude: f32,
    /// Write NaN and infinity where nothing may be read into a result: hidden keys and values, queries that see nothing,
    /// gaps between strided elements.
    pub poison: bool,
    /// Write one NaN into query, key or value, to be seen by whoever sees it.
    pub nan: bool,
    /// What is drawn otherwise than from a normal distribution.
    pub extreme: Extreme,
}

/// Numbers at the ends of what an f32 holds, and equal ones, in place of drawn ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Extreme {
    /// All are drawn.
    #[default]
    Nothing,
    /// Every finite number of the additive bias is this one: of a huge one all keys of a row have the same score.
    Bias(f32),
    /// Every number of query and key is this one: so have they here.
    Scores(f32),
    /// Values are drawn, and multiplied by this.
    Values(f32),
    /// Every number of query, key and value is this one, which comes back.
    All(f32),
}

impl Fill {
    /// Spread 1, poisoned, without a NaN that may be seen.
    pub const fn seed(seed: u64) -> Self {
        Self { seed, amplitude: 1.0, poison: true, nan: false, extreme: Extreme::Nothing }
    }
}

/// The data of a problem, owned. See [`Inputs`] for what each one is.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of Inputs")]
pub struct Data {
    pub query: HostVec,
    pub key: HostVec,
    pub value: HostVec,
    pub mask: Vec<bool>,
    pub bias: Vec<f32>,
    pub alibi_slopes: Vec<f32>,
    pub relative_bias: Vec<f32>,
    pub sinks: Vec<f32>,
    pub kv_lengths: Vec<u32>,
    pub prefix_lengths: Vec<u32>,
    pub documents_q: Vec<i32>,
    pub documents_kv: Vec<i32>,
    pub cu_seqlens_q: Vec<u32>,
    pub cu_seqlens_kv: Vec<u32>,
    pub page_table: Vec<u32>,
    pub dropout: Dropout,
}

impl Data {
    /// Query, key and value; nothing else.
    pub fn new(query: HostVec, key: HostVec, value: HostVec) -> Self {
        Self {
            query,
            key,
            value,
            mask: vec![],
            bias: vec![],
            alibi_slopes: vec![],
            relative_bias: vec![],
            sinks: vec![],
            kv_lengths: vec![],
            prefix_lengths: vec![],
            documents_q: vec![],
            documents_kv: vec![],
            cu_seqlens_q: vec![],
            cu_seqlens_kv: vec![],
            page_table: vec![],
            dropout: Dropout::default(),
        }
    }

    /// Lends it to a call.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            query: self.query.as_slice(),
            key: self.key.as_slice(),
            value: self.value.as_slice(),
            mask: &self.mask,
            bias: &self.bias,
            alibi_slopes: &self.alibi_slopes,
            relative_bias: &self.relative_bias,
            sinks: &self.sinks,
            kv_lengths: &self.kv_lengths,
            prefix_lengths: &self.prefix_lengths,
            documents_q: &self.documents_q,
            documents_kv: &self.documents_kv,
            cu_seqlens_q: &self.cu_seqlens_q,
            cu_seqlens_kv: &self.cu_seqlens_kv,
            page_table: &self.page_table,
            dropout: self.dropout,
        }
    }
}

/// A problem, its data, and how that was made.
#[derive(Clone, Debug)]
pub struct Case {
    /// What reports call it.
    pub name: String,
    /// What is asked.
    pub problem: Problem,
    /// How `data` was made.
    pub fill: Fill,
    /// The data.
    pub data: Data,
}

impl Case {
    /// Makes the data for a problem. Refuses a problem that contradicts itself.
    pub fn new(name: impl Into<String>, problem: Problem, fill: Fill) -> Result<Self> {
        problem.check()?;
        let mut random = Random::new(fill.seed);
        let mut data = options(&problem, &mut random);
        data.dropout = Dropout { seed: fill.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), offset: fill.seed as u32 ^ 7 };
        let dense = |operand, spread: f32, random: &mut Random| {
            let count = problem.shape(operand).iter().product();
            (0..count).map(|_| spread * random.normal()).collect::<Vec<f32>>()
        };
        let mut query = dense(Operand::Query, fill.amplitude, &mut random);
        let mut key = dense(Operand::Key, fill.amplitude, &mut random);
        let mut value = dense(Operand::Value, 1.0, &mut random);
        match fill.extreme {
            Extreme::Nothing => {}
            Extreme::Bias(x) => data.bias.iter_mut().filter(|bias| bias.is_finite()).for_each(|bias| *bias = x),
            Extreme::Scores(x) => [&mut query, &mut key].into_iter().for_each(|numbers| numbers.fill(x)),
            Extreme::Values(x) => value.iter_mut().for_each(|value| *value *= x),
            Extreme::All(x) => [&mut query, &mut key, &mut value].into_iter().for_each(|numbers| numbers.fill(x)),
        }
        if fill.nan {
            let tensors = [&mut query, &mut key, &mut value];
            let tensor = random.below(tensors.len());
            let at = random.below(tensors[tensor].len());
            tensors[tensor].get_mut(at).into_iter().for_each(|x| *x = f32::NAN);
        }
        let store = |data: &mut Data, query: &[f32], key: &[f32], value: &[f32], gap: f32| {
            data.query = scatter(&problem.query, problem.shape(Operand::Query), query, gap);
            data.key = scatter(&problem.key, problem.shape(Operand::Key), key, gap);
            data.value = scatter(&problem.value, problem.shape(Operand::Value), value, gap);
        };
        store(&mut data, &query, &key, &value, 0.0);
        if fill.poison {
            poison(&problem, &data, &mut random, [&mut query, &mut key, &mut value])?;
            store(&mut data, &query, &key, &value, f32::NAN);
        }
        Ok(Self { name: name.into(), problem, fill, data })
    }
}

/// Everything but query, key and value.
fn options(problem: &Problem, random: &mut Random) -> Data {
    let d = &problem.dims;
    let v = &problem.visibility;
    let nothing = HostVec::F32(vec![]);
    let mut data = Data::new(nothing.clone(), nothing.clone(), nothing);
    let elements = |shape: Option<Broadcast>| shape.and_then(Broadcast::elements).unwrap_or(0);
    // About one key in four is masked out, and one row in sixteen is masked out whole.
    let row_len = v.mask.map_or(1, |shape| shape.0[3].max(1));
    let mut whole_row = false;
    data.mask = (0..elements(v.mask))
        .map(|at| {
            if at % row_len == 0 {
                whole_row = row_len > 1 && random.one_in(16);
            }
            !whole_row && !random.one_in(4)
        })
        .collect();
    data.bias = (0..elements(problem.bias)).map(|_| if random.one_in(12) { f32::NEG_INFINITY } else { random.normal() }).collect();
    let per_head = |random: &mut Random| (0..d.num_heads).map(|_| random.normal()).collect::<Vec<f32>>();
    if problem.alibi.is_some() {
        data.alibi_slopes = (0..d.num_heads).map(|h| 2f32.powf(-8.0 * (h + 1) as f32 / d.num_heads as f32)).collect();
    }
    if let Some(max) = problem.relative_bias {
        data.relative_bias = (0..d.num_heads * (2 * max as usize + 1)).map(|_| random.normal()).collect();
    }
    if problem.sinks {
        data.sinks = per_head(random);
    }
    let lengths = |longest: usize, random: &mut Random| {
        // The extremes often: nothing, one, all.
        let choices = [0, longest.min(1), longest, random.below(longest + 1), random.below(longest + 1)];
        random.pick(&choices) as u32
    };
    if v.kv_lengths {
        data.kv_lengths = (0..d.batch).map(|_| lengths(d.seq_len_kv, random)).collect();
    }
    if v.prefix_lengths {
        data.prefix_lengths = (0..d.batch).map(|_| lengths(d.seq_len_kv, random)).collect();
    }
    if v.documents {
        // Documents of some tokens each, one after the other, as packed training data has them.
        let documents = |count: usize, random: &mut Random| {
            let mut document = 0;
            (0..count)
                .map(|_| {
                    document += i32::from(random.one_in(5));
                    document
                })
                .collect::<Vec<i32>>()
        };
        data.documents_q = (0..d.batch).flat_map(|_| documents(d.seq_len_q, random)).collect();
        data.documents_kv = (0..d.batch).flat_map(|_| documents(d.seq_len_kv, random)).collect();
    }
    if let Some(packed) = problem.packed {
        data.cu_seqlens_q = cu_seqlens(d.batch, d.seq_len_q, packed.tokens_q, random);
        if problem.paged.is_none() {
            data.cu_seqlens_kv = cu_seqlens(d.batch, d.seq_len_kv, packed.tokens_kv, random);
        }
    }
    if let Some(paged) = problem.paged {
        data.page_table = page_table(&paged, &mut data.kv_lengths, random);
    }
    data
}

/// Pages in any order for items of these lengths, some of which share their first page with item 0; an item that the pool has no
/// pages left for is cut down to none. Entries that are not used hold what is no page.
fn page_table(paged: &Paged, kv_lengths: &mut [u32], random: &mut Random) -> Vec<u32> {
    let mut free: Vec<u32> = (0..paged.pages as u32).collect();
    let mut table = Vec::new();
    for (item, length) in kv_lengths.iter_mut().enumerate() {
        let pages = (*length as usize).div_ceil(paged.page_size);
        if pages > free.len() {
            *length = 0;
        }
        for at in 0..paged.pages_per_item {
            let shared = table.first().copied().filter(|&page| item > 0 && at == 0 && page != PageTable::UNUSED && random.one_in(3));
            table.push(match shared {
                _ if at * paged.page_size >= *length as usize => PageTable::UNUSED,
                Some(page) => page,
                None => free.swap_remove(random.below(free.len())),
            });
        }
    }
    table
}

/// Borders of `batch` sequences, none longer than `longest`, of `tokens` tokens in all.
fn cu_seqlens(batch: usize, longest: usize, tokens: usize, random: &mut Random) -> Vec<u32> {
    let mut borders = vec![0u32];
    let mut left = tokens;
    for b in 0..batch {
        let later = (batch - 1 - b) * longest; // what the others can take at most
        let (least, most) = (left.saturating_sub(later).min(longest), left.min(longest));
        let length = if b + 1 == batch { left.min(longest) } else { least + random.below(most - least + 1) };
        left -= length;
        borders.push(borders[b] + length as u32);
    }
    borders
}

/// Lays contiguous [batch, heads, seq, dim] data out as `spec` says, with `gap` wherever no element lies.
pub(crate) fn scatter(spec: &TensorSpec, shape: [usize; 4], dense: &[f32], gap: f32) -> HostVec {
    let mut stored = vec![gap; spec.required_len(shape).unwrap_or(0)];
    let strides = spec.strides(shape);
    let mut dense = dense.iter();
    for b in 0..shape[0] {
        for h in 0..shape[1] {
            for i in 0..shape[2] {
                for e in 0..shape[3] {
                    let place = spec.offset + b * strides.batch + h * strides.head + i * strides.seq + e * strides.dim;
                    stored[place] = dense.next().copied().unwrap_or(gap);
                }
            }
        }
    }
    HostVec::from_f32(spec.dtype, &stored)
}

/// Overwrites what no row sees, and queries that see nothing. Who sees what is the oracle's word, on the data without poison.
fn poison(problem: &Problem, data: &Data, random: &mut Random, [query, key, value]: [&mut Vec<f32>; 3]) -> Result<()> {
    let d = problem.dims;
    let masked = naive::attention(problem, &data.inputs())?.masked;
    let sees =
        |b: usize, h: usize, i: usize, j: usize| masked[((b * d.num_heads + h) * d.seq_len_q + i) * d.seq_len_kv + j] != f64::NEG_INFINITY;
    let mut bad = || random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e4]);
    // Raw scores are handed out for hidden pairs too.
    let keep_raw = matches!(problem.want.scores, Some(ScoreStage::Raw | ScoreStage::Capped));
    let tokens_q = problem.shape(Operand::Query)[2];
    let mut seen = vec![false; problem.shape(Operand::Key)[..3].iter().product()];
    for b in 0..d.batch {
        let (item, first_q, rows) = match problem.packed {
            None => (b, 0, d.seq_len_q),
            Some(_) => {
                let q = &data.cu_seqlens_q[b..];
                (0, q[0] as usize, (q[1] - q[0]) as usize)
            }
        };
        for h in 0..d.num_heads {
            for i in 0..rows {
                let sees: Vec<usize> = (0..d.seq_len_kv).filter(|&j| sees(b, h, i, j)).collect();
                for &j in &sees {
                    seen[naive::key_row(problem, &data.inputs(), b, h / d.group(), j)] = true;
                }
                if sees.is_empty() && !keep_raw {
                    let at = (item * d.num_heads + h) * tokens_q + first_q + i;
                    query[at * d.head_dim..(at + 1) * d.head_dim].fill(bad());
                }
            }
        }
    }
    for at in (0..seen.len()).filter(|&at| !seen[at]) {
        if !keep_raw {
            key[at * d.head_dim..(at + 1) * d.head_dim].fill(bad());
        }
        value[at * d.head_dim_v..(at + 1) * d.head_dim_v].fill(bad());
    }
    Ok(())
}
