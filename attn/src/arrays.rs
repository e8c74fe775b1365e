//! Arrays in files: NumPy's `.npy` and `.safetensors`, in and out.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use npyz::{NpyFile, Order, TypeChar, WriterBuilder};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use wgpu_attention::{DType, HostVec};

use crate::failure::Failure;

/// Elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Numbers(HostVec),
    Bools(Vec<bool>),
}

/// Array in C order, with its origin for error messages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    /// Path of the file, followed by the tensor's name if the format has names.
    pub(crate) source: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
}

/// Supported file formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Npy,
    Safetensors,
}

impl Kind {
    /// Chooses the format by the file extension.
    pub(crate) fn of(path: &Path) -> Result<Self, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Failure::input(format!("{}: the name must end in .npy or .safetensors", path.display()))),
        }
    }
}

fn complain(source: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::input(format!("{source}: {why}"))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let at = path.display();
    let metadata = fs::metadata(path).map_err(|error| complain(&at, error))?;
    if !metadata.is_file() {
        return Err(complain(&at, "is not a regular file"));
    }
    fs::read(path).map_err(|error| complain(&at, error))
}

/// Reads an `.npy` file: f32, f16 or bool, either byte order, either axis order.
pub(crate) fn read_npy(path: &Path) -> Result<Array, Failure> {
    let at = path.display();
    let bytes = read(path)?;
    check_npy_header(&bytes).map_err(|why| complain(&at, why))?;
    let file = NpyFile::new(&bytes[..]).map_err(|error| complain(&at, format!("is no array that NumPy wrote: {error}")))?;
    let (extents, order, dtype) = (file.shape().to_vec(), file.order(), file.dtype());
    let npyz::DType::Plain(type_str) = &dtype else {
        return Err(complain(&at, format!("has structured elements {}; float32, float16 or bool is needed", dtype.descr())));
    };
    let readable = matches!((type_str.type_char(), type_str.size_field()), (TypeChar::Float, 2 | 4) | (TypeChar::Bool, 1));
    if !readable {
        return Err(complain(
            at,
            format!("has elements of type '{type_str}'; float32, float16 or bool is needed: np.save(..., x.astype(np.float32))"),
        ));
    }
    let size = type_str.size_field();
    let shape: Option<Vec<usize>> = extents.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let needed = extents.iter().try_fold(size, |product, &extent| product.checked_mul(extent));
    let (Some(shape), Some(needed)) = (shape, needed.filter(|&needed| needed <= isize::MAX as u64)) else {
        return Err(complain(&at, format!("has the shape {extents:?}, which is more than any memory holds")));
    };
    let present = file.clone().into_inner().len() as u64;
    if present < needed {
        return Err(complain(&at, format!("is cut short: shape {shape:?} needs {needed} bytes of numbers, the file has {present}")));
    }
    let bad = |error: std::io::Error| complain(&at, error);
    let data = match (type_str.type_char(), size) {
        (TypeChar::Bool, _) => Data::Bools(c_order(file.into_vec::<bool>().map_err(bad)?, &shape, order)),
        (_, 2) => Data::Numbers(HostVec::F16(c_order(file.into_vec::<f16>().map_err(bad)?, &shape, order))),
        _ => Data::Numbers(HostVec::F32(c_order(file.into_vec::<f32>().map_err(bad)?, &shape, order))),
    };
    Ok(Array { source: at.to_string(), shape, data })
}

/// Rejects malformed headers before a parser allocates anything for them. NumPy itself refuses headers over 10,000
/// bytes, and the header of a plain array holds one pair of parentheses inside one pair of braces.
fn check_npy_header(bytes: &[u8]) -> Result<(), String> {
    let magic = bytes.get(..6).is_some_and(|magic| magic == b"\x93NUMPY");
    if !magic {
        return Err("is no .npy file: it does not begin with \\x93NUMPY".into());
    }
    let cut = || "is cut short inside its header".to_string();
    let (from, length) = if bytes.get(6) == Some(&1) {
        (10, bytes.get(8..10).map(|size| u64::from(size[0]) | u64::from(size[1]) << 8))
    } else {
        (12, bytes.get(8..12).map(|size| size.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))))
    };
    let length = length.ok_or_else(cut)?;
    if length > 10_000 {
        return Err(format!("has a header of {length} bytes; NumPy reads up to 10,000"));
    }
    let header = bytes.get(from..from + length as usize).ok_or_else(cut)?;
    if header.iter().filter(|byte| b"([{".contains(byte)).count() > 16 {
        return Err("has a header that describes no plain array".into());
    }
    Ok(())
}

