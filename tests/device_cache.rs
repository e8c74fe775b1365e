//! Caches on a device: steps recorded once and replayed, random schedules, what is refused.

mod common;

use common::buffers::{devices, empty, numbers, read, upload};
use fastrand::Rng;
use wgpu_attention::cache::CacheShape;
use wgpu_attention::gpu::{Bound, CacheSize, DeviceCache, DeviceRotary, Gpu, NewTokens, QueryBindings};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::verify::{Expected, ExpectedTensor, compare};
use wgpu_attention::{Algorithm, Alibi, Alignment, DType, Dims, Error, HostVec, Inputs, Layout, PageTable, Problem, TensorSpec, wgpu};

const EVERY: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4];

fn gpus() -> Vec<Gpu> {
    devices(wgpu::Adapter::limits).into_iter().map(|(device, queue)| Gpu::from_device(device, queue)).collect()
}

fn bytes(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    bytemuck::cast_slice(&read(gpu.device(), gpu.queue(), buffer)).to_vec()
}

/// A layer's keys or values as the host has such data.
fn pool(gpu: &Gpu, cache: &DeviceCache, buffer: &wgpu::Buffer, dim: usize) -> HostVec {
    let shape = cache.shape();
    let len = cache.size().pages * shape.page_size * shape.num_kv_heads * dim;
    let bytes = bytes(gpu, buffer)[..shape.dtype.bytes(len)].to_vec();
    match shape.dtype {
        DType::F32 => HostVec::F32(bytemuck::pod_collect_to_vec(&bytes)),
        DType::F16 => HostVec::F16(bytemuck::pod_collect_to_vec(&bytes)),
        DType::BF16 => HostVec::BF16(bytemuck::pod_collect_to_vec(&bytes)),
        DType::Q8 => HostVec::Q8(bytemuck::pod_collect_to_vec(&bytes)),
        DType::Q4 => HostVec::Q4(bytemuck::pod_collect_to_vec(&bytes)),
    }
}

fn agree(what: &str, got: &[f32], expected: &ExpectedTensor) {
    compare(&expected.shape, got, &expected.shape, &expected.values, &expected.tolerance).unwrap_or_else(|bad| panic!("{what}: {bad}"));
}

/// One layer of a stack: its inputs, and what is recorded for it.
struct Layer {
    query: wgpu::Buffer,
    key: wgpu::Buffer,
    value: wgpu::Buffer,
    output: wgpu::Buffer,
    append: Bound,
    attention: Bound,
}

/// Everything of a step, bound once.
struct Stack {
    problem: Problem,
    layers: Vec<Layer>,
}

impl Stack {
    fn new(gpu: &Gpu, cache: &DeviceCache, problem: Problem, rotary: Option<&DeviceRotary>, tables: Option<&wgpu::Buffer>) -> Self {
        let d = problem.dims;
        let attention = cache.attention(&problem, 0, Algorithm::Auto).expect("planned");
        let layer = |layer: usize| {
            let new = |heads: usize, dim: usize| empty(gpu.device(), d.batch * heads * d.seq_len_q * dim);
            let (query, key, value) = (new(d.num_heads, d.head_dim), new(d.num_kv_heads, d.head_dim), new(d.num_kv_heads, d.head_dim_v));
            let output = new(d.num_heads, d.head_dim_v);
            let tokens = TensorSpec::new(DType::F32, Layout::Bshd);
            let tokens = NewTokens {
                key: key.as_entire_buffer_binding(),
                key_spec: tokens,
                value: value.as_entire_buffer_binding(),
                value_spec: tokens,
                rotary,
                query: rotary.map(|_| (query.as_entire_buffer_binding(), problem.query, d.num_heads)),
            };
            let append = cache.append(layer, 0..d.batch, d.seq_len_q, &tokens).expect("bound");
            let tables = tables.map(wgpu::Buffer::as_entire_buffer_binding);
            let buffers = QueryBindings { tables, ..QueryBindings::new(&query, &output) };
            let attention = attention.bind(cache, layer, &buffers).expect("bound");
            Layer { query, key, value, output, append, attention }
        };
        Self { problem, layers: (0..cache.size().layers).map(layer).collect() }
    }

    fn record(&self, cache: &DeviceCache, pass: &mut wgpu::ComputePass<'_>) {
        cache.advance().record_in(pass);
        for layer in &self.layers {
            layer.append.record_in(pass);
            layer.attention.record_in(pass);
        }
    }
}

