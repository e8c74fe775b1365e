//! Keys and values larger than a binding: bound in parts and merged, on devices with small limits.

use crate::common::agree;
use crate::common::buffers::{devices, draw, empty, read, upload};
use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{Attention, Bindings, CacheSize, DeviceCache, Gpu, Growth, NewTokens, QueryBindings, Rows};
use wgpu_attention::verify::Expected;
use wgpu_attention::{
    Algorithm, Alibi, Alignment, BroadcastShape, DType, Dims, Engine, Error, HostVec, Inputs, Layout, Problem, Strides, SummedRows,
    TensorSpec, Term, wgpu,
};

const LIMIT: u64 = 96 << 10;

fn small() -> Vec<Gpu> {
    let limits = |adapter: &wgpu::Adapter| wgpu::Limits { max_storage_buffer_binding_size: LIMIT, ..adapter.limits() };
    devices(limits).into_iter().map(|(device, queue)| Gpu::from_device(device, queue)).collect()
}

/// Problems whose keys exceed one binding; true if the keys of a head must be split into ranges.
fn problems() -> Vec<(&'static str, Problem, bool)> {
    let dims = Dims { num_kv_heads: 2, seq_len_q: 3, ..Dims::self_attention(2, 4, 1000, 32) };
    let plain = Problem::new(dims);
    let mut all = Vec::new();
    // A head is 125 KiB, so its keys are split into ranges.
    all.push(("plain", plain.clone(), true));
    all.push(("rows of heads", plain.clone().stored(DType::F32, Layout::Bshd).aligned(Alignment::BottomRight).causal().with_lse(), true));
    // One head fits as f16 and two do not: no ranges.
    all.push(("heads apart", plain.clone().stored(DType::F16, Layout::Bhsd), false));
    // All items and heads of a key are stored together.
    let steps = Strides { batch: 32, head: 64, seq: 160, dim: 1 };
    let mixed = TensorSpec { layout: Layout::Strided(steps), ..TensorSpec::default() };
    all.push(("items side by side", Problem { key: mixed, value: mixed, ..plain.clone() }, true));
    let mut options = plain.aligned(Alignment::BottomRight).causal().window(Some(700), None).with_lse();
    (options.sinks, options.alibi, options.softcap) = (true, Some(Alibi::Symmetric), Some(5.0));
    (options.visibility.kv_lengths, options.visibility.prefix_lengths) = (true, true);
    options.visibility.mask = Some(BroadcastShape([1, 1, 3, 1000]));
    options.visibility.segments = true;
    all.push(("every option", options, true));
    let blocks = TensorSpec::new(DType::Q8, Layout::Bshd);
    let long = Problem::new(Dims { seq_len_kv: 2000, batch: 1, ..dims }).aligned(Alignment::BottomRight).causal();
    all.push(("blocks", Problem { key: blocks, value: blocks, ..long }, true));
    all
}