/// Reorders `data` to C order, whose last axis is contiguous. In Fortran order the first axis is.
fn c_order<T: Copy>(data: Vec<T>, shape: &[usize], order: Order) -> Vec<T> {
    if order == Order::C || data.is_empty() {
        return data;
    }
    let mut strides = Vec::with_capacity(shape.len());
    let mut step = 1;
    for &extent in shape {
        strides.push(step);
        step *= extent;
    }
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let mut dense = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        dense.push(data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    dense
}

/// Reads the tensors called `names` from a `.safetensors` file. Missing tensors are left out of the map.
pub(crate) fn read_safetensors(path: &Path, names: &[&'static str]) -> Result<BTreeMap<&'static str, Array>, Failure> {
    let at = path.display();
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| complain(&at, format!("is no whole .safetensors file: {error}")))?;
    let mut arrays = BTreeMap::new();
    for &name in names {
        let Ok(tensor) = file.tensor(name) else { continue };
        let source = format!("{at}: tensor `{name}`");
        let bytes = tensor.data();
        let data = match tensor.dtype() {
            Dtype::F32 => Data::Numbers(HostVec::F32(bytemuck::pod_collect_to_vec(bytes))),
            Dtype::F16 => Data::Numbers(HostVec::F16(bytemuck::pod_collect_to_vec(bytes))),
            Dtype::BF16 => Data::Numbers(HostVec::BF16(bytemuck::pod_collect_to_vec(bytes))),
            Dtype::BOOL => Data::Bools(bytes.iter().map(|&byte| byte != 0).collect()),
            other => return Err(complain(&source, format!("has elements of type {other:?}; F32, F16, BF16 or BOOL is needed"))),
        };
        arrays.insert(name, Array { source, shape: tensor.shape().to_vec(), data });
    }
    Ok(arrays)
}

/// Returns the tensor names and the metadata of a `.safetensors` file.
pub(crate) fn safetensors_header(path: &Path) -> Result<(Vec<String>, HashMap<String, String>), Failure> {
    let at = path.display();
    let bytes = read(path)?;
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|error| complain(&at, format!("is no whole .safetensors file: {error}")))?;
    Ok((metadata.offset_keys(), metadata.metadata().clone().unwrap_or_default()))
}

/// Destination of a result, validated before the result is computed.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    path: PathBuf,
    kind: Kind,
}

impl Target {
    /// Validates the destination; `dtype` is the type that will be written.
    pub(crate) fn new(path: &Path, dtype: DType) -> Result<Self, Failure> {
        let at = path.display();
        let kind = Kind::of(path)?;
        if dtype.is_quantised() {
            return Err(complain(&at, format!("files have no {dtype}")));
        }
        if kind == Kind::Npy && dtype == DType::BF16 {
            return Err(complain(&at, "NumPy has no bfloat16: write to a .safetensors file"));
        }
        if path.is_dir() {
            return Err(complain(&at, "is a folder"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(complain(&at, format!("there is no folder {}", folder.display())));
        }
        Ok(Self { path: path.to_path_buf(), kind })
    }

    /// Writes one tensor, as `name` if the format has names.
    pub(crate) fn write(&self, name: &str, shape: &[usize], data: &HostVec) -> Result<(), Failure> {
        let bytes = match self.kind {
            Kind::Npy => npy_bytes(shape, data).map_err(|error| error.to_string()),
            Kind::Safetensors => safetensors_bytes(name, shape, data).map_err(|error| error.to_string()),
        };
        let at = self.path.display();
        write_file(&self.path, &bytes.map_err(|why| complain(&at, why))?)
    }
}

fn npy_bytes(shape: &[usize], data: &HostVec) -> std::io::Result<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    let mut bytes = Vec::new();
    match data {
        HostVec::F16(data) => {
            let mut writer = npyz::WriteOptions::<f16>::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
            writer.extend(data.iter().copied())?;
            writer.finish()?;
        }
        other => {
            let mut writer = npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
            writer.extend(other.to_f32())?;
            writer.finish()?;
        }
    }
    Ok(bytes)
}

fn safetensors_bytes(name: &str, shape: &[usize], data: &HostVec) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let widened = data.to_f32();
    let (dtype, data) = match data {
        HostVec::F16(_) => (Dtype::F16, data.as_slice()),
        HostVec::BF16(_) => (Dtype::BF16, data.as_slice()),
        HostVec::F32(_) | HostVec::Q8(_) | HostVec::Q4(_) => (Dtype::F32, (&widened).into()),
    };
    serialize([(name, TensorView::new(dtype, shape.to_vec(), data.bytes())?)], None)
}

/// Writes a regular file atomically: an existing one is replaced only once the new one is complete.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let at = path.display();
    let special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if special {
        return fs::write(path, bytes).map_err(|error| complain(&at, error));
    }
    let mut part = path.as_os_str().to_os_string();
    part.push(".part");
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, path)).map_err(|error| {
        // Best-effort cleanup; the original error is the one to report.
        let _ = fs::remove_file(&part);
        complain(&at, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fortran_order_is_transposed() {
        // [[1, 2, 3], [4, 5, 6]] column by column.
        assert_eq!(c_order(vec![1, 4, 2, 5, 3, 6], &[2, 3], Order::Fortran), [1, 2, 3, 4, 5, 6]);
        assert_eq!(c_order(vec![1, 2], &[2], Order::Fortran), [1, 2]);
        assert_eq!(c_order(vec![7], &[], Order::Fortran), [7]);
    }

    #[test]
    fn headers_that_no_array_has_are_refused() {
        let header = |text: &[u8]| [b"\x93NUMPY\x02\x00", &(text.len() as u32).to_le_bytes()[..], text].concat();
        assert!(check_npy_header(b"PK").is_err());
        assert!(check_npy_header(b"\x93NUMPY\x01").is_err());
        assert!(check_npy_header(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").is_err());
        assert!(check_npy_header(&header(&[b'('; 5000])).is_err());
        assert!(check_npy_header(&header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n")).is_ok());
    }
}
