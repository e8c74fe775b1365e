//! Llama 3: grouped heads, and rotary embedding whose frequencies are scaled to longer texts.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::layer::Naming;
use wgpu_attention::rotary::{Pairing, Rotary, Scaling};
use wgpu_attention::{Alignment, Result};

use super::cache::{Attention, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let weights = file.weights.multi_head(&Naming::Llama { prefix: "model.".into(), layer: 0 }, num_heads, num_kv_heads)?;
    let head_dim = weights.query().out_features() / num_heads;
    let scaling = Scaling::Llama3 {
        factor: file.get("factor")?,
        low_freq_factor: file.get("low_freq_factor")?,
        high_freq_factor: file.get("high_freq_factor")?,
        original_positions: file.get("original_max_position_embeddings")?,
    };
    let pages = file.tokens().div_ceil(4);
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages),
        num_heads,
        norm: None,
        rotary: Some(Rotary::scaled(Pairing::HalfSplit, file.get("rope_theta")?, head_dim, 4 * pages, scaling)?),
        sinks: vec![],
        options: &|problem| problem.aligned(Alignment::BottomRight).causal(),
    };
    attention.layer(place, file, [weights.query(), weights.key(), weights.value(), weights.output()])
}