#[test]
fn keys_in_several_bindings() {
    for gpu in small() {
        let engine = Engine::on_gpu(gpu.clone());
        for (name, problem, ranges) in problems() {
            let what = format!("{name} on {}", gpu.name());
            let some = |dtype: DType, len: usize, seed| HostVec::from_f32(dtype, &draw(seed, len));
            let (key, value) = (some(problem.key.dtype, problem.key_len(), 2), some(problem.value.dtype, problem.value_len(), 3));
            assert!(key.as_slice().bytes().len() as u64 > LIMIT, "{what}: fits, and tests nothing");
            let query = some(problem.query.dtype, problem.query_len(), 1);
            let v = problem.visibility;
            let mask: Vec<bool> = (0..if v.mask.is_some() { 3000 } else { 0 }).map(|i| i % 7 != 0).collect();
            let segments: Vec<i32> = (0..if v.segments { 2000 } else { 0 }).map(|i| i32::from(i % 1000 > 990)).collect();
            let (slopes, sinks) = (draw(4, if problem.alibi.is_some() { 4 } else { 0 }), draw(5, if problem.sinks { 4 } else { 0 }));
            let inputs = Inputs {
                mask: &mask,
                alibi_slopes: &slopes,
                sinks: &sinks,
                kv_lengths: if v.kv_lengths { &[1000, 351] } else { &[] },
                prefix_lengths: if v.prefix_lengths { &[2, 400] } else { &[] },
                segment_ids_q: if v.segments { &[0, 0, 1, 1, 0, 0] } else { &[] },
                segment_ids_kv: &segments,
                ..Inputs::new(query.as_slice(), key.as_slice(), value.as_slice())
            };
            let explained = engine.explain(&problem).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(explained.contains("bindings of keys"), "{what}: {explained}");
            assert_eq!(!explained.contains("in 1 ranges"), ranges, "{what}: {explained}");
            let expected = Expected::of(&problem, &inputs).expect("valid");
            let got = engine.attention(&problem, &inputs).unwrap_or_else(|error| panic!("{what}: {error}"));
            let d = &problem.dims;
            let shape = [d.batch, d.num_heads, d.seq_len_q, d.head_dim_v];
            agree(&what, &wgpu_attention::gather(got.output.as_slice(), &problem.output, shape), &expected.output);
            if let Some(expected) = &expected.lse {
                agree(&what, &got.lse.expect("asked for"), expected);
            }
            // The staged path cannot merge ranges: it must refuse.
            let staged = engine.clone().with_algorithm(Algorithm::Staged).attention(&problem, &inputs);
            assert!(matches!(staged, Err(Error::Limit { limit: "max_storage_buffer_binding_size", .. })), "{what}");
        }
    }
}

/// Records keys and values that are in one buffer into an app's own encoder.
#[test]
fn recorded_from_one_buffer() {
    let mut problem = Problem::new(Dims { seq_len_q: 1, ..Dims::self_attention(1, 1, 1500, 32) }).with_lse();
    problem.value.offset = 48064;
    let shared = draw(2, problem.value_len());
    let query = draw(1, 32);
    let inputs = Inputs::new(&query, &shared[..problem.key_len()], &shared);
    let expected = Expected::of(&problem, &inputs).expect("valid");
    for gpu in small() {
        let attention = Attention::new(&gpu, &problem, Algorithm::Auto).expect("planned");
        let [query, shared] = [&query, &shared].map(|data| upload(gpu.device(), gpu.queue(), data));
        let [output, lse] = [32, 1].map(|len| empty(gpu.device(), len));
        let bindings = Bindings { lse: Some(lse.as_entire_buffer_binding()), ..Bindings::new(&query, &shared, &shared, &output) };
        let bound = attention.bind(&bindings).expect("bound");
        assert!(bound.dispatches() > 2);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
        for (buffer, expected) in [(&output, &expected.output), (&lse, expected.lse.as_ref().expect("asked for"))] {
            let got = read(gpu.device(), gpu.queue(), buffer);
            agree(gpu.name(), &got, expected);
        }
    }
}

