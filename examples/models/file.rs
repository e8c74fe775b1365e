//! Files of `data/`, and the norm that several models share.

use std::collections::HashMap;
use std::str::FromStr;

use safetensors::SafeTensors;
use wgpu_attention::layer::WeightFile;
use wgpu_attention::{Cause, Error, Result};

/// Layer of a model: weights under the model's own names, values of its configuration, hidden states, and the output.
pub(crate) struct LayerFile {
    path: String,
    /// Weights, by the names that the model's checkpoints have.
    pub(crate) weights: WeightFile,
    /// Configuration, by transformers' names.
    pub(crate) config: HashMap<String, String>,
    /// Hidden states of all tokens, side by side.
    pub(crate) hidden: Vec<f32>,
    /// Output of the layer for all tokens, in float64.
    pub(crate) output: Vec<f64>,
    /// Width of a hidden state.
    width: usize,
}

impl LayerFile {
    /// Allowed error, in parts of the largest output: 40 roundings of f32, for sums of up to 64 products in each of the
    /// two projections and in the scores.
    pub(crate) const TOLERANCE: f64 = 40.0 * f32::EPSILON as f64 / 2.0;

    /// Reads the file of this name in `data/`.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = format!("{}/examples/models/data/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).map_err(|error| Error::file(&path, Cause::new(error)))?;
        Self::parse(path, bytes)
    }

    /// Takes the contents of a file.
    pub(crate) fn parse(path: String, bytes: Vec<u8>) -> Result<Self> {
        let broken = |error| Error::file(&path, Cause::new(error));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let output = SafeTensors::deserialize(&bytes).map_err(broken)?.tensor("output").map_err(broken)?.data().to_vec();
        let config = header.metadata().clone().unwrap_or_default();
        let weights = WeightFile::from_bytes(&path, bytes)?;
        let hidden = weights.tensor("hidden")?;
        let width = hidden.shape.last().copied().unwrap_or(1);
        Ok(Self { path, weights, config, hidden: hidden.data.into_f32(), output: bytemuck::pod_collect_to_vec(&output), width })
    }

    /// Value of the configuration. Errors: it is not there, or cannot be read.
    pub(crate) fn get<T: FromStr>(&self, key: &str) -> Result<T> {
        let text = self.config.get(key).map_or("", String::as_str);
        text.parse().map_err(|_| Error::file(&self.path, format!("`{key}` = `{text}` cannot be read")))
    }

    /// List in the configuration.
    pub(crate) fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>> {
        let text = self.config.get(key).map_or("", String::as_str);
        let read = |part: &str| part.parse().map_err(|_| Error::file(&self.path, format!("`{key}` = `{text}` cannot be read")));
        text.split(',').map(read).collect()
    }

    /// Number of query heads, and of key/value heads.
    pub(crate) fn heads(&self) -> Result<[usize; 2]> {
        Ok([self.get("num_attention_heads")?, self.get("num_key_value_heads")?])
    }

    /// Name of a tensor of a decoder's attention.
    pub(crate) fn name(&self, part: &str) -> String {
        format!("model.layers.{}.self_attn.{part}", self.config["layer"])
    }

    /// Vector of a decoder's attention: the weights of a norm, or sinks.
    pub(crate) fn vector(&self, part: &str) -> Result<Vec<f32>> {
        Ok(self.weights.tensor(&self.name(part))?.data.into_f32())
    }

    /// Number of all tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.hidden.len() / self.width
    }

    /// Hidden states step by step: the prompt, then one token at a time.
    pub(crate) fn steps(&self) -> Result<impl Iterator<Item = &[f32]>> {
        let (prompt, rest) = self.hidden.split_at(self.get::<usize>("prompt")?.min(self.tokens()) * self.width);
        Ok(std::iter::once(prompt).chain(rest.chunks(self.width)))
    }

    /// Returns the largest error of an output, in parts of the largest element that is expected.
    pub(crate) fn error(&self, output: &[f32]) -> f64 {
        assert_eq!(output.len(), self.output.len(), "another number of elements");
        let largest = self.output.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let errors = output.iter().zip(&self.output).map(|(&got, expected)| (f64::from(got) - expected).abs());
        errors.fold(0.0, |most, error| if error <= most { most } else { error }) / largest
    }
}

/// Divides each row by its root mean square, `sqrt(mean(x^2) + eps)`, and multiplies it by the weights.
pub(crate) fn rms_norm(rows: &mut [f32], weight: &[f32], eps: f32) {
    for row in rows.chunks_mut(weight.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / weight.len() as f32;
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= w / (mean + eps).sqrt());
    }
}
