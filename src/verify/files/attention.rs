//! Operations that consist of an attention: `sdpa`, `flex`, `varlen`, `paged`, `sdpa_layers`; and `merge_states`.

use super::case_file::{CaseFile, FileData, Given, given};
use super::runner::Runner;
use crate::cache;
use crate::cpu::{Part, RowSums, merge};
use crate::custom::{Table, Term};
use crate::error::Result;
use crate::numbers::{DType, HostVec};
use crate::problem::{
    Alibi, Alignment, AttentionFn, BackwardInputs, BroadcastShape, Dims, Layout, Operand, Outputs, PageTable, Paged, Problem, Returns,
    ScoreOrder, TableData, TensorSpec, Varlen, WantGradients,
};
use crate::verify::case::Data;
use crate::verify::expect_backward::AttendBackward;

/// Runs an attention with all options that the file names, and its gradients if the file has a gradient of the output.
pub(super) fn attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let (mut problem, mut data) = match file.op() {
        "varlen" => varlen(file)?,
        "paged" => paged(file)?,
        _ => dense(file, ["q", "k", "v"], file.output_dtype("o")?)?,
    };
    let mut all = if file.flag("append")? { append(file, &problem, &mut data)? } else { Vec::new() };
    options(file, &mut problem, &mut data)?;
    if file.has("sinks") {
        if file.expects("lse_without_sink") {
            let outputs = (runner.attend)(&problem, &data.inputs())?;
            all.extend(name_outputs(&problem, outputs, ["", "lse_without_sink", ""]));
        }
        (problem.sinks, data.sinks) = (true, file.f32s("sinks")?);
    }
    all.extend(name_outputs(&problem, (runner.attend)(&problem, &data.inputs())?, ["o", "lse", ""]));
    if let (Some(backward), true) = (runner.backward, file.has("dout")) {
        all.extend(gradients(file, runner.attend, backward, problem, &data)?);
    }
    Ok(all)
}

/// Reads queries, keys and values [batch, heads, seq, dim] of these names, and the scale; every key is visible.
pub(super) fn dense(file: &CaseFile, [q, k, v]: [&str; 3], output: DType) -> Result<(Problem, Data)> {
    let [batch, num_heads, seq_len_q, head_dim] = file.shape(q)?;
    let [_, num_kv_heads, seq_len_kv, _] = file.shape(k)?;
    let [.., head_dim_v] = file.shape::<4>(v)?;
    let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v };
    let data = Data::new(file.floats(q)?.clone(), file.floats(k)?.clone(), file.floats(v)?.clone());
    Ok((plain(file, dims, &data, output, Layout::Bhsd)?, data))
}

/// Problem of these sizes with the file's scale, stored as the data is.
fn plain(file: &CaseFile, dims: Dims, data: &Data, output: DType, layout: Layout) -> Result<Problem> {
    let spec = |dtype| TensorSpec::new(dtype, layout);
    let inputs = data.inputs();
    let (query, key, value) = (spec(inputs.query.dtype()), spec(inputs.key.dtype()), spec(inputs.value.dtype()));
    Ok(Problem { scale: file.attr("scale")?, query, key, value, output: spec(output), ..Problem::new(dims) })
}

/// Reads varlen queries, and keys and values of these names, heads last but one.
fn ragged(file: &CaseFile, [k, v]: [&str; 2], num_kv_heads: usize, seq_len_kv: usize, head_dim_v: usize) -> Result<(Problem, Data)> {
    let [tokens_q, num_heads, head_dim] = file.shape("q")?;
    let mut data = Data::new(file.floats("q")?.clone(), file.floats(k)?.clone(), file.floats(v)?.clone());
    data.cu_seqlens_q = file.ints("cu_seqlens_q")?;
    let (batch, seq_len_q) = (data.cu_seqlens_q.len().saturating_sub(1), longest(&data.cu_seqlens_q));
    let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v };
    Ok((plain(file, dims, &data, file.output_dtype("o")?, Layout::Bshd)?.varlen(Varlen { tokens_q, tokens_kv: 0 }), data))
}

/// Length of the longest varlen sequence.
fn longest(borders: &[u32]) -> usize {
    borders.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize).max().unwrap_or(0)
}

/// Reads varlen sequences, as in FlashAttention's varlen functions.
fn varlen(file: &CaseFile) -> Result<(Problem, Data)> {
    let [tokens_kv, num_kv_heads, _] = file.shape("k")?;
    let [.., head_dim_v] = file.shape::<3>("v")?;
    let cu_seqlens_kv = file.ints("cu_seqlens_k")?;
    let (mut problem, mut data) = ragged(file, ["k", "v"], num_kv_heads, longest(&cu_seqlens_kv), head_dim_v)?;
    problem.varlen = problem.varlen.map(|varlen| Varlen { tokens_kv, ..varlen });
    data.cu_seqlens_kv = cu_seqlens_kv;
    Ok((problem, data))
}

