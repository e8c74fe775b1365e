//! Layer weights by name, from safetensors files.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::matmul::transposed;
use super::{Appended, Linear, MultiHead};
use crate::error::{Cause, Error, Result};
use crate::numbers::{DType, HostVec};

/// Names and storage of a layer's tensors in a file. Weights are [out, in] unless said otherwise. A prefix includes its
/// dot, or is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// PyTorch's `nn.MultiheadAttention`: `{prefix}in_proj_weight` (or `q_proj_weight`, `k_proj_weight`,
    /// `v_proj_weight`), `out_proj.weight`; optional pairs `in_proj_bias`, `out_proj.bias` and `bias_k`, `bias_v`.
    Torch {
        /// Prefix, such as `encoder.layers.0.self_attn.`.
        prefix: String,
    },
    /// Hugging Face BERT: `{prefix}encoder.layer.{layer}.attention.self.query.weight` (`key`, `value`),
    /// `...attention.output.dense.weight`, each with its `.bias`.
    Bert {
        /// Prefix, `bert.` or empty.
        prefix: String,
        /// Index of the layer, from 0.
        layer: usize,
    },
    /// Hugging Face Llama, Mistral, Qwen 2 and others: `{prefix}layers.{layer}.self_attn.q_proj.weight` (`k_proj`,
    /// `v_proj`, `o_proj`). q_proj, k_proj and v_proj have a `.bias` all together or not at all; o_proj may have one.
    ///
    /// These models rotate Q and K before the attention, which [`MultiHead::forward`] does not: apply the layer's
    /// projections, then [`crate::rotary`], then the attention. A file with `q_norm` or `k_norm` (Qwen 3, Gemma 3) is
    /// refused, because a layer does not normalise its heads.
    Llama {
        /// Prefix, usually `model.`.
        prefix: String,
        /// Index of the layer, from 0.
        layer: usize,
    },
    /// Hugging Face GPT-2: `{prefix}h.{layer}.attn.c_attn.weight` [embed_dim, 3 * embed_dim] with the columns of Q, K
    /// and V side by side, `...c_proj.weight` [in, out], each with its `.bias`.
    Gpt2 {
        /// Prefix, `transformer.` or empty.
        prefix: String,
        /// Index of the layer, from 0.
        layer: usize,
    },
    /// Names `{prefix}wq`, `wk`, `wv`, `wo` and, all together or not at all, `bq`, `bk`, `bv`, `bo`.
    Plain {
        /// Prefix, such as `in.`.
        prefix: String,
    },
}

