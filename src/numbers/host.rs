//! Elements in host memory: slices and vectors of every storage type.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::dtype::{BLOCK, DType, block_words};
use super::{blocks, pages};

/// Borrowed elements in host memory, in any storage type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostSlice<'a> {
    /// Stored as f32.
    F32(&'a [f32]),
    /// Stored as f16.
    F16(&'a [f16]),
    /// Stored as bf16.
    BF16(&'a [bf16]),
    /// Stored as whole blocks of q8.
    Q8(&'a [u32]),
    /// Stored as whole blocks of q4.
    Q4(&'a [u32]),
}

impl<'a> HostSlice<'a> {
    /// Storage type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::Q8(_) => DType::Q8,
            Self::Q4(_) => DType::Q4,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::BF16(data) => data.len(),
            Self::Q8(words) | Self::Q4(words) => words.len() / block_words(self.dtype()) * BLOCK,
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the element at `index`, widened: exact for every storage type. Panics past the end, as a slice does.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(data) => data[index],
            Self::F16(data) => data[index].to_f32(),
            Self::BF16(data) => data[index].to_f32(),
            Self::Q8(words) | Self::Q4(words) => blocks::get(self.dtype(), words, index),
        }
    }

    /// Subrange of the elements; whole blocks if quantised. Panics past the end, as a slice does.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::F16(data) => Self::F16(&data[range]),
            Self::BF16(data) => Self::BF16(&data[range]),
            Self::Q8(words) => Self::Q8(&words[word_range(DType::Q8, range)]),
            Self::Q4(words) => Self::Q4(&words[word_range(DType::Q4, range)]),
        }
    }

    /// Bytes as stored in memory.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::F16(data) => bytemuck::cast_slice(data),
            Self::BF16(data) => bytemuck::cast_slice(data),
            Self::Q8(words) | Self::Q4(words) => bytemuck::cast_slice(words),
        }
    }
}

/// Range of words that holds a range of whole blocks.
fn word_range(dtype: DType, numbers: Range<usize>) -> Range<usize> {
    debug_assert!(numbers.start.is_multiple_of(BLOCK) && numbers.end.is_multiple_of(BLOCK), "{numbers:?} are no whole blocks");
    numbers.start / BLOCK * block_words(dtype)..numbers.end / BLOCK * block_words(dtype)
}

/// Element type of a slice or vector that becomes a [`HostSlice`] or [`HostVec`]: f32, f16 or bf16.
pub trait Element: sealed::Sealed + Sized {
    /// Wraps a slice.
    fn slice(data: &[Self]) -> HostSlice<'_>;
    /// Wraps a vector.
    fn vec(data: Vec<Self>) -> HostVec;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    fn slice(data: &[Self]) -> HostSlice<'_> {
        HostSlice::F32(data)
    }

    fn vec(data: Vec<Self>) -> HostVec {
        HostVec::F32(data)
    }
}

impl Element for f16 {
    fn slice(data: &[Self]) -> HostSlice<'_> {
        HostSlice::F16(data)
    }

    fn vec(data: Vec<Self>) -> HostVec {
        HostVec::F16(data)
    }
}

impl Element for bf16 {
    fn slice(data: &[Self]) -> HostSlice<'_> {
        HostSlice::BF16(data)
    }

    fn vec(data: Vec<Self>) -> HostVec {
        HostVec::BF16(data)
    }
}

impl<'a, T: Element> From<&'a [T]> for HostSlice<'a> {
    fn from(data: &'a [T]) -> Self {
        T::slice(data)
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for HostSlice<'a> {
    fn from(data: &'a Vec<T>) -> Self {
        T::slice(data)
    }
}

impl<'a, T: Element, const N: usize> From<&'a [T; N]> for HostSlice<'a> {
    fn from(data: &'a [T; N]) -> Self {
        T::slice(data)
    }
}

impl<'a> From<&'a HostVec> for HostSlice<'a> {
    fn from(data: &'a HostVec) -> Self {
        data.as_slice()
    }
}

impl<T: Element> From<Vec<T>> for HostVec {
    fn from(data: Vec<T>) -> Self {
        T::vec(data)
    }
}

/// Owned elements in host memory, in any storage type.
#[derive(Clone, Debug, PartialEq)]
pub enum HostVec {
    /// Stored as f32.
    F32(Vec<f32>),
    /// Stored as f16.
    F16(Vec<f16>),
    /// Stored as bf16.
    BF16(Vec<bf16>),
    /// Stored as whole blocks of q8.
    Q8(Vec<u32>),
    /// Stored as whole blocks of q4.
    Q4(Vec<u32>),
}

