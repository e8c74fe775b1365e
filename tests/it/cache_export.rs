//! Caches kept by other hosts: bookkeeping as plain data, and exported steps run by plain wgpu.

use crate::common::STORAGE;
use crate::common::buffers::{draw, read};
use crate::common::heads::norms;
use crate::common::plan_host::{BoundPlan, PlanHost};
use crate::common::stack::{Stack, gpus};
use wgpu_attention::cache::{
    AppendSpec, CachePlan, CacheShape, CacheSize, Growth, KeptRows, LayerShape, Ledger, Queries, RotarySpec, RotationSpec, StateWrite,
};
use wgpu_attention::gpu::{DeviceCache, DeviceNorm, DeviceRotary, Gpu};
use wgpu_attention::plan::{BufferExport, DeviceCaps, Plan, PlanExport};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary};
use wgpu_attention::verify::Expected;
use wgpu_attention::{Algorithm, Alignment, DType, Dims, Error, Hadamard, HostVec, Inputs, Layout, Problem, TensorSpec, gather, wgpu};

const SIZE: CacheSize = CacheSize { slots: 3, pages_per_slot: 4 };
const PAGE: usize = 4;
const QUERIES: Queries = Queries { num_heads: 4, seq_len: 2 };

/// Shape of a cache of two layers that differ in heads, widths and storage types.
fn shape(dtype: DType) -> CacheShape {
    let other = STORAGE[(STORAGE.iter().position(|&d| d == dtype).expect("one") + 2) % STORAGE.len()];
    let layers = vec![LayerShape::new(2, 64).head_dim_v(32).stored(dtype, dtype), LayerShape::new(1, 32).stored(other, dtype)];
    CacheShape::new(layers).page_size(PAGE).pages(10)
}

/// New tokens of all slots, [slot, token, head, dim] in f32.
fn new_tokens(rotation: Option<RotationSpec>) -> AppendSpec {
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    AppendSpec { slots: 0..SIZE.slots, seq_len: QUERIES.seq_len, key: spec, value: spec, rotation }
}

fn causal(mut problem: Problem) -> Problem {
    problem.query.layout = Layout::Bshd;
    problem.aligned(Alignment::BottomRight).causal()
}

/// One step of decoding: changes of the sequences, last tokens of which some are kept, then the tokens that are added to each
/// slot.
struct Step {
    change: fn(&mut dyn Sequences),
    keep: &'static [KeptRows<'static>],
    tokens: [usize; 3],
}

/// Sequences of a cache or of a model of it.
trait Sequences {
    fn start(&mut self);
    fn fork(&mut self, slot: usize, prefix: usize);
    fn truncate(&mut self, slot: usize, length: usize);
}

/// Six steps: two sequences, of which one is forked within a page, which is copied, and one is truncated; then some rows are kept.
const STEPS: [Step; 6] = [
    Step {
        change: |sequences| {
            sequences.start();
            sequences.start();
        },
        keep: &[],
        tokens: [2, 1, 0],
    },
    Step { change: |_| {}, keep: &[], tokens: [2, 2, 0] },
    Step { change: |_| {}, keep: &[], tokens: [2, 2, 0] },
    Step { change: |sequences| sequences.fork(0, 5), keep: &[], tokens: [1, 2, 2] },
    Step { change: |sequences| sequences.truncate(1, 2), keep: &[], tokens: [2, 2, 1] },
    Step { change: |_| {}, keep: &KEEP, tokens: [2, 2, 2] },
];

impl Step {
    /// Last tokens of which some are kept: none with a window, which has given back what the next token would see.
    fn kept(&self, shape: &CacheShape) -> &'static [KeptRows<'static>] {
        if shape.window_left.is_none() { self.keep } else { &[] }
    }
}

