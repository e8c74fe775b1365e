//! Block of a matrix product, as an engine computes it.

/// Rows of c that are computed at a time: two tiles.
pub(super) const ROWS: usize = 32;
/// Lanes of a tile.
pub(super) const LANES: usize = 16;
/// Pairs of rows of b in a tile.
pub(super) const PAIRS: usize = 16;
/// Words of a tile of b.
pub(super) const TILE: usize = PAIRS * LANES;
/// Most parts of an operand.
pub(super) const MOST_PARTS: usize = 3;

/// Instructions that compute the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    /// Scalar twin of the tiles: the same sums in the same order, on any machine.
    Twin,
    /// AVX512-BF16 dot products of pairs.
    #[cfg(target_arch = "x86_64")]
    Dots,
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// BFMMLA of 64-bit ARM: 2 x 2 sums of four products.
    #[cfg(target_arch = "aarch64")]
    Mmla,
}

/// One step of a block of c: offsets in words of a tile of a and one of b, or [`KEEP`].
pub(super) type Step = [u32; 2];

/// Stands for the operand of the step before.
pub(super) const KEEP: u32 = u32::MAX;

/// Block of c: [`ROWS`] rows of one or two groups of lanes, set to the sum of some steps, or increased by it.
#[derive(Clone, Copy)]
pub(super) struct BlockOfC<'a> {
    pub(super) a: *const f32,
    /// Words between two rows of a.
    pub(super) a_step: usize,
    pub(super) b: *const f32,
    pub(super) steps: &'a [Step],
    /// True if there are two groups of lanes.
    pub(super) is_wide: bool,
    /// True if the sums start from what is in c.
    pub(super) adds: bool,
    pub(super) c: *mut f32,
    /// Elements between two rows of c.
    pub(super) c_step: usize,
}
