//! A small decoder-only model with random weights writes several texts of different lengths at once, with a paged
//! cache, grouped heads and rotary embedding. Every token is compared with the one predicted without a cache.
//!
//! ```text
//! cargo run --release --example generate [BACKEND] [f32|f16|bf16|q8|q4]
//! ```
//!
//! On a GPU the cache stays on the device, and one dispatch rotates and appends new keys; on the CPU it is in host
//! memory. Projections are plain loops on the host, because the example is about attention. With f32 keys and values
//! (the default) all tokens must agree; the other storage types round, and tokens that differ are only counted.

#![expect(clippy::print_stdout, reason = "it prints")]

use std::ops::Range;

use clap::Parser;
use wgpu_attention::cache::{CacheShape, KvCache, LayerShape, Queries, SequenceId};
use wgpu_attention::gpu::{
    CacheSize, DeviceCache, DeviceRotary, Dispatches, Gpu, Growth, NewTokens, QueryBindings, RotatedQuery, Rotation, Rows,
};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{Algorithm, Alignment, Cause, DType, Dims, Engine, EngineOptions, Error, Inputs, Layout, Problem, Result, TensorSpec};

const VOCABULARY: usize = 211;
const WIDTH: usize = 64;
const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const PAGE_SIZE: usize = 8;
const LONGEST: usize = 64;
const STEPS: usize = 24;

/// Linear congruential generator of elements in -1..1.
struct Random(u64);

impl Random {
    fn matrix(&mut self, rows: usize, columns: usize, size: f32) -> Vec<f32> {
        let mut number = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
        };
        (0..rows * columns).map(|_| number()).collect()
    }
}

/// Weights of a layer, each [out, in].
struct Block {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    output: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

struct Model {
    embedding: Vec<f32>,
    blocks: Vec<Block>,
    rotary: Rotary,
}

/// Multiplies x [rows, in] by the transpose of weight [out, in].
fn project(x: &[f32], weight: &[f32], columns: usize) -> Vec<f32> {
    let depth = weight.len() / columns;
    let dot = |row: &[f32], column: &[f32]| row.iter().zip(column).map(|(x, w)| x * w).sum();
    x.chunks(depth).flat_map(|row| weight.chunks(depth).map(move |column| dot(row, column))).collect()
}

/// Divides each row of WIDTH elements by its root mean square.
fn normalise(x: &[f32]) -> Vec<f32> {
    let scale = |row: &[f32]| (row.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32 + 1e-6).sqrt().recip();
    x.chunks(WIDTH).flat_map(|row| row.iter().map(move |x| x * scale(row))).collect()
}

impl Model {
    fn new() -> Result<Self> {
        let mut random = Random(7);
        let mut weight = |out: usize, input: usize| random.matrix(out, input, (12.0 / input as f32).sqrt());
        let block = |weight: &mut dyn FnMut(usize, usize) -> Vec<f32>| Block {
            query: weight(HEADS * HEAD_DIM, WIDTH),
            key: weight(KV_HEADS * HEAD_DIM, WIDTH),
            value: weight(KV_HEADS * HEAD_DIM, WIDTH),
            output: weight(WIDTH, HEADS * HEAD_DIM),
            up: weight(2 * WIDTH, WIDTH),
            down: weight(WIDTH, 2 * WIDTH),
        };
        Ok(Self {
            embedding: weight(VOCABULARY, WIDTH),
            blocks: (0..LAYERS).map(|_| block(&mut weight)).collect(),
            rotary: Rotary::new(Pairing::HalfSplit, 10000.0, HEAD_DIM, LONGEST)?,
        })
    }

    /// Predicts a token after each of `tokens`. `attend` takes layer, queries [tokens, HEADS, HEAD_DIM], keys, values.
    fn next(
        &self,
        tokens: &[usize],
        mut attend: impl FnMut(usize, Vec<f32>, Vec<f32>, Vec<f32>) -> Result<Vec<f32>>,
    ) -> Result<Vec<usize>> {
        let mut x: Vec<f32> = tokens.iter().flat_map(|&token| &self.embedding[token * WIDTH..][..WIDTH]).copied().collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            let normal = normalise(&x);
            let query = project(&normal, &block.query, HEADS * HEAD_DIM);
            let key = project(&normal, &block.key, KV_HEADS * HEAD_DIM);
            let value = project(&normal, &block.value, KV_HEADS * HEAD_DIM);
            let attended = attend(layer, query, key, value)?;
            x.iter_mut().zip(project(&attended, &block.output, WIDTH)).for_each(|(x, more)| *x += more);
            let inner: Vec<f32> = project(&normalise(&x), &block.up, 2 * WIDTH).into_iter().map(|x| x.max(0.0)).collect();
            x.iter_mut().zip(project(&inner, &block.down, WIDTH)).for_each(|(x, more)| *x += more);
        }
        let logits = project(&normalise(&x), &self.embedding, VOCABULARY);
        let best = |row: &[f32]| (0..VOCABULARY).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
        Ok(logits.chunks(VOCABULARY).map(best).collect())
    }

