//! Qwen 3: each query and key head is normalised before it is rotated.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary};
use wgpu_attention::{Alignment, Result};

use super::cache::{Attention, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let linear = |part: &str| file.weights.linear(&file.name(part));
    let (w_q, w_k, w_v, w_o) = (linear("q_proj")?, linear("k_proj")?, linear("v_proj")?, linear("o_proj")?);
    let norm = QkNorm::new(&file.vector("q_norm.weight")?, &file.vector("k_norm.weight")?, file.get("rms_norm_eps")?)?;
    let head_dim = w_q.out_features() / num_heads;
    let pages = file.tokens().div_ceil(4);
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages),
        num_heads,
        norm: Some(norm),
        rotary: Some(Rotary::new(Pairing::HalfSplit, file.get("rope_theta")?, head_dim, 4 * pages)?),
        sinks: vec![],
        options: &|problem| problem.aligned(Alignment::BottomRight).causal(),
    };
    attention.layer(place, file, [&w_q, &w_k, &w_v, &w_o])
}
