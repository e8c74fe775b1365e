//! Speculative decoding: trees of drafts are verified in one step and the accepted paths kept, on every backend. What stays
//! is compared bit by bit with plain decoding of the accepted tokens, and every row with the oracle.

use crate::common::buffers::{draw, empty, read};
use crate::common::replay::pool;
use crate::common::stack::gpus;
use crate::common::{STORAGE, cpu_and_adapters, variable};
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, KvCache, LayerShape, Queries, SequenceId, Tree};
use wgpu_attention::gpu::{
    CacheSize, DeviceCache, DeviceRotary, Dispatches, Gpu, Growth, KeptRows, NewTokens, QueryBindings, RotatedQuery, Rotation, Rows,
    Tables, TokenAngles,
};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::verify::Expected;
use wgpu_attention::{Algorithm, Alignment, DType, Dims, Engine, Error, HostVec, Inputs, Layout, Problem, TensorSpec, gather, wgpu};

const SLOTS: usize = 2;
const ROWS: usize = 9;
const HEADS: usize = 4;
const POSITIONS: usize = 80;

/// Ways to get it wrong, which must show.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    /// One row beside an accepted one is kept.
    RowBeside,
    /// Bits of the mask from the highest on.
    BitOrder,
    /// Positions by index.
    Positions,
}

/// New tokens of a slot: a tree, and their names.
struct Draft {
    tree: Tree,
    names: Vec<u64>,
}

/// Words and positions of a step, [slot, row].
struct Step<'a> {
    drafts: &'a [Draft; SLOTS],
    words: Vec<u32>,
    positions: Vec<u32>,
}

impl<'a> Step<'a> {
    fn new(drafts: &'a [Draft; SLOTS], lengths: [usize; SLOTS], mistake: Option<Mistake>) -> Self {
        let mut step = Self { drafts, words: Vec::new(), positions: Vec::new() };
        for (Draft { tree, .. }, length) in drafts.iter().zip(lengths) {
            step.words.extend(tree.words(ROWS).expect("few rows"));
            let by_index = (0..ROWS as u32).map(|row| length as u32 + row);
            let positions = tree.positions(length, ROWS).expect("few rows");
            step.positions.extend(if mistake == Some(Mistake::Positions) { by_index.collect() } else { positions });
        }
        if mistake == Some(Mistake::BitOrder) {
            step.words.iter_mut().for_each(|word| *word = word.reverse_bits() >> (32 - ROWS));
        }
        step
    }

    /// Rows of a layer's queries (side 0), keys or values, [slot, row, width]; a tree has the last rows of its slot.
    fn rows(&self, layer: usize, side: usize, width: usize) -> Vec<f32> {
        let of_slot = |draft: &Draft| {
            let mut rows = vec![0.0; (ROWS - draft.names.len()) * width];
            rows.extend(draft.names.iter().flat_map(|&name| draw(name as usize * 16 + 4 * layer + side, width)));
            rows
        };
        self.drafts.iter().flat_map(of_slot).collect()
    }
}

