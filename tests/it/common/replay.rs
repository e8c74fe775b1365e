//! Steps of decoding on a device, recorded once, replayed, and compared with the oracle and with host arrays.

use super::buffers::{draw, empty, read};
use super::stack::Stack;
use super::{STORAGE, agree};
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, DeviceRotary, Gpu, Growth, Tables};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::verify::Expected;
use wgpu_attention::{Alignment, DType, Engine, Hadamard, HostVec, Inputs, Layout, PageTable, Problem, TableType, Term, wgpu};

pub(crate) fn bytes(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    bytemuck::cast_slice(&read(gpu.device(), gpu.queue(), buffer)).to_vec()
}

/// Reads pages of `heads` heads as host data.
pub(crate) fn pool(gpu: &Gpu, cache: &DeviceCache, buffer: &wgpu::Buffer, heads: usize, dim: usize, dtype: DType) -> HostVec {
    let len = cache.shape().pages * cache.shape().page_size * heads * dim;
    stored(dtype, &bytes(gpu, buffer)[..dtype.bytes(len)])
}

/// Data of this type from its bytes.
pub(crate) fn stored(dtype: DType, bytes: &[u8]) -> HostVec {
    match dtype {
        DType::F32 => HostVec::F32(bytemuck::pod_collect_to_vec(bytes)),
        DType::F16 => HostVec::F16(bytemuck::pod_collect_to_vec(bytes)),
        DType::BF16 => HostVec::BF16(bytemuck::pod_collect_to_vec(bytes)),
        DType::Q8 => HostVec::Q8(bytemuck::pod_collect_to_vec(bytes)),
        DType::Q4 => HostVec::Q4(bytemuck::pod_collect_to_vec(bytes)),
    }
}

/// Returns the page table of all slots, as the host keeps it.
fn table(cache: &DeviceCache, pages: &[Vec<u32>], lengths: &[usize]) -> PageTable {
    PageTable::new(cache.shape().page_size, pages.iter().map(Vec::as_slice).zip(lengths.iter().copied())).expect("a valid table")
}

/// Steps of decoding, recorded once and replayed.
pub(crate) struct Replay {
    /// Layers, each with 4 query heads.
    pub(crate) layers: Vec<LayerShape>,
    pub(crate) page_size: usize,
    pub(crate) layout: Layout,
    pub(crate) pairing: Option<Pairing>,
    pub(crate) seq_len_q: usize,
}

impl Replay {
    /// Two layers, of which the second has other heads, widths and storage types than the first, which has `dtype` for both.
    pub(crate) fn of(dtype: DType) -> Self {
        let other = STORAGE[(place(dtype) + 2) % STORAGE.len()];
        let layers =
            vec![LayerShape::new(2, 64).head_dim_v(32).stored(dtype, dtype), LayerShape::new(1, 32).head_dim_v(64).stored(dtype, other)];
        Self { layers, page_size: 4, layout: Layout::Bhsd, pairing: None, seq_len_q: 1 }
    }

    /// Runs steps in several sequences. After each, the output equals the oracle's for the device's keys and values and that
    /// of a call on host arrays; these keys and values equal the appended ones.
    pub(crate) fn run(self, gpu: &Gpu, change: impl Fn(&mut Problem)) {
        replay(gpu, self, change);
    }
}

fn place(dtype: DType) -> usize {
    STORAGE.iter().position(|&d| d == dtype).expect("one of them")
}