/// The table of all slots, as the host keeps it.
fn table(cache: &DeviceCache, pages: &[Vec<u32>], lengths: &[usize]) -> PageTable {
    PageTable::new(cache.shape().page_size, pages.iter().map(Vec::as_slice).zip(lengths.iter().copied())).expect("a valid table")
}

/// Steps of one to some tokens in several sequences, recorded once: after each, what the device gave is what the oracle gives for the
/// device's own keys and values, and what a call on host arrays gives; and those keys and values are what was appended.
fn replayed(
    gpu: &Gpu,
    dtype: DType,
    page_size: usize,
    layout: Layout,
    pairing: Option<Pairing>,
    seq_len_q: usize,
    change: fn(&mut Problem),
) {
    let (head_dim, head_dim_v) = (64, 32);
    let shape = CacheShape { page_size, num_kv_heads: 2, head_dim, head_dim_v, dtype, layout };
    let capacity = 48usize;
    let pages_per_slot = capacity.div_ceil(page_size);
    let size = CacheSize { layers: 2, slots: 3, pages_per_slot, pages: 3 * pages_per_slot };
    let mut cache = DeviceCache::new(gpu, shape, size).expect("a cache");
    let rotary = pairing.map(|pairing| Rotary::new(pairing, 10000.0, 32, pages_per_slot * page_size).expect("valid"));
    let on_device = rotary.as_ref().map(|rotary| DeviceRotary::new(gpu, rotary).expect("uploaded"));
    let mut problem = cache.problem(3, 4, seq_len_q).causal(Alignment::BottomRight);
    change(&mut problem);
    let (slopes, sinks) = (numbers(4, 5), numbers(4, 6));
    let table_words: Vec<f32> = [(problem.alibi.is_some(), &slopes), (problem.sinks, &sinks)]
        .into_iter()
        .flat_map(|(there, words)| if there { words.clone() } else { vec![] })
        .collect();
    let tables = (!table_words.is_empty()).then(|| upload(gpu.device(), gpu.queue(), &table_words));
    let stack = Stack::new(gpu, &cache, problem, on_device.as_ref(), tables.as_ref());
    assert_eq!((cache.start(), cache.start(), cache.start()), (Ok(0), Ok(1), Ok(2)));
    let mut rng = Rng::with_seed(9);
    let engine = wgpu_attention::Engine::on_gpu(gpu.clone());
    for step in 0..6 {
        // The second slot joins late, the third has a shorter turn once.
        let tokens = [seq_len_q, if step < 2 { 0 } else { seq_len_q }, if step == 3 { 1 } else { seq_len_q }];
        let mut some = |len: usize| (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect::<Vec<f32>>();
        let inputs: Vec<[Vec<f32>; 3]> = stack
            .layers
            .iter()
            .map(|layer| {
                let data = [&layer.query, &layer.key, &layer.value].map(|buffer| some(buffer.size() as usize / 4));
                for (buffer, data) in [&layer.query, &layer.key, &layer.value].into_iter().zip(&data) {
                    gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
                }
                data
            })
            .collect();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.extend(&tokens, 1, &mut encoder).expect("room");
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            stack.record(&cache, &mut pass);
        }
        gpu.queue().submit([encoder.finish()]);

        let lengths: Vec<usize> = (0..3).map(|slot| cache.length(slot).expect("there")).collect();
        let on_device: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(gpu, cache.lengths())[..12]);
        assert_eq!(on_device, lengths.iter().map(|&length| length as u32).collect::<Vec<_>>());
        let pages: Vec<Vec<u32>> = (0..3).map(|slot| cache.pages(slot).expect("there").to_vec()).collect();
        let table = table(&cache, &pages, &lengths);
        for (number, (layer, [query, key, value])) in stack.layers.iter().zip(&inputs).enumerate() {
            let what = format!("{}, {dtype}, pages of {page_size}, step {step}, layer {number}", gpu.name());
            let [keys, values] = &cache.pools(number).expect("a layer")[0];
            let pools = [pool(gpu, &cache, keys, head_dim), pool(gpu, &cache, values, head_dim_v)];
            let mut problem = stack.problem;
            problem.paged = Some(table.paged(size.pages));
            problem.dims.seq_len_kv = table.longest();
            let mut query = query.clone();
            if let Some(rotary) = &rotary {
                for (at, head) in query.chunks_mut(head_dim).enumerate() {
                    let (item, t) = (at / (4 * seq_len_q), at % seq_len_q);
                    if lengths[item] + t >= seq_len_q {
                        rotary.apply(head, lengths[item] + t - seq_len_q).expect("inside");
                    }
                }
                let turned = read(gpu.device(), gpu.queue(), &layer.query);
                assert!(turned.iter().zip(&query).all(|(x, y)| (x - y).abs() < 1e-5), "{what}: rotated queries");
            }
            let host = Inputs {
                kv_lengths: &table.kv_lengths,
                page_table: &table.entries,
                alibi_slopes: if problem.alibi.is_some() { &slopes } else { &[] },
                sinks: if problem.sinks { &sinks } else { &[] },
                ..Inputs::new(&query[..], pools[0].as_slice(), pools[1].as_slice())
            };
            let expected = Expected::of(&problem, &host).expect("valid").output;
            agree(&what, &read(gpu.device(), gpu.queue(), &layer.output), &expected);
            agree(&what, &engine.attention(&problem, &host).expect("valid").output.to_f32(), &expected);
            // What was appended, number by number.
            let near =
                if pairing.is_none() { 0.0 } else { [1e-5, 1e-2, 1e-2, 2e-2, 0.3][EVERY.iter().position(|&d| d == dtype).expect("one")] };
            for (data, new, dim, rotary) in [(&pools[0], key, head_dim, rotary.as_ref()), (&pools[1], value, head_dim_v, None)] {
                for (row, new) in new.chunks(dim).enumerate() {
                    let (item, t, head) = (row / 2 / seq_len_q, row / 2 % seq_len_q, row % 2);
                    if t + tokens[item] < seq_len_q {
                        continue;
                    }
                    let position = lengths[item] + t - seq_len_q;
                    let mut new = new.to_vec();
                    if let Some(rotary) = rotary {
                        rotary.apply(&mut new, position).expect("inside");
                    }
                    let stored = HostVec::from_f32(dtype, &new).to_f32();
                    let (page, slot) = (pages[item][position / page_size] as usize, position % page_size);
                    let at =
                        if layout == Layout::Bshd { (page * page_size + slot) * 2 + head } else { (page * 2 + head) * page_size + slot };
                    for (i, &x) in stored.iter().enumerate() {
                        let got = data.as_slice().get(at * dim + i);
                        assert!((got - x).abs() <= near, "{what}: {got} instead of {x} at {position}, head {head}, {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn steps_recorded_once_are_replayed() {
    fn plain(_: &mut Problem) {}
    for gpu in gpus() {
        for (n, dtype) in EVERY.into_iter().enumerate() {
            let layouts = [Layout::Bshd, Layout::Bhsd];
            replayed(&gpu, dtype, [4, 1, 5, 16, 48][n], layouts[n % 2], None, 1, plain);
            replayed(
                &gpu,
                dtype,
                [48, 7, 16, 1, 4][n],
                layouts[(n + 1) % 2],
                Some([Pairing::HalfSplit, Pairing::Interleaved][n % 2]),
                1,
                plain,
            );
        }
    }
}

/// Several new tokens, with what else decoding may ask for.
#[test]
fn several_tokens_with_options() {
    for gpu in gpus() {
        replayed(&gpu, DType::F32, 4, Layout::Bshd, Some(Pairing::HalfSplit), 3, |p| {
            (p.softcap, p.sinks, p.alibi) = (Some(5.0), true, Some(Alibi::Symmetric));
        });
        replayed(&gpu, DType::Q8, 4, Layout::Bhsd, None, 7, |p| p.visibility.window_left = Some(5));
        replayed(&gpu, DType::Q4, 8, Layout::Bshd, None, 8, |p| (p.sinks, p.softcap) = (true, Some(20.0)));
    }
}

/// Several steps in one submit, without a word from the host between them.
#[test]
fn many_steps_in_one_submit() {
    for gpu in gpus() {
        let shape = CacheShape { page_size: 4, num_kv_heads: 2, head_dim: 16, head_dim_v: 16, dtype: DType::F32, layout: Layout::Bshd };
        let size = CacheSize { layers: 1, slots: 2, pages_per_slot: 5, pages: 10 };
        let mut cache = DeviceCache::new(&gpu, shape, size).expect("a cache");
        let stack = Stack::new(&gpu, &cache, cache.problem(2, 2, 1), None, None);
        assert_eq!((cache.start(), cache.start()), (Ok(0), Ok(1)));
        let layer = &stack.layers[0];
        let (query, key, value) = (numbers(64, 1), numbers(64, 2), numbers(64, 3));
        for (buffer, data) in [(&layer.query, &query), (&layer.key, &key), (&layer.value, &value)] {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
        }
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.extend(&[1, 1], 17, &mut encoder).expect("room");
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..17).for_each(|_| stack.record(&cache, &mut pass));
        }
        gpu.queue().submit([encoder.finish()]);
        let lengths: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(&gpu, cache.lengths())[..8]);
        assert_eq!(lengths, [17, 17]);
        // Equal keys weigh the same: the values' mean is the value.
        for (x, y) in read(gpu.device(), gpu.queue(), &layer.output).iter().zip(&value) {
            assert!((x - y).abs() < 1e-5);
        }
        // A step that nobody made room for changes nothing.
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert!(matches!(cache.extend(&[1, 4], 1, &mut encoder), Err(Error::Limit { limit: "tokens of a slot", .. })));
        assert!(matches!(cache.extend(&[3, 3], 1, &mut encoder), Ok(())));
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
            let rows = numbers(3 * 2 * 16, 8);
            let mut expected = HostVec::from_f32(dtype, &rows).to_f32();
            rotary.apply_tokens(&mut expected, 2, 16, &positions.map(|p| p as usize)).expect("inside");
            let stored = HostVec::from_f32(dtype, &rows);
            let buffer = empty(gpu.device(), rows.len());
            gpu.queue().write_buffer(&buffer, 0, stored.as_slice().bytes());
            let at = upload(gpu.device(), gpu.queue(), bytemuck::cast_slice(&positions));
            let spec = TensorSpec::new(dtype, Layout::Bshd);
            let on_device = DeviceRotary::new(&gpu, &rotary).expect("uploaded");
            let (rows, at) = (buffer.as_entire_buffer_binding(), at.as_entire_buffer_binding());
            let bound = on_device.rotate(&gpu, &rows, &spec, [3, 2, 16], &at).expect("bound");
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
            assert!(matches!(on_device.rotate(&gpu, &rows, &odd, [1, 2, 16], &at), Err(Error::Unsupported { .. })));
            assert!(on_device.rotate(&gpu, &rows, &spec, [3, 2, 8], &at).is_err(), "a head narrower than the pairs");
        }
    }
}

/// A cache on a device and what each slot should hold, played with by chance.
struct Game<'a> {
    rng: Rng,
    gpu: &'a Gpu,
    cache: DeviceCache,
    naive: Vec<Option<[Vec<f32>; 2]>>,
}

