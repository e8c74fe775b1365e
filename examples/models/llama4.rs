//! Llama 4: three layers that attend within chunks, rotate and normalise, for each that sees everything and does neither.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::layer::Naming;
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary};
use wgpu_attention::{Alignment, Problem, Result, Term};

use super::cache::{Attention, Place};
use super::file::LayerFile;

/// Rotates neighbouring elements, then divides heads by their root mean square. A rotation keeps it, so that heads can be
/// normalised first, and the cache rotates them.
pub(crate) fn chunked(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let chunk = file.get("attention_chunk_size")?;
    let options = |problem: Problem| problem.aligned(Alignment::BottomRight).causal().chunk(chunk);
    let theta = file.get("rope_theta")?;
    layer(place, file, Some((theta, file.get("rms_norm_eps")?)), &options)
}

/// Has no rotation. Scores grow with the position: `1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))`.
pub(crate) fn nope(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let (floor_scale, attn_scale): (u32, f32) = (file.get("floor_scale")?, file.get("attn_scale")?);
    let temperature = format!("1.0 + {attn_scale:?} * log(f32(1 + (at.position + 1) / {floor_scale}))");
    let term = Term::wgsl(&format!("fn score(x: f32, at: Pair) -> f32 {{ return x * ({temperature}); }}"))?;
    let options = |problem: Problem| problem.aligned(Alignment::BottomRight).causal().with_term(term.clone());
    layer(place, file, None, &options)
}

/// Layer with a base of rotary angles and an epsilon of the norm, or without both.
fn layer(place: Place<'_>, file: &LayerFile, rotates: Option<(f32, f32)>, options: &dyn Fn(Problem) -> Problem) -> Result<Vec<f32>> {
    let [num_heads, num_kv_heads] = file.heads()?;
    let naming = Naming::Llama { prefix: "model.".into(), layer: file.get("layer")? };
    let weights = file.weights.multi_head(&naming, num_heads, num_kv_heads)?;
    let head_dim = weights.query().out_features() / num_heads;
    let pages = file.tokens().div_ceil(4);
    let shape = CacheShape::uniform(1, LayerShape::new(num_kv_heads, head_dim)).page_size(4).pages(pages);
    let rotary = rotates.map(|(theta, _)| Rotary::new(Pairing::Interleaved, theta, head_dim, 4 * pages)).transpose()?;
    let ones = vec![1.0; head_dim];
    let norm = rotates.map(|(_, eps)| QkNorm::new(&ones, &ones, eps)).transpose()?;
    let attention = Attention { shape, num_heads, norm, rotary, sinks: vec![], options };
    attention.layer(place, file, [weights.query(), weights.key(), weights.value(), weights.output()])
}
