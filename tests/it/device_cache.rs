//! Caches on a device: steps recorded once and replayed, page tables, rotation in place, and refusals.

use crate::common::buffers::{devices, draw, empty, read, upload};
use crate::common::replay::{Replay, bytes};
use crate::common::stack::{Stack, gpus};
use crate::common::{STORAGE, agree};
use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{
    Attention, Bindings, CacheSize, DeviceCache, DeviceRotary, Dispatches, Gpu, Growth, IndexBindings, KeptRows, NewTokens, QueryBindings,
    Rotation, Rows, ShaderOptions, Tables, TokenSizes,
};
use wgpu_attention::plan::Specialise;
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::verify::{Expected, random_text_of};
use wgpu_attention::{
    Algorithm, Alibi, Alignment, DType, Dims, Error, HostVec, Inputs, Layout, PageTable, Paged, Problem, SummedRows, Table, TensorSpec,
    Term, wgpu,
};

#[test]
fn steps_recorded_once_are_replayed() {
    for gpu in gpus() {
        for (n, dtype) in STORAGE.into_iter().enumerate() {
            let layouts = [Layout::Bshd, Layout::Bhsd];
            Replay { page_size: [4, 1, 5, 16, 48][n], layout: layouts[n % 2], ..Replay::of(dtype) }.run(&gpu, |_| {});
            let pairing = Some([Pairing::HalfSplit, Pairing::Interleaved][n % 2]);
            let (page_size, layout) = ([48, 7, 16, 1, 4][n], layouts[(n + 1) % 2]);
            Replay { page_size, layout, pairing, ..Replay::of(dtype) }.run(&gpu, |_| {});
        }
    }
}

/// Appends several tokens per step, with other options of decoding.
#[test]
fn several_tokens_with_options() {
    for gpu in gpus() {
        Replay { layout: Layout::Bshd, pairing: Some(Pairing::HalfSplit), seq_len_q: 3, ..Replay::of(DType::F32) }.run(&gpu, |p| {
            (p.softcap, p.sinks, p.alibi) = (Some(5.0), true, Some(Alibi::Symmetric));
        });
        Replay { seq_len_q: 7, ..Replay::of(DType::Q8) }.run(&gpu, |p| p.visibility.window_left = Some(5));
        Replay { page_size: 8, layout: Layout::Bshd, seq_len_q: 8, ..Replay::of(DType::Q4) }
            .run(&gpu, |p| (p.sinks, p.softcap) = (true, Some(20.0)));
    }
}

/// The sums of each key's weights are written by the recorded step, as the sequences grow.
#[test]
fn key_sums() {
    let shaders = ShaderOptions { specialise: Specialise::Always, ..Default::default() };
    let specialised = devices(wgpu::Adapter::limits).into_iter();
    let specialised = specialised.map(|(device, queue)| Gpu::from_device_with(device, queue, shaders));
    for gpu in gpus().into_iter().chain(specialised) {
        Replay { pairing: Some(Pairing::HalfSplit), ..Replay::of(DType::F16) }.run(&gpu, |p| {
            (p.sinks, p.want.key_sums) = (true, Some(SummedRows::All));
        });
        Replay { page_size: 5, layout: Layout::Bshd, seq_len_q: 3, ..Replay::of(DType::Q8) }
            .run(&gpu, |p| p.want.key_sums = Some(SummedRows::Last(2)));
        let mut rotated = Replay::of(DType::Q4);
        rotated.layers.iter_mut().for_each(|layer| *layer = layer.hadamard(true, true));
        rotated.run(&gpu, |p| p.want.key_sums = Some(SummedRows::All));
    }
}

