//! Mistral: a sliding window. The cache gives back the pages before it.

use wgpu_attention::Result;
use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::layer::Naming;
use wgpu_attention::rotary::{Pairing, Rotary};

use super::cache::{Attention, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let weights = file.weights.multi_head(&Naming::Llama { prefix: "model.".into(), layer: 0 }, num_heads, num_kv_heads)?;
    let head_dim = weights.query().out_features() / num_heads;
    let pages = file.tokens().div_ceil(4);
    // A window of 7 is a token and the 6 before it.
    let window_left = file.get::<u32>("sliding_window")? - 1;
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages).window(window_left),
        num_heads,
        norm: None,
        rotary: Some(Rotary::new(Pairing::HalfSplit, file.get("rope_theta")?, head_dim, 4 * pages)?),
        sinks: vec![],
        options: &|problem| problem.causal(), // the window is the cache's
    };
    attention.layer(place, file, [weights.query(), weights.key(), weights.value(), weights.output()])
}