    /// Predicts the next token of a text, read from the start, without a cache.
    fn next_from_the_start(&self, engine: &Engine, text: &[usize]) -> Result<usize> {
        let dims = Dims { num_kv_heads: KV_HEADS, ..Dims::self_attention(1, HEADS, text.len(), HEAD_DIM) };
        let problem = Problem::new(dims).aligned(Alignment::TopLeft).causal().stored(DType::F32, Layout::Bshd);
        let positions: Vec<usize> = (0..text.len()).collect();
        let all = self.next(text, |_, mut query, mut key, value| {
            self.rotary.apply_tokens(&mut query, HEADS, HEAD_DIM, &positions)?;
            self.rotary.apply_tokens(&mut key, KV_HEADS, HEAD_DIM, &positions)?;
            Ok(engine.attention(&problem, &Inputs::new(&query, &key, &value))?.output.into_f32())
        })?;
        Ok(all[text.len() - 1])
    }
}

/// Cache of a model, in host memory or on a device.
enum Cache<'a> {
    Host { engine: &'a Engine, cache: KvCache, ids: Vec<SequenceId> },
    Device { gpu: &'a Gpu, cache: Box<DeviceCache>, rotary: DeviceRotary, bound: Vec<BoundLayer> },
}

/// Layer bound for a range of texts and a number of new tokens; used again for every step of this kind.
struct BoundLayer {
    layer: usize,
    texts: Range<usize>,
    seq_len: usize,
    query: wgpu::Buffer,
    key: wgpu::Buffer,
    value: wgpu::Buffer,
    output: wgpu::Buffer,
    append: Dispatches,
    attention: Dispatches,
}

impl BoundLayer {
    fn new(gpu: &Gpu, cache: &DeviceCache, rotary: &DeviceRotary, layer: usize, texts: Range<usize>, seq_len: usize) -> Result<Self> {
        let queries = Queries { num_heads: HEADS, seq_len };
        let mut problem = cache.problem(layer, texts.clone(), queries)?.aligned(Alignment::BottomRight).causal();
        (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
        let tokens = texts.len() * seq_len;
        let [query, output] = [(); 2].map(|()| empty(gpu, tokens * HEADS * HEAD_DIM));
        let [key, value] = [(); 2].map(|()| empty(gpu, tokens * KV_HEADS * HEAD_DIM));
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let rotated = RotatedQuery { rows: Rows::new(&query, problem.query), num_heads: HEADS };
        let new = NewTokens {
            slots: texts.clone(),
            seq_len,
            key: Rows::new(&key, spec),
            value: Rows::new(&value, spec),
            rotation: Some(Rotation { rotary: Some(rotary.into()), query: Some(rotated), ..Default::default() }),
        };
        let append = cache.append(layer, &new)?;
        let attention = cache.attention(layer, &problem, texts.clone(), Algorithm::Auto)?;
        let attention = attention.bind(cache, layer, &QueryBindings::new(&query, &output))?;
        Ok(Self { layer, texts, seq_len, query, key, value, output, append, attention })
    }

    fn run(&self, gpu: &Gpu, data: [&[f32]; 3]) -> Result<Vec<f32>> {
        for (buffer, data) in [&self.query, &self.key, &self.value].into_iter().zip(data) {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
        }
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.append.record_in(&mut pass);
            self.attention.record_in(&mut pass);
        }
        read(gpu, encoder, &self.output)
    }
}

impl<'a> Cache<'a> {
    fn new(engine: &'a Engine, model: &Model, texts: usize, dtype: DType) -> Result<Self> {
        let pages_per_slot = LONGEST / PAGE_SIZE;
        let layer = LayerShape::new(KV_HEADS, HEAD_DIM).stored(dtype, dtype);
        let shape = CacheShape::uniform(LAYERS, layer).page_size(PAGE_SIZE).pages(texts * pages_per_slot);
        let Some(gpu) = engine.gpu() else {
            let mut cache = KvCache::new(shape)?;
            let ids = (0..texts).map(|_| cache.pool_mut().start()).collect();
            return Ok(Self::Host { engine, cache, ids });
        };
        let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: texts, pages_per_slot })?;
        for _ in 0..texts {
            cache.start()?;
        }
        println!("cache: {} KiB on the device", cache.bytes() >> 10);
        Ok(Self::Device { gpu, cache: Box::new(cache), rotary: DeviceRotary::new(gpu, &model.rotary)?, bound: Vec::new() })
    }

    /// Appends new tokens, equally many to each text, and predicts the token after them.
    fn next(&mut self, model: &Model, texts: Range<usize>, tokens: &[usize]) -> Result<Vec<usize>> {
        let seq_len = tokens.len() / texts.len();
        match self {
            Self::Host { cache, ids, .. } => ids[texts.clone()].iter().try_for_each(|&id| cache.extend(id, seq_len))?,
            Self::Device { gpu, cache, .. } => {
                let new: Vec<usize> = (0..cache.size().slots).map(|slot| if texts.contains(&slot) { seq_len } else { 0 }).collect();
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                cache.extend(Growth { tokens: &new, steps: 1 }, &mut encoder)?;
                cache.advance().record(&mut encoder);
                gpu.queue().submit([encoder.finish()]);
            }
        }
        let all = model.next(tokens, |layer, query, key, value| self.attend(model, layer, texts.clone(), [query, key, value]))?;
        Ok(all.into_iter().skip(seq_len - 1).step_by(seq_len).collect())
    }

    /// Computes attention of new queries to the whole cache, new keys and values included.
    fn attend(&mut self, model: &Model, layer: usize, texts: Range<usize>, [mut query, mut key, value]: [Vec<f32>; 3]) -> Result<Vec<f32>> {
        let seq_len = query.len() / texts.len() / HEADS / HEAD_DIM;
        match self {
            Self::Host { engine, cache, ids } => {
                let ids = &ids[texts.clone()];
                let mut positions = Vec::new();
                for id in ids {
                    let length = cache.pool().length(*id)?;
                    positions.extend(length - seq_len..length);
                }
                model.rotary.apply_tokens(&mut query, HEADS, HEAD_DIM, &positions)?;
                model.rotary.apply_tokens(&mut key, KV_HEADS, HEAD_DIM, &positions)?;
                let item = seq_len * KV_HEADS * HEAD_DIM;
                for ((id, key), value) in ids.iter().zip(key.chunks(item)).zip(value.chunks(item)) {
                    cache.append(layer, *id, key.into(), value.into())?;
                }
                let table = cache.pool().table(ids)?;
                let queries = Queries { num_heads: HEADS, seq_len };
                let mut problem = cache.problem(layer, &table, queries)?.aligned(Alignment::BottomRight).causal();
                (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
                let (key, value) = (cache.key(layer)?, cache.value(layer)?);
                let inputs = Inputs { kv_lengths: &table.kv_lengths, page_table: &table.entries, ..Inputs::new(&query, key, value) };
                Ok(engine.attention(&problem, &inputs)?.output.into_f32())
            }
            Self::Device { gpu, cache, rotary, bound } => {
                let known = |bound: &BoundLayer| (bound.layer, &bound.texts, bound.seq_len) == (layer, &texts, seq_len);
                let at = bound.iter().position(known).unwrap_or(bound.len());
                if at == bound.len() {
                    bound.push(BoundLayer::new(gpu, cache, rotary, layer, texts, seq_len)?);
                }
                bound[at].run(gpu, [&query, &key, &value])
            }
        }
    }
}

