//! `cargo xtask soak`: many sequences in caches for thousands of steps, compared with a dull model.
//!
//! A random scheduler starts, forks, extends, truncates and ends sequences, or keeps some of their last tokens, in a cache
//! whose pages are nearly all in use: on the CPU a `KvCache`, on an adapter a `DeviceCache` whose step was bound once. The
//! model knows the names of each sequence's tokens; a token's rows are a function of its name. After every step, each page
//! must be free or owned, and by sequences that mean the same tokens. A refusal must change nothing. Every 50 steps, all
//! stored rows are compared bit by bit, and the new rows' attention with the oracle. Memory must not grow.

mod life;
mod on_device;
mod on_host;
mod subject;

use std::time::Instant;

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::gpu::CacheSize;
use wgpu_attention::{Backend, DType, Engine, EngineOptions, Layout};

use crate::memory::resident_bytes;
use life::Life;
use on_device::OnDevice;
use on_host::OnHost;
use subject::{Plant, Subject};

const EXAMPLES: &str = "Examples:
  cargo xtask soak
      300 steps of each cache on the CPU path and on every adapter
  cargo xtask soak --steps 10000 --backend 'llvmpipe vulkan'
      10,000 steps of each cache on an adapter

Exit code: 0 if nothing is wrong, 1 if something is, 2 if it could not run.";

/// Most bytes by which the process may grow after a quarter of the steps.
const MOST_GROWTH: u64 = 64 << 20;

const SLOTS: usize = 64;
/// Least number of tokens of the longest possible sequence.
const CAPACITY: usize = 96;

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Backend: cpu, or words of an adapter's name and wgpu backend; may be repeated [default: cpu and every adapter]
    #[arg(long, value_name = "BACKEND")]
    backend: Vec<String>,
    /// Number of steps of each cache
    #[arg(long, default_value_t = 300)]
    steps: u64,
    /// Seed of the scheduler, the page size and the layout
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object for each cache
    #[arg(long)]
    json: bool,
    /// Plant a mistake, for the tests of this program
    #[arg(long, hide = true, value_enum)]
    plant: Option<Plant>,
}

/// Runs every cache on every backend. Returns true if nothing is wrong.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    let backends = if args.backend.is_empty() { crate::fuzz::every_backend() } else { args.backend.clone() };
    let mut sound = true;
    for backend in &backends {
        let place: Backend = backend.parse().map_err(|error| format!("--backend: {error}"))?;
        let engine = Engine::new(EngineOptions { backend: place, ..Default::default() }).map_err(|error| error.to_string())?;
        for (name, shape) in shapes(args.seed) {
            let started = Instant::now();
            let mut life = life(args, &engine, shape).map_err(|error| format!("{backend}, {name}: {error}"))?;
            let wrong = soak(&mut life, args.steps).err();
            sound &= wrong.is_none();
            let (counts, seconds) = (life.counts, started.elapsed().as_secs_f64());
            if args.json {
                let line = serde_json::json!({ "backend": backend, "cache": name, "counts": counts, "wrong": wrong });
                crate::fuzz::print(&line.to_string())?;
                continue;
            }
            let verdict = wrong.map_or("nothing is wrong".into(), |why| format!("WRONG at step {}: {why}", counts.steps));
            crate::fuzz::print(&format!("{backend}, {name}, {seconds:.0} s: {verdict}\n    {counts:?}"))?;
        }
    }
    Ok(sound)
}

/// Caches that keep everything, a window, or a window and the first tokens. Layers differ in storage.
fn shapes(seed: u64) -> [(&'static str, CacheShape); 3] {
    let layers = vec![
        LayerShape::new(2, 32),
        LayerShape::new(1, 64).head_dim_v(32).stored(DType::F16, DType::Q4).hadamard(false, true),
        LayerShape::new(2, 32).stored(DType::Q8, DType::BF16).hadamard(true, false),
    ];
    let at = |n: u64| ((seed + n) % 4) as usize;
    let shape = |n: u64| {
        let page_size = [1, 16, 7, 4][at(n)];
        let layout = [Layout::Bhsd, Layout::Bshd][at(n) % 2];
        CacheShape::new(layers.clone()).page_size(page_size).layout(layout)
    };
    // Too few for all sequences at once, so that pages run out.
    let (all, windows) = (SLOTS * CAPACITY / 6, SLOTS * 6);
    let pages = |shape: CacheShape, tokens: usize| {
        let pages = tokens / shape.page_size;
        shape.pages(pages)
    };
    [
        ("all tokens", pages(shape(0), all)),
        ("a window", pages(shape(1), windows).window(20)),
        ("a window and first tokens", pages(shape(2), windows).window(13).keep_first(5)),
    ]
}

fn life(args: &Args, engine: &Engine, shape: CacheShape) -> wgpu_attention::Result<Life> {
    let pages_per_slot = CAPACITY.div_ceil(shape.page_size);
    let size = CacheSize { slots: SLOTS, pages_per_slot };
    let subject: Box<dyn Subject> = match engine.gpu() {
        Some(gpu) => Box::new(OnDevice::new(gpu.clone(), shape.clone(), size, args.plant)?),
        None => Box::new(OnHost::new(engine.clone(), shape.clone(), SLOTS, args.plant)?),
    };
    let capacity = pages_per_slot * shape.page_size;
    Ok(Life::new(args.seed, shape, SLOTS, capacity, subject))
}

/// Runs the steps. Errors: what is wrong.
fn soak(life: &mut Life, steps: u64) -> Result<(), String> {
    let mut before = None;
    for step in 0..steps {
        if step == steps / 4 {
            before = resident_bytes();
        }
        life.step()?;
    }
    let growth = resident_bytes().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
    if growth > MOST_GROWTH { Err(format!("the process has grown by {} MiB", growth >> 20)) } else { Ok(()) }
}