impl<'a> Game<'a> {
    fn new(gpu: &'a Gpu, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let dtype = EVERY[seed as usize % 5];
        let page_size = [1, 2, 4, 7, 16][rng.usize(..5)];
        let layout = [Layout::Bshd, Layout::Bhsd][rng.usize(..2)];
        let shape = CacheShape { page_size, num_kv_heads: rng.usize(1..=2), head_dim: 32, head_dim_v: 32, dtype, layout };
        let size = CacheSize { layers: 1, slots: rng.usize(2..5), pages_per_slot: 24usize.div_ceil(page_size), pages: rng.usize(1..20) };
        let cache = DeviceCache::new(gpu, shape, size).expect("a cache");
        let game = Self { rng, gpu, naive: vec![None; size.slots], cache };
        game.poison(0..size.pages as u32);
        game
    }

    /// Fills pages with NaN: whoever reads what is not theirs shows it. All bits set are NaN in every type, and in a block's scale.
    fn poison(&self, pages: impl IntoIterator<Item = u32>) {
        let [key, value] = &self.cache.pools(0).expect("a layer")[0];
        let page = vec![0xffu8; self.cache.shape().page_bytes() / 2];
        for number in pages {
            for pool in [key, value] {
                self.gpu.queue().write_buffer(pool, u64::from(number) * page.len() as u64, &page);
            }
        }
    }

