//! Problem and data that the arrays of `attn run` describe. Errors name the file and the axis, or the option.

use std::collections::BTreeMap;

use wgpu_attention::verify::Data;
use wgpu_attention::{
    Alibi, Alignment, BlockList, BroadcastShape, Dims, Dropout, HostVec, Layout, Paged, Problem, TensorSpec, TileLists, Varlen,
};

use super::Args;
use super::options::by_option;
use crate::arrays::Array;
use crate::failure::Failure;
use crate::user_terms::UserTerms;

/// Arrays by the name of their option.
pub(super) type Arrays = BTreeMap<&'static str, Array>;

/// Problem with its data.
pub(super) struct Request {
    pub(super) problem: Problem,
    pub(super) data: Data,
    /// Terms in WGSL.
    pub(super) terms: UserTerms,
    pub(super) d_output: Option<HostVec>,
    pub(super) d_lse: Option<Vec<f32>>,
    /// Shape of each result, by name.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
}

/// Reads the request. `arrays` have query, key and value.
pub(super) fn read(args: &Args, mut arrays: Arrays) -> Result<Request, Failure> {
    let (dims, varlen, paged) = sizes(args.layout, &arrays)?;
    let mut problem = Problem::new(dims);
    (problem.varlen, problem.paged, problem.scale, problem.dropout) = (varlen, paged, args.scale, args.dropout);
    problem.allow_bf16_weights = args.bf16_weights;
    let mut shapes = result_shapes(&problem, &arrays);

    let mut take = |name: &str| arrays.remove(name).map_or(Ok(HostVec::F32(Vec::new())), Array::floats);
    let mut data = Data::new(take("query")?, take("key")?, take("value")?);
    data.dropout = Dropout { seed: args.dropout_seed, offset: args.dropout_offset };
    let spec = |tensor: &HostVec| TensorSpec::new(tensor.as_slice().dtype(), args.layout);
    (problem.query, problem.key, problem.value) = (spec(&data.query), spec(&data.key), spec(&data.value));
    problem.output = problem.query;
    args.built_ins.add_to(&mut problem)?;
    add_arrays(args, &mut arrays, &mut problem, &mut data)?;
    let terms = args.terms.read()?;
    terms.add_to(&mut problem);
    align(args, &mut problem, &terms)?;
    data.term_tables = terms.table_words(&problem)?;
    shapes.extend(terms.gradients().map(|(name, len)| (format!("d_table_{name}"), vec![len])));

    let d_output = shaped(&mut arrays, "d-output", "the output's shape", &shapes["output"])?.map(Array::floats).transpose()?;
    let d_output = d_output.map(|gradient| match gradient.as_slice().dtype() {
        dtype if dtype == problem.output.dtype => gradient,
        _ => HostVec::from_f32(problem.output.dtype, &gradient.into_f32()),
    });
    let d_lse = shaped(&mut arrays, "d-lse", "the lse's shape", &shapes["lse"])?.map(|array| floats(Some(array))).transpose()?;
    problem.check().map_err(by_option)?;
    data.inputs().check(&problem).map_err(by_option)?;
    Ok(Request { problem, data, terms, d_output, d_lse, shapes })
}