/// Users' terms see logical positions and lengths, whatever pages the keys are in: every field of a pair, a table, and
/// texts drawn at random.
#[test]
fn users_terms() {
    let text = "
        fn visible(at: Pair) -> bool {
            return (at.position - at.key) % 5 != 3 || marks[at.batch] == at.key_position;
        }
        fn score(x: f32, at: Pair) -> f32 {
            let distance = f32(at.len_kv - at.key) + f32(at.row) / f32(at.len_q);
            return x * rates[at.head] + f32(at.kv_head) - 0.1 * distance;
        }";
    let term = Term::with_tables(text, &[Table::i32("marks", 3), Table::f32("rates", 4)]).expect("valid");
    let drawn = (0..4).filter_map(|kind| random_text_of(kind, kind, false).expect("valid").ok());
    let drawn: Vec<Term> = drawn.map(|case| case.problem.user_terms[0].clone()).collect();
    for gpu in gpus() {
        Replay { layout: Layout::Bshd, pairing: Some(Pairing::HalfSplit), ..Replay::of(DType::F32) }
            .run(&gpu, |p| p.user_terms.push(term.clone()));
        Replay { page_size: 7, seq_len_q: 3, ..Replay::of(DType::F16) }.run(&gpu, |p| {
            (p.softcap, p.sinks, p.alibi) = (Some(5.0), true, Some(Alibi::Symmetric));
            p.user_terms.push(term.clone());
        });
        for (n, term) in drawn.iter().enumerate() {
            let (page_size, rows) = [(5, 1), (16, 3)][n % 2];
            Replay { page_size, seq_len_q: rows, ..Replay::of(DType::F32) }.run(&gpu, |p| p.user_terms.push(term.clone()));
        }
    }
}

/// Replays steps on specialised kernels, which longer caches get.
#[test]
fn specialised_kernels() {
    let shaders = ShaderOptions { specialise: Specialise::Always, ..Default::default() };
    for (device, queue) in devices(wgpu::Adapter::limits) {
        let gpu = Gpu::from_device_with(device, queue, shaders);
        Replay { page_size: 16, pairing: Some(Pairing::HalfSplit), ..Replay::of(DType::F16) }.run(&gpu, |p| p.sinks = true);
        Replay { page_size: 48, layout: Layout::Bshd, seq_len_q: 3, ..Replay::of(DType::Q8) }.run(&gpu, |_| {});
    }
}

/// Converts a table in FlashInfer's form on the device; an item that contradicts it has no visible keys.
#[test]
fn tables_from_indices_on_the_device() {
    for gpu in gpus() {
        let dims = Dims { batch: 4, num_kv_heads: 1, seq_len_q: 2, ..Dims::self_attention(4, 2, 12, 16) };
        let mut problem = Problem::new(dims).aligned(Alignment::BottomRight).causal();
        problem.paged = Some(Paged { page_size: 4, pages: 7, pages_per_item: 3 });
        (problem.visibility.kv_lengths, problem.alibi, problem.sinks) = (true, Some(Alibi::Signed), true);
        let (slopes, sinks) = (draw(1, 2), draw(2, 2));
        let [query, key, value] = [problem.query_len(), problem.key_len(), problem.value_len()].map(|len| draw(len, len));
        let attention = Attention::new(&gpu, &problem, Algorithm::Auto).expect("planned");
        let on_device = [&query, &key, &value].map(|data| upload(gpu.device(), gpu.queue(), data));
        let output = empty(gpu.device(), problem.output_len());
        let contents = Tables::new(&problem).kv_lengths(&[0; 4]).page_table(&[0; 12]).alibi_slopes(&slopes).sinks(&sinks);
        let tables = upload(gpu.device(), gpu.queue(), &bytemuck::pod_collect_to_vec::<u8, f32>(&contents.bytes().expect("valid")));
        let words = |data: &[u32]| upload(gpu.device(), gpu.queue(), bytemuck::cast_slice(data));
        // A valid table; a page past the pool; too many pages; last pages too full and empty; indices out of range.
        for (indptr, indices, last) in [
            (&[0, 2, 2, 5, 6][..], &[6, 0, 3, 1, 2, 5][..], &[3, 9, 4, 1][..]),
            (&[0, 2, 2, 5, 6], &[6, 0, 3, 1, 2, 7], &[3, 0, 4, 1]),
            (&[0, 2, 2, 6, 6], &[6, 0, 3, 1, 2, 5], &[3, 0, 4, 1]),
            (&[0, 2, 2, 5, 6], &[6, 0, 3, 1, 2, 5], &[5, 0, 4, 0]),
            (&[0, 2, 1, 5, 9], &[6, 0, 3, 1, 2, 5], &[3, 0, 4, 1]),
        ] {
            let bindings = [indptr, indices, last].map(words);
            let [indptr_on, indices_on, last_on] = bindings.each_ref().map(wgpu::Buffer::as_entire_buffer_binding);
            let tables = tables.as_entire_buffer_binding();
            let form = IndexBindings { indptr: indptr_on, indices: indices_on, last_page_len: last_on, tables: tables.clone() };
            let table = Dispatches::page_table(&gpu, &problem, &form).expect("bound");
            let [query_on, key_on, value_on] = &on_device;
            let bound = attention.bind(&Bindings { tables: Some(tables), ..Bindings::new(query_on, key_on, value_on, &output) });
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                table.record_in(&mut pass);
                bound.expect("bound").record_in(&mut pass);
            }
            gpu.queue().submit([encoder.finish()]);
            // Each item alone on the host; a refused one has length 0.
            let mut expected_table = PageTable { page_size: 4, pages_per_item: 3, ..PageTable::default() };
            for item in 0..4 {
                let one = indptr.get(item..item + 2).expect("four items");
                let one = PageTable::from_indices(4, one, indices, &last[item..=item]).ok();
                let one = one.filter(|one| one.pages_per_item <= 3 && one.entries.iter().all(|&page| page < 7));
                let mut entries = one.as_ref().map_or_else(Vec::new, |one| one.entries.clone());
                entries.resize(3, PageTable::UNUSED);
                expected_table.entries.extend(entries);
                expected_table.kv_lengths.push(one.map_or(0, |one| one.kv_lengths[0]));
            }
            let inputs = Inputs {
                kv_lengths: &expected_table.kv_lengths,
                page_table: &expected_table.entries,
                alibi_slopes: &slopes,
                sinks: &sinks,
                ..Inputs::new(&query, &key, &value)
            };
            let expected = Expected::of(&problem, &inputs).expect("valid").output;
            agree(&format!("{indptr:?} {last:?}"), &read(gpu.device(), gpu.queue(), &output), &expected);
        }
        let short = empty(gpu.device(), 4);
        let short = short.as_entire_buffer_binding();
        let form = IndexBindings { indptr: short.clone(), indices: short.clone(), last_page_len: short.clone(), tables: short };
        assert!(Dispatches::page_table(&gpu, &problem, &form).is_err());
        assert!(Dispatches::page_table(&gpu, &Problem::new(dims), &form).is_err());
    }
}