/// Reads varlen queries and paged keys and values.
fn paged(file: &CaseFile) -> Result<(Problem, Data)> {
    let shape = file.shape::<4>("k_cache")?;
    let [.., head_dim_v] = file.shape::<4>("v_cache")?;
    let (layout, num_kv_heads, page_size) = match file.required_attr::<String>("kv_layout")?.as_str() {
        "NHD" => (Layout::Bshd, shape[2], shape[1]),
        "HND" => (Layout::Bhsd, shape[1], shape[2]),
        other => return Err(file.error(format!("kv_layout = `{other}` is unknown"))),
    };
    let table = table(file, page_size)?;
    let (problem, mut data) = ragged(file, ["k_cache", "v_cache"], num_kv_heads, table.longest(), head_dim_v)?;
    let mut problem = problem.paged(table.paged(shape[0]));
    (problem.key.layout, problem.value.layout) = (layout, layout);
    (data.page_table, data.kv_lengths) = (table.entries, table.kv_lengths);
    Ok((problem, data))
}

/// Reads the page table, which the file stores in two forms that must agree.
fn table(file: &CaseFile, page_size: usize) -> Result<PageTable> {
    let [batch, pages_per_item] = file.shape("page_table")?;
    // Padding of the table need not be a valid page.
    let entries = file.ints::<i64>("page_table")?.into_iter().map(|page| u32::try_from(page).unwrap_or(PageTable::UNUSED)).collect();
    let table = PageTable { page_size, pages_per_item, entries, kv_lengths: file.ints("kv_len")? };
    let [indptr, indices, last] = ["kv_indptr", "kv_indices", "kv_last_page_len"].map(|name| file.ints(name));
    let same = PageTable::from_indices(page_size, &indptr?, &indices?, &last?)?;
    let used = |table: &PageTable, item: usize| {
        let pages = (table.kv_lengths[item] as usize).div_ceil(page_size);
        table.entries[item * table.pages_per_item..][..table.pages_per_item].get(..pages).map(<[u32]>::to_vec)
    };
    if table.kv_lengths.len() != batch || same.kv_lengths != table.kv_lengths || (0..batch).any(|b| used(&table, b) != used(&same, b)) {
        return Err(file.error("its page table and its page indices differ"));
    }
    Ok(table)
}

/// Writes new tokens, varlen like the queries, to the last positions of each sequence. Returns the caches.
fn append(file: &CaseFile, problem: &Problem, data: &mut Data) -> Result<Vec<Given>> {
    problem.check()?;
    data.inputs().check(problem)?;
    let Some(Paged { page_size, pages, pages_per_item }) = problem.paged else { return Err(file.error("appends to no pages")) };
    let mut slots = Vec::new();
    for (item, (ends, &length)) in data.cu_seqlens_q.windows(2).zip(&data.kv_lengths).enumerate() {
        let own = &data.page_table[item * pages_per_item..][..pages_per_item];
        let start = length.checked_sub(ends[1].saturating_sub(ends[0])).ok_or_else(|| file.error("appends more than a sequence has"))?;
        slots.extend(cache::slots(own, page_size, start as usize..length as usize));
    }
    let tokens: usize = slots.iter().map(|slots| slots.count).sum();
    let mut all = Vec::new();
    for (operand, name, new, to) in
        [(Operand::Key, "k_cache", "k_new", &mut data.key), (Operand::Value, "v_cache", "v_new", &mut data.value)]
    {
        let (shape, new) = (problem.shape(operand), file.floats(new)?.as_slice());
        if tokens * shape[1] * shape[3] != new.len() || slots.iter().any(|slots| slots.page as usize >= pages) {
            return Err(file.error("its new tokens do not fit its page table"));
        }
        cache::write_slots(to, problem.spec(operand).layout, shape, &slots, new);
        all.push(given(name, &file.input(name)?.shape, to.to_f32()));
    }
    Ok(all)
}

