//! Arrays in files: NumPy's `.npy` and `.safetensors`, in and out.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytemuck::pod_collect_to_vec;
use npyz::{Endianness, NpyFile, Order, TypeChar, WriterBuilder};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use wgpu_attention::{DType, HostVec};

use crate::failure::Failure;

/// Elements of an array, in C order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Floats(HostVec),
    Integers(Vec<i64>),
    Unsigned(Vec<u32>),
    Bools(Vec<bool>),
}

/// Array, with its origin for error messages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    /// Path of the file, followed by the tensor's name if the format has names.
    pub(crate) source: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
}

impl Array {
    fn needs<T>(&self, what: &str) -> Result<T, Failure> {
        let has = match &self.data {
            Data::Floats(floats) => floats.as_slice().dtype().name(),
            Data::Integers(_) | Data::Unsigned(_) => "integer",
            Data::Bools(_) => "bool",
        };
        Err(Failure::at(&self.source, format!("is {has}; {what} is needed")))
    }

    pub(crate) fn floats(self) -> Result<HostVec, Failure> {
        if let Data::Floats(floats) = self.data { Ok(floats) } else { self.needs("float32 or float16") }
    }

    pub(crate) fn bools(self) -> Result<Vec<bool>, Failure> {
        if let Data::Bools(bools) = self.data { Ok(bools) } else { self.needs("bool, true = may attend (floats to add go to --bias),") }
    }

    pub(crate) fn integers<T: TryFrom<i64>>(self) -> Result<Vec<T>, Failure> {
        let integers = match self.data {
            Data::Integers(integers) => integers,
            Data::Unsigned(integers) => integers.into_iter().map(i64::from).collect(),
            _ => return self.needs("int64 or int32"),
        };
        let narrow = |integer| T::try_from(integer).map_err(|_| Failure::at(&self.source, format!("{integer} is out of range")));
        integers.into_iter().map(narrow).collect()
    }
}

/// Reads little-endian elements. `None` for types that are not supported.
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Data> {
    Some(match dtype {
        Dtype::F32 => Data::Floats(HostVec::F32(pod_collect_to_vec(bytes))),
        Dtype::F16 => Data::Floats(HostVec::F16(pod_collect_to_vec(bytes))),
        Dtype::BF16 => Data::Floats(HostVec::BF16(pod_collect_to_vec(bytes))),
        Dtype::I64 => Data::Integers(pod_collect_to_vec(bytes)),
        Dtype::I32 => Data::Integers(pod_collect_to_vec::<_, i32>(bytes).into_iter().map(i64::from).collect()),
        Dtype::U32 => Data::Unsigned(pod_collect_to_vec(bytes)),
        Dtype::BOOL => Data::Bools(bytes.iter().map(|&byte| byte != 0).collect()),
        _ => return None,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Failure::at(path.display(), "is not a regular file")),
        _ => fs::read(path).map_err(|error| Failure::at(path.display(), error)),
    }
}