/// Rows before the last step: the first slot shares the page that they move to with its fork.
const KEEP: [KeptRows<'static>; 2] = [KeptRows { slot: 0, last: 6, rows: &[1, 3, 4] }, KeptRows { slot: 2, last: 4, rows: &[0, 3] }];

impl Sequences for Ledger {
    fn start(&mut self) {
        self.start().expect("a slot");
    }
    fn fork(&mut self, slot: usize, prefix: usize) {
        self.fork(slot, prefix).expect("a slot");
    }
    fn truncate(&mut self, slot: usize, length: usize) {
        self.truncate(slot, length).expect("shorter");
    }
}

impl Sequences for DeviceCache {
    fn start(&mut self) {
        self.start().expect("a slot");
    }
    fn fork(&mut self, slot: usize, prefix: usize) {
        self.fork(slot, prefix).expect("a slot");
    }
    fn truncate(&mut self, slot: usize, length: usize) {
        self.truncate(slot, length).expect("shorter");
    }
}

/// Keys and values of each token of each sequence, in one layer.
#[derive(Default)]
struct Model(Vec<Vec<[Vec<f32>; 2]>>);

impl Sequences for Model {
    fn start(&mut self) {
        self.0.push(Vec::new());
    }
    fn fork(&mut self, slot: usize, prefix: usize) {
        self.0.push(self.0[slot][..prefix].to_vec());
    }
    fn truncate(&mut self, slot: usize, length: usize) {
        self.0[slot].truncate(length);
    }
}

/// Layer that another host keeps: buffers of each bank, and plans bound to them.
struct HostLayer {
    shape: LayerShape,
    /// Query, new keys, new values.
    new: [wgpu::Buffer; 3],
    output: wgpu::Buffer,
    pools: Vec<[wgpu::Buffer; 2]>,
    append: Vec<BoundPlan>,
    attention: Vec<BoundPlan>,
    model: Model,
}

/// Cache that another host keeps: all it knows are exported plans and a ledger.
struct HostCache {
    host: PlanHost,
    plan: CachePlan,
    ledger: Ledger,
    state: wgpu::Buffer,
    advance: BoundPlan,
    layers: Vec<HostLayer>,
    rotary: Option<Rotary>,
    norms: Vec<QkNorm>,
}

impl HostCache {
    fn new(gpu: &Gpu, plan: CachePlan, (norms, rotary): Heads) -> Self {
        let mut host = PlanHost::new(gpu.device(), gpu.queue());
        let advance = plan.advance().expect("planned");
        let state = host.tensor(&advance, "cache_state");
        assert_eq!(state.size(), plan.state_bytes());
        let advance = host.bind(&advance, &[("cache_state", &state)]);
        let ledger = plan.ledger().expect("room");
        let rotated = (TensorSpec::new(DType::F32, Layout::Bshd), QUERIES.num_heads);
        let norm = !norms.is_empty();
        let rotation = RotationSpec { norm, rotary: rotary.as_ref().map(RotarySpec::from), query: Some(rotated), ..Default::default() };
        let rotation = (norm || rotary.is_some()).then_some(rotation);
        let layer = |layer| Self::layer(&mut host, &plan, &state, layer, rotation.clone(), (norms.get(layer), rotary.as_ref()));
        let layers = (0..plan.shape().layers.len()).map(layer).collect();
        Self { host, plan, ledger, state, advance, layers, rotary, norms }
    }

    fn layer(
        host: &mut PlanHost,
        plan: &CachePlan,
        state: &wgpu::Buffer,
        layer: usize,
        rotation: Option<RotationSpec>,
        (norm, rotary): (Option<&QkNorm>, Option<&Rotary>),
    ) -> HostLayer {
        let problem = causal(plan.problem(layer, 0..SIZE.slots, QUERIES).expect("a layer"));
        let attention = plan.attention(layer, &problem, 0..SIZE.slots, Algorithm::Auto).expect("planned");
        let attention: Vec<PlanExport> = attention.iter().map(|plan| plan.export().expect("standard")).collect();
        let append = plan.append(layer, &new_tokens(rotation)).expect("planned");
        // The last bank reads the last head.
        let last = attention.last().expect("a bank");
        let (query, output) = (host.tensor(last, "query"), host.tensor(last, "output"));
        let [key, value] = ["key", "value"].map(|name| host.tensor(&append[0], name));
        let norm = ("norm", norm.map(|norm| bytemuck::cast_slice(norm.words())));
        let angles = ("angles", rotary.map(|rotary| bytemuck::cast_slice(rotary.angles())));
        let fill = |(name, bytes): (_, Option<&[u8]>)| Some((name, host.filled(&append[0], name, bytes?)));
        let filled: Vec<_> = [norm, angles].into_iter().filter_map(fill).collect();
        let pools: Vec<_> = attention.iter().map(|plan| ["cache_key", "cache_value"].map(|name| host.tensor(plan, name))).collect();
        let mut bind = |plan: &PlanExport, [cache_key, cache_value]: &[wgpu::Buffer; 2]| {
            let all = [("key", &key), ("value", &value), ("query", &query), ("output", &output), ("cache_state", state)];
            let own = [("cache_key", cache_key), ("cache_value", cache_value)];
            let given: Vec<_> = all.into_iter().chain(own).chain(filled.iter().map(|(name, buffer)| (*name, buffer))).collect();
            host.bind(plan, &given)
        };
        let append = append.iter().zip(&pools).map(|(plan, pools)| bind(plan, pools)).collect();
        let attention = attention.iter().zip(&pools).map(|(plan, pools)| bind(plan, pools)).collect();
        let shape = plan.shape().layers[layer];
        HostLayer { shape, new: [query, key, value], output, pools, append, attention, model: Model::default() }
    }

    /// Runs a step with these queries, keys and values of each layer. `spoil` is written to the state last.
    fn run(&mut self, step: &Step, inputs: &[[Vec<f32>; 3]], spoil: Option<&StateWrite>) {
        (step.change)(&mut self.ledger);
        let moves = self.ledger.keep(step.kept(self.plan.shape())).expect("rows");
        let copies = self.ledger.extend(Growth { tokens: &step.tokens, steps: 1 }).expect("room");
        for StateWrite { offset, words } in self.ledger.take_writes().iter().chain(spoil) {
            self.host.queue.write_buffer(&self.state, 4 * *offset as u64, bytemuck::cast_slice(words));
        }
        let mut copied = Vec::new();
        for (number, layer) in self.layers.iter().enumerate().filter(|_| !moves.is_empty()) {
            let plan = self.plan.move_tokens(number, 16).expect("planned");
            let list = self.host.tensor(&plan, "token_moves");
            let pairs: Vec<u32> = moves.iter().flatten().map(|&slot| slot as u32).chain([0; 2]).collect();
            self.host.queue.write_buffer(&list, 0, bytemuck::cast_slice(&pairs));
            for [key, value] in &layer.pools {
                copied.push(self.host.bind(&plan, &[("token_moves", &list), ("cache_key", key), ("cache_value", value)]));
            }
        }
        for (number, layer) in self.layers.iter().enumerate().filter(|_| !copies.is_empty()) {
            let plan = self.plan.copy_pages(number, copies.len()).expect("planned");
            let pairs = self.host.tensor(&plan, "page_copies");
            self.host.queue.write_buffer(&pairs, 0, bytemuck::cast_slice(&copies));
            for [key, value] in &layer.pools {
                copied.push(self.host.bind(&plan, &[("page_copies", &pairs), ("cache_key", key), ("cache_value", value)]));
            }
        }
        for (layer, inputs) in self.layers.iter().zip(inputs) {
            for (buffer, data) in layer.new.iter().zip(inputs) {
                self.host.queue.write_buffer(buffer, 0, bytemuck::cast_slice(data));
            }
        }
        let mut encoder = self.host.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let of_layers = self.layers.iter().flat_map(|layer| layer.append.iter().chain(&layer.attention));
            copied.iter().chain([&self.advance]).chain(of_layers).for_each(|plan| plan.record_in(&mut pass));
        }
        self.host.queue.submit([encoder.finish()]);
    }

    /// Compares the outputs of a step with the oracle's for the tokens that each sequence should have.
    fn check(&mut self, step: &Step, inputs: &[[Vec<f32>; 3]]) -> Result<(), String> {
        let rows = QUERIES.seq_len;
        for (number, (layer, [query, key, value])) in self.layers.iter_mut().zip(inputs).enumerate() {
            let LayerShape { num_kv_heads, head_dim, head_dim_v, key: stored, value: stored_v, .. } = layer.shape;
            let LayerShape { key_hadamard, value_hadamard, .. } = layer.shape;
            (step.change)(&mut layer.model);
            for &KeptRows { slot, last, rows } in step.kept(self.plan.shape()) {
                let tokens = &mut layer.model.0[slot];
                let tree = tokens.split_off(tokens.len() - last);
                tokens.extend(rows.iter().map(|&row| tree[row].clone()));
            }
            let got = read(&self.host.device, &self.host.queue, &layer.output);
            for (slot, &count) in step.tokens.iter().enumerate() {
                let items = |data: &[f32], width: usize| data[slot * rows * width..][..rows * width].to_vec();
                let got = items(&got, QUERIES.num_heads * head_dim_v);
                let Some(tokens) = layer.model.0.get_mut(slot) else {
                    assert!(got.iter().all(|&x| x == 0.0), "a slot without a sequence has an output");
                    continue;
                };
                let [new, new_v] = [items(key, num_kv_heads * head_dim), items(value, num_kv_heads * head_dim_v)];
                for row in rows - count..rows {
                    let position = tokens.len();
                    let mut key = new[row * num_kv_heads * head_dim..][..num_kv_heads * head_dim].to_vec();
                    self.norms.get(number).into_iter().for_each(|norm| norm.apply_key(&mut key).expect("whole heads"));
                    if let Some(rotary) = &self.rotary {
                        key.chunks_mut(head_dim).for_each(|head| rotary.apply(head, position).expect("inside"));
                    }
                    let mut value = new_v[row * num_kv_heads * head_dim_v..][..num_kv_heads * head_dim_v].to_vec();
                    for (rows, dim, is_rotated) in [(&mut key, head_dim, key_hadamard), (&mut value, head_dim_v, value_hadamard)] {
                        Hadamard::of(dim).filter(|_| is_rotated).into_iter().for_each(|rotation| rotation.rotate(rows));
                    }
                    tokens.push([HostVec::from_f32(stored, &key).to_f32(), HostVec::from_f32(stored_v, &value).to_f32()]);
                }
                let mut query = items(query, QUERIES.num_heads * head_dim);
                self.norms.get(number).into_iter().for_each(|norm| norm.apply_query(&mut query).expect("whole heads"));
                for (row, heads) in query.chunks_mut(QUERIES.num_heads * head_dim).enumerate() {
                    let position = (tokens.len() + row).checked_sub(rows);
                    if let (Some(rotary), Some(position)) = (&self.rotary, position) {
                        heads.chunks_mut(head_dim).for_each(|head| rotary.apply(head, position).expect("inside"));
                    }
                }
                let [keys, values] = [0, 1].map(|side| tokens.iter().flat_map(|token| token[side].clone()).collect::<Vec<f32>>());
                let dims = Dims {
                    batch: 1,
                    num_heads: QUERIES.num_heads,
                    num_kv_heads,
                    seq_len_q: rows,
                    seq_len_kv: tokens.len(),
                    head_dim,
                    head_dim_v,
                };
                let problem = Problem::new(dims).stored(DType::F32, Layout::Bshd).aligned(Alignment::BottomRight).causal();
                let problem = problem.window(self.plan.shape().window_left, None).hadamard(key_hadamard, value_hadamard);
                let expected = Expected::of(&problem, &Inputs::new(&query, &keys, &values)).expect("valid").output;
                let spec = TensorSpec::default(); // The output of the cache's problem is [head, row, dim].
                let got = gather((&got).into(), &spec, [1, QUERIES.num_heads, rows, head_dim_v]);
                expected.compare(&got).map_err(|bad| format!("slot {slot}, {stored}: {bad}"))?;
            }
        }
        Ok(())
    }
}

