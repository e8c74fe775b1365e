//! Case files: one attention with its expected result in a `.safetensors` file (format `attnconf/1`).
//!
//! Tensors `in.<name>` are inputs, `out.<name>` expected outputs. The metadata holds `format`, `suite`, `case`, `op`,
//! attributes `attr.<name>` and tolerances `tol.rtol`, `tol.<output>` or `tol.atol`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use safetensors::{Dtype, SafeTensors};

use crate::error::{Cause, Error, Result};
use crate::numbers::{DType, HostVec};
use crate::verify::compare::Tolerance;

/// Size limit in bytes: case files are small, and a larger file is something else.
const MAX_BYTES: u64 = 1 << 28;

/// Tensor of a case file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTensor {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: FileData,
}

/// Elements of a tensor of a case file.
#[derive(Clone, Debug, PartialEq)]
pub enum FileData {
    /// f32, f16 or bf16.
    Float(HostVec),
    /// f64.
    Double(Vec<f64>),
    /// i64 or i32.
    Int(Vec<i64>),
    /// Boolean.
    Bool(Vec<bool>),
}

/// Case file, read and checked.
#[derive(Clone, Debug)]
pub struct CaseFile {
    path: PathBuf,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, FileTensor>,
}

impl CaseFile {
    /// Returns the case files under `path`, sorted; `path` itself if it is a file.
    pub fn find(path: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut open = vec![path.to_path_buf()];
        while let Some(path) = open.pop() {
            let file_error = |error: std::io::Error| Error::file(path.display(), Cause::new(error));
            if fs::metadata(&path).map_err(file_error)?.is_dir() {
                for entry in fs::read_dir(&path).map_err(file_error)? {
                    open.push(entry.map_err(file_error)?.path());
                }
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                found.push(path);
            }
        }
        if found.is_empty() {
            return Err(Error::file(path.display(), "holds no .safetensors case file"));
        }
        found.sort();
        Ok(found)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let file_error = |error: std::io::Error| Error::file(path.display(), Cause::new(error));
        let size = fs::metadata(path).map_err(file_error)?.len();
        if size > MAX_BYTES {
            return Err(Error::file(path.display(), format!("has {size} bytes; a case file has at most {MAX_BYTES}")));
        }
        let bytes = fs::read(path).map_err(file_error)?;
        Self::parse(path, &bytes)
    }