/// Reads an `.npy` file, in either byte order and either axis order.
pub(crate) fn read_npy(path: &Path) -> Result<Array, Failure> {
    let bad = |why: String| Failure::at(path.display(), why);
    let bytes = read(path)?;
    check_npy_header(&bytes).map_err(bad)?;
    let file = NpyFile::new(&bytes[..]).map_err(|error| bad(format!("is not an array that NumPy wrote: {error}")))?;
    let (extents, order, descr) = (file.shape().to_vec(), file.order(), file.dtype());
    let npyz::DType::Plain(plain) = &descr else {
        return Err(bad(format!("has structured elements, {}; plain float32, float16, int64, int32 or bool is needed", descr.descr())));
    };
    let dtype = match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 4) => Dtype::F32,
        (TypeChar::Float, 2) => Dtype::F16,
        (TypeChar::Int, 8) => Dtype::I64,
        (TypeChar::Int, 4) => Dtype::I32,
        (TypeChar::Uint, 4) => Dtype::U32,
        (TypeChar::Bool, 1) => Dtype::BOOL,
        _ => {
            let needed = "float32, float16, int64, int32 or bool is needed: np.save(..., x.astype(np.float32))";
            return Err(bad(format!("has elements of type {}; {needed}", descr.descr())));
        }
    };
    let size = plain.size_field();
    let shape: Option<Vec<usize>> = extents.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let needed = extents.iter().try_fold(size, |product, &extent| product.checked_mul(extent));
    let (Some(shape), Some(needed)) = (shape, needed.filter(|&needed| needed <= isize::MAX as u64)) else {
        return Err(bad(format!("has the shape {extents:?}, which is more than any memory holds")));
    };
    let present = file.into_inner();
    let Some(elements) = present.get(..needed as usize) else {
        return Err(bad(format!("is cut short: shape {shape:?} needs {needed} bytes of elements, the file has {}", present.len())));
    };
    let mut elements = if order == Order::C { elements.to_vec() } else { c_order(elements, size as usize, &shape) };
    if plain.endianness() == Endianness::Big {
        elements.chunks_exact_mut(size as usize).for_each(<[u8]>::reverse);
    }
    let data = decode(dtype, &elements).ok_or_else(|| bad(format!("{dtype:?} is not supported")))?;
    Ok(Array { source: path.display().to_string(), shape, data })
}

/// Refuses malformed headers before a parser allocates anything for them. NumPy itself refuses headers over 10,000
/// bytes, and the header of a plain array holds one pair of parentheses inside one pair of braces.
fn check_npy_header(bytes: &[u8]) -> Result<(), String> {
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err("is not an .npy file: it does not begin with \\x93NUMPY".into());
    }
    // Version 1 has two bytes of length, later ones four.
    let start = if bytes.get(6) == Some(&1) { 10 } else { 12 };
    let length = bytes.get(8..start).map(|size| size.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)));
    match length.map(|length| (length, bytes.get(start..start + length))) {
        Some((10_001.., _)) => Err(format!("has a header of {} bytes; NumPy reads up to 10,000", length.unwrap_or(0))),
        None | Some((_, None)) => Err("is cut short inside its header".into()),
        Some((_, Some(header))) if header.iter().filter(|byte| b"([{".contains(byte)).count() > 16 => {
            Err("has a header that does not describe a plain array".into())
        }
        _ => Ok(()),
    }
}

/// Reorders elements of `size` bytes to C order, whose last axis is contiguous. In Fortran order the first axis is.
fn c_order(elements: &[u8], size: usize, shape: &[usize]) -> Vec<u8> {
    let count = elements.len() / size;
    let mut dense = Vec::with_capacity(elements.len());
    for at in 0..count {
        let (mut rest, mut stride, mut from) = (at, count, 0);
        for extent in shape.iter().rev() {
            stride /= extent;
            from += rest % extent * stride;
            rest /= extent;
        }
        dense.extend_from_slice(&elements[from * size..][..size]);
    }
    dense
}

/// Contents of a `.safetensors` file.
pub(crate) struct TensorFile {
    pub(crate) path: PathBuf,
    pub(crate) names: Vec<String>,
    pub(crate) metadata: HashMap<String, String>,
    bytes: Vec<u8>,
}

