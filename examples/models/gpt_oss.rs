//! gpt-oss: a sink for each head, biases, YaRN, and a window in every other layer.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::layer::Naming;
use wgpu_attention::rotary::{Pairing, Rotary, Scaling};
use wgpu_attention::{Alignment, Result};

use super::cache::{Attention, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let naming = Naming::Llama { prefix: "model.".into(), layer: file.get("layer")? };
    let weights = file.weights.multi_head(&naming, num_heads, num_kv_heads)?;
    let head_dim = weights.query().out_features() / num_heads;
    let scaling = Scaling::Yarn {
        factor: file.get("factor")?,
        beta_fast: file.get("beta_fast")?,
        beta_slow: file.get("beta_slow")?,
        original_positions: file.get("original_max_position_embeddings")?,
        attention_factor: None,
        truncate: false,
    };
    let pages = file.tokens().div_ceil(4);
    let mut shape = CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages);
    if file.config.contains_key("sliding_window") {
        shape = shape.window(file.get::<u32>("sliding_window")? - 1);
    }
    let attention = Attention {
        shape,
        num_heads,
        norm: None,
        rotary: Some(Rotary::scaled(Pairing::HalfSplit, file.get("rope_theta")?, head_dim, 4 * pages, scaling)?),
        sinks: file.vector("sinks")?,
        options: &|problem| problem.aligned(Alignment::BottomRight).causal(),
    };
    attention.layer(place, file, [weights.query(), weights.key(), weights.value(), weights.output()])
}
