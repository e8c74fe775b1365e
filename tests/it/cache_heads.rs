//! Heads on their way into a cache: QK-norm, and rotary embedding by the index of a token or by positions of its own.

use crate::common::STORAGE;
use crate::common::buffers::{draw, empty, read, upload};
use crate::common::heads::{Heads, POSITIONS, Turn};
use crate::common::plan_host::PlanHost;
use crate::common::replay::{bytes, pool, stored};
use crate::common::stack::gpus;
use fastrand::Rng;
use std::path::Path;
use wgpu_attention::cache::{AppendSpec, CachePlan, CacheShape, KvCache, LayerShape, Queries, RotarySpec, RotationSpec};
use wgpu_attention::gpu::{
    CacheSize, DeviceCache, DeviceNorm, DeviceRotary, Gpu, Growth, NewTokens, QueryBindings, RotatedQuery, Rotation, Rows,
};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary, Scaling, Sections};
use wgpu_attention::verify::{CaseFile, Verdict, check_file};
use wgpu_attention::{Algorithm, DType, Error, HostVec, Inputs, Layout, Outputs, Problem, TensorSpec, gather, wgpu};

const SIZE: CacheSize = CacheSize { slots: 2, pages_per_slot: 3 };
const PAGE: usize = 5;
const SEQ: usize = 3;
const NUM_HEADS: usize = 4;

/// Tokens that each step adds to each slot.
const STEPS: [[usize; 2]; 3] = [[3, 1], [2, 3], [3, 3]];

/// Head before and after, as it is stored.
struct Seen {
    new: Vec<f32>,
    got: Vec<f32>,
    dtype: DType,
    is_query: bool,
    positions: [usize; 3],
}

/// Compares heads with the oracle.
fn check(heads: &Heads, seen: &[Seen]) -> Result<(), String> {
    for Seen { new, got, dtype, is_query, positions } in seen {
        let exact = heads.exact(new, *is_query, *positions);
        let largest = exact.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        let place = STORAGE.iter().position(|other| other == dtype).expect("one of them");
        let near = largest * [3e-6, 1e-3, 8e-3, 6e-3, 0.14][place];
        for (i, (&x, y)) in got.iter().zip(&exact).enumerate() {
            let is_near = (f64::from(x) - y).abs() <= near;
            if !is_near {
                return Err(format!("{x} instead of {y} at {i}, position {positions:?}, query {is_query}, {dtype}"));
            }
        }
    }
    Ok(())
}

/// Keys, queries and positions [3, slot, token] of a step, drawn.
fn inputs(heads: &Heads, step: usize) -> ([HostVec; 2], Vec<u32>) {
    let len = SIZE.slots * SEQ * heads.layer.head_dim;
    // Some heads are so small that eps counts.
    let small = |n: usize, data: Vec<f32>| {
        let head = |(at, x): (usize, f32)| if (at / heads.layer.head_dim + n).is_multiple_of(3) { 0.1 * x } else { x };
        HostVec::from_f32(heads.new, &data.into_iter().enumerate().map(head).collect::<Vec<f32>>())
    };
    let rows = [(1, heads.layer.num_kv_heads), (2, NUM_HEADS)].map(|(n, count)| small(n, draw(10 * step + n, count * len)));
    let mut rng = Rng::with_seed(step as u64);
    (rows, (0..3 * SIZE.slots * SEQ).map(|_| rng.u32(..POSITIONS as u32)).collect())
}

/// Positions of token `at` of all new ones, whose index in its sequence is `index`.
fn positions(heads: &Heads, given: &[u32], at: usize, index: usize) -> [usize; 3] {
    let tokens = SIZE.slots * SEQ;
    let own = |n: usize| given[if heads.turn.as_ref().is_some_and(|turn| turn.sections.is_some()) { n * tokens + at } else { at }];
    if heads.explicit { [0, 1, 2].map(|n| own(n) as usize) } else { [index; 3] }
}

