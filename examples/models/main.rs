//! Attention layers of today's models, each on the public API in a file of its own, held against Hugging Face's
//! transformers: `cargo run --release --example models [-- BACKEND [MODEL]]`.
//!
//! The files of `data/` have the weights of tiny random models, hidden states of a prompt and of eight more tokens, and
//! what transformers' own attention returns for them in float64; `make.py` makes them. Each layer runs from a cache: the
//! prompt at once, then token by token. On a GPU the cache is on the device.
#![expect(clippy::print_stdout, reason = "it prints")]

mod bert;
mod cache;
mod deepseek_v3;
mod file;
mod gemma3;
mod gpt_oss;
mod llama3;
mod llama4;
mod mistral;
mod phi3;
mod qwen3;

use clap::Parser;
use wgpu_attention::{Engine, EngineOptions, Result};

pub(crate) use cache::Place;
pub(crate) use file::LayerFile;

/// Computes the output of a layer for the hidden states of a file.
pub(crate) type Layer = fn(Place<'_>, &LayerFile) -> Result<Vec<f32>>;

/// Name of each file in `data/`, and its layer.
pub(crate) const MODELS: [(&str, Layer); 13] = [
    ("llama3", llama3::layer),
    ("mistral", mistral::layer),
    ("qwen3", qwen3::layer),
    ("gemma3_sliding", gemma3::layer),
    ("gemma3_full", gemma3::layer),
    ("gpt_oss_sliding", gpt_oss::layer),
    ("gpt_oss_full", gpt_oss::layer),
    ("phi3", phi3::layer),
    ("bert", bert::encoder),
    ("bert_decoder", bert::decoder),
    ("llama4_chunked", llama4::chunked),
    ("llama4_nope", llama4::nope),
    ("deepseek_v3", deepseek_v3::layer),
];

/// Run the attention layers of today's models and compare them with transformers
#[derive(Parser)]
#[command(after_help = "Example: cargo run --release --example models -- cpu gemma3")]
struct Args {
    /// Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name
    #[arg(value_name = "BACKEND", default_value = "auto", value_parser = open)]
    engine: Engine,
    /// Part of the names of the layers to run
    #[arg(value_name = "MODEL", default_value = "")]
    filter: String,
}

fn open(name: &str) -> Result<Engine> {
    Engine::new(EngineOptions { backend: name.parse()?, ..Default::default() })
}

fn main() -> Result<()> {
    let Args { engine, filter } = Args::parse();
    println!("on {} ({})", engine.chosen(), engine.why());
    let place = Place { engine: &engine, device_cache: engine.gpu().is_some() };
    for (name, layer) in MODELS.into_iter().filter(|(name, _)| name.contains(&filter)) {
        let file = LayerFile::open(name)?;
        let error = file.error(&layer(place, &file)?);
        println!("{name:16} largest error {error:.1e} of the largest output; {:.1e} are allowed", LayerFile::TOLERANCE);
        assert!(error <= LayerFile::TOLERANCE, "{name} is not what transformers computes");
    }
    Ok(())
}