impl TensorFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = read(path)?;
        let broken = |error| Failure::at(path.display(), format!("is not a complete .safetensors file: {error}"));
        let names = SafeTensors::deserialize(&bytes).map_err(broken)?.names().into_iter().map(str::to_string).collect();
        let metadata = SafeTensors::read_metadata(&bytes).map_err(broken)?.1.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.into(), names, metadata, bytes })
    }

    /// Reads the tensor of this name, if there is one.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Array>, Failure> {
        let Some(tensor) = SafeTensors::deserialize(&self.bytes).ok().and_then(|file| file.tensor(name).ok()) else { return Ok(None) };
        let source = format!("{}: tensor `{name}`", self.path.display());
        let refused = || Failure::at(&source, format!("is {:?}; F32, F16, BF16, I64, I32 or BOOL is needed", tensor.dtype()));
        let data = decode(tensor.dtype(), tensor.data()).ok_or_else(refused)?;
        Ok(Some(Array { shape: tensor.shape().to_vec(), data, source }))
    }

    /// Describes that the tensor `name` is missing.
    pub(crate) fn missing(&self, name: &str, remedy: &str) -> Failure {
        Failure::at(self.path.display(), format!("has no tensor `{name}`, only {}{remedy}", self.names.join(", ")))
    }
}

/// Writes one tensor, in the format of the extension; as `name` if the format has names. bf16 is widened for `.npy`.
pub(crate) fn write_tensor(path: &Path, name: &str, shape: &[usize], data: &HostVec) -> Result<(), Failure> {
    let dtype = match data.as_slice().dtype() {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let bytes = match data {
        data if path.extension().is_none_or(|extension| extension != "npy") => {
            let view = TensorView::new(dtype, shape.to_vec(), data.as_slice().bytes());
            view.and_then(|view| serialize([(name, view)], None)).map_err(|error| error.to_string())
        }
        HostVec::F16(data) => npy(shape, data).map_err(|error| error.to_string()),
        data => npy(shape, &data.to_f32()).map_err(|error| error.to_string()),
    };
    write_file(path, &bytes.map_err(|why| Failure::at(path.display(), why))?)
}

fn npy<T: npyz::AutoSerialize + Copy>(shape: &[usize], data: &[T]) -> io::Result<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
    writer.extend(data.iter().copied())?;
    writer.finish()?;
    Ok(bytes)
}

/// Checks, before anything is computed, that a file can be written: its extension, its folder. Devices need no extension.
pub(crate) fn check_output(path: &Path, extensions: &[&str]) -> Result<(), Failure> {
    let bad = |why: String| Err(Failure::at(path.display(), why));
    if path.is_dir() {
        return bad("is a folder".into());
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return bad(format!("the folder {} does not exist", folder.display()));
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !extensions.contains(&extension) && !extensions.is_empty() && !is_special(path) {
        return bad(format!("the name must end in .{}", extensions.join(" or .")));
    }
    Ok(())
}

/// Refuses an output that is also an input or another output. A symbolic link counts as its target.
pub(crate) fn keep_apart<'a>(outputs: &[&Path], inputs: impl IntoIterator<Item = &'a Path>) -> Result<(), Failure> {
    let inputs: Vec<PathBuf> = inputs.into_iter().map(resolved).collect();
    let places: Vec<PathBuf> = outputs.iter().map(|path| resolved(path)).collect();
    for (at, place) in places.iter().enumerate() {
        let output = outputs[at].display();
        if inputs.contains(place) {
            return Err(Failure::at(output, "is an input too, which would be overwritten: name another file"));
        }
        if places[..at].contains(place) {
            return Err(Failure::at(output, "two results would be written there: name another file"));
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// True for a pipe or a device.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// Follows symbolic links, also to a file that does not exist yet.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let target = fs::read_link(path).map_or_else(|_| path.to_path_buf(), |target| folder_of(path).join(target));
        let folder = fs::canonicalize(folder_of(&target)).unwrap_or_default();
        folder.join(target.file_name().unwrap_or_default())
    })
}

/// Writes a regular file atomically: an existing one is replaced only once the new one is complete.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let at = path.display();
    if is_special(path) {
        return fs::write(path, bytes).map_err(|error| Failure::at(at, error));
    }
    let path = resolved(path);
    let mut part = path.clone().into_os_string();
    part.push(format!(".{}.part", std::process::id()));
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path)).map_err(|error| {
        // Best-effort cleanup; the original error is the one to report.
        let _ = fs::remove_file(&part);
        Failure::at(at, error)
    })
}
