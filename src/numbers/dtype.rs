//! Storage types: how elements are stored in memory. Arithmetic is always f32.

/// Storage type of a tensor's elements. The default is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Blocks of 32 signed bytes and one f32 scale, 9 words of four bytes; keys and values only, rows of whole blocks.
    ///
    /// `x_i ~ scale * q_i` with scale = largest magnitude / 127: the error is at most that magnitude / 253. A block
    /// that contains NaN or a magnitude of 2^127 or more is NaN as a whole. Attention to 1,024 normally distributed
    /// keys and values has a relative RMS error of 0.7 % (f16: 0.03 %, bf16: 0.24 %).
    Q8,
    /// Blocks of 32 signed 4-bit integers and one f32 scale, 5 words; keys and values only, rows of whole blocks.
    ///
    /// scale = -m / 8, where m is the element of largest magnitude: the error is at most |m| / 15.9, or |m| / 7.9 near
    /// -m. NaN as in [`Self::Q8`]; the attention described there has a relative RMS error of 12 %.
    Q4,
}

/// Name and epsilon of each type, in the order of [`DType`].
const NAMES_AND_EPSILONS: [(&str, f64); 5] =
    [("f32", 1.1920928955078125e-7), ("f16", 9.765625e-4), ("bf16", 7.8125e-3), ("q8", 1.0 / 127.0), ("q4", 0.125)];

impl DType {
    /// Floating-point types, whose elements are stored one by one.
    pub const FLOATS: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Quantised types, whose elements are stored in blocks.
    pub const QUANTISED: [Self; 2] = [Self::Q8, Self::Q4];

    /// True if elements are stored in blocks of 32 under one scale.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }

    /// Bytes of `numbers` elements from the start of a block on, rounded up to whole blocks.
    pub const fn bytes(self, numbers: usize) -> usize {
        match self {
            Self::F32 => numbers.saturating_mul(4),
            Self::F16 | Self::BF16 => numbers.saturating_mul(2),
            Self::Q8 | Self::Q4 => (4 * block_words(self)).saturating_mul(numbers.div_ceil(BLOCK)),
        }
    }

    /// Spacing of values just above 1: 2^-23, 2^-10, 2^-7; for blocks whose largest element is 1: 1/127, 1/8.
    pub const fn epsilon(self) -> f64 {
        NAMES_AND_EPSILONS[self as usize].1
    }

    /// Name: `f32`, `f16`, `bf16`, `q8` or `q4`.
    pub const fn name(self) -> &'static str {
        NAMES_AND_EPSILONS[self as usize].0
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> crate::error::Result<Self> {
        (Self::FLOATS.into_iter().chain(Self::QUANTISED))
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| crate::error::Error::invalid("dtype", format!("`{text}` is none of f32, f16, bf16, q8, q4")))
    }
}

/// Number of elements in a block.
pub(crate) const BLOCK: usize = 32;

/// Number of u32 words in a block; 0 for types that are not quantised.
pub(crate) const fn block_words(dtype: DType) -> usize {
    match dtype {
        DType::Q8 => 1 + BLOCK / 4,
        DType::Q4 => 1 + BLOCK / 8,
        DType::F32 | DType::F16 | DType::BF16 => 0,
    }
}