/// Runs several steps in one submission, with no action of the host between them.
#[test]
fn many_steps_in_one_submit() {
    for gpu in gpus() {
        let shape = CacheShape::uniform(1, LayerShape::new(2, 16)).page_size(4).pages(10).layout(Layout::Bshd);
        let mut cache = DeviceCache::new(&gpu, shape, CacheSize { slots: 2, pages_per_slot: 5 }).expect("a cache");
        let stack = Stack::new(&gpu, &cache, Queries { num_heads: 2, seq_len: 1 }, |problem| problem, (&[], None), None);
        assert_eq!((cache.start(), cache.start()), (Ok(0), Ok(1)));
        let layer = &stack.layers[0];
        let (query, key, value) = (draw(1, 64), draw(2, 64), draw(3, 64));
        for (buffer, data) in [(&layer.query, &query), (&layer.key, &key), (&layer.value, &value)] {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
        }
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.extend(Growth { tokens: &[1, 1], steps: 17 }, &mut encoder).expect("room");
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..17).for_each(|_| stack.record(&cache, &mut pass));
        }
        gpu.queue().submit([encoder.finish()]);
        let lengths: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(&gpu, cache.lengths())[..8]);
        assert_eq!(lengths, [17, 17]);
        // Equal keys have equal weights: the mean of equal values is the value.
        for (x, y) in read(gpu.device(), gpu.queue(), &layer.output).iter().zip(&value) {
            assert!((x - y).abs() < 1e-5);
        }
        // A step without reserved room changes nothing.
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert!(matches!(
            cache.extend(Growth { tokens: &[1, 4], steps: 1 }, &mut encoder),
            Err(Error::Limit { limit: "tokens of a slot", .. })
        ));
        assert!(matches!(cache.extend(Growth { tokens: &[3, 3], steps: 1 }, &mut encoder), Ok(())));
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..2).for_each(|_| cache.advance().record_in(&mut pass));
        }
        gpu.queue().submit([encoder.finish()]);
        let lengths: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(&gpu, cache.lengths())[..8]);
        assert_eq!(lengths, [20, 20]);
        assert_eq!(cache.bytes(), 2 * 10 * 4 * 2 * 16 * 4);
        assert_eq!(cache.used_bytes(), cache.bytes());
    }
}

