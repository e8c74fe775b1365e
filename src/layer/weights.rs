//! Layer weights by name, from safetensors files.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{Appended, Linear, MultiHead};
use crate::error::{Cause, Error, Result};

/// Names of a layer's tensors in a file. Weights are [out, in].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// PyTorch's `nn.MultiheadAttention`: `{prefix}in_proj_weight` (or `q_proj_weight`, `k_proj_weight`,
    /// `v_proj_weight`), `out_proj.weight`; optional pairs `in_proj_bias`, `out_proj.bias` and `bias_k`, `bias_v`.
    Torch {
        /// Prefix with its dot: `encoder.layers.0.self_attn.`.
        prefix: String,
    },
    /// Hugging Face BERT: `{prefix}encoder.layer.{layer}.attention.self.query.weight` (`key`, `value`),
    /// `...attention.output.dense.weight`, each with its `.bias`.
    Bert {
        /// Prefix with its dot, `bert.`, or empty.
        prefix: String,
        /// Index of the layer, from 0.
        layer: usize,
    },
    /// Names `{prefix}wq`, `wk`, `wv`, `wo` and, all together or not at all, `bq`, `bk`, `bv`, `bo`.
    Plain {
        /// Prefix with its dot: `in.`.
        prefix: String,
    },
}

/// Contents of a safetensors file.
#[derive(Clone, Debug)]
pub struct WeightFile {
    path: String,
    bytes: Vec<u8>,
}

impl WeightFile {
    /// Reads a file. Errors: it cannot be read, or is not a safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::file(path.display(), Cause::new(error)))?;
        Self::from_bytes(path.display().to_string(), bytes)
    }

    /// Takes the contents of a file; errors call it `path`.
    pub fn from_bytes(path: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        let file = Self { path: path.into(), bytes };
        file.tensors()?;
        Ok(file)
    }

    /// Builds the layer from the tensors with these names. Errors name the file and the tensor: missing, of another
    /// shape, or stored as another type than f32, f16 and bf16.
    pub fn multi_head(&self, naming: &Naming, num_heads: usize, num_kv_heads: usize) -> Result<MultiHead> {
        let tensors = self.tensors()?;
        let source = Source { path: &self.path, tensors: &tensors };
        match naming {
            Naming::Torch { prefix } => source.torch(prefix, num_heads, num_kv_heads),
            Naming::Bert { prefix, layer } => {
                let stem = format!("{prefix}encoder.layer.{layer}.attention.");
                let linear = |part: &str| {
                    let (weight, bias) = (format!("{stem}{part}.weight"), format!("{stem}{part}.bias"));
                    source.linear(&weight, Some(&bias))
                };
                let [query, key, value] = ["self.query", "self.key", "self.value"].map(linear);
                source.layer(query?, key?, value?, linear("output.dense")?, num_heads, num_kv_heads)
            }
            Naming::Plain { prefix } => {
                let biased = ["bq", "bk", "bv", "bo"].iter().any(|name| source.has(&format!("{prefix}{name}")));
                let linear = |part: &str| {
                    let (weight, bias) = (format!("{prefix}w{part}"), format!("{prefix}b{part}"));
                    source.linear(&weight, biased.then_some(&bias))
                };
                source.layer(linear("q")?, linear("k")?, linear("v")?, linear("o")?, num_heads, num_kv_heads)
            }
        }
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| Error::file(&self.path, format!("not a safetensors file: {error}")))
    }
}

struct Source<'a> {
    path: &'a str,
    tensors: &'a SafeTensors<'a>,
}

impl Source<'_> {
    fn error(&self, why: impl Into<Cause>) -> Error {
        Error::file(self.path, why)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Shape of a tensor, and its elements widened to f32.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self.tensors.tensor(name).map_err(|_| {
            let mut names = self.tensors.names();
            names.sort_unstable();
            let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
            names.truncate(8);
            self.error(format!("has no tensor `{name}`; it has {}{more}", names.join(", ")))
        })?;
        let bytes = view.data();
        // Tensors of the file need not be aligned in memory: elements are put together from their bytes.
        let data = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(self.error(format!("tensor `{name}` is stored as {other:?}; f32, f16 and bf16 can be read"))),
        };
        Ok((view.shape().to_vec(), data))
    }

    /// Weight: its elements, rows and columns.
    fn matrix(&self, name: &str) -> Result<(Vec<f32>, usize, usize)> {
        match self.tensor(name)? {
            (shape, data) if shape.len() == 2 && !data.is_empty() => Ok((data, shape[0], shape[1])),
            (shape, _) => Err(self.error(format!("tensor `{name}` has shape {shape:?}, must be [out, in]"))),
        }
    }

    /// Vector of `len` elements; axes of extent 1 before the last are ignored.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (shape, data) = self.tensor(name)?;
        if data.len() == len && shape.last() == Some(&len) {
            return Ok(data);
        }
        Err(self.error(format!("tensor `{name}` has shape {shape:?}, must be [{len}]")))
    }

    fn linear(&self, weight: &str, bias: Option<&String>) -> Result<Linear> {
        let (data, rows, columns) = self.matrix(weight)?;
        let bias = bias.map(|name| self.vector(name, rows)).transpose()?;
        Linear::new(data, bias, columns)
    }

    /// Layer whose shape errors name the file.
    fn layer(&self, query: Linear, key: Linear, value: Linear, output: Linear, heads: usize, kv_heads: usize) -> Result<MultiHead> {
        MultiHead::new(query, key, value, output, heads, kv_heads).map_err(|error| match error {
            Error::Invalid { argument, why } if argument.starts_with("w_") => self.error(format!("{argument} {why}")),
            other => other,
        })
    }

    fn torch(&self, prefix: &str, num_heads: usize, num_kv_heads: usize) -> Result<MultiHead> {
        let name = |part: &str| format!("{prefix}{part}");
        let stacked = name("in_proj_weight");
        let weights = if self.has(&name("q_proj_weight")) {
            [self.matrix(&name("q_proj_weight"))?, self.matrix(&name("k_proj_weight"))?, self.matrix(&name("v_proj_weight"))?]
        } else {
            let (data, rows, columns) = self.matrix(&stacked)?;
            if !rows.is_multiple_of(3) {
                return Err(self.error(format!("tensor `{stacked}` has {rows} rows, must have three times embed_dim")));
            }
            let part = |index: usize| (data[index * data.len() / 3..][..data.len() / 3].to_vec(), rows / 3, columns);
            [part(0), part(1), part(2)]
        };
        let biased = self.has(&name("in_proj_bias")) || self.has(&name("out_proj.bias"));
        let rows: usize = weights.iter().map(|(_, rows, _)| rows).sum();
        let biases = if biased { Some(self.vector(&name("in_proj_bias"), rows)?) } else { None };
        let mut start = 0;
        let [query, key, value] = weights.map(|(data, rows, columns)| {
            let bias = biases.as_ref().map(|biases| biases[start..start + rows].to_vec());
            start += rows;
            Linear::new(data, bias, columns)
        });
        let output = self.linear(&name("out_proj.weight"), biased.then_some(&name("out_proj.bias")))?;
        let (query, key, value) = (query?, key?, value?);
        let mut appended = Appended::default();
        if self.has(&name("bias_k")) || self.has(&name("bias_v")) {
            let (k, v) = (key.out_features(), value.out_features());
            appended.bias_kv = Some((self.vector(&name("bias_k"), k)?, self.vector(&name("bias_v"), v)?));
        }
        self.layer(query, key, value, output, num_heads, num_kv_heads)?.with_appended(appended)
    }
}
