//! Storage types. Arithmetic is always f32; these say how numbers lie in memory.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::blocks::{self, BLOCK, block_words};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Blocks of 32 signed bytes and one f32 scale, 9 words of four bytes: keys and values only, rows of whole blocks.
    ///
    /// `x_i ~ scale * q_i`, scale = the largest magnitude / 127: off by at most that magnitude / 253. A block with NaN or a number of
    /// 2^127 or more in it is NaN as a whole. An attention to 1,024 keys and values of a normal distribution is off by 0.7 % of its size
    /// (root mean squares; as f16 0.03 %, as bf16 0.24 %).
    Q8,
    /// Blocks of 32 signed halves of bytes, -8..=7, and one f32 scale, 5 words: keys and values only, rows of whole blocks.
    ///
    /// scale = -(the number of largest magnitude) / 8: off by at most that magnitude / 15.9, and / 7.9 near its opposite. NaN as in
    /// [`Self::Q8`]. The same attention is off by 12 % of its size.
    Q4,
}

impl DType {
    /// Those of which every number lies by itself.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Those of which numbers lie in blocks.
    pub const BLOCKS: [Self; 2] = [Self::Q8, Self::Q4];

    /// Whether numbers lie in blocks of 32 under one scale.
    pub const fn is_blocks(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }

    /// Bytes of so many numbers, from the start of a block on and up to a block's end.
    pub const fn bytes(self, numbers: usize) -> usize {
        match self {
            Self::F32 => numbers.saturating_mul(4),
            Self::F16 | Self::BF16 => numbers.saturating_mul(2),
            Self::Q8 | Self::Q4 => (4 * block_words(self)).saturating_mul(numbers.div_ceil(BLOCK)),
        }
    }

    /// The spacing of numbers just above 1: 2^-23, 2^-10, 2^-7; in blocks the spacing where the largest number is 1: 1/127, 1/8.
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::F32 => 1.1920928955078125e-7,
            Self::F16 => 9.765625e-4,
            Self::BF16 => 7.8125e-3,
            Self::Q8 => 1.0 / 127.0,
            Self::Q4 => 0.125,
        }
    }

    /// `f32`, `f16`, `bf16`, `q8` or `q4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        (Self::ALL.into_iter().chain(Self::BLOCKS))
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| crate::Error::invalid("dtype", format!("`{text}` is none of f32, f16, bf16, q8, q4")))
    }
}

/// Numbers in host memory, borrowed, in any storage type.
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
    /// How the numbers are stored.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::Q8(_) => DType::Q8,
            Self::Q4(_) => DType::Q4,
        }
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::BF16(data) => data.len(),
            Self::Q8(words) | Self::Q4(words) => words.len() / block_words(self.dtype()) * BLOCK,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `index`, widened; exact for every storage type. Panics past the end, as a slice does.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(data) => data[index],
            Self::F16(data) => data[index].to_f32(),
            Self::BF16(data) => data[index].to_f32(),
            Self::Q8(words) | Self::Q4(words) => blocks::get(self.dtype(), words, index),
        }
    }

    /// Some of the numbers; of blocks, whole ones. Panics past the end, as a slice does.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::F16(data) => Self::F16(&data[range]),
            Self::BF16(data) => Self::BF16(&data[range]),
            Self::Q8(words) => Self::Q8(&words[word_range(DType::Q8, range)]),
            Self::Q4(words) => Self::Q4(&words[word_range(DType::Q4, range)]),
        }
    }

    /// The bytes as they lie in memory.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::F16(data) => bytemuck::cast_slice(data),
            Self::BF16(data) => bytemuck::cast_slice(data),
            Self::Q8(words) | Self::Q4(words) => bytemuck::cast_slice(words),
        }
    }
}

/// The words of whole blocks of numbers.
fn word_range(dtype: DType, numbers: Range<usize>) -> Range<usize> {
    debug_assert!(numbers.start.is_multiple_of(BLOCK) && numbers.end.is_multiple_of(BLOCK), "{numbers:?} are no whole blocks");
    numbers.start / BLOCK * block_words(dtype)..numbers.end / BLOCK * block_words(dtype)
}

impl<'a> From<&'a [f32]> for HostSlice<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self::F32(data)
    }
}
impl<'a> From<&'a Vec<f32>> for HostSlice<'a> {
    fn from(data: &'a Vec<f32>) -> Self {
        Self::F32(data)
    }
}
impl<'a> From<&'a [f16]> for HostSlice<'a> {
    fn from(data: &'a [f16]) -> Self {
        Self::F16(data)
    }
}
impl<'a> From<&'a [bf16]> for HostSlice<'a> {
    fn from(data: &'a [bf16]) -> Self {
        Self::BF16(data)
    }
}

