//! Phi 3: one projection for query, key and value; rotary embedding of a part of each head, with LongRoPE's factors.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::rotary::{Pairing, Rotary};
use wgpu_attention::{Alignment, Result};

use super::cache::{Attention, Cache, Place};
use super::file::LayerFile;

pub(crate) fn layer(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let head_dim: usize = file.get("head_dim")?;
    let (w_qkv, w_o) = (file.weights.linear(&file.name("qkv_proj"))?, file.weights.linear(&file.name("o_proj"))?);
    let pages = file.tokens().div_ceil(4);
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages),
        num_heads,
        norm: None,
        rotary: Some(long_rope(file, head_dim, 4 * pages)?),
        sinks: vec![],
        options: &|problem| problem.aligned(Alignment::BottomRight).causal(),
    };
    let mut cache = Cache::new(place, attention)?;
    let mut output = Vec::new();
    let (of_query, of_key) = (num_heads * head_dim, num_kv_heads * head_dim);
    for hidden in file.steps()? {
        let [mut query, mut key, mut value] = [(); 3].map(|()| Vec::new());
        for row in w_qkv.forward(hidden)?.chunks(w_qkv.out_features()) {
            query.extend(&row[..of_query]);
            key.extend(&row[of_query..of_query + of_key]);
            value.extend(&row[of_query + of_key..]);
        }
        output.extend(w_o.forward(&cache.step([query, key, value])?)?);
    }
    Ok(output)
}

/// Angles of LongRoPE for texts within the original length: `position / (short_factor * base^(2 pair / width))`. Cosines
/// and sines are multiplied by `sqrt(1 + ln(max / original) / ln(original))`.
fn long_rope(file: &LayerFile, head_dim: usize, positions: usize) -> Result<Rotary> {
    let width = (head_dim as f64 * file.get::<f64>("partial_rotary_factor")?) as usize;
    let (base, short): (f64, Vec<f64>) = (file.get("rope_theta")?, file.list("short_factor")?);
    let (max, original): (f64, f64) = (file.get("max_position_embeddings")?, file.get("original_max_position_embeddings")?);
    let factor = (1.0 + (max / original).ln() / original.ln()).sqrt();
    let angle = |at: usize| {
        let (position, pair) = (at / (width / 2), at % (width / 2));
        position as f64 / (short[pair] * base.powf(2.0 * pair as f64 / width as f64))
    };
    let angles: Vec<f64> = (0..positions * width / 2).map(angle).collect();
    let table = |of: fn(f64) -> f64| angles.iter().map(|&angle| (factor * of(angle)) as f32).collect();
    Rotary::from_tables(Pairing::HalfSplit, width / 2, table(f64::cos), table(f64::sin))
}