/// Tests a cache whose heads are in several banks: append, and attention with options by head.
#[test]
fn caches_in_several_banks() {
    for gpu in small() {
        for dtype in [DType::F32, DType::Q4] {
            // A head is 64 KiB as f32 and 50 KiB as q4: one per bank.
            let pages = if dtype == DType::F32 { 32 } else { 160 };
            let shape = CacheShape::uniform(1, LayerShape::new(4, 32).stored(dtype, dtype)).pages(pages).layout(Layout::Bshd);
            let size = CacheSize { slots: 2, pages_per_slot: 4 };
            let mut cache = DeviceCache::new(&gpu, shape.clone(), size).expect("a cache");
            let banks = cache.pools(0).expect("a layer").len();
            assert_eq!(banks, 4);
            let queries = Queries { num_heads: 8, seq_len: 5 };
            let mut problem = cache.problem(0, 0..2, queries).expect("a layer").aligned(Alignment::BottomRight).causal();
            (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
            (problem.sinks, problem.alibi) = (true, Some(Alibi::Signed));
            problem.want.key_sums = Some(SummedRows::All);
            let tables = [draw(7, 8), draw(8, 8)];
            let data = [draw(1, 2 * 5 * 8 * 32), draw(2, 2 * 5 * 4 * 32), draw(3, 2 * 5 * 4 * 32)];
            let [query, key, value] = data.each_ref().map(|data| upload(gpu.device(), gpu.queue(), data));
            let on_device = upload(gpu.device(), gpu.queue(), &tables.concat());
            let output = empty(gpu.device(), 2 * 5 * 8 * 32);
            let sums = empty(gpu.device(), problem.key_sums_len());
            assert_eq!((cache.start(), cache.start()), (Ok(0), Ok(1)));
            let spec = TensorSpec::new(DType::F32, Layout::Bshd);
            let new = NewTokens { slots: 0..2, seq_len: 5, key: Rows::new(&key, spec), value: Rows::new(&value, spec), rotation: None };
            let append = cache.append(0, &new).expect("bound");
            assert_eq!(append.dispatches(), banks);
            let (tables_there, key_sums) = (Some(on_device.as_entire_buffer_binding()), Some(sums.as_entire_buffer_binding()));
            let buffers = QueryBindings { tables: tables_there, key_sums, ..QueryBindings::new(&query, &output) };
            let attention = cache.attention(0, &problem, 0..2, Algorithm::Auto).expect("planned").bind(&cache, 0, &buffers).expect("bound");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            cache.extend(Growth { tokens: &[5, 3], steps: 1 }, &mut encoder).expect("room");
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                cache.advance().record_in(&mut pass);
                append.record_in(&mut pass);
                attention.record_in(&mut pass);
            }
            gpu.queue().submit([encoder.finish()]);
            let got = read(gpu.device(), gpu.queue(), &output);
            let sums = read(gpu.device(), gpu.queue(), &sums);
            for (item, tokens) in [5, 3].into_iter().enumerate() {
                let rows = |data: &[f32]| {
                    let own = &data[(item * 5 + 5 - tokens) * 128..(item * 5 + 5) * 128];
                    HostVec::from_f32(dtype, own).to_f32()
                };
                let (key, value) = (rows(&data[1]), rows(&data[2]));
                let mut one = Problem::new(Dims { batch: 1, seq_len_kv: tokens, ..problem.dims }).aligned(Alignment::BottomRight).causal();
                one = one.stored(DType::F32, Layout::Bshd);
                (one.sinks, one.alibi, one.want.key_sums) = (true, Some(Alibi::Signed), problem.want.key_sums);
                let query = &data[0][item * 5 * 256..][..5 * 256];
                let inputs = Inputs { alibi_slopes: &tables[0], sinks: &tables[1], ..Inputs::new(query, &key, &value) };
                let Expected { output: expected, key_sums, .. } = Expected::of(&one, &inputs).expect("valid");
                let heads = sums.chunks_exact(problem.dims.seq_len_kv).skip(4 * item).take(4);
                let known = heads.flat_map(|keys| keys[..tokens].to_vec()).collect::<Vec<f32>>();
                agree(&format!("key sums, {dtype}, item {item}, {}", gpu.name()), &known, &key_sums.expect("wanted"));
                let got: Vec<f32> = got[item * 5 * 256..][..5 * 256].to_vec();
                let logical = wgpu_attention::gather((&got).into(), &spec, [1, 8, 5, 32]);
                agree(&format!("{dtype}, item {item}, {}", gpu.name()), &logical, &expected);
            }
            let by_head = Term::wgsl("fn score(x: f32, at: Pair) -> f32 { return x * f32(at.head); }").expect("valid");
            let dropped = Problem { dropout: Some(0.5), ..problem.clone() };
            for refused in [problem.clone().with_lse(), problem.clone().with_term(by_head), dropped] {
                let refused = cache.attention(0, &refused, 0..2, Algorithm::Auto);
                assert!(matches!(refused.err(), Some(Error::Unsupported { .. })));
            }
            let by_key = Term::wgsl("fn score(x: f32, at: Pair) -> f32 { return x * f32(at.key); }").expect("valid");
            assert!(cache.attention(0, &problem.with_term(by_key), 0..2, Algorithm::Auto).is_ok());
            // A single head exceeds the limit.
            let size = CacheSize { slots: 1, pages_per_slot: 100 };
            assert!(matches!(DeviceCache::new(&gpu, shape.pages(10_000), size).err(), Some(Error::Limit { .. })));
        }
    }
}
