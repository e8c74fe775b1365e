//! Attention layers of examples/models on every backend, from caches on the host and on devices, against transformers.

#[allow(dead_code, reason = "its main")]
#[path = "../../examples/models/main.rs"]
mod example;

use crate::common::{cpu_and_adapters, open};
use example::{LayerFile, MODELS, Place};
use half::bf16;
use safetensors::SafeTensors;
use wgpu_attention::Backend;

#[test]
fn layers_are_those_of_transformers() {
    let engines = cpu_and_adapters().into_iter().chain([open(Backend::Oracle)]);
    for engine in engines {
        for device_cache in [false, true].into_iter().filter(|on_device| !on_device || engine.gpu().is_some()) {
            for (name, layer) in MODELS {
                let file = LayerFile::open(name).expect("a file");
                let output = layer(Place { engine: &engine, device_cache }, &file).expect("valid");
                let error = file.error(&output);
                assert!(error <= LayerFile::TOLERANCE, "{name} on {}, device cache {device_cache}: {error:e}", engine.chosen());
            }
        }
    }
}

/// Model, a value of its configuration, and a wrong one.
const WRONG_VALUES: [(&str, &str, &str); 23] = [
    ("llama3", "rope_theta", "400000.0"),
    ("llama3", "factor", "7.0"),
    ("llama3", "low_freq_factor", "1.5"),
    ("mistral", "sliding_window", "6"),
    ("mistral", "sliding_window", "8"),
    ("qwen3", "rms_norm_eps", "0.0"),
    ("gemma3_sliding", "sliding_window", "10"),
    ("gemma3_sliding", "query_pre_attn_scalar", "16"),
    ("gemma3_full", "factor", "1.0"),
    ("gemma3_full", "rope_theta", "10000.0"),
    ("gpt_oss_sliding", "sliding_window", "7"),
    ("gpt_oss_full", "factor", "1.0"),
    ("gpt_oss_full", "beta_fast", "32.0"),
    ("phi3", "partial_rotary_factor", "0.5"),
    ("phi3", "short_factor", "1.0,1.1,1.3,1.7,2.1,2.8"),
    ("bert", "lengths", "19,12"),
    ("llama4_chunked", "attention_chunk_size", "7"),
    ("llama4_chunked", "rms_norm_eps", "0.0"),
    ("llama4_nope", "attn_scale", "0.0"),
    ("llama4_nope", "floor_scale", "5"),
    ("deepseek_v3", "mscale_all_dim", "1.0"),
    ("deepseek_v3", "factor", "20.0"),
    ("deepseek_v3", "rope_theta", "20000.0"),
];

type Mistake = fn(f32) -> f32;

/// Model, part of the name of a tensor of bf16, and a mistake with its elements.
const WRONG_TENSORS: [(&str, &str, Mistake); 5] = [
    ("qwen3", "q_norm.weight", |_| 1.0),
    ("qwen3", "k_norm.weight", |_| 1.0),
    ("gemma3_full", "k_norm.weight", |weight| weight - 1.0), // 1 + w is w then
    ("gpt_oss_full", "sinks", |_| -1e30),
    ("gpt_oss_sliding", "sinks", |sink| -sink),
];

/// Reads the file of a model with the elements of a tensor changed.
fn with_tensor(name: &str, part: &str, change: Mistake) -> LayerFile {
    let path = format!("{}/examples/models/data/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(&path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let (_, tensor) = tensors.tensors().into_iter().find(|(name, _)| name.ends_with(part)).expect("a tensor");
    let (start, len) = (tensor.data().as_ptr() as usize - bytes.as_ptr() as usize, tensor.data().len());
    for element in bytes[start..start + len].chunks_exact_mut(2) {
        let wrong = change(bf16::from_le_bytes([element[0], element[1]]).to_f32());
        element.copy_from_slice(&bf16::from_f32(wrong).to_le_bytes());
    }
    LayerFile::parse(path, bytes).expect("a file")
}

/// Error of a model's layer on the CPU path. `None` if the library refuses it.
fn error_of(name: &str, file: &LayerFile) -> Option<f64> {
    let (_, layer) = MODELS.into_iter().find(|(other, _)| *other == name).expect("a model");
    let output = layer(Place { engine: &open(Backend::Cpu), device_cache: false }, file);
    output.ok().map(|output| file.error(&output))
}

#[test]
fn mistakes_are_noticed() {
    let is_large = |error: f64| error > 10.0 * LayerFile::TOLERANCE;
    for (name, key, wrong) in WRONG_VALUES {
        let mut file = LayerFile::open(name).expect("a file");
        let old = file.config.insert(key.into(), wrong.into());
        assert!(old.is_some_and(|old| old != wrong), "{name} has another {key}");
        let error = error_of(name, &file);
        assert!(error.is_some_and(is_large), "{name} with {key} = {wrong}: {error:?}");
    }
    let mut file = LayerFile::open("llama3").expect("a file");
    file.config.insert("num_key_value_heads".into(), "1".into());
    assert_eq!(error_of("llama3", &file), None, "its projections are of two key/value heads");
    for (name, part, change) in WRONG_TENSORS {
        let error = error_of(name, &with_tensor(name, part, change));
        assert!(error.is_some_and(is_large), "{name} with another {part}: {error:?}");
    }
}