/// Appends to a cache on the host.
fn on_host(heads: &Heads) -> Vec<Seen> {
    let LayerShape { num_kv_heads, head_dim, key: dtype, .. } = heads.layer;
    let mut cache = KvCache::new(CacheShape::uniform(1, heads.layer).page_size(PAGE).pages(6).layout(heads.layout)).expect("valid");
    let ids = [(); 2].map(|()| cache.pool_mut().start());
    let (norm, rotary) = (heads.norm(), heads.rotary());
    let mut seen: Vec<Seen> = Vec::new();
    for (step, added) in STEPS.iter().enumerate() {
        let (rows, given) = inputs(heads, step);
        for (slot, (&id, &added)) in ids.iter().zip(added).enumerate() {
            cache.extend(id, added).expect("room");
            let length = cache.pool().length(id).expect("there");
            let mut new_keys: Vec<f32> = Vec::new();
            let first = seen.len();
            for (side, count) in [num_kv_heads, NUM_HEADS].into_iter().enumerate() {
                for (t, head) in (SEQ - added..SEQ).flat_map(|t| (0..count).map(move |head| (t, head))) {
                    let at = slot * SEQ + t;
                    let positions = positions(heads, &given, at, length + t - SEQ);
                    let new = rows[side].to_f32()[(at * count + head) * head_dim..][..head_dim].to_vec();
                    let mut got = new.clone();
                    let apply = if side == 0 { QkNorm::apply_key } else { QkNorm::apply_query };
                    norm.iter().for_each(|norm| apply(norm, &mut got).expect("a head"));
                    rotary.iter().for_each(|rotary| rotary.apply_at(&mut got, positions).expect("inside"));
                    if side == 0 {
                        new_keys.extend(&got);
                    }
                    let dtype = if side == 0 { dtype } else { DType::F32 };
                    seen.push(Seen { new, got, dtype, is_query: side == 1, positions });
                }
            }
            let values = vec![0.0f32; added * num_kv_heads * heads.layer.head_dim_v];
            cache.append(0, id, (&new_keys).into(), (&values).into()).expect("room");
            // Rows of the cache.
            let table = cache.pool().table(&[id]).expect("there");
            let spec = TensorSpec::new(dtype, heads.layout);
            let all = gather(cache.key(0).expect("a layer"), &spec, [6, num_kv_heads, PAGE, head_dim]);
            for (n, seen) in seen[first..][..added * num_kv_heads].iter_mut().enumerate() {
                let (index, head) = (length - added + n / num_kv_heads, n % num_kv_heads);
                let page = table.entries[index / PAGE] as usize;
                seen.got = all[((page * num_kv_heads + head) * PAGE + index % PAGE) * head_dim..][..head_dim].to_vec();
            }
        }
    }
    seen
}

/// Buffers of new rows on a device: keys, values, queries, positions.
fn buffers(gpu: &Gpu, heads: &Heads) -> [wgpu::Buffer; 4] {
    let LayerShape { num_kv_heads, head_dim, head_dim_v, .. } = heads.layer;
    let tokens = SIZE.slots * SEQ;
    [num_kv_heads * head_dim, num_kv_heads * head_dim_v, NUM_HEADS * head_dim, 3].map(|width| empty(gpu.device(), tokens * width))
}