#[test]
fn rows_are_rotated_in_place() {
    let positions = [5u32, 0, 31];
    for gpu in gpus() {
        for (pairing, dtype, width) in [
            (Pairing::HalfSplit, DType::F32, 14),
            (Pairing::Interleaved, DType::F32, 10),
            (Pairing::HalfSplit, DType::F16, 12),
            (Pairing::Interleaved, DType::BF16, 16),
        ] {
            let rotary = Rotary::new(pairing, 100.0, width, 32).expect("valid");
            let rows = draw(8, 3 * 2 * 16);
            let mut expected = HostVec::from_f32(dtype, &rows).to_f32();
            rotary.apply_tokens(&mut expected, 2, 16, &positions.map(|p| p as usize)).expect("inside");
            let stored = HostVec::from_f32(dtype, &rows);
            let buffer = empty(gpu.device(), rows.len());
            gpu.queue().write_buffer(&buffer, 0, stored.as_slice().bytes());
            let at = upload(gpu.device(), gpu.queue(), bytemuck::cast_slice(&positions));
            let spec = TensorSpec::new(dtype, Layout::Bshd);
            let on_device = DeviceRotary::new(&gpu, &rotary).expect("uploaded");
            let (rows, at) = (Rows::new(&buffer, spec), at.as_entire_buffer_binding());
            let sizes = TokenSizes { tokens: 3, num_heads: 2, head_dim: 16 };
            let bound = on_device.rotate(&gpu, &rows, sizes, &at).expect("bound");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            bound.record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
            let got = bytes(&gpu, &buffer);
            let got = match dtype {
                DType::F16 => HostVec::F16(bytemuck::pod_collect_to_vec(&got)).to_f32(),
                DType::BF16 => HostVec::BF16(bytemuck::pod_collect_to_vec(&got)).to_f32(),
                _ => bytemuck::pod_collect_to_vec(&got),
            };
            let near = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
            for (i, (x, y)) in got.iter().zip(&expected).enumerate() {
                assert!((x - y).abs() < near, "{dtype} {pairing:?} {i}: {x} instead of {y}");
            }
            let odd = TensorSpec { offset: 1, ..TensorSpec::new(DType::F16, Layout::Bshd) };
            let odd = on_device.rotate(&gpu, &Rows { spec: odd, ..rows.clone() }, TokenSizes { tokens: 1, ..sizes }, &at);
            assert!(matches!(odd, Err(Error::Unsupported { .. })));
            let narrow = on_device.rotate(&gpu, &rows, TokenSizes { head_dim: 8, ..sizes }, &at);
            assert!(narrow.is_err(), "a head narrower than the pairs");
        }
    }
}