/// Norms of the layers, or none, and a rotary embedding.
type Heads = (Vec<QkNorm>, Option<Rotary>);

/// Decodes on another host and compares with the oracle after each step. With `beside`, a [`DeviceCache`] decodes the same
/// and must compute the same bits.
fn decode(gpu: &Gpu, plan: CachePlan, (norms, rotary): Heads, beside: bool, spoil: Option<StateWrite>) -> Result<(), String> {
    let mut device = beside.then(|| {
        let cache = DeviceCache::new(gpu, plan.shape().clone(), SIZE).expect("a cache");
        let rotary = rotary.as_ref().map(|rotary| DeviceRotary::new(gpu, rotary).expect("uploaded"));
        let norms: Vec<_> = norms.iter().map(|norm| DeviceNorm::new(gpu, norm).expect("uploaded")).collect();
        let stack = Stack::new(gpu, &cache, QUERIES, causal, (&norms, rotary.as_ref()), None);
        (cache, stack)
    });
    let mut cache = HostCache::new(gpu, plan, (norms, rotary));
    for (number, step) in STEPS.iter().enumerate() {
        let mut seed = 10 * number;
        let mut drawn = |buffer: &wgpu::Buffer| {
            seed += 1;
            draw(seed, buffer.size() as usize / 4)
        };
        let inputs: Vec<[Vec<f32>; 3]> = cache.layers.iter().map(|layer| layer.new.each_ref().map(&mut drawn)).collect();
        cache.run(step, &inputs, spoil.as_ref().filter(|_| number + 1 == STEPS.len()));
        cache.check(step, &inputs).map_err(|why| format!("step {number}, {why}"))?;
        let Some((device, stack)) = &mut device else { continue };
        (step.change)(device);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        device.keep(step.kept(cache.plan.shape()), &mut encoder).expect("rows");
        device.extend(Growth { tokens: &step.tokens, steps: 1 }, &mut encoder).expect("room");
        for (layer, inputs) in stack.layers.iter().zip(&inputs) {
            for (buffer, data) in [&layer.query, &layer.key, &layer.value].into_iter().zip(inputs) {
                gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
            }
        }
        stack.record(device, &mut encoder.begin_compute_pass(&Default::default()));
        gpu.queue().submit([encoder.finish()]);
        let words = |buffer: &wgpu::Buffer| read(gpu.device(), gpu.queue(), buffer).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let state = words(&cache.state);
        assert_eq!(state, words(device.lengths())[..state.len()], "{}, step {number}: states differ", gpu.name());
        for (layer, other) in cache.layers.iter().zip(&stack.layers) {
            assert!(words(&layer.output) == words(&other.output), "{}, step {number}: outputs differ", gpu.name());
        }
    }
    Ok(())
}