/// Appends to a cache on a device, by dispatches that are bound once.
fn on_device(gpu: &Gpu, heads: &Heads) -> Vec<Seen> {
    let LayerShape { num_kv_heads, head_dim, key: dtype, .. } = heads.layer;
    let shape = CacheShape::uniform(1, heads.layer).page_size(PAGE).pages(6).layout(heads.layout);
    let mut cache = DeviceCache::new(gpu, shape, SIZE).expect("a cache");
    let [key, value, query, at] = buffers(gpu, heads);
    let norm = heads.norm().map(|norm| DeviceNorm::new(gpu, &norm).expect("uploaded"));
    let rotary = heads.rotary().map(|rotary| DeviceRotary::new(gpu, &rotary).expect("uploaded"));
    let places = |rotary: &DeviceRotary| rotary.at(gpu, SIZE.slots * SEQ, &at.as_entire_buffer_binding()).expect("bound");
    let angles = rotary.as_ref().filter(|_| heads.explicit).map(places);
    let spec = TensorSpec::new(heads.new, Layout::Bshd);
    let new = NewTokens {
        slots: 0..SIZE.slots,
        seq_len: SEQ,
        key: Rows::new(&key, spec),
        value: Rows::new(&value, spec),
        rotation: Some(Rotation {
            norm: norm.as_ref(),
            rotary: angles.as_ref().map(Into::into).or(rotary.as_ref().map(Into::into)),
            query: Some(RotatedQuery { rows: Rows::new(&query, spec), num_heads: NUM_HEADS }),
        }),
    };
    let append = cache.append(0, &new).expect("bound");
    assert_eq!((cache.start(), cache.start()), (Ok(0), Ok(1)));
    let mut seen = Vec::new();
    for (step, added) in STEPS.iter().enumerate() {
        let (rows, given) = inputs(heads, step);
        for (buffer, bytes) in [(&key, rows[0].as_slice().bytes()), (&query, rows[1].as_slice().bytes())] {
            gpu.queue().write_buffer(buffer, 0, bytes);
        }
        gpu.queue().write_buffer(&at, 0, bytemuck::cast_slice(&given));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.extend(Growth { tokens: added, steps: 1 }, &mut encoder).expect("room");
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            angles.iter().for_each(|angles| angles.gather().record_in(&mut pass));
            cache.advance().record_in(&mut pass);
            append.record_in(&mut pass);
        }
        gpu.queue().submit([encoder.finish()]);
        let keys = pool(gpu, &cache, &cache.pools(0).expect("a layer")[0][0], num_kv_heads, head_dim, dtype);
        let spec = TensorSpec::new(dtype, heads.layout);
        let keys = gather(keys.as_slice(), &spec, [6, num_kv_heads, PAGE, head_dim]);
        let queries = bytes(gpu, &query)[..heads.new.bytes(rows[1].as_slice().len())].to_vec();
        let queries = stored(heads.new, &queries).to_f32();
        for (at, side) in (0..SIZE.slots * SEQ).flat_map(|at| [(at, 0), (at, 1)]) {
            let (slot, t, count) = (at / SEQ, at % SEQ, [num_kv_heads, NUM_HEADS][side]);
            let Some(index) = (cache.length(slot).expect("there") + t).checked_sub(SEQ) else { continue };
            if side == 0 && t + added[slot] < SEQ {
                continue;
            }
            let page = cache.pages(slot).expect("there")[index / PAGE] as usize;
            for head in 0..count {
                let row = (at * count + head) * head_dim;
                let new = rows[side].to_f32()[row..][..head_dim].to_vec();
                let in_pool = ((page * num_kv_heads + head) * PAGE + index % PAGE) * head_dim;
                let got = if side == 0 { &keys[in_pool..][..head_dim] } else { &queries[row..][..head_dim] };
                let positions = positions(heads, &given, at, index);
                let dtype = [dtype, heads.new][side];
                seen.push(Seen { new, got: got.to_vec(), dtype, is_query: side == 1, positions });
            }
        }
    }
    seen
}

/// Random heads in caches on the host and on every device.
#[test]
fn heads_are_what_the_oracle_says() {
    for seed in 0..400 {
        let heads = Heads::drawn(&mut Rng::with_seed(seed));
        check(&heads, &on_host(&heads)).unwrap_or_else(|why| panic!("{seed} on the host: {why}, {heads:?}"));
    }
    for gpu in gpus() {
        for seed in 0..crate::common::variable("ATTENTION_HEADS", 16) {
            let heads = Heads::drawn(&mut Rng::with_seed(seed));
            check(&heads, &on_device(&gpu, &heads)).unwrap_or_else(|why| panic!("{seed} on {}: {why}, {heads:?}", gpu.name()));
        }
    }
}

