//! Case files: one attention with its expected result in a `.safetensors` file (format `attnconf/1`).
//!
//! Tensors `in.<name>` are inputs, `out.<name>` expected outputs. The metadata holds `format`, `suite`, `case`, `op`,
//! attributes `attr.<name>` and tolerances `tol.rtol`, `tol.<output>` or `tol.atol`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};
use crate::layer::{MultiHead, Naming, WeightFile};
use crate::numbers::{DType, HostVec};
use crate::onnx::Tensor;
use crate::verify::expect::ExpectedTensor;

/// Size limit in bytes: case files are small, and a larger file is something else.
const MAX_BYTES: u64 = 1 << 28;

/// Tensor of a case file.
#[derive(Clone, Debug)]
pub(super) struct FileTensor {
    /// Shape; empty for a scalar.
    pub(super) shape: Vec<usize>,
    pub(super) data: FileData,
}

/// Elements of a tensor of a case file.
#[derive(Clone, Debug)]
pub(super) enum FileData {
    /// f32, f16 or bf16; inputs of f64 are rounded to f32.
    Float(HostVec),
    /// f64.
    Double(Vec<f64>),
    /// i64 or i32.
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

/// Tensor that an operation returned.
pub(super) struct Given {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

pub(super) fn given(name: &str, shape: &[usize], values: Vec<f32>) -> Given {
    Given { name: name.into(), shape: shape.to_vec(), values }
}

/// Case file, read and checked.
#[derive(Clone, Debug)]
pub struct CaseFile {
    path: PathBuf,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, FileTensor>,
    weights: WeightFile,
}

fn file_error(path: &Path, why: impl ToString) -> Error {
    Error::file(path.display(), why.to_string())
}

impl CaseFile {
    /// Returns the case files under `path`, sorted; `path` itself if it is a file.
    pub fn find(path: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut open = vec![path.to_path_buf()];
        while let Some(path) = open.pop() {
            let error = |error: std::io::Error| file_error(&path, error);
            if fs::metadata(&path).map_err(error)?.is_dir() {
                for entry in fs::read_dir(&path).map_err(error)? {
                    open.push(entry.map_err(error)?.path());
                }
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                found.push(path);
            }
        }
        if found.is_empty() {
            return Err(file_error(path, "holds no .safetensors case file"));
        }
        found.sort();
        Ok(found)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let size = fs::metadata(path).map_err(|error| file_error(path, error))?.len();
        if size > MAX_BYTES {
            return Err(file_error(path, format!("has {size} bytes; a case file has at most {MAX_BYTES}")));
        }
        Self::parse(path, &fs::read(path).map_err(|error| file_error(path, error))?)
    }