    fn any(&mut self) -> Option<usize> {
        let there: Vec<usize> = (0..self.naive.len()).filter(|&slot| self.naive[slot].is_some()).collect();
        (!there.is_empty()).then(|| there[self.rng.usize(..there.len())])
    }

    fn row(&self) -> usize {
        self.cache.shape().num_kv_heads * 32
    }

    fn step(&mut self) {
        match (self.rng.u8(..16), self.any()) {
            (0 | 1, _) | (_, None) => match self.cache.start() {
                Ok(slot) => assert!(self.naive[slot].replace(Default::default()).is_none()),
                Err(error) => assert!(matches!(error, Error::Limit { .. }) && self.naive.iter().all(Option::is_some), "{error}"),
            },
            (2..9, Some(_)) => self.extend(),
            (9 | 10, Some(slot)) => {
                let prefix = self.rng.usize(0..=self.cache.length(slot).expect("there"));
                let cut = prefix * self.row();
                match self.cache.fork(slot, prefix) {
                    Ok(to) => self.naive[to] = self.naive[slot].as_ref().map(|data| [data[0][..cut].to_vec(), data[1][..cut].to_vec()]),
                    Err(error) => assert!(matches!(error, Error::Limit { .. }) && self.naive.iter().all(Option::is_some), "{error}"),
                }
            }
            (11, Some(slot)) => {
                let freed = self.cache.free(slot).expect("there");
                self.naive[slot] = None;
                self.poison(freed);
                assert!(self.cache.length(slot).is_err() && self.cache.free(slot).is_err());
            }
            (12, Some(slot)) => {
                let length = self.rng.usize(0..=self.cache.length(slot).expect("there"));
                let freed = self.cache.truncate(slot, length).expect("there");
                self.poison(freed);
                let cut = length * self.row();
                self.naive[slot].as_mut().expect("there").iter_mut().for_each(|data| data.truncate(cut));
            }
            (13, Some(_)) => {
                let (pages, more) = (self.cache.pool().pages() as u32, self.rng.u32(1..4));
                let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
                self.cache.grow(more as usize, &mut encoder).expect("a few more");
                self.gpu.queue().submit([encoder.finish()]);
                self.poison(pages..pages + more);
            }
            (_, Some(_)) => {}
        }
    }