/// Adds the options of the file: those that `flex` lists, or those that other operations have attributes or tensors for.
fn options(file: &CaseFile, problem: &mut Problem, data: &mut Data) -> Result<()> {
    problem.want.lse = file.expects("lse") || file.expects("lse_without_sink");
    let (alignment, options) = if file.op() == "flex" {
        let lists = [file.required_attr::<String>("score_mod")?, file.required_attr("mask_mod")?].join("+");
        let options = lists.split(['+', '&']).filter(|&option| option != "none").map(str::to_string).collect::<Vec<_>>();
        (Alignment::Offset(file.attr("q_offset")?.unwrap_or(0)), options)
    } else {
        let (alignment, causal) = match file.required_attr::<String>("causal")?.as_str() {
            "none" => (Alignment::BottomRight, None),
            "top_left" => (Alignment::TopLeft, Some("causal")),
            "bottom_right" => (Alignment::BottomRight, Some("causal")),
            other => return Err(file.error(format!("causal = `{other}` is unknown"))),
        };
        let softcap = file.attr::<f32>("softcap")?.filter(|&softcap| softcap != 0.0).map(|_| "softcap");
        let [mask, alibi] = [("mask", "mask"), ("alibi_slopes", "alibi")].map(|(tensor, option)| file.has(tensor).then_some(option));
        (alignment, [causal, Some("window"), softcap, mask, alibi].into_iter().flatten().map(str::to_string).collect())
    };
    for option in options {
        add_option(file, &option, problem, data)?;
    }
    if let Some(text) = file.attr::<String>("term")? {
        add_term(file, &text, problem, data)?;
    }
    problem.visibility.alignment = problem.uses_position().then_some(alignment);
    Ok(())
}

fn add_option(file: &CaseFile, option: &str, problem: &mut Problem, data: &mut Data) -> Result<()> {
    let v = &mut problem.visibility;
    match option {
        "causal" => v.causal = true,
        "window" => (v.window_left, v.window_right) = (file.size("window_left")?, file.size("window_right")?),
        "prefix" => (v.causal, v.prefix_lengths, data.prefix_lengths) = (true, true, file.ints("prefix_len")?),
        "document" => (v.segments, data.segment_ids_q, data.segment_ids_kv) = (true, file.ints("doc_id_q")?, file.ints("doc_id_k")?),
        "length" => (v.kv_lengths, data.kv_lengths) = (true, file.ints("kv_len")?),
        "mask" => match &file.input("mask")?.data {
            FileData::Bool(mask) => (v.mask, data.mask) = (Some(broadcast_shape(file, "mask")?), mask.clone()),
            _ => (problem.bias, data.bias) = (Some(broadcast_shape(file, "mask")?), file.f32s("mask")?),
        },
        "softcap" => {
            let has_bias = problem.bias.is_some() || problem.alibi.is_some() || problem.relative_bias_max_distance.is_some();
            problem.softcap = Some(file.required_attr("softcap")?);
            problem.score_order = if has_bias { ScoreOrder::BiasThenSoftcap } else { ScoreOrder::SoftcapThenBias };
        }
        "alibi" => {
            let alibi = if file.op() == "flex" { Alibi::Signed } else { Alibi::Symmetric };
            (problem.alibi, data.alibi_slopes) = (Some(alibi), file.f32s("alibi_slopes")?);
        }
        "rel_bias" => {
            problem.relative_bias_max_distance = Some(file.required_attr("max_distance")?);
            data.relative_bias = file.f32s("rel_bias")?;
        }
        "head_bias" => (problem.bias, data.bias) = (Some(broadcast_shape(file, "head_bias")?), file.f32s("head_bias")?),
        other => return Err(file.error(format!("score or mask function `{other}` is unknown"))),
    }
    Ok(())
}

/// Elements of a table of a user's term.
enum Elements {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
}

impl Elements {
    fn read(file: &CaseFile, name: &str, ty: &str) -> Result<Self> {
        Ok(match ty {
            "f32" => Self::F32(file.f32s(name)?),
            "i32" => Self::I32(file.ints(name)?),
            "u32" => Self::U32(file.ints(name)?),
            other => return Err(file.error(format!("table `{name}` has the unknown type `{other}`"))),
        })
    }

    fn data(&self) -> TableData<'_> {
        match self {
            Self::F32(data) => TableData::F32(data),
            Self::I32(data) => TableData::I32(data),
            Self::U32(data) => TableData::U32(data),
        }
    }
}