/// Adds the options that come as arrays, all but query, key, value and the gradient of the output.
fn add_arrays(args: &Args, arrays: &mut Arrays, problem: &mut Problem, data: &mut Data) -> Result<(), Failure> {
    let d = problem.dims;
    problem.visibility.mask = arrays.get("mask").map(|array| broadcast(array, &d)).transpose()?;
    problem.bias = arrays.get("bias").map(|array| broadcast(array, &d)).transpose()?;
    data.mask = arrays.remove("mask").map_or(Ok(Vec::new()), Array::bools)?;
    data.bias = floats(arrays.remove("bias"))?;
    add_block_list(args, arrays, problem, data)?;
    if let Some(table) = arrays.get("relative-bias") {
        let columns = table.shape.last().copied().unwrap_or(0) | 1;
        problem.relative_bias_max_distance = u32::try_from(columns / 2).ok();
        let table = shaped(arrays, "relative-bias", "[num_heads, 2 * max_distance + 1]", &[d.num_heads, columns])?;
        data.relative_bias = floats(table)?;
    }
    data.alibi_slopes = floats(shaped(arrays, "alibi", "[num_heads]", &[d.num_heads])?)?;
    problem.alibi = (!data.alibi_slopes.is_empty()).then_some(args.alibi_form.unwrap_or(Alibi::Symmetric));
    data.sinks = floats(shaped(arrays, "sinks", "[num_heads]", &[d.num_heads])?)?;
    problem.sinks = !data.sinks.is_empty();
    data.kv_lengths = integers(shaped(arrays, "kv-lengths", "[batch]", &[d.batch])?)?;
    problem.visibility.kv_lengths = !data.kv_lengths.is_empty();
    data.prefix_lengths = integers(shaped(arrays, "prefix-lengths", "[batch]", &[d.batch])?)?;
    problem.visibility.prefix_lengths = !data.prefix_lengths.is_empty();
    for (name, default) in [("segment-ids-kv", "segment-ids"), ("cu-seqlens-kv", "cu-seqlens")] {
        match (arrays.contains_key(name), arrays.get(default).cloned()) {
            (true, None) => return Err(Failure::at(format!("--{name}"), format!("there is no --{default}"))),
            // Pages have no boundaries of key tokens.
            (false, Some(array)) if name == "segment-ids-kv" || problem.paged.is_none() => _ = arrays.insert(name, array),
            _ => {}
        }
    }
    problem.visibility.segments = arrays.contains_key("segment-ids");
    data.segment_ids_q = integers(shaped(arrays, "segment-ids", "[batch, seq_len_q]", &[d.batch, d.seq_len_q])?)?;
    data.segment_ids_kv = integers(shaped(arrays, "segment-ids-kv", "[batch, seq_len_kv]", &[d.batch, d.seq_len_kv])?)?;
    data.cu_seqlens_q = integers(arrays.remove("cu-seqlens"))?;
    data.cu_seqlens_kv = integers(arrays.remove("cu-seqlens-kv"))?;
    data.page_table = integers(arrays.remove("page-table"))?;
    match args.alibi_form.filter(|_| problem.alibi.is_none()) {
        Some(_) => Err(Failure::at("--alibi-form", "there are no slopes: give --alibi")),
        None => Ok(()),
    }
}

/// Adds the block list, whose shape follows from the sizes of its tiles.
fn add_block_list(args: &Args, arrays: &mut Arrays, problem: &mut Problem, data: &mut Data) -> Result<(), Failure> {
    let (array, [rows, keys]) = match (arrays.remove("block-list"), args.tile) {
        (None, None) => return Ok(()),
        (Some(array), Some(tile)) => (array, tile),
        (Some(array), None) => return Err(Failure::at(&array.source, "say with --tile ROWS,KEYS how large its tiles are")),
        (None, Some(_)) => return Err(Failure::at("--tile", "there is no --block-list")),
    };
    let mut shape = [1; 4];
    let axes = array.shape.len().min(4);
    shape[4 - axes..].copy_from_slice(&array.shape[array.shape.len() - axes..]);
    let list = BlockList { batch: shape[0], heads: shape[1], ..BlockList::new(rows, keys) };
    let tiles = [problem.dims.seq_len_q.div_ceil(rows as usize), problem.dims.seq_len_kv.div_ceil(keys as usize)];
    if array.shape.len() > 4 || shape[2..] != tiles {
        let why = format!(
            "has the shape {:?}; [batch or 1, lists, {}, {}] is needed for tiles of {rows},{keys}",
            array.shape, tiles[0], tiles[1]
        );
        return Err(Failure::at(&array.source, why));
    }
    problem.visibility.block_list = Some(list);
    data.block_list = problem.block_list_words(TileLists::Dense(&array.bools()?)).map_err(by_option)?;
    Ok(())
}

/// Elements of an array, none if it is missing.
fn floats(array: Option<Array>) -> Result<Vec<f32>, Failure> {
    array.map_or(Ok(Vec::new()), |array| array.floats().map(HostVec::into_f32))
}

fn integers<T: TryFrom<i64>>(array: Option<Array>) -> Result<Vec<T>, Failure> {
    array.map_or(Ok(Vec::new()), Array::integers)
}