/// Name of a mistake, and what it does to a problem and what was seen of it.
type Mistake = (&'static str, fn(&mut Heads, &mut [Seen]));

/// Ways to get it wrong: what is computed must differ from each.
const MISTAKES: &[Mistake] = &[
    ("norm after rotary", |heads, _| heads.norm_last = true),
    ("no norm", |heads, _| heads.norm = None),
    ("eps forgotten", |heads, _| heads.norm.as_mut().expect("a norm").1 = 0.0),
    ("weights of queries and keys swapped", |heads, _| heads.norm.as_mut().expect("a norm").0.swap(0, 1)),
    ("weights plus one", |heads, _| heads.norm.as_mut().expect("a norm").0.iter_mut().flatten().for_each(|x| *x += 1.0)),
    ("a position off by one", |_, seen| seen.iter_mut().for_each(|seen| seen.positions.iter_mut().for_each(|at| *at += 1))),
    ("one position for all sections", |_, seen| seen.iter_mut().for_each(|seen| seen.positions = [seen.positions[0]; 3])),
    ("sections swapped", |_, seen| seen.iter_mut().for_each(|seen| seen.positions.swap(1, 2))),
    ("sections of the other kind", |heads, _| {
        let turn = heads.turn.as_mut().expect("rotary");
        turn.sections = turn.sections.map(|sections| match sections {
            Sections::Chunks(pairs) => Sections::Interleaved(pairs),
            Sections::Interleaved(pairs) => Sections::Chunks(pairs),
        });
    }),
    ("pairs within the first elements", |heads, _| {
        let turn = heads.turn.as_mut().expect("rotary");
        turn.distance = turn.pairs;
    }),
    ("frequencies of the rotated width", |heads, _| {
        let turn = heads.turn.as_mut().expect("rotary");
        turn.width = 2 * turn.pairs;
    }),
];

#[test]
fn mistakes_are_noticed() {
    let layer = LayerShape::new(2, 64).head_dim_v(8).stored(DType::F16, DType::F32);
    let norm = Some(([draw(1, 64), draw(2, 64)], 0.05));
    for sections in [Sections::Chunks([10, 7, 7]), Sections::Interleaved([10, 7, 7])] {
        let turn = Some(Turn { pairing: Pairing::HalfSplit, pairs: 24, distance: 32, width: 64, sections: Some(sections) });
        let heads = Heads { layer, layout: Layout::Bhsd, new: DType::F32, norm: norm.clone(), turn, explicit: true, norm_last: false };
        let on_devices = gpus().into_iter().map(|gpu| (gpu.name().to_string(), on_device(&gpu, &heads)));
        for (name, mut seen) in std::iter::once(("host".to_string(), on_host(&heads))).chain(on_devices) {
            assert_eq!(check(&heads, &seen), Ok(()), "{name}");
            for (mistake, make) in MISTAKES {
                let (mut wrong, right) = (heads.clone(), seen.iter().map(|seen| seen.positions).collect::<Vec<_>>());
                make(&mut wrong, &mut seen);
                assert!(check(&wrong, &seen).is_err(), "{name}: {mistake} is not noticed, {sections:?}");
                seen.iter_mut().zip(right).for_each(|(seen, positions)| seen.positions = positions);
            }
        }
    }
}

/// Attention through a cache on a device that normalises and rotates. Rows are rotated back first, and scaled to what they
/// were before a norm of weights 1: its eps left them a mean square of `1 - eps / (mean(x^2) + eps)`.
fn through_cache(gpu: &Gpu, problem: &Problem, inputs: &Inputs<'_>) -> wgpu_attention::Result<Outputs> {
    let d = problem.dims;
    let rotary = Rotary::new(Pairing::HalfSplit, 1_000_000.0, d.head_dim, d.seq_len_kv)?;
    let ones = vec![1.0; d.head_dim];
    let norm = DeviceNorm::new(gpu, &QkNorm::new(&ones, &ones, 1e-6)?)?;
    let undone = |data: wgpu_attention::HostSlice<'_>, spec: &TensorSpec, heads: usize| {
        let mut rows = gather(data, spec, [d.batch, heads, d.seq_len_kv, d.head_dim]);
        for (at, row) in rows.chunks_exact_mut(d.head_dim).enumerate() {
            let missing = 1.0 - row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d.head_dim as f64;
            let (factor, half) = ((1e-6 / missing.max(1e-7)).sqrt() as f32, d.head_dim / 2);
            for pair in 0..half {
                let [cos, sin] = rotary.angles()[at % d.seq_len_kv * half + pair];
                let (a, b) = (row[pair], row[pair + half]);
                (row[pair], row[pair + half]) = (factor * (cos * a + sin * b), factor * (cos * b - sin * a));
            }
        }
        upload(gpu.device(), gpu.queue(), &rows)
    };
    let query = undone(inputs.query, &problem.query, d.num_heads);
    let key = undone(inputs.key, &problem.key, d.num_kv_heads);
    let shape = [d.batch, d.num_kv_heads, d.seq_len_kv, d.head_dim_v];
    let value = upload(gpu.device(), gpu.queue(), &gather(inputs.value, &problem.value, shape));
    let layer = LayerShape::new(d.num_kv_heads, d.head_dim).head_dim_v(d.head_dim_v);
    let shape = CacheShape::uniform(1, layer).page_size(d.seq_len_kv).pages(d.batch);
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: d.batch, pages_per_slot: 1 })?;
    let own = cache.problem(0, 0..d.batch, Queries { num_heads: d.num_heads, seq_len: d.seq_len_q })?;
    let own =
        Problem { scale: problem.scale, visibility: wgpu_attention::Visibility { mask: problem.visibility.mask, ..own.visibility }, ..own };
    let rotary = DeviceRotary::new(gpu, &rotary)?;
    let (rows, spec) = (Rows::new(&query, own.query), TensorSpec::new(DType::F32, Layout::Bhsd));
    let query_rows = Some(RotatedQuery { rows, num_heads: d.num_heads });
    let append = cache.append(
        0,
        &NewTokens {
            slots: 0..d.batch,
            seq_len: d.seq_len_q,
            key: Rows::new(&key, spec),
            value: Rows::new(&value, spec),
            rotation: Some(Rotation { norm: Some(&norm), rotary: Some((&rotary).into()), query: query_rows }),
        },
    )?;
    let mask: Vec<u8> = inputs.mask.iter().map(|&is_visible| is_visible.into()).collect();
    let words: Vec<f32> = bytemuck::pod_collect_to_vec(&[&mask[..], &[0; 3]].concat()[..mask.len().next_multiple_of(4)]);
    let mask = upload(gpu.device(), gpu.queue(), &words);
    let output = empty(gpu.device(), own.output_len());
    let bindings = QueryBindings { mask: Some(mask.as_entire_buffer_binding()), ..QueryBindings::new(&query, &output) };
    let attention = cache.attention(0, &own, 0..d.batch, Algorithm::Auto)?.bind(&cache, 0, &bindings)?;
    for _ in 0..d.batch {
        cache.start()?;
    }
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    cache.extend(Growth { tokens: &vec![d.seq_len_q; d.batch], steps: 1 }, &mut encoder)?;
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        [cache.advance(), &append, &attention].into_iter().for_each(|step| step.record_in(&mut pass));
    }
    gpu.queue().submit([encoder.finish()]);
    let mut outputs = Outputs::default();
    outputs.output = read(gpu.device(), gpu.queue(), &output).into();
    Ok(outputs)
}

