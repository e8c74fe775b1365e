//! BERT: an encoder whose tokens see each other, with padded sentences; or, with causal attention and a cache, a decoder.

use wgpu_attention::cache::{CacheShape, LayerShape};
use wgpu_attention::layer::Naming;
use wgpu_attention::{Alignment, Inputs, Result};

use super::cache::{Attention, Place};
use super::file::LayerFile;

fn naming() -> Naming {
    Naming::Bert { prefix: "bert.".into(), layer: 0 }
}

/// Needs neither rotation nor cache: the library's own layer, projections included.
pub(crate) fn encoder(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let num_heads = file.get("num_attention_heads")?;
    let layer = file.weights.multi_head(&naming(), num_heads, num_heads)?;
    let lengths: Vec<u32> = file.list("lengths")?;
    let seq_len = file.get("prompt")?;
    let problem = layer.problem(lengths.len(), seq_len, seq_len).kv_lengths();
    let inputs = Inputs { kv_lengths: &lengths, ..Inputs::new(&file.hidden, &file.hidden, &file.hidden) };
    Ok(layer.forward(place.engine, &problem, &inputs)?.output)
}

pub(crate) fn decoder(place: Place<'_>, file: &LayerFile) -> Result<Vec<f32>> {
    let num_heads = file.get("num_attention_heads")?;
    let weights = file.weights.multi_head(&naming(), num_heads, num_heads)?;
    let head_dim = weights.query().out_features() / num_heads;
    let attention = Attention {
        shape: CacheShape::uniform(1, LayerShape::new(num_heads, head_dim)).page_size(4).pages(file.tokens().div_ceil(4)),
        num_heads,
        norm: None,
        rotary: None,
        sinks: vec![],
        options: &|problem| problem.aligned(Alignment::BottomRight).causal(),
    };
    attention.layer(place, file, [weights.query(), weights.key(), weights.value(), weights.output()])
}