/// Tensor of a file, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTensor {
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Elements, stored as in the file.
    pub data: HostVec,
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
        file.source()?;
        Ok(file)
    }

    /// Reads a tensor. Errors name the file and the tensor: missing, or of another type than f32, f16 and bf16.
    pub fn tensor(&self, name: &str) -> Result<WeightTensor> {
        self.source()?.tensor(name)
    }

    /// Reads the projection with W `{name}.weight` [out, in] and, if the file has it, b `{name}.bias`: for models whose layer is
    /// more than a [`MultiHead`]. Errors: those of [`Self::tensor`], another shape.
    ///
    /// ```
    /// # fn main() -> wgpu_attention::Result<()> {
    /// # let tensor = r#"{"q_proj.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    /// # let values = bytemuck::cast_slice::<f32, u8>(&[2.0, 3.0]);
    /// # let bytes = [&(tensor.len() as u64).to_le_bytes(), tensor.as_bytes(), values].concat();
    /// use wgpu_attention::layer::WeightFile;
    ///
    /// let file = WeightFile::from_bytes("model.safetensors", bytes)?;
    /// assert_eq!(file.linear("q_proj")?.forward(&[1.0, 10.0])?, [32.0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let (source, bias) = (self.source()?, format!("{name}.bias"));
        let bias = source.has(&bias).then_some(bias);
        source.linear(&format!("{name}.weight"), bias)
    }

    /// Builds the layer from the tensors with these names. Errors name the file and the tensor: missing, of another
    /// shape, or stored as another type than f32, f16 and bf16; normalised heads are unsupported.
    pub fn multi_head(&self, naming: &Naming, num_heads: usize, num_kv_heads: usize) -> Result<MultiHead> {
        let source = self.source()?;
        let [query, key, value, output] = match naming {
            Naming::Torch { prefix } => source.torch(prefix)?,
            Naming::Gpt2 { prefix, layer } => source.gpt2(&format!("{prefix}h.{layer}.attn."))?,
            Naming::Bert { prefix, layer } => {
                let stem = format!("{prefix}encoder.layer.{layer}.attention.");
                source.linears(["self.query", "self.key", "self.value", "output.dense"].map(|part| {
                    let name = format!("{stem}{part}");
                    (format!("{name}.weight"), Some(format!("{name}.bias")))
                }))?
            }
            Naming::Llama { prefix, layer } => source.llama(&format!("{prefix}layers.{layer}.self_attn."))?,
            Naming::Plain { prefix } => {
                let name = |kind: &str, part: &str| format!("{prefix}{kind}{part}");
                let parts = ["q", "k", "v", "o"];
                let biased = parts.iter().any(|part| source.has(&name("b", part)));
                source.linears(parts.map(|part| (name("w", part), biased.then(|| name("b", part)))))?
            }
        };
        let bias_kv = match naming {
            Naming::Torch { prefix } => source.bias_kv(prefix, [key.out_features(), value.out_features()])?,
            _ => None,
        };
        let layer = MultiHead::new(query, key, value, output, num_heads, num_kv_heads).map_err(|error| match error {
            Error::Invalid { argument, why } if argument.starts_with("w_") => source.error(format!("{argument} {why}")),
            other => other,
        });
        layer?.with_appended(Appended { bias_kv, zero: false })
    }

    fn source(&self) -> Result<Source<'_>> {
        let tensors =
            SafeTensors::deserialize(&self.bytes).map_err(|error| Error::file(&self.path, format!("not a safetensors file: {error}")))?;
        Ok(Source { path: &self.path, tensors })
    }
}

struct Source<'a> {
    path: &'a str,
    tensors: SafeTensors<'a>,
}

