//! Operations of serving engines: `varlen`, `paged`, `merge_states`.

use crate::cache;
use crate::cpu::{Part, RowSums, merge};
use crate::error::Result;
use crate::numbers::HostVec;
use crate::problem::{Alibi, Alignment, AttentionFn, Dims, Layout, PageTable, Problem, Varlen};
use crate::verify::case::Data;
use crate::verify::case_file::CaseFile;
use crate::verify::cases::{Given, output_dtype};
use crate::verify::cases_sdpa::{run, store};

/// Runs attention on varlen sequences, as in FlashAttention's varlen functions.
pub(crate) fn varlen(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let [tokens_q, num_heads, head_dim] = file.shape("q")?;
    let [tokens_kv, num_kv_heads, _] = file.shape("k")?;
    let [.., head_dim_v] = file.shape::<3>("v")?;
    let mut data = Data::new(file.floats("q")?, file.floats("k")?, file.floats("v")?);
    data.cu_seqlens_q = file.ints("cu_seqlens_q")?;
    data.cu_seqlens_kv = file.ints("cu_seqlens_k")?;
    let dims = Dims {
        batch: data.cu_seqlens_q.len().saturating_sub(1),
        num_heads,
        num_kv_heads,
        seq_len_q: longest(&data.cu_seqlens_q),
        seq_len_kv: longest(&data.cu_seqlens_kv),
        head_dim,
        head_dim_v,
    };
    let mut problem = Problem { varlen: Some(Varlen { tokens_q, tokens_kv }), ..Problem::new(dims) };
    store(&mut problem, &data, output_dtype(file, "o")?, Layout::Bshd);
    with_options(file, problem, data, attend)
}