/// Sequences that decode.
trait Decoder {
    /// Appends the drafts. Returns rotated queries and the output of each layer, [slot, row, head, dim].
    fn step(&mut self, step: &Step<'_>) -> Vec<[Vec<f32>; 2]>;
    fn keep(&mut self, kept: &[KeptRows<'_>]);
    fn length(&self, slot: usize) -> usize;
    /// Keys and values of a slot in a layer, [head, token, dim].
    fn stored(&self, layer: usize, slot: usize) -> [Vec<f32>; 2];
}

fn look(problem: Problem) -> Problem {
    let mut problem = problem.aligned(Alignment::BottomRight).with_term(Tree::term(SLOTS, ROWS).expect("few rows"));
    (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
    problem
}

fn rotary() -> Rotary {
    Rotary::new(Pairing::HalfSplit, 100.0, 32, POSITIONS).expect("valid")
}

/// Rows of a slot out of its pages.
fn of_pages(pool: &HostVec, shape: &CacheShape, [heads, dim]: [usize; 2], pages: &[u32], length: usize) -> Vec<f32> {
    let page_size = shape.page_size;
    let spec = TensorSpec::new(pool.as_slice().dtype(), shape.layout);
    let dense = gather(pool.as_slice(), &spec, [shape.pages, heads, page_size, dim]);
    let row = |head: usize, token: usize| ((pages[token / page_size] as usize * heads + head) * page_size + token % page_size) * dim;
    (0..heads).flat_map(|head| (0..length).map(move |token| row(head, token))).flat_map(|at| dense[at..at + dim].to_vec()).collect()
}

/// Cache in host memory.
struct OnHost {
    engine: Engine,
    cache: KvCache,
    ids: [SequenceId; SLOTS],
}

impl Decoder for OnHost {
    fn step(&mut self, step: &Step<'_>) -> Vec<[Vec<f32>; 2]> {
        let growing: Vec<_> = self.ids.into_iter().zip(step.drafts).map(|(id, draft)| (id, draft.names.len())).collect();
        self.cache.extend_all(&growing).expect("room");
        let positions: Vec<usize> = step.positions.iter().map(|&position| position as usize).collect();
        let mut all = Vec::new();
        for (layer, shape) in self.cache.shape().layers.clone().iter().enumerate() {
            let (kv_heads, dim, dim_v) = (shape.num_kv_heads, shape.head_dim, shape.head_dim_v);
            let [mut query, mut key, value] = [HEADS * dim, kv_heads * dim, kv_heads * dim_v].map({
                let mut side = 0..;
                move |width| step.rows(layer, side.next().expect("endless"), width)
            });
            rotary().apply_tokens(&mut query, HEADS, dim, &positions).expect("inside");
            rotary().apply_tokens(&mut key, kv_heads, dim, &positions).expect("inside");
            for (slot, &(id, count)) in growing.iter().enumerate() {
                let last = |rows: &[f32], width: usize| rows[((slot + 1) * ROWS - count) * width..(slot + 1) * ROWS * width].to_vec();
                let (key, value) = (last(&key, kv_heads * dim), last(&value, kv_heads * dim_v));
                self.cache.append(layer, id, (&key).into(), (&value).into()).expect("room");
            }
            let table = self.cache.pool().table(&self.ids).expect("there");
            let problem = look(self.cache.problem(layer, &table, Queries { num_heads: HEADS, seq_len: ROWS }).expect("a layer"));
            let inputs = Inputs {
                kv_lengths: &table.kv_lengths,
                page_table: &table.entries,
                term_tables: &step.words,
                ..Inputs::new(&query, self.cache.key(layer).expect("a layer"), self.cache.value(layer).expect("a layer"))
            };
            let output = self.engine.attention(&problem, &inputs).expect("valid").output.to_f32();
            all.push([query, output]);
        }
        all
    }

    fn keep(&mut self, kept: &[KeptRows<'_>]) {
        for &KeptRows { slot, last, rows } in kept {
            self.cache.keep(self.ids[slot], last, rows).expect("rows of the tree");
        }
    }

    fn length(&self, slot: usize) -> usize {
        self.cache.pool().length(self.ids[slot]).expect("there")
    }

    fn stored(&self, layer: usize, slot: usize) -> [Vec<f32>; 2] {
        let shape = self.cache.shape().layers[layer];
        let pages = self.cache.pool().pages_of(self.ids[slot]).expect("there");
        let sides = [(self.cache.key(layer), shape.head_dim), (self.cache.value(layer), shape.head_dim_v)];
        sides.map(|(data, dim)| {
            let data = data.expect("a layer");
            let data = crate::common::replay::stored(data.dtype(), data.bytes());
            of_pages(&data, self.cache.shape(), [shape.num_kv_heads, dim], pages, self.length(slot))
        })
    }
}

/// Cache on a device, whose step is bound once.
struct OnDevice {
    gpu: Gpu,
    cache: DeviceCache,
    tables: wgpu::Buffer,
    positions: wgpu::Buffer,
    angles: TokenAngles,
    layers: Vec<Layer>,
}

/// Buffers of a layer, and what is recorded for it.
struct Layer {
    new: [wgpu::Buffer; 3],
    output: wgpu::Buffer,
    append: Dispatches,
    attention: Dispatches,
}

impl OnDevice {
    fn new(gpu: &Gpu, shape: CacheShape) -> Self {
        let size = CacheSize { slots: SLOTS, pages_per_slot: POSITIONS.div_ceil(shape.page_size) };
        let mut cache = DeviceCache::new(gpu, shape, size).expect("a cache");
        let (tables, positions) = (empty(gpu.device(), 4 * SLOTS * ROWS), empty(gpu.device(), SLOTS * ROWS));
        let angles = DeviceRotary::new(gpu, &rotary()).expect("uploaded");
        let angles = angles.at(gpu, SLOTS * ROWS, &positions.as_entire_buffer_binding()).expect("bound");
        let layers = (0..cache.shape().layers.len()).map(|layer| Self::layer(gpu, &cache, layer, &angles, &tables)).collect();
        (0..SLOTS).for_each(|slot| assert_eq!(cache.start(), Ok(slot)));
        Self { gpu: gpu.clone(), cache, tables, positions, angles, layers }
    }

    fn layer(gpu: &Gpu, cache: &DeviceCache, layer: usize, angles: &TokenAngles, tables: &wgpu::Buffer) -> Layer {
        let problem = look(cache.problem(layer, 0..SLOTS, Queries { num_heads: HEADS, seq_len: ROWS }).expect("a layer"));
        let d = problem.dims;
        let new = [HEADS * d.head_dim, d.num_kv_heads * d.head_dim, d.num_kv_heads * d.head_dim_v];
        let new = new.map(|width| empty(gpu.device(), SLOTS * ROWS * width));
        let output = empty(gpu.device(), SLOTS * ROWS * HEADS * d.head_dim_v);
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let rotation = Rotation {
            rotary: Some(angles.into()),
            query: Some(RotatedQuery { rows: Rows::new(&new[0], spec), num_heads: HEADS }),
            ..Default::default()
        };
        let tokens = NewTokens {
            slots: 0..SLOTS,
            seq_len: ROWS,
            key: Rows::new(&new[1], spec),
            value: Rows::new(&new[2], spec),
            rotation: Some(rotation),
        };
        let append = cache.append(layer, &tokens).expect("bound");
        let attention = cache.attention(layer, &problem, 0..SLOTS, Algorithm::Auto).expect("planned");
        let buffers = QueryBindings { tables: Some(tables.as_entire_buffer_binding()), ..QueryBindings::new(&new[0], &output) };
        let attention = attention.bind(cache, layer, &buffers).expect("bound");
        Layer { new, output, append, attention }
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&Default::default())
    }
}

impl Decoder for OnDevice {
    fn step(&mut self, step: &Step<'_>) -> Vec<[Vec<f32>; 2]> {
        let mut encoder = self.encoder();
        let tokens = step.drafts.each_ref().map(|draft| draft.names.len());
        self.cache.extend(Growth { tokens: &tokens, steps: 1 }, &mut encoder).expect("room");
        self.gpu.queue().write_buffer(&self.positions, 0, bytemuck::cast_slice(&step.positions));
        let mut problem = Problem::new(Dims { batch: SLOTS, ..Dims::self_attention(SLOTS, HEADS, ROWS, 32) });
        problem = look(problem);
        let contents = Tables::new(&problem).term_tables(&step.words).bytes().expect("valid");
        self.gpu.queue().write_buffer(&self.tables, 0, &contents);
        for (number, layer) in self.layers.iter().enumerate() {
            for (side, buffer) in layer.new.iter().enumerate() {
                let rows = step.rows(number, side, buffer.size() as usize / 4 / SLOTS / ROWS);
                self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&rows));
            }
        }
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.angles.gather().record_in(&mut pass);
            self.cache.advance().record_in(&mut pass);
            for layer in &self.layers {
                layer.append.record_in(&mut pass);
                layer.attention.record_in(&mut pass);
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        let read = |buffer| read(self.gpu.device(), self.gpu.queue(), buffer);
        self.layers.iter().map(|layer| [read(&layer.new[0]), read(&layer.output)]).collect()
    }

    fn keep(&mut self, kept: &[KeptRows<'_>]) {
        let mut encoder = self.encoder();
        self.cache.keep(kept, &mut encoder).expect("rows of the tree");
        self.gpu.queue().submit([encoder.finish()]);
    }

    fn length(&self, slot: usize) -> usize {
        self.cache.length(slot).expect("there")
    }

    fn stored(&self, layer: usize, slot: usize) -> [Vec<f32>; 2] {
        let shape = self.cache.shape().layers[layer];
        let sides = [(shape.head_dim, shape.key), (shape.head_dim_v, shape.value)];
        let pools = &self.cache.pools(layer).expect("a layer")[0];
        let (heads, pages) = (shape.num_kv_heads, self.cache.pages(slot).expect("there"));
        let of_side = |side: usize| {
            let (dim, dtype) = sides[side];
            let pool = pool(&self.gpu, &self.cache, &pools[side], heads, dim, dtype);
            of_pages(&pool, self.cache.shape(), [heads, dim], pages, self.length(slot))
        };
        [of_side(0), of_side(1)]
    }
}

/// Compares the output of a row with the oracle's on the keys of these tokens.
fn check_row(shape: &LayerShape, [query, output]: [&[f32]; 2], stored: &[Vec<f32>; 2], tokens: &[usize]) -> Result<(), String> {
    let dims = Dims {
        batch: 1,
        num_heads: HEADS,
        num_kv_heads: shape.num_kv_heads,
        seq_len_q: 1,
        seq_len_kv: tokens.len(),
        head_dim: shape.head_dim,
        head_dim_v: shape.head_dim_v,
    };
    let problem = Problem::new(dims).hadamard(shape.key_hadamard, shape.value_hadamard);
    let [key, value] = [(0, shape.head_dim), (1, shape.head_dim_v)].map(|(side, dim)| {
        let all = stored[side].len() / shape.num_kv_heads / dim;
        let rows = (0..shape.num_kv_heads).flat_map(|head| tokens.iter().map(move |token| (head * all + token) * dim));
        rows.flat_map(|at| stored[side][at..at + dim].to_vec()).collect::<Vec<f32>>()
    });
    let expected = Expected::of(&problem, &Inputs::new(query, &key, &value)).map_err(|error| error.to_string())?;
    expected.output.compare(output).map(|_| ()).map_err(|bad| bad.to_string())
}

/// Rows of a slot, [row, head, dim].
fn row(all: &[f32], slot: usize, row: usize) -> &[f32] {
    let width = all.len() / SLOTS / ROWS;
    &all[(slot * ROWS + row) * width..][..width]
}

/// Draws a tree; some are chains.
fn drawn(rng: &mut Rng) -> Tree {
    let is_chain = rng.u8(..4) == 0;
    let parent = |row: usize, rng: &mut Rng| if is_chain { row.checked_sub(1) } else { rng.usize(..=row).checked_sub(1) };
    let parents: Vec<_> = (0..rng.usize(1..=ROWS)).map(|row| parent(row, rng)).collect();
    Tree::from_parents(&parents).expect("parents come first")
}

/// Takes turns: `speculative` verifies trees and keeps accepted paths, `plain` decodes the accepted tokens one by one.
fn take_turns(seed: u64, shape: &CacheShape, [speculative, plain]: [&mut dyn Decoder; 2], mistake: Option<Mistake>) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let mut named = 0;
    for turn in 0..5 {
        let before = [0, 1].map(|slot| speculative.length(slot));
        let drafts = [(); SLOTS].map(|()| {
            let tree = drawn(&mut rng);
            let names = (named..).take(tree.parents().len()).collect();
            named += tree.parents().len() as u64;
            Draft { tree, names }
        });
        let got = speculative.step(&Step::new(&drafts, before, mistake));
        let paths = drafts.each_ref().map(|draft| draft.tree.path(rng.usize(..draft.names.len())).expect("a token"));
        for (layer, [query, output]) in got.iter().enumerate() {
            for (slot, draft) in drafts.iter().enumerate() {
                let stored = speculative.stored(layer, slot);
                for token in 0..draft.names.len() {
                    let seen = draft.tree.path(token).expect("a token").into_iter().map(|token| before[slot] + token);
                    let seen: Vec<usize> = (0..before[slot]).chain(seen).collect();
                    let at = ROWS - draft.names.len() + token;
                    let rows = [query, output].map(|all| row(all, slot, at));
                    check_row(&shape.layers[layer], rows, &stored, &seen)
                        .map_err(|why| format!("turn {turn}, layer {layer}, slot {slot}, token {token} of {:?}: {why}", draft.tree))?;
                }
            }
        }
        let mut rows = paths.clone();
        if mistake == Some(Mistake::RowBeside) {
            for (rows, draft) in rows.iter_mut().zip(&drafts) {
                let last = rows.pop().expect("a path has tokens");
                let floor = rows.last().map_or(0, |&row| row + 1);
                rows.push(if last > floor { last - 1 } else { (last + 1).min(draft.names.len() - 1) });
            }
        }
        let kept: Vec<KeptRows<'_>> = (0..SLOTS).map(|slot| KeptRows { slot, last: drafts[slot].names.len(), rows: &rows[slot] }).collect();
        speculative.keep(&kept);
        decode_plainly(shape, plain, &drafts, &paths, &got)?;
        for slot in 0..SLOTS {
            assert_eq!(speculative.length(slot), plain.length(slot), "after turn {turn}");
            for layer in 0..shape.layers.len() {
                if speculative.stored(layer, slot) != plain.stored(layer, slot) {
                    return Err(format!("turn {turn}, layer {layer}, slot {slot}: what was kept is not what plain decoding stores"));
                }
            }
        }
    }
    Ok(())
}

/// Decodes the tokens of the paths, one of each slot at a step, and compares their outputs, and those that the trees got, with
/// the oracle.
fn decode_plainly(
    shape: &CacheShape,
    plain: &mut dyn Decoder,
    drafts: &[Draft; SLOTS],
    paths: &[Vec<usize>; SLOTS],
    of_trees: &[[Vec<f32>; 2]],
) -> Result<(), String> {
    for depth in 0..paths.iter().map(Vec::len).max().unwrap_or(0) {
        let before = [0, 1].map(|slot| plain.length(slot));
        // A slot whose path has ended decodes a token that is removed again.
        let next = [0, 1].map(|slot| {
            let token = paths[slot].get(depth).map_or(0, |&token| drafts[slot].names[token]);
            Draft { tree: Tree::from_parents(&[None]).expect("a tree"), names: vec![token] }
        });
        let got = plain.step(&Step::new(&next, before, None));
        for (slot, path) in paths.iter().enumerate() {
            let Some(token) = path.get(depth) else {
                plain.keep(&[KeptRows { slot, last: 1, rows: &[] }]);
                continue;
            };
            for (layer, [query, output]) in got.iter().enumerate() {
                let (stored, seen) = (plain.stored(layer, slot), (0..=before[slot]).collect::<Vec<_>>());
                let of_tree = row(&of_trees[layer][1], slot, ROWS - drafts[slot].names.len() + token);
                for (what, output) in [("plain", row(output, slot, ROWS - 1)), ("tree", of_tree)] {
                    check_row(&shape.layers[layer], [row(query, slot, ROWS - 1), output], &stored, &seen)
                        .map_err(|why| format!("{what}, layer {layer}, slot {slot}, depth {depth}: {why}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Cache of two layers that differ in heads, widths, storage types and rotation.
fn shape(seed: usize) -> CacheShape {
    let [key, value, other] = [seed, seed + 2, seed + 3].map(|n| STORAGE[n % 5]);
    let layers = vec![
        LayerShape::new(2, 64).head_dim_v(32).stored(key, value).hadamard(seed.is_multiple_of(2), false),
        LayerShape::new(1, 32).head_dim_v(64).stored(other, key).hadamard(false, seed.is_multiple_of(3)),
    ];
    let (page_size, layout) = ([4, POSITIONS, 7, 1, 3][seed % 5], [Layout::Bhsd, Layout::Bshd][seed % 2]);
    CacheShape::new(layers).page_size(page_size).pages(SLOTS * POSITIONS.div_ceil(page_size)).layout(layout)
}

fn on_host(engine: &Engine, shape: &CacheShape) -> OnHost {
    let mut cache = KvCache::new(shape.clone()).expect("valid");
    let ids = [(); SLOTS].map(|()| cache.pool_mut().start());
    OnHost { engine: engine.clone(), cache, ids }
}

#[test]
fn accepted_paths_are_plain_decoding_on_the_host() {
    for engine in cpu_and_adapters() {
        let seeds = if engine.gpu().is_some() { 3 } else { 30 };
        for seed in 0..seeds {
            let shape = shape(seed as usize);
            let (mut one, mut other) = (on_host(&engine, &shape), on_host(&engine, &shape));
            take_turns(seed, &shape, [&mut one, &mut other], None).unwrap_or_else(|why| panic!("{}, {seed}: {why}", engine.chosen()));
        }
    }
}

#[test]
fn accepted_paths_are_plain_decoding_on_devices() {
    for gpu in gpus() {
        for seed in 0..variable("ATTENTION_TREES", 3) {
            let shape = shape(seed as usize);
            let (mut one, mut other) = (OnDevice::new(&gpu, shape.clone()), OnDevice::new(&gpu, shape.clone()));
            take_turns(seed, &shape, [&mut one, &mut other], None).unwrap_or_else(|why| panic!("{}, {seed}: {why}", gpu.name()));
        }
    }
}

#[test]
fn mistakes_are_noticed() {
    let (shape, mistakes) = (shape(0), [Mistake::RowBeside, Mistake::BitOrder, Mistake::Positions]);
    for engine in cpu_and_adapters() {
        for mistake in mistakes {
            let (mut one, mut other) = (on_host(&engine, &shape), on_host(&engine, &shape));
            let found = take_turns(1, &shape, [&mut one, &mut other], Some(mistake));
            assert!(found.is_err(), "{mistake:?} is not noticed on {}", engine.chosen());
        }
    }
    for gpu in gpus() {
        for mistake in mistakes {
            let (mut one, mut other) = (OnDevice::new(&gpu, shape.clone()), OnDevice::new(&gpu, shape.clone()));
            let found = take_turns(1, &shape, [&mut one, &mut other], Some(mistake));
            assert!(found.is_err(), "{mistake:?} is not noticed on {}", gpu.name());
        }
    }
}

#[test]
fn trees_that_are_none_are_refused() {
    let why = |parents: &[Option<usize>]| match Tree::from_parents(parents) {
        Err(Error::Invalid { argument: "parents", why }) => why,
        other => panic!("{parents:?}: {other:?}"),
    };
    assert!(why(&[]).contains("is 0"));
    assert!(why(&[None, Some(2)]).contains("but there are 2"));
    assert!(why(&[None, Some(1)]).contains("its own ancestor"));
    assert!(why(&[None, Some(3), Some(1), Some(2)]).contains("its own ancestor"));
    assert!(why(&[None, Some(2), None]).contains("comes after it"));
    // The way from token 1 ends in a circle that it is not part of.
    assert!(why(&[None, Some(2), Some(3), Some(2)]).contains("comes after it"));
    let most = vec![None; Tree::MOST];
    assert!(matches!(Tree::from_parents(&vec![None; Tree::MOST + 1]), Err(Error::Limit { limit: "tokens of a tree", .. })));
    let tree = Tree::from_parents(&most).expect("as many as possible");
    assert_eq!(tree.words(Tree::MOST).expect("fits").len(), 256 * 8);
    assert!(tree.words(255).is_err() && tree.positions(0, 255).is_err() && tree.words(257).is_err() && tree.path(256).is_err());
    assert!(tree.positions(u32::MAX as usize, 256).is_err() && tree.positions(usize::MAX, 256).is_err());
    assert!(Tree::term(0, 1).is_err() && Tree::term(1, 0).is_err() && Tree::term(1, 257).is_err());
}

/// A tree in a step of more rows sees what is before it, and a chain is plain causal attention.
#[test]
fn words_of_shorter_trees() {
    let tree = Tree::from_parents(&[None, Some(0), Some(0)]).expect("a tree");
    assert_eq!(tree.words(5), Ok(vec![0b1, 0b11, 0b111, 0b1111, 0b10111]));
    assert_eq!(tree.positions(1, 5), Ok(vec![0, 0, 1, 2, 2]));
    let chain: Vec<Option<usize>> = (0..40usize).map(|row| row.checked_sub(1)).collect();
    let words = Tree::from_parents(&chain).expect("a chain").words(40).expect("fits");
    for (row, words) in words.chunks(2).enumerate() {
        let seen = u64::from(words[0]) | u64::from(words[1]) << 32;
        assert_eq!(seen, (2u64 << row) - 1, "row {row}");
    }
}
