//! DeepSeek V3: latent attention, its latent expanded to keys and values of different widths. Heads are
//! [rotary, other], not [other, rotary] as in the checkpoint: scores are the same, and a rotary embedding begins a head.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::rotary::{Pairing, Rotary, Scaling};
use wgpu_attention::{Alignment, Problem, Result};

use super::cache::{Attention, Cache, Place};
use super::file::{LayerFile, rms_norm};

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let num_heads: usize = file.get("num_attention_heads")?;
    let (nope, rope, dim_v): (usize, usize, usize) =
        (file.get("qk_nope_head_dim")?, file.get("qk_rope_head_dim")?, file.get("v_head_dim")?);
    let linear = |part: &str| file.weights.linear(&file.name(part));
    let (w_q_a, w_q_b, w_kv_a, w_kv_b) = (linear("q_a_proj")?, linear("q_b_proj")?, linear("kv_a_proj_with_mqa")?, linear("kv_b_proj")?);
    let (w_o, eps) = (linear("o_proj")?, file.get("rms_norm_eps")?);
    let (norm_q, norm_kv) = (file.vector("q_a_layernorm.weight")?, file.vector("kv_a_layernorm.weight")?);
    let factor: f32 = file.get("factor")?;
    let mscale = |key: &str| Ok(0.1 * file.get::<f32>(key)? * factor.ln() + 1.0);
    let scaling = Scaling::Yarn {
        factor,
        beta_fast: file.get("beta_fast")?,
        beta_slow: file.get("beta_slow")?,
        original_positions: file.get("original_max_position_embeddings")?,
        attention_factor: Some(mscale("mscale")? / mscale("mscale_all_dim")?),
        truncate: true,
    };
    let scale = mscale("mscale_all_dim")?.powi(2) / ((nope + rope) as f32).sqrt();
    let pages = file.tokens().div_ceil(4);
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_heads, rope + nope).head_dim_v(dim_v)).page_size(4).pages(pages),
        num_heads,
        norm: None,
        rotary: Some(Rotary::scaled(Pairing::Interleaved, file.get("rope_theta")?, rope, 4 * pages, scaling)?),
        sinks: vec![],
        options: &|problem| Problem { scale: Some(scale), ..problem.aligned(Alignment::BottomRight).causal() },
    };
    let mut cache = Cache::new(place, attention)?;
    let mut output = Vec::new();
    for hidden in file.steps()? {
        let mut latent = w_q_a.forward(hidden)?;
        rms_norm(&mut latent, &norm_q, eps);
        let query = w_q_b.forward(&latent)?.chunks(nope + rope).flat_map(|head| [&head[nope..], &head[..nope]].concat()).collect();
        let [mut key, mut value] = [vec![], vec![]];
        for row in w_kv_a.forward(hidden)?.chunks_mut(norm_kv.len() + rope) {
            let (latent, rotated) = row.split_at_mut(norm_kv.len());
            rms_norm(latent, &norm_kv, eps);
            for head in w_kv_b.forward(latent)?.chunks(nope + dim_v) {
                key.extend([&*rotated, &head[..nope]].concat());
                value.extend(&head[nope..]);
            }
        }
        output.extend(w_o.forward(&cache.step([query, key, value])?)?);
    }
    Ok(output)
}
