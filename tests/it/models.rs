//! Attention layers of examples/models on every backend, from caches on the host and on devices, against transformers.

#[allow(dead_code, reason = "its main")]
#[path = "../../examples/models/main.rs"]
mod example;

use crate::common::{cpu_and_adapters, open};
use example::{Layer, LayerFile, MODELS, Place};
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
const WRONG_VALUES: [(&str, &str, &str); 24] = [
    ("llama3", "rope_theta", "400000.0"),
    ("llama3", "factor", "7.0"),
    ("llama3", "low_freq_factor", "1.5"),
    ("llama3", "num_key_value_heads", "1"),
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

/// Error of a layer on the CPU path for the file of a model, once `change` has broken it; infinite if it is refused.
fn error_of(name: &str, layer: Layer, change: impl FnOnce(&mut LayerFile)) -> f64 {
    let mut file = LayerFile::open(name).expect("a file");
    change(&mut file);
    let engine = open(Backend::Cpu);
    layer(Place { engine: &engine, device_cache: false }, &file).map_or(f64::INFINITY, |output| file.error(&output))
}

fn layer_of(name: &str) -> Layer {
    MODELS.into_iter().find(|(other, _)| *other == name).expect("a model").1
}

#[test]
fn mistakes_are_noticed() {
    for (name, key, wrong) in WRONG_VALUES {
        let change = |file: &mut LayerFile| {
            let old = file.config.insert(key.into(), wrong.into());
            assert!(old.is_some_and(|old| old != wrong), "{name} has another {key}");
        };
        let error = error_of(name, layer_of(name), change);
        assert!(error > 10.0 * LayerFile::TOLERANCE, "{name} with {key} = {wrong}: {error:e}");
    }
    // Parts of a layer that another model does not have.
    let wide = |file: &mut LayerFile| drop(file.config.insert("sliding_window".into(), "1000".into()));
    for (part, name, other) in [("norm", "qwen3", "mistral"), ("1 + w", "gemma3_full", "qwen3"), ("sinks", "gpt_oss_full", "mistral")] {
        let error = error_of(name, layer_of(other), wide);
        assert!(error > 10.0 * LayerFile::TOLERANCE, "{name} without {part}: {error:e}");
    }
}