    /// Some tokens for some slots, and attention of all slots to what they have then.
    fn extend(&mut self) {
        let seq_len = [1, 1, 3, 9][self.rng.usize(..4)];
        let tokens: Vec<usize> = self
            .naive
            .iter()
            .map(|data| if data.is_some() { [0, seq_len, self.rng.usize(0..=seq_len)][self.rng.usize(..3)] } else { 0 })
            .collect();
        let (slots, row) = (tokens.len(), self.row());
        let free = self.cache.pool().free_pages();
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        if let Err(error) = self.cache.extend(&tokens, 1, &mut encoder) {
            assert!(matches!(error, Error::Limit { .. }), "{error}");
            assert_eq!(self.cache.pool().free_pages(), free);
            return;
        }
        let heads = 2 * self.cache.shape().num_kv_heads;
        let problem = self.cache.problem(slots, heads, seq_len).causal(Alignment::BottomRight);
        let stack = Stack::new(self.gpu, &self.cache, problem, None, None);
        let layer = &stack.layers[0];
        let data = [&layer.query, &layer.key, &layer.value].map(|buffer| {
            let data: Vec<f32> = (0..buffer.size() / 4).map(|_| self.rng.f32() * 4.0 - 2.0).collect();
            self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&data));
            data
        });
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            stack.record(&self.cache, &mut pass);
        }
        self.gpu.queue().submit([encoder.finish()]);
        let output = read(self.gpu.device(), self.gpu.queue(), &layer.output);
        for (slot, naive) in self.naive.iter_mut().enumerate().filter_map(|(slot, naive)| naive.as_mut().map(|naive| (slot, naive))) {
            for (naive, new) in naive.iter_mut().zip(&data[1..]) {
                let new = &new[slot * seq_len * row..][(seq_len - tokens[slot]) * row..seq_len * row];
                naive.extend(HostVec::from_f32(self.cache.shape().dtype, new).to_f32());
            }
            let length = naive[0].len() / row;
            assert_eq!(length, self.cache.length(slot).expect("there"));
            let mut dense = Problem::new(Dims { batch: 1, seq_len_kv: length, ..problem.dims }).causal(Alignment::BottomRight);
            (dense.key.layout, dense.value.layout) = (Layout::Bshd, Layout::Bshd);
            let item = heads * seq_len * 32;
            let inputs = Inputs::new(&data[0][slot * item..][..item], &naive[0], &naive[1]);
            let expected = Expected::of(&dense, &inputs).expect("valid").output;
            agree(&format!("slot {slot} of {tokens:?}"), &output[slot * item..][..item], &expected);
        }
    }
}