fn replay(gpu: &Gpu, Replay { layers, page_size, layout, pairing, seq_len_q }: Replay, change: impl Fn(&mut Problem)) {
    let names: Vec<String> = layers.iter().map(|layer| format!("{layer:?}")).collect();
    let capacity = 48usize;
    let pages_per_slot = capacity.div_ceil(page_size);
    let shape = CacheShape::new(layers).page_size(page_size).pages(3 * pages_per_slot).layout(layout);
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: 3, pages_per_slot }).expect("a cache");
    let rotary = pairing.map(|pairing| Rotary::new(pairing, 10000.0, 32, pages_per_slot * page_size).expect("valid"));
    let on_device = rotary.as_ref().map(|rotary| DeviceRotary::new(gpu, rotary).expect("uploaded"));
    let look = |problem: Problem| {
        let mut problem = problem.aligned(Alignment::BottomRight).causal();
        change(&mut problem);
        problem
    };
    let queries = Queries { num_heads: 4, seq_len: seq_len_q };
    let problem = look(cache.problem(0, 0..3, queries).expect("a layer"));
    let (slopes, sinks) = (draw(5, 4), draw(6, 4));
    let term_tables = &term_words(&problem)[..];
    let mut vectors = Problem { paged: None, ..problem.clone() };
    vectors.visibility.kv_lengths = false;
    let mut contents = Tables::new(&vectors).term_tables(term_tables);
    contents = if problem.alibi.is_some() { contents.alibi_slopes(&slopes) } else { contents };
    contents = if problem.sinks { contents.sinks(&sinks) } else { contents };
    let contents = contents.bytes().expect("valid");
    let tables = (!contents.is_empty()).then(|| {
        let buffer = empty(gpu.device(), contents.len() / 4);
        gpu.queue().write_buffer(&buffer, 0, &contents);
        buffer
    });
    let stack = Stack::new(gpu, &cache, queries, look, (&[], on_device.as_ref()), tables.as_ref());
    assert_eq!((cache.start(), cache.start(), cache.start()), (Ok(0), Ok(1), Ok(2)));
    let mut rng = Rng::with_seed(9);
    let engine = Engine::on_gpu(gpu.clone());
    for step in 0..6 {
        // The second slot joins late; the third adds fewer tokens once.
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
        cache.extend(Growth { tokens: &tokens, steps: 1 }, &mut encoder).expect("room");
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
            let what = format!("{}, {}, pages of {page_size}, step {step}", gpu.name(), names[number]);
            let [keys, values] = &cache.pools(number).expect("a layer")[0];
            let shape = cache.shape().layers[number];
            let (kv_heads, head_dim, head_dim_v) = (shape.num_kv_heads, shape.head_dim, shape.head_dim_v);
            let pools =
                [pool(gpu, &cache, keys, kv_heads, head_dim, shape.key), pool(gpu, &cache, values, kv_heads, head_dim_v, shape.value)];
            let mut problem = layer.problem.clone();
            problem.paged = Some(table.paged(cache.shape().pages));
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
                term_tables,
                ..Inputs::new(&query[..], pools[0].as_slice(), pools[1].as_slice())
            };
            let Expected { output: expected, key_sums, .. } = Expected::of(&problem, &host).expect("valid");
            agree(&what, &read(gpu.device(), gpu.queue(), &layer.output), &expected);
            agree(&what, &engine.attention(&problem, &host).expect("valid").output.to_f32(), &expected);
            if let Some(expected) = key_sums {
                let all = read(gpu.device(), gpu.queue(), &layer.key_sums);
                let (known, rest): (Vec<&[f32]>, Vec<&[f32]>) =
                    all.chunks_exact(layer.problem.dims.seq_len_kv).map(|keys| keys.split_at(table.longest())).unzip();
                agree(&what, &known.concat(), &expected);
                assert!(rest.concat().iter().all(|&sum| sum == 0.0), "{what}: sums of keys that do not exist");
            }
            // The appended elements, one by one.
            let keys_of = (shape.key, &pools[0], key, head_dim, rotary.as_ref(), shape.key_hadamard);
            let values_of = (shape.value, &pools[1], value, head_dim_v, None, shape.value_hadamard);
            for (dtype, data, new, dim, rotary, is_rotated) in [keys_of, values_of] {
                // Angles may round otherwise on the device; all else has the same bits.
                let near = if rotary.is_some() { [1e-5, 1e-2, 1e-2, 2e-2, 0.3][place(dtype)] } else { 0.0 };
                for (row, new) in new.chunks(dim).enumerate() {
                    let (item, t, head) = (row / kv_heads / seq_len_q, row / kv_heads % seq_len_q, row % kv_heads);
                    if t + tokens[item] < seq_len_q {
                        continue;
                    }
                    let position = lengths[item] + t - seq_len_q;
                    let mut new = new.to_vec();
                    if let Some(rotary) = rotary {
                        rotary.apply(&mut new, position).expect("inside");
                    }
                    if is_rotated {
                        Hadamard::of(dim).expect("whole blocks").rotate(&mut new);
                    }
                    let stored = HostVec::from_f32(dtype, &new).to_f32();
                    let (page, slot) = (pages[item][position / page_size] as usize, position % page_size);
                    let in_page = if layout == Layout::Bshd { slot * kv_heads + head } else { head * page_size + slot };
                    let at = page * page_size * kv_heads + in_page;
                    for (i, &x) in stored.iter().enumerate() {
                        let got = data.as_slice().get(at * dim + i);
                        assert!((got - x).abs() <= near, "{what}: {got} instead of {x} at {position}, head {head}, {i}");
                    }
                }
            }
        }
    }
}

/// Draws the tables of a problem's users' terms.
fn term_words(problem: &Problem) -> Vec<u32> {
    let tables = problem.user_terms.iter().flat_map(Term::tables);
    let words = tables.enumerate().map(|(n, table)| match table.ty {
        TableType::F32 => draw(n, table.len).into_iter().map(f32::to_bits).collect(),
        _ => (0..table.len as u32).map(|at| (at * 7 + 1) % 5).collect::<Vec<u32>>(),
    });
    words.collect::<Vec<_>>().concat()
}