    /// Reads a file from memory; `path` is for reports.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file_error = |why: String| Error::file(path.display(), why);
        let broken = |error: safetensors::SafeTensorError| file_error(format!("is not a whole safetensors file: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get("format").map(String::as_str) {
            Some("attnconf/1") => {}
            Some(other) => return Err(file_error(format!("has format `{other}`; this reads attnconf/1"))),
            None => return Err(file_error("is no case file: its metadata names no format".into())),
        }
        for key in ["suite", "case", "op"] {
            if !metadata.contains_key(key) {
                return Err(file_error(format!("its metadata has no `{key}`")));
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(broken)?.iter() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            // An axis of 0 counts as 1, because it would permit absurd sizes along the others.
            let extent = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent.max(1)));
            if extent.is_none_or(|extent| extent as u64 > MAX_BYTES) {
                return Err(file_error(format!("tensor `{name}` has the absurd shape {shape:?}")));
            }
            let data = match view.dtype() {
                Dtype::F32 => FileData::Float(HostVec::from_bytes(DType::F32, data)),
                Dtype::F16 => FileData::Float(HostVec::from_bytes(DType::F16, data)),
                Dtype::BF16 => FileData::Float(HostVec::from_bytes(DType::BF16, data)),
                Dtype::F64 => FileData::Double(bytemuck::pod_collect_to_vec(data)),
                Dtype::I64 => FileData::Int(bytemuck::pod_collect_to_vec(data)),
                Dtype::I32 => FileData::Int(bytemuck::pod_collect_to_vec::<u8, i32>(data).into_iter().map(i64::from).collect()),
                Dtype::BOOL => FileData::Bool(data.iter().map(|&byte| byte != 0).collect()),
                other => {
                    return Err(file_error(format!("tensor `{name}` is {other:?}; case files have f32, f16, bf16, f64, i64, i32, bool")));
                }
            };
            tensors.insert(name.to_string(), FileTensor { shape, data });
        }
        Ok(Self { path: path.to_path_buf(), metadata, tensors })
    }

    fn text(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }

    /// Path that the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// Returns an error about this file.
    pub(crate) fn error(&self, why: impl Into<Cause>) -> Error {
        Error::file(self.path.display(), why)
    }

    /// Attribute `name`, if present.
    pub(crate) fn attr<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.metadata.get(&format!("attr.{name}")) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.error(format!("attribute `{name}` = `{text}` cannot be read")))
    }

    /// Attribute `name`; an error if it is absent.
    pub(crate) fn required_attr<T: FromStr>(&self, name: &str) -> Result<T> {
        self.attr(name)?.ok_or_else(|| self.error(format!("has no attribute `{name}`")))
    }

    /// Boolean attribute, 0 or 1; false if it is absent.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.attr::<u8>(name)?.is_some_and(|value| value != 0))
    }

    /// Size attribute `name`; `None` if it is absent or -1.
    pub(crate) fn size(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.attr::<i64>(name)?.and_then(|value| u32::try_from(value).ok()))
    }

    /// Input `name`, if present.
    pub(crate) fn optional(&self, name: &str) -> Option<&FileTensor> {
        self.tensors.get(&format!("in.{name}"))
    }

    /// Input `name`; an error if it is absent.
    pub(crate) fn input(&self, name: &str) -> Result<&FileTensor> {
        self.optional(name).ok_or_else(|| self.error(format!("has no tensor `in.{name}`")))
    }

    /// Expected output `name`, if present.
    pub(crate) fn expected(&self, name: &str) -> Option<&FileTensor> {
        self.tensors.get(&format!("out.{name}"))
    }

    /// All expected outputs.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (&str, &FileTensor)> {
        self.tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("out.")?, tensor)))
    }

    /// Tolerance of the output `name`.
    pub(crate) fn tolerance(&self, name: &str) -> Result<Tolerance> {
        let number = |key: &str| {
            let text = self.metadata.get(key);
            text.map(|text| text.parse::<f64>().map_err(|_| self.error(format!("`{key}` = `{text}` is not a number")))).transpose()
        };
        let absolute = match number(&format!("tol.{name}"))? {
            Some(absolute) => Some(absolute),
            None => number("tol.atol")?,
        };
        match (absolute, number("tol.rtol")?) {
            (Some(absolute), Some(relative)) => Ok(Tolerance { minus_infinity: -1e30, ..Tolerance::uniform(absolute, relative) }),
            _ => Err(self.error(format!("has no tolerance for `{name}`"))),
        }
    }

    /// Input `name` as floating-point elements; f64 is rounded to f32.
    pub(crate) fn floats(&self, name: &str) -> Result<HostVec> {
        match &self.input(name)?.data {
            FileData::Float(data) => Ok(data.clone()),
            FileData::Double(data) => Ok(HostVec::F32(data.iter().map(|&x| x as f32).collect())),
            _ => Err(self.error(format!("tensor `in.{name}` is not of floating-point numbers"))),
        }
    }

    /// Input `name`, widened to f32.
    pub(crate) fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.floats(name)?.into_f32())
    }

    /// Input `name` as integers that fit `T`.
    pub(crate) fn ints<T: TryFrom<i64>>(&self, name: &str) -> Result<Vec<T>> {
        let FileData::Int(data) = &self.input(name)?.data else {
            return Err(self.error(format!("tensor `in.{name}` is not of integers")));
        };
        let narrow = |&x: &i64| T::try_from(x).map_err(|_| self.error(format!("tensor `in.{name}` holds {x}, which is out of range")));
        data.iter().map(narrow).collect()
    }

    /// Shape of the input `name`, which must have `N` axes.
    pub(crate) fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = &self.input(name)?.shape;
        <[usize; N]>::try_from(shape.as_slice()).map_err(|_| self.error(format!("tensor `in.{name}` has shape {shape:?}, not {N} axes")))
    }
}

impl FileTensor {
    /// Elements in f64; booleans are 0 and 1.
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            FileData::Float(data) => data.to_f32().into_iter().map(f64::from).collect(),
            FileData::Double(data) => data.clone(),
            FileData::Int(data) => data.iter().map(|&x| x as f64).collect(),
            FileData::Bool(data) => data.iter().map(|&x| f64::from(u8::from(x))).collect(),
        }
    }

    /// Storage type, if it is one of the engine's.
    pub(crate) fn dtype(&self) -> Option<DType> {
        match &self.data {
            FileData::Float(data) => Some(data.as_slice().dtype()),
            _ => None,
        }
    }
}
