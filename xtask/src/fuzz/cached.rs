//! Problems with pages, computed from a cache on the device that has the same keys and values.

use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Gpu, Growth, NewTokens, QueryBindings, Rows, Tables};
use wgpu_attention::wgpu;
use wgpu_attention::{
    Algorithm, BroadcastShape, DType, Error, HostSlice, Inputs, Layout, Outputs, PageTable, Problem, Result, TensorSpec, gather,
};

use crate::buffers::Buffers;

/// Appends the keys and values of each item to a sequence of a cache, and computes the problem on the sequences.
///
/// Unsupported: what caches on a device cannot have, such as quantised or rotated keys, which would be rounded again.
pub(super) fn attention(gpu: &Gpu, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
    let d = problem.dims;
    let no = |what: &str| Error::Unsupported { what: what.into(), remedy: "none".into() };
    let paged = problem.paged.filter(|_| problem.varlen.is_none()).ok_or_else(|| no("no pages"))?;
    let by_key = |shape: Option<BroadcastShape>| shape.is_some_and(|BroadcastShape([.., keys])| keys > 1);
    let is_wide = problem.want.stats || problem.want.weights || problem.want.scores.is_some();
    let is_rounded =
        problem.key.dtype.is_quantised() || problem.value.dtype.is_quantised() || problem.key_hadamard || problem.value_hadamard;
    if is_wide || by_key(problem.bias) || by_key(problem.visibility.mask) || is_rounded || problem.lse_len() == 0 {
        return Err(no("what a cache does not have"));
    }
    let layer = LayerShape::new(d.num_kv_heads, d.head_dim).head_dim_v(d.head_dim_v).stored(problem.key.dtype, problem.value.dtype);
    let pages = d.batch * paged.pages_per_item;
    let shape = CacheShape::uniform(1, layer).page_size(paged.page_size).pages(pages).layout(Layout::Bshd);
    if pages == 0 {
        return Err(no("no pages"));
    }
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: d.batch, pages_per_slot: paged.pages_per_item })?;
    for _ in 0..d.batch {
        cache.start()?;
    }
    let slots = 0..d.batch;
    let own = cache.problem(0, slots.clone(), Queries { num_heads: d.num_heads, seq_len: d.seq_len_q })?;
    let own = Problem { dims: own.dims, paged: own.paged, key: own.key, value: own.value, ..problem.clone() };
    let attention = cache.attention(0, &own, slots.clone(), Algorithm::Auto)?;

    let lengths: Vec<usize> = inputs.kv_lengths.iter().map(|&length| length as usize).collect();
    let seq_len = lengths.iter().copied().max().unwrap_or(0).max(1);
    let buffers = Buffers(gpu);
    let [key, value] = [(inputs.key, &problem.key, d.head_dim), (inputs.value, &problem.value, d.head_dim_v)].map(|(data, spec, dim)| {
        let shape = [paged.pages, d.num_kv_heads, paged.page_size, dim];
        buffers.filled(HostSlice::F32(&new_tokens(problem, inputs, &gather(data, spec, shape), shape, seq_len)).bytes())
    });
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    let append =
        cache.append(0, &NewTokens { slots, seq_len, key: Rows::new(&key, spec), value: Rows::new(&value, spec), rotation: None })?;

    let mut others = Problem { paged: None, ..own.clone() };
    others.visibility.kv_lengths = false;
    let vectors = Inputs { kv_lengths: &[], page_table: &[], ..*inputs };
    let words = Tables::of_inputs(&others, &vectors).bytes()?;
    let tables = buffers.filled(&words);
    let mask: Vec<u8> = inputs.mask.iter().map(|&is_visible| is_visible.into()).collect();
    let (mask, bias) = (buffers.filled(&mask), buffers.filled(HostSlice::F32(inputs.bias).bytes()));
    let (query, output) = (buffers.filled(inputs.query.bytes()), buffers.empty(problem.output.dtype.bytes(problem.output_len())));
    let lse = buffers.empty(4 * problem.lse_len());
    let key_sums = buffers.empty(4 * own.key_sums_len());
    let bindings = QueryBindings {
        lse: problem.want.lse.then(|| lse.as_entire_buffer_binding()),
        tables: (!words.is_empty()).then(|| tables.as_entire_buffer_binding()),
        bias: problem.bias.map(|_| bias.as_entire_buffer_binding()),
        mask: problem.visibility.mask.map(|_| mask.as_entire_buffer_binding()),
        key_sums: problem.want.key_sums.map(|_| key_sums.as_entire_buffer_binding()),
        ..QueryBindings::new(&query, &output)
    };
    let attention = attention.bind(&cache, 0, &bindings)?;
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    cache.extend(Growth { tokens: &lengths, steps: 1 }, &mut encoder)?;
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        cache.advance().record_in(&mut pass);
        append.record_in(&mut pass);
        attention.record_in(&mut pass);
    }
    gpu.queue().submit([encoder.finish()]);
    let mut outputs = Outputs::default();
    outputs.output = buffers.read(&output, problem.output.dtype, problem.output_len());
    outputs.lse = problem.want.lse.then(|| buffers.read(&lse, DType::F32, problem.lse_len()).into_f32());
    // The capacity of the cache may be more keys than the problem has.
    outputs.key_sums = problem.want.key_sums.map(|_| {
        let all = buffers.read(&key_sums, DType::F32, own.key_sums_len()).into_f32();
        all.chunks_exact(own.dims.seq_len_kv).flat_map(|keys| keys[..d.seq_len_kv].to_vec()).collect()
    });
    Ok(outputs)
}

/// Keys or values of each item, [batch, seq_len, num_kv_heads, dim], of which the last are its tokens.
fn new_tokens(problem: &Problem, inputs: &Inputs<'_>, dense: &[f32], [_, heads, page_size, dim]: [usize; 4], seq_len: usize) -> Vec<f32> {
    let pages_per_item = inputs.page_table.len() / problem.dims.batch;
    let mut tokens = vec![f32::NAN; problem.dims.batch * seq_len * heads * dim];
    for (item, &length) in inputs.kv_lengths.iter().enumerate() {
        for position in 0..length as usize {
            let page = inputs.page_table[item * pages_per_item + position / page_size] as usize;
            if page == PageTable::UNUSED as usize {
                continue; // no row sees it
            }
            let token = item * seq_len + seq_len - length as usize + position;
            for head in 0..heads {
                let from = ((page * heads + head) * page_size + position % page_size) * dim;
                tokens[(token * heads + head) * dim..][..dim].copy_from_slice(&dense[from..from + dim]);
            }
        }
    }
    tokens
}