#[test]
fn exported_steps_decode_as_a_device_cache_does() {
    for gpu in gpus() {
        for dtype in STORAGE {
            let plan = CachePlan::new(shape(dtype), SIZE, gpu.caps()).expect("a cache");
            decode(&gpu, plan, Heads::default(), true, None).unwrap_or_else(|why| panic!("{}, {dtype}: {why}", gpu.name()));
        }
    }
}

/// Pages are given back while a step stays bound: seven do for sequences that would have nine.
#[test]
fn exported_steps_decode_with_a_window() {
    for gpu in gpus() {
        let plan = CachePlan::new(shape(DType::F32).pages(7).window(3), SIZE, gpu.caps()).expect("a cache");
        decode(&gpu, plan, Heads::default(), true, None).unwrap_or_else(|why| panic!("{}: {why}", gpu.name()));
    }
}

#[test]
fn exported_steps_normalise_and_rotate_new_keys_and_queries() {
    for gpu in gpus() {
        for (pairing, layout) in [(Pairing::HalfSplit, Layout::Bshd), (Pairing::Interleaved, Layout::Bhsd)] {
            let shape = CacheShape::uniform(1, LayerShape::new(2, 32)).page_size(PAGE).pages(10).layout(layout);
            let plan = CachePlan::new(shape, SIZE, gpu.caps()).expect("a cache");
            let rotary = Rotary::new(pairing, 10000.0, 16, SIZE.pages_per_slot * PAGE).expect("valid");
            for norms in [vec![], norms(plan.shape())] {
                decode(&gpu, plan.clone(), (norms, Some(rotary.clone())), true, None)
                    .unwrap_or_else(|why| panic!("{}, {pairing:?}: {why}", gpu.name()));
            }
        }
    }
}