/// Decides where the rows stand, if anything counts from their positions.
fn align(args: &Args, problem: &mut Problem, terms: &UserTerms) -> Result<(), Failure> {
    let d = problem.dims;
    problem.visibility.alignment = problem.visibility.alignment.or(args.align);
    match (problem.uses_position(), problem.visibility.alignment) {
        (true, None) if d.seq_len_q == d.seq_len_kv => problem.visibility.alignment = Some(Alignment::TopLeft),
        (true, None) => {
            let own = terms.options().into_iter().map(|option| option.trim_start_matches('-').to_string());
            let term = problem.terms_text().into_iter().chain(own).collect::<Vec<_>>().join(" --").replace('=', " ");
            let lengths = format!("{} queries and {} keys", d.seq_len_q, d.seq_len_kv);
            return Err(Failure::at(format!("--{term}"), format!("{lengths}; say with --causal or --align where the rows stand")));
        }
        (false, Some(_)) => return Err(Failure::at("--align", "no option counts from the rows' positions: leave it out")),
        _ => {}
    }
    Ok(())
}

/// Returns the sizes that the arrays have.
fn sizes(layout: Layout, arrays: &Arrays) -> Result<(Dims, Option<Varlen>, Option<Paged>), Failure> {
    let named = ["query", "key", "value"].map(|name| &arrays[name]);
    let (rank, table) = (named[0].shape.len(), arrays.get("page-table"));
    let mut shapes = [[0; 4]; 3];
    for (array, shape) in named.into_iter().zip(&mut shapes) {
        *shape = swapped(four_axes(array, layout)?, layout);
        if array.shape.len() != rank && table.is_none() {
            let why = format!("has {} axes, but {} has {rank}", array.shape.len(), named[0].source);
            return Err(Failure::at(&array.source, why));
        }
    }
    // Axes that must agree: array, the other one, axis.
    let agree = [(1, 0, 0), (1, 0, 3), (2, 1, 0), (2, 1, 1), (2, 1, 2)];
    for (at, other, axis) in agree.into_iter().filter(|&(_, other, axis)| table.is_none() || (other, axis) != (0, 0)) {
        let (found, expected) = (shapes[at][axis], shapes[other][axis]);
        if found != expected {
            let place = axis_name(axis, named[at].shape.len(), layout);
            return Err(Failure::at(&named[at].source, format!("{place} is {found}, but {} has {expected} there", named[other].source)));
        }
    }
    let [query, key, value] = shapes;
    if !query[1].is_multiple_of(key[1]) {
        let why = format!("has {} heads, not a multiple of the {} heads of {}", query[1], key[1], named[1].source);
        return Err(Failure::at(&named[0].source, why));
    }
    let [batch, num_heads, seq_len_q, head_dim] = query;
    let mut dims = Dims { batch, num_heads, num_kv_heads: key[1], seq_len_q, seq_len_kv: key[2], head_dim, head_dim_v: value[3] };
    let mut paged = None;
    if let Some(table) = table {
        let [_, pages_per_item] = table.shape[..] else {
            return Err(Failure::at(&table.source, format!("has the shape {:?}; [batch, pages_per_item] is needed", table.shape)));
        };
        paged = Some(Paged { page_size: key[2], pages: key[0], pages_per_item });
        dims.seq_len_kv = key[2].saturating_mul(pages_per_item);
    }
    let mut varlen = None;
    if let Some(boundaries) = arrays.get("cu-seqlens") {
        if batch != 1 {
            let why = format!("has {batch} items; with --cu-seqlens all tokens are one item");
            return Err(Failure::at(&named[0].source, why));
        }
        let longest = |boundaries: &Array| -> Result<usize, Failure> {
            let boundaries: Vec<u32> = boundaries.clone().integers()?;
            Ok(boundaries.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize).max().unwrap_or(0))
        };
        (dims.batch, dims.seq_len_q) = (boundaries.shape.iter().product::<usize>().saturating_sub(1), longest(boundaries)?);
        varlen = Some(Varlen { tokens_q: seq_len_q, tokens_kv: if paged.is_some() { 0 } else { key[2] } });
        if paged.is_none() {
            dims.seq_len_kv = longest(arrays.get("cu-seqlens-kv").unwrap_or(boundaries))?;
        }
    }
    Ok((dims, varlen, paged))
}