/// Adds the user's term of this text. Attribute `tables` lists its tables, `name:type,name:type`: input tensors.
fn add_term(file: &CaseFile, text: &str, problem: &mut Problem, data: &mut Data) -> Result<()> {
    let list = file.attr::<String>("tables")?.unwrap_or_default();
    let mut tables = Vec::new();
    for entry in list.split(',').filter(|entry| !entry.is_empty()) {
        let (name, ty) = entry.split_once(':').ok_or_else(|| file.error(format!("tables = `{list}` cannot be read")))?;
        tables.push((name, Elements::read(file, name, ty)?));
    }
    let named: Vec<(&str, TableData<'_>)> = tables.iter().map(|(name, elements)| (*name, elements.data())).collect();
    let declared: Vec<Table<'_>> = named.iter().map(|(name, data)| data.table(name)).collect();
    problem.user_terms.push(Term::with_tables(text, &declared)?);
    data.term_tables = problem.term_tables(&named)?;
    Ok(())
}

/// Shape of the input `name`, padded to four axes with leading 1s.
fn broadcast_shape(file: &CaseFile, name: &str) -> Result<BroadcastShape> {
    let shape = &file.input(name)?.shape;
    let mut full = [1; 4];
    let Some(padding) = full.len().checked_sub(shape.len()) else {
        return Err(file.error(format!("tensor `in.{name}` has more than four axes: {shape:?}")));
    };
    full[padding..].copy_from_slice(shape);
    Ok(BroadcastShape(full))
}

/// Names the output, the lse and the weights.
pub(super) fn name_outputs(problem: &Problem, outputs: Outputs, [output, lse, weights]: [&str; 3]) -> Vec<Given> {
    let d = &problem.dims;
    let rows = problem.varlen.map_or_else(|| d.scores_shape()[..3].to_vec(), |varlen| vec![varlen.tokens_q, d.num_heads]);
    let mut all = vec![given(output, &[&rows[..], &[d.head_dim_v]].concat(), outputs.output.into_f32())];
    all.extend(outputs.lse.map(|values| given(lse, &rows, values)));
    all.extend(outputs.weights.map(|values| given(weights, &d.scores_shape(), values)));
    all
}

/// Computes the gradients of query, key and value, and of a float mask, a bias per head, relative biases and sinks.
fn gradients(
    file: &CaseFile,
    attend: &AttentionFn<'_>,
    backward: &AttendBackward<'_>,
    problem: Problem,
    data: &Data,
) -> Result<Vec<Given>> {
    let (problem, inputs) = (Problem { want: Returns::default(), ..problem }, data.inputs());
    let forward = attend(&problem, &inputs)?;
    let d_output = HostVec::from_f32(problem.output.dtype, &file.f32s("dout")?);
    let given_output = BackwardInputs::new(&forward.output, &d_output);
    let want = WantGradients { dtype: Some(DType::F32), ..WantGradients::all(&problem) };
    let got = backward(&problem, &inputs, &given_output, &want)?;
    let wide = |gradient: Option<HostVec>| gradient.map(HostVec::into_f32);
    let tensors = [
        ("q", wide(got.query)),
        ("k", wide(got.key)),
        ("v", wide(got.value)),
        ("mask", got.bias.clone()),
        ("head_bias", got.bias),
        ("rel_bias", got.relative_bias),
        ("sinks", got.sinks),
    ];
    let like = |(name, gradient): (&str, Option<_>)| Some(given(&format!("d{name}"), &file.input(name).ok()?.shape, gradient?));
    Ok(tensors.into_iter().filter_map(like).collect())
}

/// Runs the attention of each layer of a model: q<i>, k<i>, v<i>.
pub(super) fn sdpa_layers(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let mut all = Vec::new();
    for layer in (0..64).filter(|layer| file.has(&format!("q{layer}"))) {
        let name = |tensor: &str| format!("{tensor}{layer}");
        let (problem, mut data) = dense(file, [&name("q"), &name("k"), &name("v")], DType::F32)?;
        let mut problem = problem.with_lse().with_weights();
        if let Some(keep) = file.optional("key_keep", CaseFile::input)? {
            let FileData::Bool(keep) = &keep.data else { return Err(file.error("tensor `in.key_keep` is not boolean")) };
            problem.visibility.mask = Some(BroadcastShape([problem.dims.batch, 1, 1, problem.dims.seq_len_kv]));
            data.mask = keep.clone();
        }
        let outputs = (runner.attend)(&problem, &data.inputs())?;
        all.extend(name_outputs(&problem, outputs, [&name("context"), &name("lse"), &name("probs")]));
    }
    Ok(all)
}

/// Merges partial results on the host, whatever the backend.
pub(super) fn merge_states(file: &CaseFile, _: &Runner<'_>) -> Result<Vec<Given>> {
    let [parts, tokens, heads, dim] = file.shape("o_parts")?;
    if file.shape("lse_parts")? != [parts, tokens, heads] {
        return Err(file.error("its outputs and lse are not of the same parts"));
    }
    let (outputs, lse) = (file.f32s("o_parts")?, file.f32s("lse_parts")?);
    let rows = tokens * heads;
    let part = |p: usize| Part { output: &outputs[p * rows * dim..][..rows * dim], sums: RowSums::Lse(&lse[p * rows..][..rows]) };
    let merged = merge(&(0..parts).map(part).collect::<Vec<_>>())?;
    Ok(vec![given("o", &[tokens, heads, dim], merged.output), given("lse", &[tokens, heads], merged.lse)])
}