/// Rows of one layer are stored rotated, those of the other are not.
#[test]
fn exported_steps_decode_rotated_rows() {
    for gpu in gpus() {
        let mut shape = shape(DType::Q4);
        shape.layers[0] = shape.layers[0].hadamard(true, true);
        let plan = CachePlan::new(shape, SIZE, gpu.caps()).expect("a cache");
        decode(&gpu, plan, Heads::default(), true, None).unwrap_or_else(|why| panic!("{}: {why}", gpu.name()));
    }
}

/// Splits the heads of a layer over banks, each with plans and pools of its own.
#[test]
fn exported_steps_in_several_banks() {
    for gpu in gpus() {
        // A head of the first layer is 10 KiB.
        let caps = DeviceCaps { binding_bytes: 16 << 10, ..gpu.caps().clone() };
        let mut shape = shape(DType::F32);
        shape.layers[0] = shape.layers[0].hadamard(true, true);
        let plan = CachePlan::new(shape, SIZE, &caps).expect("a cache");
        assert_eq!([plan.banks(0), plan.banks(1)], [Ok(2), Ok(1)]);
        let rotary = Rotary::new(Pairing::HalfSplit, 10000.0, 32, SIZE.pages_per_slot * PAGE).expect("valid");
        let heads = (norms(plan.shape()), Some(rotary));
        decode(&gpu, plan, heads, false, None).unwrap_or_else(|why| panic!("{}: {why}", gpu.name()));
    }
}