#[test]
fn invalid_requests_are_refused() {
    for gpu in gpus() {
        let halves = |num_kv_heads, head_dim| LayerShape::new(num_kv_heads, head_dim).stored(DType::F16, DType::F16);
        let shape = CacheShape::uniform(1, halves(2, 32)).page_size(4).pages(4).layout(Layout::Bshd);
        let size = CacheSize { slots: 2, pages_per_slot: 3 };
        let refused = |shape: CacheShape, size: CacheSize| DeviceCache::new(&gpu, shape, size).expect_err("refused");
        assert!(matches!(refused(CacheShape::uniform(2, halves(2, 33)), size), Error::Unsupported { .. }));
        let half_block = LayerShape::new(2, 32).head_dim_v(16).stored(DType::F32, DType::Q8);
        assert!(matches!(refused(CacheShape::new(vec![halves(2, 32), half_block]), size), Error::Invalid { .. }));
        assert!(matches!(refused(shape.clone().page_size(0), size), Error::Invalid { .. }));
        assert!(matches!(refused(shape.clone(), CacheSize { slots: 0, ..size }), Error::Invalid { .. }));
        let most = usize::MAX;
        for (shape, size) in [
            (CacheShape::uniform(0, halves(2, 32)), size),
            (CacheShape::uniform(most, halves(2, 32)), size),
            (shape.clone(), CacheSize { slots: most, ..size }),
            (shape.clone(), CacheSize { pages_per_slot: most, ..size }),
            (shape.clone().pages(1 << 40), size),
            (shape.clone().pages(most / 2), size),
            (shape.clone().page_size(most), size),
            (CacheShape::uniform(most, halves(2, 32)).pages(most), CacheSize { slots: most, pages_per_slot: most }),
        ] {
            let error = refused(shape.clone(), size);
            assert!(matches!(error, Error::Limit { .. } | Error::Invalid { .. }), "{size:?}: {error:?}");
        }
        let mut cache = DeviceCache::new(&gpu, shape, size).expect("a cache");
        let slot = cache.start().expect("a slot");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert!(cache.extend(Growth { tokens: &[1], steps: 1 }, &mut encoder).is_err());
        assert!(cache.extend(Growth { tokens: &[0, 1], steps: 1 }, &mut encoder).is_err());
        cache.extend(Growth { tokens: &[8, 0], steps: 1 }, &mut encoder).expect("room");
        let other = cache.fork(slot, 6).expect("a slot");
        // Two pages are left and three are needed: the fork copies one and adds one, the first sequence adds one.
        assert!(matches!(
            cache.extend(Growth { tokens: &[1, 3], steps: 1 }, &mut encoder),
            Err(Error::Limit { limit: "pages of the pool", .. })
        ));
        assert_eq!((cache.length(slot), cache.length(other), cache.pool().free_pages()), (Ok(8), Ok(6), 2));
        assert!(cache.fork(slot, 1).is_err(), "no slot is left");
        assert!(cache.truncate(slot, 9).is_err() && cache.free(7).is_err());
        let before = cache.pool().clone();
        for (slot, last, rows) in [(7, 1, &[][..]), (slot, 9, &[]), (slot, 2, &[1, 0]), (slot, 2, &[1, 1]), (slot, 2, &[2])] {
            let kept = [KeptRows { slot: other, last: 3, rows: &[1] }, KeptRows { slot, last, rows }];
            assert!(matches!(cache.keep(&kept, &mut encoder), Err(Error::Invalid { .. })), "{kept:?}");
        }
        assert_eq!(*cache.pool(), before, "a refusal changes nothing");
        let problem = cache.problem(0, 0..2, Queries { num_heads: 4, seq_len: 1 }).expect("a layer");
        let attend = |problem: &Problem, slots| cache.attention(0, problem, slots, Algorithm::Auto).map(|_| ());
        assert_eq!(attend(&problem, 0..2), Ok(()));
        assert!(attend(&problem, 1..3).is_err() && attend(&problem, 0..1).is_err(), "past the last slot, another batch");
        let mut wrong = problem;
        wrong.key.dtype = DType::F32;
        assert!(attend(&wrong, 0..2).is_err());
        assert!(cache.problem(1, 0..2, Queries { num_heads: 4, seq_len: 1 }).is_err(), "no such layer");
        let [new, too_short] = [2 * 2 * 32, 32].map(|len| empty(gpu.device(), len));
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let tokens = |key: &wgpu::Buffer, spec: TensorSpec| {
            let new = NewTokens { slots: 0..2, seq_len: 1, key: Rows::new(key, spec), value: Rows::new(key, spec), rotation: None };
            cache.append(0, &new).map(|_| ())
        };
        assert_eq!(tokens(&new, spec), Ok(()));
        assert!(tokens(&too_short, spec).is_err() && tokens(&new, TensorSpec::new(DType::Q8, Layout::Bshd)).is_err());
        let new = NewTokens { slots: 0..2, seq_len: 1, key: Rows::new(&new, spec), value: Rows::new(&new, spec), rotation: None };
        assert!(cache.append(1, &new).is_err() && cache.append(0, &NewTokens { slots: 1..3, ..new.clone() }).is_err());
        let short = Rotary::new(Pairing::HalfSplit, 10000.0, 32, 11).expect("valid");
        let short = DeviceRotary::new(&gpu, &short).expect("uploaded");
        let rotation = Some(Rotation { rotary: Some((&short).into()), ..Default::default() });
        assert!(cache.append(0, &NewTokens { rotation, ..new }).is_err(), "positions without angles");
    }
}

/// Layers of equal shape share an attention; another layer needs its own.
#[test]
fn an_attention_is_for_layers_of_its_shape() {
    for gpu in gpus() {
        let (one, other) = (LayerShape::new(1, 32), LayerShape::new(1, 32).stored(DType::F32, DType::Q8));
        let shape = CacheShape::new(vec![one, other, one]).pages(2);
        let cache = DeviceCache::new(&gpu, shape, CacheSize { slots: 1, pages_per_slot: 2 }).expect("a cache");
        let problem = cache.problem(0, 0..1, Queries { num_heads: 1, seq_len: 1 }).expect("a layer");
        let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto).expect("planned");
        let (query, output) = (empty(gpu.device(), 32), empty(gpu.device(), 32));
        let bound = |layer| attention.bind(&cache, layer, &QueryBindings::new(&query, &output)).map(|_| ());
        assert_eq!((bound(0), bound(2)), (Ok(()), Ok(())));
        assert!(matches!(bound(1), Err(Error::Invalid { argument: "layer", .. })) && bound(3).is_err());
        assert!(cache.attention(1, &problem, 0..1, Algorithm::Auto).is_err());
    }
}