fn empty(gpu: &Gpu, len: usize) -> wgpu::Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 4 * len as u64, usage, mapped_at_creation: false })
}

fn read(gpu: &Gpu, mut encoder: wgpu::CommandEncoder, buffer: &wgpu::Buffer) -> Result<Vec<f32>> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let staging =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: buffer.size(), usage, mapped_at_creation: false });
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| {});
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).map_err(|error| Error::Device { why: Cause::new(error) })?;
    let view = staging.get_mapped_range(..).map_err(|error| Error::Device { why: Cause::new(error) })?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}

/// Writes the texts. Returns the number of tokens that agree with the prediction from the start, and the total.
pub(crate) fn write(engine: &Engine, dtype: DType) -> Result<(usize, usize)> {
    println!("on {}: {}", engine.chosen(), engine.why());
    let model = Model::new()?;
    let mut texts: Vec<Vec<usize>> = [1, 5, 17].map(|length| (0..length).map(|i| (i * 37 + length) % VOCABULARY).collect()).into();
    let mut cache = Cache::new(engine, &model, texts.len(), dtype)?;
    // Prompts one by one, then one token of every text per step.
    let mut next = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        next.extend(cache.next(&model, number..number + 1, text)?);
    }
    let (mut same, mut all) = (0, 0);
    for _ in 0..STEPS {
        for (text, &token) in texts.iter_mut().zip(&next) {
            same += usize::from(token == model.next_from_the_start(engine, text)?);
            all += 1;
            text.push(token);
        }
        next = cache.next(&model, 0..texts.len(), &next)?;
    }
    for text in &texts {
        println!("{text:?}");
    }
    println!("{same} of {all} tokens are those that the model predicts from the start, {dtype} keys and values");
    Ok((same, all))
}

/// Write several texts at once from a cache, compared with the predictions of the model without one
#[derive(Parser)]
#[command(after_help = "Example: cargo run --release --example generate -- cpu q8")]
struct Args {
    /// Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name
    #[arg(value_name = "BACKEND", default_value = "auto", value_parser = open)]
    engine: Engine,
    /// Storage type of keys and values: f32, f16, bf16, q8 or q4
    #[arg(default_value = "f32")]
    dtype: DType,
}

fn open(name: &str) -> Result<Engine> {
    Engine::new(EngineOptions { backend: name.parse()?, ..Default::default() })
}

fn main() -> Result<()> {
    let Args { engine, dtype } = Args::parse();
    let (same, all) = write(&engine, dtype)?;
    assert!(dtype != DType::F32 || same == all, "the cache changed the prediction");
    Ok(())
}