/// Notices one wrong word of the state: a length, tokens that a step adds, room, an entry of the page table.
#[test]
fn wrong_words_of_the_state_are_noticed() {
    let table = 4 * SIZE.slots;
    for gpu in gpus() {
        for (offset, word) in [(0, 8), (SIZE.slots + 1, 1), (2 * SIZE.slots + 2, 7), (table + 1, 0), (table + 2 * SIZE.pages_per_slot, 3)] {
            let plan = CachePlan::new(shape(DType::F32), SIZE, gpu.caps()).expect("a cache");
            let spoil = StateWrite { offset, words: vec![word] };
            let noticed = decode(&gpu, plan, Heads::default(), false, Some(spoil));
            assert!(noticed.is_err_and(|why| why.starts_with("step 5")), "{}: word {offset} = {word} is not noticed", gpu.name());
        }
    }
}

/// Buffers that a plan writes, and those that it reads, by name.
fn names(plan: &PlanExport) -> [Vec<&'static str>; 2] {
    [true, false].map(|written| plan.tensors.iter().filter(|tensor| tensor.written == written).map(|tensor| tensor.name).collect())
}

/// Plans for every device that has WebGPU name their tensors, with sizes that the cache's own match.
#[test]
fn plans_describe_all_that_they_bind() {
    for dtype in STORAGE {
        let plan = CachePlan::new(shape(dtype), SIZE, &DeviceCaps::webgpu_defaults()).expect("a cache");
        let rotary = RotarySpec::from(&Rotary::new(Pairing::HalfSplit, 10000.0, 16, 16).expect("valid"));
        let query = Some((TensorSpec::new(DType::BF16, Layout::Bshd), 4));
        let problem = causal(plan.problem(0, 0..SIZE.slots, QUERIES).expect("a layer")).sinks();
        let attention = plan.attention(0, &problem, 0..SIZE.slots, Algorithm::Auto).expect("planned");
        let [attention] = &attention.iter().map(Plan::export).collect::<Result<Vec<_>, _>>().expect("standard")[..] else {
            panic!("there is one bank")
        };
        let append = |rotation| plan.append(0, &new_tokens(rotation)).expect("planned").remove(0);
        let advance = plan.advance().expect("planned");
        let copies = plan.copy_pages(0, 3).expect("planned");
        let moves = plan.move_tokens(0, 5).expect("planned");
        let plain = append(None);
        let rotated = append(Some(RotationSpec { norm: true, rotary: Some(rotary), query, ..Default::default() }));
        assert_eq!(names(&advance), [vec!["cache_state"], vec![]]);
        assert_eq!(names(&copies), [vec!["cache_key", "cache_value"], vec!["page_copies"]]);
        assert_eq!(names(&moves), [vec!["cache_key", "cache_value"], vec!["token_moves"]]);
        assert_eq!(names(&plain), [vec!["cache_key", "cache_value"], vec!["cache_state", "key", "value"]]);
        assert_eq!(names(&rotated), [vec!["cache_key", "cache_value", "query"], vec!["cache_state", "key", "value", "angles", "norm"]]);
        assert_eq!(names(attention), [vec!["output"], vec!["query", "cache_key", "cache_value", "cache_state", "tables"]]);
        let pools = plan.pool_bytes(0).expect("a layer");
        for export in [&advance, &copies, &moves, &plain, &rotated, attention] {
            let json = export.to_json();
            for tensor in &export.tensors {
                let kept = ["cache_key", "cache_value", "cache_state"].iter().position(|&name| name == tensor.name);
                if let Some(kept) = kept {
                    assert_eq!(tensor.bytes.next_multiple_of(16), [pools[0], pools[1], plan.state_bytes()][kept], "{}", export.summary);
                }
                assert!(json.contains(&format!("{{\"name\": \"{}\", \"access\"", tensor.name)));
            }
            for dispatch in &export.dispatches {
                let named = |name| export.tensors.iter().any(|tensor| tensor.name == name);
                assert!(dispatch.bindings.iter().all(|binding| !matches!(binding.buffer, BufferExport::Tensor(name) if !named(name))));
                let words = |name: &str| export.requires.limits.iter().find(|limit| limit.0 == name).expect("listed").1;
                assert!(u64::from(dispatch.grid[0]) <= words("maxComputeWorkgroupsPerDimension"));
                assert!(words("maxStorageBuffersPerShaderStage") >= dispatch.bindings.len() as u64 - 1);
            }
        }
        // Lengths and page table are in the state, so only the sinks are in the tables.
        let tables = attention.tensors.iter().find(|tensor| tensor.name == "tables").expect("listed");
        assert_eq!(tables.vectors.iter().map(|vector| (vector.name, vector.offset, vector.len)).collect::<Vec<_>>(), [("sinks", 0, 4)]);
        assert_eq!(tables.bytes, 16);
        assert!(matches!(plan.copy_pages(0, 0), Err(Error::Invalid { argument: "copies", .. })));
        assert!(matches!(plan.move_tokens(0, 0), Err(Error::Invalid { argument: "moves", .. })) && plan.move_tokens(2, 1).is_err());
        assert!(plan.copy_pages(2, 1).is_err() && plan.pool_bytes(2).is_err() && plan.append(2, &new_tokens(None)).is_err());
        let short = RotationSpec { rotary: Some(RotarySpec { positions: 15, ..rotary }), ..Default::default() };
        assert!(matches!(plan.append(0, &new_tokens(Some(short))), Err(Error::Invalid { argument: "rotary", .. })));
    }
}