impl HostVec {
    /// Creates `len` zeros; quantised types round up to whole blocks.
    pub fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::Q8 => Self::Q8(pages::zeros(dtype.bytes(len) / 4)),
            DType::Q4 => Self::Q4(pages::zeros(dtype.bytes(len) / 4)),
            DType::F32 => Self::F32(pages::zeros(len)),
            DType::F16 => Self::F16(pages::zeros(len)),
            DType::BF16 => Self::BF16(pages::zeros(len)),
        }
    }

    /// Rounds `data` to nearest even into `dtype`, or quantises it; the last block is padded with zeros.
    pub fn from_f32(dtype: DType, data: &[f32]) -> Self {
        match dtype {
            DType::Q8 | DType::Q4 => {
                let mut to = Self::zeros(dtype, data.len());
                let (whole, rest) = data.split_at(data.len() / BLOCK * BLOCK);
                to.write(0, whole.into());
                if !rest.is_empty() {
                    let mut block = [0.0; BLOCK];
                    block[..rest.len()].copy_from_slice(rest);
                    to.write(whole.len(), block[..].into());
                }
                to
            }
            DType::F32 => Self::F32(data.to_vec()),
            DType::F16 => Self::F16(data.iter().map(|&x| f16::from_f32(x)).collect()),
            DType::BF16 => Self::BF16(data.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// Copies elements from `bytes`, which must hold whole elements or blocks of `dtype`.
    pub(crate) fn from_bytes(dtype: DType, bytes: &[u8]) -> Self {
        match dtype {
            DType::F32 => Self::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::F16 => Self::F16(bytemuck::pod_collect_to_vec(bytes)),
            DType::BF16 => Self::BF16(bytemuck::pod_collect_to_vec(bytes)),
            DType::Q8 => Self::Q8(bytemuck::pod_collect_to_vec(bytes)),
            DType::Q4 => Self::Q4(bytemuck::pod_collect_to_vec(bytes)),
        }
    }

    /// Reserves memory for `len` elements in all. True if there is enough.
    pub(crate) fn reserve(&mut self, len: usize) -> bool {
        fn reserve<T>(data: &mut Vec<T>, len: usize) -> bool {
            let is_there = data.try_reserve(len.saturating_sub(data.len())).is_ok();
            pages::prefer_large(data);
            is_there
        }
        let words = self.as_slice().dtype().bytes(len) / 4;
        match self {
            Self::F32(data) => reserve(data, len),
            Self::F16(data) => reserve(data, len),
            Self::BF16(data) => reserve(data, len),
            Self::Q8(data) | Self::Q4(data) => reserve(data, words),
        }
    }

    /// Truncates, or pads with zeros.
    pub(crate) fn resize(&mut self, len: usize) {
        match self {
            Self::F32(data) => data.resize(len, 0.0),
            Self::F16(data) => data.resize(len, f16::ZERO),
            Self::BF16(data) => data.resize(len, bf16::ZERO),
            Self::Q8(words) => words.resize(DType::Q8.bytes(len) / 4, 0),
            Self::Q4(words) => words.resize(DType::Q4.bytes(len) / 4, 0),
        }
    }

    /// Writes `from` at index `at`, rounded to nearest even or quantised (whole blocks only). Panics past the end.
    pub(crate) fn write(&mut self, at: usize, from: HostSlice<'_>) {
        let (dtype, range) = (self.as_slice().dtype(), at..at + from.len());
        match (self, from) {
            (Self::F32(to), HostSlice::F32(from)) => to[range].copy_from_slice(from),
            (Self::F16(to), HostSlice::F16(from)) => to[range].copy_from_slice(from),
            (Self::BF16(to), HostSlice::BF16(from)) => to[range].copy_from_slice(from),
            (Self::F16(to), HostSlice::F32(from)) => to[range].convert_from_f32_slice(from),
            (Self::BF16(to), HostSlice::F32(from)) => to[range].convert_from_f32_slice(from),
            (Self::Q8(to), HostSlice::Q8(from)) | (Self::Q4(to), HostSlice::Q4(from)) => to[word_range(dtype, range)].copy_from_slice(from),
            (Self::Q8(to) | Self::Q4(to), HostSlice::F32(from)) => blocks::narrow(dtype, from, &mut to[word_range(dtype, range)]),
            (to @ (Self::Q8(_) | Self::Q4(_)), from) => {
                let numbers: Vec<f32> = (0..from.len()).map(|i| from.get(i)).collect();
                to.write(at, numbers[..].into());
            }
            (Self::F32(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = from.get(i)),
            (Self::F16(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = f16::from_f32(from.get(i))),
            (Self::BF16(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = bf16::from_f32(from.get(i))),
        }
    }

    /// Copies a range of elements to index `to`. Panics past the end.
    pub(crate) fn copy_within(&mut self, from: Range<usize>, to: usize) {
        match self {
            Self::F32(data) => data.copy_within(from, to),
            Self::F16(data) => data.copy_within(from, to),
            Self::BF16(data) => data.copy_within(from, to),
            Self::Q8(words) => words.copy_within(word_range(DType::Q8, from), word_range(DType::Q8, to..to).start),
            Self::Q4(words) => words.copy_within(word_range(DType::Q4, from), word_range(DType::Q4, to..to).start),
        }
    }

    /// Borrows the elements.
    pub fn as_slice(&self) -> HostSlice<'_> {
        match self {
            Self::F32(data) => HostSlice::F32(data),
            Self::F16(data) => HostSlice::F16(data),
            Self::BF16(data) => HostSlice::BF16(data),
            Self::Q8(words) => HostSlice::Q8(words),
            Self::Q4(words) => HostSlice::Q4(words),
        }
    }

    /// Returns the elements widened to f32: exact for every storage type.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(data) => data.clone(),
            Self::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Self::BF16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Self::Q8(words) | Self::Q4(words) => {
                let mut numbers = vec![0.0; self.as_slice().len()];
                blocks::widen(self.as_slice().dtype(), words, &mut numbers);
                numbers
            }
        }
    }

    /// [`Self::to_f32`] by value: no copy if the elements are f32 already.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(data) => data,
            other => other.to_f32(),
        }
    }
}
