//! Gemma 3: five layers with a window and angles of their own for each layer that sees everything. Heads are normalised
//! with weights around 0, `1 + w`, and the scale is not that of the head's width.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary, Scaling};
use wgpu_attention::{Alignment, Problem, Result};

use super::cache::{Attention, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let linear = |part: &str| file.weights.linear(&file.name(part));
    let (w_q, w_k, w_v, w_o) = (linear("q_proj")?, linear("k_proj")?, linear("v_proj")?, linear("o_proj")?);
    let norm = QkNorm::new(&file.vector("q_norm.weight")?, &file.vector("k_norm.weight")?, file.get("rms_norm_eps")?)?.plus_one();
    let head_dim = w_q.out_features() / num_heads;
    let pages = file.tokens().div_ceil(4);
    let mut shape = CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages);
    if file.config.contains_key("sliding_window") {
        shape = shape.window(file.get::<u32>("sliding_window")? - 1);
    }
    let scaling = Scaling::Linear { factor: file.get("factor")? };
    let scale = file.get::<f32>("query_pre_attn_scalar")?.sqrt().recip();
    let attention = Attention {
        shape,
        num_heads,
        norm: Some(norm),
        rotary: Some(Rotary::scaled(Pairing::HalfSplit, file.get("rope_theta")?, head_dim, 4 * pages, scaling)?),
        sinks: vec![],
        options: &|problem| Problem { scale: Some(scale), ..problem.aligned(Alignment::BottomRight).causal() },
    };
    attention.layer(place, file, [&w_q, &w_k, &w_v, &w_o])
}