impl Source<'_> {
    fn error(&self, why: impl Into<Cause>) -> Error {
        Error::file(self.path, why)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    fn tensor(&self, name: &str) -> Result<WeightTensor> {
        let view = self.tensors.tensor(name).map_err(|_| {
            let mut names = self.tensors.names();
            names.sort_unstable();
            let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
            names.truncate(8);
            self.error(format!("has no tensor `{name}`; it has {}{more}", names.join(", ")))
        })?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(self.error(format!("tensor `{name}` is stored as {other:?}; f32, f16 and bf16 can be read"))),
        };
        Ok(WeightTensor { shape: view.shape().to_vec(), data: HostVec::from_bytes(dtype, view.data()) })
    }

    /// Weight: its elements, rows and columns.
    fn matrix(&self, name: &str) -> Result<(Vec<f32>, usize, usize)> {
        match self.tensor(name)? {
            WeightTensor { shape, data } if shape.len() == 2 && !shape.contains(&0) => Ok((data.into_f32(), shape[0], shape[1])),
            WeightTensor { shape, .. } => Err(self.error(format!("tensor `{name}` has shape {shape:?}, must have 2 axes, none of 0"))),
        }
    }

    /// Vector of `len` elements; axes of extent 1 before the last are ignored.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let WeightTensor { shape, data } = self.tensor(name)?;
        if data.as_slice().len() == len && shape.last() == Some(&len) {
            return Ok(data.into_f32());
        }
        Err(self.error(format!("tensor `{name}` has shape {shape:?}, must be [{len}]")))
    }

    fn linear(&self, weight: &str, bias: Option<String>) -> Result<Linear> {
        let (data, rows, columns) = self.matrix(weight)?;
        Linear::new(data, bias.map(|name| self.vector(&name, rows)).transpose()?, columns)
    }

    /// Projections of these weights and biases.
    fn linears(&self, names: [(String, Option<String>); 4]) -> Result<[Linear; 4]> {
        let [query, key, value, output] = names.map(|(weight, bias)| self.linear(&weight, bias));
        Ok([query?, key?, value?, output?])
    }

    fn llama(&self, stem: &str) -> Result<[Linear; 4]> {
        if let Some(norm) = ["q_norm", "k_norm"].iter().find(|norm| self.has(&format!("{stem}{norm}.weight"))) {
            let what = format!("`{stem}{norm}.weight`: heads that are normalised between projection and attention");
            let remedy = "project with WeightFile::linear, normalise, and run the attention alone: examples/models/qwen3.rs";
            return Err(Error::unsupported(what, remedy));
        }
        let parts = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| format!("{stem}{part}"));
        let has_bias = |part: &String| self.has(&format!("{part}.bias"));
        let biased = parts[..3].iter().any(has_bias);
        self.linears(parts.map(|part| {
            let has_own = if part.ends_with("o_proj") { has_bias(&part) } else { biased };
            (format!("{part}.weight"), has_own.then(|| format!("{part}.bias")))
        }))
    }

    /// Projections of GPT-2, whose weights are [in, out].
    fn gpt2(&self, stem: &str) -> Result<[Linear; 4]> {
        let of = |part: &str| {
            let (data, rows, columns) = self.matrix(&format!("{stem}{part}.weight"))?;
            let bias = self.vector(&format!("{stem}{part}.bias"), columns)?;
            Ok::<_, Error>((transposed(&data, rows, columns), bias, rows, columns))
        };
        let (weight, bias, embed_dim, columns) = of("c_attn")?;
        self.check_thirds(&format!("{stem}c_attn.weight"), columns)?;
        let third = |n: usize| {
            let (weight, bias) = (&weight[n * weight.len() / 3..][..weight.len() / 3], &bias[n * columns / 3..][..columns / 3]);
            Linear::new(weight.to_vec(), Some(bias.to_vec()), embed_dim)
        };
        let (weight, bias, width, _) = of("c_proj")?;
        Ok([third(0)?, third(1)?, third(2)?, Linear::new(weight, Some(bias), width)?])
    }

    fn torch(&self, prefix: &str) -> Result<[Linear; 4]> {
        let name = |part: &str| format!("{prefix}{part}");
        let weights = if self.has(&name("q_proj_weight")) {
            [self.matrix(&name("q_proj_weight"))?, self.matrix(&name("k_proj_weight"))?, self.matrix(&name("v_proj_weight"))?]
        } else {
            let (data, rows, columns) = self.matrix(&name("in_proj_weight"))?;
            self.check_thirds(&name("in_proj_weight"), rows)?;
            [0, 1, 2].map(|n| (data[n * data.len() / 3..][..data.len() / 3].to_vec(), rows / 3, columns))
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
        let output = self.linear(&name("out_proj.weight"), biased.then(|| name("out_proj.bias")))?;
        Ok([query?, key?, value?, output])
    }

    /// Learned key and value of these widths that PyTorch appends, if there are any.
    fn bias_kv(&self, prefix: &str, [k, v]: [usize; 2]) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let [key, value] = ["bias_k", "bias_v"].map(|part| format!("{prefix}{part}"));
        let there = self.has(&key) || self.has(&value);
        there.then(|| Ok((self.vector(&key, k)?, self.vector(&value, v)?))).transpose()
    }

    /// Refuses a stack of Q, K and V that does not divide into them.
    fn check_thirds(&self, name: &str, features: usize) -> Result<()> {
        if features.is_multiple_of(3) {
            return Ok(());
        }
        Err(self.error(format!("tensor `{name}` has {features} features, must have three times embed_dim")))
    }
}
