//! One layer of a real model (all-MiniLM-L6-v2) on its own sentence: `cargo run --release --example layer [-- BACKEND]`.
//!
//! Loads the weights by name, runs the layer, and prints which token each head attends to most from the word "dead".
#![expect(clippy::print_stdout, reason = "it prints")]

use clap::Parser;
use safetensors::SafeTensors;
use wgpu_attention::layer::{Naming, WeightFile};
use wgpu_attention::{Engine, EngineOptions, Inputs, Result};

/// Run one layer of a real model on its own sentence
#[derive(Parser)]
#[command(after_help = "Example: cargo run --release --example layer -- cpu")]
struct Args {
    /// Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name
    #[arg(value_name = "BACKEND", default_value = "auto", value_parser = open)]
    engine: Engine,
}

fn open(name: &str) -> Result<Engine> {
    Engine::new(EngineOptions { backend: name.parse()?, ..Default::default() })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Args { engine } = Args::parse();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/minilm/minilm_layer0_block.safetensors");

    // The layer: four projections with biases, twelve heads.
    let (num_heads, embed_dim) = (12, 384);
    let layer = WeightFile::open(path)?.multi_head(&Naming::Plain { prefix: "in.".into() }, num_heads, num_heads)?;

    // The input of the layer, one row per token.
    let bytes = std::fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let tokens = header.metadata().as_ref().and_then(|metadata| metadata.get("tokens")).ok_or("no tokens in the file")?;
    let tokens: Vec<&str> = tokens.split_whitespace().collect();
    let hidden = SafeTensors::deserialize(&bytes)?.tensor("in.hidden")?;
    let hidden: Vec<f32> = hidden.data().as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
    let seq_len = hidden.len() / embed_dim;

    // Self-attention over all tokens; the weights are returned too.
    println!("on {} ({})", engine.chosen(), engine.why());
    let mut problem = layer.problem(1, seq_len, seq_len);
    problem.want.weights = true;
    let outputs = layer.forward(&engine, &problem, &Inputs::new(&hidden, &hidden, &hidden))?;

    let from = tokens.iter().position(|&token| token == "dead").ok_or("no such token")?;
    let weights = outputs.weights.ok_or("weights were asked for")?;
    for (head, weights) in weights.chunks(seq_len * seq_len).enumerate() {
        let row = &weights[from * seq_len..][..seq_len];
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
        println!("head {head:2}: {} looks at {} ({:.3})", tokens[from], tokens[best], row[best]);
    }
    println!("output of {}: {:.4?} ...", tokens[from], &outputs.output[from * embed_dim..][..4]);
    Ok(())
}