/// Numbers in host memory, owned, in any storage type.
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
    /// `len` zeros; of blocks, as many as it takes.
    pub fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::Q8 => Self::Q8(vec![0; dtype.bytes(len) / 4]),
            DType::Q4 => Self::Q4(vec![0; dtype.bytes(len) / 4]),
            DType::F32 => Self::F32(vec![0.0; len]),
            DType::F16 => Self::F16(vec![f16::ZERO; len]),
            DType::BF16 => Self::BF16(vec![bf16::ZERO; len]),
        }
    }

    /// Rounds `data` to nearest even into `dtype`, or quantises it; the last block is filled up with zeros.
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

    /// The numbers in `bytes`, which must be whole numbers of `dtype`.
    pub(crate) fn from_bytes(dtype: DType, bytes: &[u8]) -> Self {
        match dtype {
            DType::F32 => Self::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::F16 => Self::F16(bytemuck::pod_collect_to_vec(bytes)),
            DType::BF16 => Self::BF16(bytemuck::pod_collect_to_vec(bytes)),
            DType::Q8 => Self::Q8(bytemuck::pod_collect_to_vec(bytes)),
            DType::Q4 => Self::Q4(bytemuck::pod_collect_to_vec(bytes)),
        }
    }

    /// Whether memory has room for so many numbers.
    pub(crate) fn reserve(&mut self, len: usize) -> bool {
        let words = self.as_slice().dtype().bytes(len) / 4;
        match self {
            Self::F32(data) => data.try_reserve(len.saturating_sub(data.len())),
            Self::F16(data) => data.try_reserve(len.saturating_sub(data.len())),
            Self::BF16(data) => data.try_reserve(len.saturating_sub(data.len())),
            Self::Q8(data) | Self::Q4(data) => data.try_reserve(words.saturating_sub(data.len())),
        }
        .is_ok()
    }

    /// Cuts off, or fills up with zeros.
    pub(crate) fn resize(&mut self, len: usize) {
        match self {
            Self::F32(data) => data.resize(len, 0.0),
            Self::F16(data) => data.resize(len, f16::ZERO),
            Self::BF16(data) => data.resize(len, bf16::ZERO),
            Self::Q8(words) => words.resize(DType::Q8.bytes(len) / 4, 0),
            Self::Q4(words) => words.resize(DType::Q4.bytes(len) / 4, 0),
        }
    }

    /// Writes `from` over the numbers from `at` on, rounded to nearest even, or quantised: then whole blocks. Panics past the end.
    pub(crate) fn write(&mut self, at: usize, from: HostSlice<'_>) {
        let range = at..at + from.len();
        match (self, from) {
            (Self::F32(to), HostSlice::F32(from)) => to[range].copy_from_slice(from),
            (Self::F16(to), HostSlice::F16(from)) => to[range].copy_from_slice(from),
            (Self::BF16(to), HostSlice::BF16(from)) => to[range].copy_from_slice(from),
            (Self::F16(to), HostSlice::F32(from)) => to[range].convert_from_f32_slice(from),
            (Self::BF16(to), HostSlice::F32(from)) => to[range].convert_from_f32_slice(from),
            (Self::Q8(to), HostSlice::Q8(from)) => to[word_range(DType::Q8, range)].copy_from_slice(from),
            (Self::Q4(to), HostSlice::Q4(from)) => to[word_range(DType::Q4, range)].copy_from_slice(from),
            (Self::Q8(to), HostSlice::F32(from)) => blocks::narrow(DType::Q8, from, &mut to[word_range(DType::Q8, range)]),
            (Self::Q4(to), HostSlice::F32(from)) => blocks::narrow(DType::Q4, from, &mut to[word_range(DType::Q4, range)]),
            (to @ (Self::Q8(_) | Self::Q4(_)), from) => {
                let numbers: Vec<f32> = (0..from.len()).map(|i| from.get(i)).collect();
                to.write(at, numbers[..].into());
            }
            (Self::F32(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = from.get(i)),
            (Self::F16(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = f16::from_f32(from.get(i))),
            (Self::BF16(to), from) => to[range].iter_mut().enumerate().for_each(|(i, x)| *x = bf16::from_f32(from.get(i))),
        }
    }

    /// Copies numbers to another place. Panics past the end.
    pub(crate) fn copy_within(&mut self, from: Range<usize>, to: usize) {
        match self {
            Self::F32(data) => data.copy_within(from, to),
            Self::F16(data) => data.copy_within(from, to),
            Self::BF16(data) => data.copy_within(from, to),
            Self::Q8(words) => words.copy_within(word_range(DType::Q8, from), word_range(DType::Q8, to..to).start),
            Self::Q4(words) => words.copy_within(word_range(DType::Q4, from), word_range(DType::Q4, to..to).start),
        }
    }

    /// Borrows the numbers.
    pub fn as_slice(&self) -> HostSlice<'_> {
        match self {
            Self::F32(data) => HostSlice::F32(data),
            Self::F16(data) => HostSlice::F16(data),
            Self::BF16(data) => HostSlice::BF16(data),
            Self::Q8(words) => HostSlice::Q8(words),
            Self::Q4(words) => HostSlice::Q4(words),
        }
    }

    /// The numbers widened to f32: exact for every storage type.
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

    /// As [`Self::to_f32`], giving up the storage: no copy where it is f32 already.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(data) => data,
            other => other.to_f32(),
        }
    }
}