/// Shapes of the results by name. Without a batch axis in the query, there is none in the results.
fn result_shapes(problem: &Problem, arrays: &Arrays) -> BTreeMap<String, Vec<usize>> {
    let d = &problem.dims;
    let mut output = arrays["query"].shape.clone();
    output.splice(output.len() - 1.., [d.head_dim_v]);
    let skip = if problem.varlen.is_some() { 0 } else { 4 - output.len() };
    let scores = &d.scores_shape()[skip..];
    let lse = problem.varlen.map_or(scores[..scores.len() - 1].to_vec(), |varlen| vec![varlen.tokens_q, d.num_heads]);
    let mut shapes = BTreeMap::from([
        ("output", output),
        ("stats", [&lse[..], &[2]].concat()),
        ("lse", lse),
        ("scores", scores.to_vec()),
        ("weights", scores.to_vec()),
        ("key_sums", [d.batch, d.num_kv_heads, d.seq_len_kv][skip..].to_vec()),
    ]);
    let gradients = ["d_query", "d_key", "d_value", "d_bias", "d_relative_bias", "d_sinks"];
    let of = |gradient: &'static str| arrays.get(&*gradient[2..].replace('_', "-")).map(|array| (gradient, array.shape.clone()));
    shapes.extend(gradients.into_iter().filter_map(of));
    shapes.into_iter().map(|(name, shape)| (name.to_string(), shape)).collect()
}

/// Takes an array and checks its shape, leading axes of 1 aside.
fn shaped(arrays: &mut Arrays, name: &str, axes: &str, expected: &[usize]) -> Result<Option<Array>, Failure> {
    let short = |shape: &[usize]| shape.iter().copied().skip_while(|&extent| extent == 1).collect::<Vec<_>>();
    match arrays.remove(name) {
        Some(array) if short(&array.shape) != short(expected) => {
            Err(Failure::at(&array.source, format!("has the shape {:?}; {axes} = {expected:?} is needed", array.shape)))
        }
        array => Ok(array),
    }
}

/// Converts a shape from the file's order to [batch, heads, seq, dim], or back: it is its own inverse.
fn swapped([batch, first, second, dim]: [usize; 4], layout: Layout) -> [usize; 4] {
    if layout == Layout::Bshd { [batch, second, first, dim] } else { [batch, first, second, dim] }
}

/// Returns the shape in the order of the file, with a batch axis.
fn four_axes(array: &Array, layout: Layout) -> Result<[usize; 4], Failure> {
    let shape = match array.shape[..] {
        [first, second, dim] => [1, first, second, dim],
        [batch, first, second, dim] => [batch, first, second, dim],
        _ => {
            let axes = if layout == Layout::Bshd { "seq, heads, dim]" } else { "heads, seq, dim]" };
            let why = format!("has the shape {:?}; [batch, {axes} is needed, or [{axes}", array.shape);
            return Err(Failure::at(&array.source, why));
        }
    };
    // Only a sequence may be empty.
    match [0, 1, 3].into_iter().find(|&axis| swapped(shape, layout)[axis] == 0) {
        Some(axis) => Err(Failure::at(&array.source, format!("{} is 0", axis_name(axis, array.shape.len(), layout)))),
        None => Ok(shape),
    }
}

/// Describes an axis of [batch, heads, seq, dim] by its place in the file and its name.
fn axis_name(axis: usize, rank: usize, layout: Layout) -> String {
    let place = swapped([0, 1, 2, 3], layout)[axis];
    format!("axis {} ({})", (place + rank).saturating_sub(4), ["batch", "heads", "seq", "dim"][axis])
}

/// Returns the shape of a mask or a bias; axes missing on the left are 1.
fn broadcast(array: &Array, dims: &Dims) -> Result<BroadcastShape, Failure> {
    let full = dims.scores_shape();
    let mut shape = [1; 4];
    let fits = array.shape.len() <= 4 && {
        shape[4 - array.shape.len()..].copy_from_slice(&array.shape);
        shape.iter().zip(full).all(|(&extent, full)| extent == full || extent == 1)
    };
    if fits {
        return Ok(BroadcastShape(shape));
    }
    let axes = "[batch, num_heads, seq_len_q, seq_len_kv]";
    let why = format!("shape {:?} does not broadcast to {axes} = {full:?}; each axis is full or 1", array.shape);
    Err(Failure::at(&array.source, why))
}