#[test]
fn random_schedules() {
    for gpu in gpus() {
        for seed in 0..10 {
            let mut game = Game::new(&gpu, seed);
            (0..40).for_each(|_| game.step());
            for slot in 0..game.naive.len() {
                assert_eq!(game.cache.free(slot).is_ok(), game.naive[slot].is_some());
            }
            assert_eq!(game.cache.pool().free_pages(), game.cache.pool().pages(), "game {seed} lost pages");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for gpu in gpus() {
        let shape = CacheShape { page_size: 4, num_kv_heads: 2, head_dim: 32, head_dim_v: 32, dtype: DType::F16, layout: Layout::Bshd };
        let size = CacheSize { layers: 1, slots: 2, pages_per_slot: 3, pages: 4 };
        let refused = |shape: CacheShape, size: CacheSize| DeviceCache::new(&gpu, shape, size).err().expect("refused");
        assert!(matches!(refused(CacheShape { head_dim: 33, ..shape }, size), Error::Unsupported { .. }));
        assert!(matches!(refused(CacheShape { head_dim: 16, dtype: DType::Q8, ..shape }, size), Error::Invalid { .. }));
        assert!(matches!(refused(CacheShape { page_size: 0, ..shape }, size), Error::Invalid { .. }));
        assert!(matches!(refused(shape, CacheSize { slots: 0, ..size }), Error::Invalid { .. }));
        assert!(matches!(refused(shape, CacheSize { pages: usize::MAX / 2, ..size }), Error::Limit { .. } | Error::Invalid { .. }));
        let mut cache = DeviceCache::new(&gpu, shape, size).expect("a cache");
        let slot = cache.start().expect("a slot");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert!(cache.extend(&[1], 1, &mut encoder).is_err() && cache.extend(&[0, 1], 1, &mut encoder).is_err());
        cache.extend(&[8, 0], 1, &mut encoder).expect("room");
        let other = cache.fork(slot, 6).expect("a slot");
        // Two pages are left; the fork needs a copy of one and another one, the first sequence one: one too many.
        assert!(matches!(cache.extend(&[1, 3], 1, &mut encoder), Err(Error::Limit { limit: "pages of the pool", .. })));
        assert_eq!((cache.length(slot), cache.length(other), cache.pool().free_pages()), (Ok(8), Ok(6), 2));
        assert!(cache.fork(slot, 1).is_err(), "no slot is left");
        assert!(cache.truncate(slot, 9).is_err() && cache.free(7).is_err());
        let problem = cache.problem(2, 4, 1);
        assert!(cache.attention(&problem, 1, Algorithm::Auto).is_err(), "past the last slot");
        let mut wrong = problem;
        wrong.key.dtype = DType::F32;
        assert!(cache.attention(&wrong, 0, Algorithm::Auto).is_err());
        let [new, too_short] = [2 * 2 * 32, 32].map(|len| empty(gpu.device(), len));
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let tokens = |key: &wgpu::Buffer, spec: TensorSpec| {
            let key = key.as_entire_buffer_binding();
            let new = NewTokens { key: key.clone(), key_spec: spec, value: key, value_spec: spec, rotary: None, query: None };
            cache.append(0, 0..2, 1, &new).map(|_| ())
        };
        assert_eq!(tokens(&new, spec), Ok(()));
        assert!(tokens(&too_short, spec).is_err() && tokens(&new, TensorSpec::new(DType::Q8, Layout::Bshd)).is_err());
        let new = NewTokens {
            key: new.as_entire_buffer_binding(),
            key_spec: spec,
            value: new.as_entire_buffer_binding(),
            value_spec: spec,
            rotary: None,
            query: None,
        };
        assert!(cache.append(1, 0..2, 1, &new).is_err() && cache.append(0, 1..3, 1, &new).is_err());
        let short = Rotary::new(Pairing::HalfSplit, 10000.0, 32, 11).expect("valid");
        let short = DeviceRotary::new(&gpu, &short).expect("uploaded");
        assert!(cache.append(0, 0..2, 1, &NewTokens { rotary: Some(&short), ..new }).is_err(), "positions without angles");
    }
}