/// A layer of Qwen 3, which has QK-norm: Hugging Face's transformers computed the answer.
#[test]
fn layers_of_qwen3() {
    for gpu in gpus() {
        for case in ["model_qwen3_0", "model_qwen3_1"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/models/{case}.safetensors"));
            let file = CaseFile::read(&path).expect("a case file");
            let verdict = check_file(&file, &|problem, inputs| through_cache(&gpu, problem, inputs)).0;
            assert_eq!(verdict, Verdict::Passed, "{case} on {}", gpu.name());
        }
    }
}

/// Exported steps with a norm and positions of the tokens' own compute the bits of a cache on a device.
#[test]
fn exported_steps_take_positions() {
    let layer = LayerShape::new(2, 64).head_dim_v(8);
    let sections = Some(Sections::Interleaved([10, 7, 7]));
    let turn = Some(Turn { pairing: Pairing::HalfSplit, pairs: 24, distance: 32, width: 64, sections });
    let norm = Some(([draw(1, 64), draw(2, 64)], 0.05));
    let heads = Heads { layer, layout: Layout::Bhsd, new: DType::F32, norm, turn, explicit: true, norm_last: false };
    let (norm, rotary) = (heads.norm().expect("a norm"), heads.rotary().expect("angles"));
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    let rotation = RotationSpec { norm: true, rotary: Some(RotarySpec::from(&rotary)), by_token: true, query: Some((spec, NUM_HEADS)) };
    let new = AppendSpec { slots: 0..SIZE.slots, seq_len: SEQ, key: spec, value: spec, rotation: Some(rotation) };
    for gpu in gpus() {
        let shape = CacheShape::uniform(1, layer).page_size(PAGE).pages(6);
        let plan = CachePlan::new(shape, SIZE, gpu.caps()).expect("a cache");
        let mut host = PlanHost::new(gpu.device(), gpu.queue());
        let gather = plan.token_angles(&RotarySpec::from(&rotary), SIZE.slots * SEQ).expect("planned");
        let [append] = &plan.append(0, &new).expect("planned")[..] else { panic!("there is one bank") };
        let (rows, given) = inputs(&heads, 0);
        let named = |plan, name, bytes: &[u8]| (name, host.filled(plan, name, bytes));
        // Both slots have their first three tokens on pages of their own.
        let state: Vec<u32> = [[3, 3], [3, 3], [15, 15], [0, 0]].into_iter().flatten().chain([0, 1, 2, 3, 4, 5]).collect();
        let buffers = [
            named(&gather, "positions", bytemuck::cast_slice(&given)),
            named(&gather, "angles", bytemuck::cast_slice(rotary.angles())),
            named(&gather, "token_angles", &[]),
            named(append, "cache_state", bytemuck::cast_slice(&state)),
            named(append, "key", rows[0].as_slice().bytes()),
            named(append, "value", &[]),
            named(append, "query", rows[1].as_slice().bytes()),
            named(append, "norm", bytemuck::cast_slice(norm.words())),
            named(append, "cache_key", &[]),
            named(append, "cache_value", &[]),
        ];
        let all: Vec<_> = buffers.iter().map(|(name, buffer)| (*name, buffer)).collect();
        let bound = [host.bind(&gather, &all), host.bind(append, &all)];
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            bound.iter().for_each(|plan| plan.record_in(&mut pass));
        }
        gpu.queue().submit([encoder.finish()]);
        let got = read(gpu.device(), gpu.queue(), &buffers[6].1);
        let first = on_device(&gpu, &heads);
        let expected = first.iter().filter(|seen| seen.is_query).take(SEQ * NUM_HEADS).flat_map(|seen| seen.got.clone());
        let expected: Vec<u32> = expected.map(f32::to_bits).collect();
        assert_eq!(got[..expected.len()].iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{}", gpu.name());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(matches!(Rotary::proportional(10000.0, 17, 32, 4, Scaling::None), Err(Error::Invalid { argument: "pairs", .. })));
    assert!(matches!(Rotary::proportional(10000.0, 0, 32, 4, Scaling::None), Err(Error::Invalid { argument: "pairs", .. })));
    let rotary = Rotary::proportional(10000.0, 8, 32, 4, Scaling::None).expect("valid");
    assert!(rotary.apply(&mut [0.0; 23], 0).is_err() && rotary.apply_at(&mut [0.0; 32], [0, 0, 4]).is_err());
    for sections in [Sections::Chunks([3, 3, 3]), Sections::Interleaved([2, 3, 3]), Sections::Chunks([usize::MAX, 9, 0])] {
        let refused = rotary.clone().with_sections(sections);
        assert!(matches!(refused, Err(Error::Invalid { argument: "sections", .. })), "{sections:?}");
    }
    for gpu in gpus() {
        let on_gpu = DeviceRotary::new(&gpu, &rotary.clone().with_sections(Sections::Chunks([4, 2, 2])).expect("parts")).expect("uploaded");
        let shape = CacheShape::uniform(1, LayerShape::new(1, 32)).page_size(4).pages(1);
        let cache = DeviceCache::new(&gpu, shape, CacheSize { slots: 1, pages_per_slot: 1 }).expect("a cache");
        let [rows, at] = [32, 3].map(|len| empty(gpu.device(), len));
        let at = at.as_entire_buffer_binding();
        assert!(on_gpu.at(&gpu, 2, &at).is_err() && on_gpu.at(&gpu, 0, &at).is_err(), "too few positions, no tokens");
        let angles = on_gpu.at(&gpu, 1, &at).expect("bound");
        let [norm, wide] = [32, 48].map(|dim| QkNorm::new(&vec![1.0; dim], &vec![1.0; dim], 0.0).expect("valid"));
        let [norm, wide] = [norm, wide].map(|norm| DeviceNorm::new(&gpu, &norm).expect("uploaded"));
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let append = |seq_len: usize, rotation: Rotation<'_>| {
            let (key, value) = (Rows::new(&rows, spec), Rows::new(&rows, spec));
            cache.append(0, &NewTokens { slots: 0..1, seq_len, key, value, rotation: Some(rotation) }).map(|_| ())
        };
        assert_eq!(append(1, Rotation { norm: Some(&norm), rotary: Some((&angles).into()), query: None }), Ok(()));
        let argument = |answer| match answer {
            Err(Error::Invalid { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        assert_eq!(argument(append(1, Rotation::default())), "rotation");
        assert_eq!(argument(append(1, Rotation { norm: Some(&wide), ..Default::default() })), "norm");
        let two = on_gpu.at(&gpu, 2, &upload(gpu.device(), gpu.queue(), &[0.0; 6]).as_entire_buffer_binding()).expect("bound");
        assert_eq!(argument(append(1, Rotation { rotary: Some((&two).into()), ..Default::default() })), "rotary");
    }
}