/// Runs varlen queries on paged keys and values, to which the file may append new tokens first.
pub(crate) fn paged(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let [tokens_q, num_heads, head_dim] = file.shape("q")?;
    let shape = file.shape::<4>("k_cache")?;
    let [.., head_dim_v] = file.shape::<4>("v_cache")?;
    if file.shape("v_cache")? != [shape[0], shape[1], shape[2], head_dim_v] || shape[3] != head_dim {
        return Err(file.error("its queries, keys and values do not fit each other"));
    }
    let (layout, num_kv_heads, page_size) = match file.required_attr::<String>("kv_layout")?.as_str() {
        "NHD" => (Layout::Bshd, shape[2], shape[1]),
        "HND" => (Layout::Bhsd, shape[1], shape[2]),
        other => return Err(file.error(format!("kv_layout = `{other}` is unknown"))),
    };
    let table = table(file, page_size)?;
    let mut data = Data::new(file.floats("q")?, file.floats("k_cache")?, file.floats("v_cache")?);
    data.cu_seqlens_q = file.ints("cu_seqlens_q")?;
    let mut given = Vec::new();
    if file.flag("append")? {
        for (name, new, to, dim) in [("k_cache", "k_new", &mut data.key, head_dim), ("v_cache", "v_new", &mut data.value, head_dim_v)] {
            append(file, &table, &data.cu_seqlens_q, (to, [shape[0], num_kv_heads, page_size, dim], layout), &file.floats(new)?)?;
            given.push(Given { name: name.into(), shape: file.input(name)?.shape.clone(), values: to.to_f32() });
        }
    }
    let dims = Dims {
        batch: data.cu_seqlens_q.len().saturating_sub(1),
        num_heads,
        num_kv_heads,
        seq_len_q: longest(&data.cu_seqlens_q),
        seq_len_kv: table.longest(),
        head_dim,
        head_dim_v,
    };
    let mut problem = Problem { varlen: Some(Varlen { tokens_q, tokens_kv: 0 }), paged: Some(table.paged(shape[0])), ..Problem::new(dims) };
    store(&mut problem, &data, output_dtype(file, "o")?, Layout::Bshd);
    (problem.key.layout, problem.value.layout) = (layout, layout);
    problem.visibility.kv_lengths = true;
    (data.page_table, data.kv_lengths) = (table.entries, table.kv_lengths);
    given.extend(with_options(file, problem, data, attend)?);
    Ok(given)
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

/// Writes `new`, varlen like the queries, to the last positions of each sequence.
fn append(
    file: &CaseFile,
    table: &PageTable,
    cu_seqlens: &[u32],
    (to, shape, layout): (&mut HostVec, [usize; 4], Layout),
    new: &HostVec,
) -> Result<()> {
    let mut slots = Vec::new();
    for (item, (ends, &length)) in cu_seqlens.windows(2).zip(&table.kv_lengths).enumerate() {
        let pages = &table.entries[item * table.pages_per_item..][..table.pages_per_item];
        let start = length.checked_sub(ends[1].saturating_sub(ends[0])).ok_or_else(|| file.error("appends more than a sequence has"))?;
        slots.extend(cache::slots(pages, table.page_size, start as usize..length as usize));
    }
    let rows = shape[1] * shape[3] * slots.iter().map(|slots| slots.count).sum::<usize>();
    if rows != new.as_slice().len() || slots.iter().any(|slots| slots.page as usize >= shape[0]) {
        return Err(file.error("its new tokens do not fit its page table"));
    }
    cache::write_slots(to, layout, shape, &slots, new.as_slice());
    Ok(())
}

/// Runs a problem with the options that varlen and paged files have in common.
fn with_options(file: &CaseFile, mut problem: Problem, mut data: Data, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    problem.scale = file.attr("scale")?;
    problem.softcap = file.attr("softcap")?.filter(|&softcap: &f32| softcap != 0.0);
    problem.want.lse = file.expected("lse").is_some();
    problem.visibility.window_left = file.size("window_left")?;
    problem.visibility.window_right = file.size("window_right")?;
    match file.required_attr::<String>("causal")?.as_str() {
        "none" => {}
        "bottom_right" => problem.visibility.causal = true,
        other => return Err(file.error(format!("causal = `{other}` is unknown here"))),
    }
    if file.optional("alibi_slopes").is_some() {
        (problem.alibi, data.alibi_slopes) = (Some(Alibi::Symmetric), file.f32s("alibi_slopes")?);
    }
    problem.visibility.alignment = problem.uses_position().then_some(Alignment::BottomRight);
    let mut given = Vec::new();
    if file.optional("sinks").is_some() {
        if file.expected("lse_without_sink").is_some() {
            let mut without = run(file, &problem, &data, attend)?;
            given.extend(without.pop().map(|lse| Given { name: "lse_without_sink".into(), ..lse }));
        }
        (problem.sinks, data.sinks) = (true, file.f32s("sinks")?);
    }
    given.extend(run(file, &problem, &data, attend)?);
    Ok(given)
}

/// Length of the longest varlen sequence.
fn longest(borders: &[u32]) -> usize {
    borders.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize).max().unwrap_or(0)
}

/// Merges partial results on the host, whatever the backend.
pub(crate) fn merge_states(file: &CaseFile, _: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let [parts, tokens, heads, dim] = file.shape("o_parts")?;
    if file.shape("lse_parts")? != [parts, tokens, heads] {
        return Err(file.error("its outputs and lse are not of the same parts"));
    }
    let (outputs, lse) = (file.f32s("o_parts")?, file.f32s("lse_parts")?);
    let rows = tokens * heads;
    let parts: Vec<_> = (0..parts)
        .map(|p| Part { output: &outputs[p * rows * dim..][..rows * dim], sums: RowSums::Lse(&lse[p * rows..][..rows]) })
        .collect();
    let merged = merge(&parts)?;
    Ok(vec![
        Given { name: "o".into(), shape: vec![tokens, heads, dim], values: merged.output },
        Given { name: "lse".into(), shape: vec![tokens, heads], values: merged.lse },
    ])
}