    /// Reads a file from memory; `path` is for reports.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let broken = |error: safetensors::SafeTensorError| file_error(path, format!("is not a whole safetensors file: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get("format").map(String::as_str) {
            Some("attnconf/1") => {}
            Some(other) => return Err(file_error(path, format!("has format `{other}`; this reads attnconf/1"))),
            None => return Err(file_error(path, "is no case file: its metadata names no format")),
        }
        if let Some(key) = ["suite", "case", "op"].into_iter().find(|&key| !metadata.contains_key(key)) {
            return Err(file_error(path, format!("its metadata has no `{key}`")));
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(broken)?.iter() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            // An axis of 0 counts as 1, because it would permit absurd sizes along the others.
            let extent = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent.max(1)));
            if extent.is_none_or(|extent| extent as u64 > MAX_BYTES) {
                return Err(file_error(path, format!("tensor `{name}` has the absurd shape {shape:?}")));
            }
            let doubles = || bytemuck::pod_collect_to_vec::<u8, f64>(data);
            let data = match view.dtype() {
                Dtype::F32 => FileData::Float(HostVec::from_bytes(DType::F32, data)),
                Dtype::F16 => FileData::Float(HostVec::from_bytes(DType::F16, data)),
                Dtype::BF16 => FileData::Float(HostVec::from_bytes(DType::BF16, data)),
                Dtype::F64 if name.starts_with("in.") => FileData::Float(HostVec::F32(doubles().iter().map(|&x| x as f32).collect())),
                Dtype::F64 => FileData::Double(doubles()),
                Dtype::I64 => FileData::Int(bytemuck::pod_collect_to_vec(data)),
                Dtype::I32 => FileData::Int(bytemuck::pod_collect_to_vec::<u8, i32>(data).into_iter().map(i64::from).collect()),
                Dtype::BOOL => FileData::Bool(data.iter().map(|&byte| byte != 0).collect()),
                other => {
                    let why = format!("tensor `{name}` is {other:?}; case files have f32, f16, bf16, f64, i64, i32, bool");
                    return Err(file_error(path, why));
                }
            };
            tensors.insert(name.to_string(), FileTensor { shape, data });
        }
        let weights = WeightFile::from_bytes(path.display().to_string(), bytes.to_vec())?;
        Ok(Self { path: path.to_path_buf(), metadata, tensors, weights })
    }

    fn text(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }

    /// Suite that the case belongs to.
    pub fn suite(&self) -> &str {
        self.text("suite")
    }

    /// Name of the case.
    pub fn name(&self) -> &str {
        self.text("case")
    }

    /// Operation to run.
    pub fn op(&self) -> &str {
        self.text("op")
    }

    /// Attribute `name` as the file has it, if present.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.metadata.get(&format!("attr.{name}")).map(String::as_str)
    }

    /// Returns an error about this file.
    pub(super) fn error(&self, why: impl ToString) -> Error {
        file_error(&self.path, why)
    }

    /// Value of the metadata `key`, if present.
    fn value<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.metadata.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.error(format!("`{key}` = `{text}` cannot be read")))
    }

    /// Value of the attribute `name`, if present.
    pub(super) fn attr<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.value(&format!("attr.{name}"))
    }

    /// Attribute `name`; an error if it is absent.
    pub(super) fn required_attr<T: FromStr>(&self, name: &str) -> Result<T> {
        self.attr(name)?.ok_or_else(|| self.error(format!("has no attribute `{name}`")))
    }

    /// Boolean attribute, 0 or 1; false if it is absent.
    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.attr::<u8>(name)?.is_some_and(|value| value != 0))
    }

    /// Size attribute `name`; `None` if it is absent or -1.
    pub(super) fn size(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.attr::<i64>(name)?.and_then(|value| u32::try_from(value).ok()))
    }

    /// True if there is an input `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("in.{name}"))
    }

    /// Input `name`; an error if it is absent.
    pub(super) fn input(&self, name: &str) -> Result<&FileTensor> {
        self.tensors.get(&format!("in.{name}")).ok_or_else(|| self.error(format!("has no tensor `in.{name}`")))
    }

    /// Elements of the input `name`, which must be floating-point numbers.
    pub(super) fn floats(&self, name: &str) -> Result<&HostVec> {
        match &self.input(name)?.data {
            FileData::Float(data) => Ok(data),
            _ => Err(self.error(format!("tensor `in.{name}` is not of floating-point numbers"))),
        }
    }

    /// Elements of the input `name`, widened to f32.
    pub(super) fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.floats(name)?.to_f32())
    }

    /// Input `name` of floating-point numbers.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        Ok(Tensor { shape: &self.input(name)?.shape, data: self.floats(name)?.as_slice() })
    }

    /// Input `name` by one of these readers, if present.
    pub(super) fn optional<'a, T>(&'a self, name: &str, read: impl Fn(&'a Self, &str) -> Result<T>) -> Result<Option<T>> {
        self.has(name).then(|| read(self, name)).transpose()
    }

    /// Elements of the input `name`: integers that fit `T`.
    pub(super) fn ints<T: TryFrom<i64>>(&self, name: &str) -> Result<Vec<T>> {
        let FileData::Int(data) = &self.input(name)?.data else {
            return Err(self.error(format!("tensor `in.{name}` is not of integers")));
        };
        let narrow = |&x: &i64| T::try_from(x).map_err(|_| self.error(format!("tensor `in.{name}` holds {x}, which is out of range")));
        data.iter().map(narrow).collect()
    }

    /// Shape of the input `name`, which must have `N` axes.
    pub(super) fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = &self.input(name)?.shape;
        <[usize; N]>::try_from(shape.as_slice()).map_err(|_| self.error(format!("tensor `in.{name}` has shape {shape:?}, not {N} axes")))
    }

    /// Layer from the weights of the file.
    pub(super) fn layer(&self, naming: &Naming) -> Result<MultiHead> {
        let heads = self.required_attr("num_heads")?;
        self.weights.multi_head(naming, heads, heads)
    }

    /// Names of the expected outputs.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix("out."))
    }

    /// True if there is an expected output `name`.
    pub fn expects(&self, name: &str) -> bool {
        self.outputs().any(|output| output == name)
    }

    fn output(&self, name: &str) -> Result<&FileTensor> {
        self.tensors.get(&format!("out.{name}")).ok_or_else(|| self.error(format!("has no tensor `out.{name}`")))
    }

    /// Expected output `name` with its tolerance; booleans are 0 and 1.
    pub(super) fn expected(&self, name: &str) -> Result<ExpectedTensor> {
        let FileTensor { shape, data } = self.output(name)?;
        let values: Vec<f64> = match data {
            FileData::Float(data) => data.to_f32().into_iter().map(f64::from).collect(),
            FileData::Double(data) => data.clone(),
            FileData::Int(data) => data.iter().map(|&x| x as f64).collect(),
            FileData::Bool(data) => data.iter().map(|&x| f64::from(u8::from(x))).collect(),
        };
        let absolute = self.value(&format!("tol.{name}"))?.map_or_else(|| self.value("tol.atol"), |absolute| Ok(Some(absolute)))?;
        let (Some(absolute), Some(relative)) = (absolute, self.value("tol.rtol")?) else {
            return Err(self.error(format!("has no tolerance for `{name}`")));
        };
        let errors = vec![absolute; values.len()];
        Ok(ExpectedTensor { minus_infinity: -1e30, ..ExpectedTensor::new(shape.clone(), values, errors, relative) })
    }

    /// Storage type of the expected output `name`, in which the engine is asked to store it; f32 for f64.
    pub(super) fn output_dtype(&self, name: &str) -> Result<DType> {
        match &self.output(name)?.data {
            FileData::Float(data) => Ok(data.as_slice().dtype()),
            FileData::Double(_) => Ok(DType::F32),
            _ => Err(self.error(format!("tensor `out.{name}` is not of floating-point numbers"))),
        }
    }
}
