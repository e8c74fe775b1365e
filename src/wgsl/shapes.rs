//! Shapes: how workgroups of the fused and gradient kernels divide their work.

/// Shape of a workgroup of the tiles kernel: `threads / cols * rows` query rows by `cols * keys` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub(crate) threads: u32,
    /// Query rows of a thread.
    pub(crate) rows: u32,
    /// Threads that share a query row.
    pub(crate) cols: u32,
    /// Keys of a thread in each tile.
    pub(crate) keys: u32,
    /// True if rows are reduced by subgroup shuffles instead of through workgroup memory.
    pub(crate) subgroups: bool,
}

impl TileShape {
    pub(crate) const fn block_rows(self) -> u32 {
        self.threads / self.cols * self.rows
    }

    pub(crate) const fn block_keys(self) -> u32 {
        self.cols * self.keys
    }

    /// Bytes of workgroup memory: the variables of shaders/fused/tiles.wgsl, shaders/lib/vote.wgsl and shaders/lib/subgroup_threads.wgsl.
    pub(crate) const fn workgroup_bytes(self, head_dim: u32, head_dim_v: u32) -> u32 {
        let head_vecs = head_dim.div_ceil(4);
        let value_vecs = head_dim_v.div_ceil(4).div_ceil(self.cols) * self.cols;
        let stride = if head_vecs > value_vecs { head_vecs } else { value_vecs } | 1;
        let query_tile = 16 * self.block_rows() * (head_vecs | 1);
        let tile = 16 * self.block_keys() * stride;
        let weight_tile = 16 * self.block_keys() * ((self.threads / self.cols * self.rows.div_ceil(4)) | 1);
        let row_tile = 16 * self.block_rows();
        query_tile + tile + weight_tile + row_tile + 12 + if self.subgroups { 8 } else { 0 }
    }
}

/// Shape of a workgroup of the prefill kernel, one subgroup: `lanes * rows` query rows by `keys` keys, `step` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneShape {
    /// Threads of the subgroup, which load the keys and broadcast them to each other.
    pub(crate) lanes: u32,
    /// Query rows of a thread.
    pub(crate) rows: u32,
    pub(crate) keys: u32,
    pub(crate) step: u32,
}

impl std::fmt::Display for LaneShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lanes {}x{}, {} lanes of {}x{}", self.block_rows(), self.keys, self.lanes, self.rows, self.step)
    }
}

impl LaneShape {
    pub(crate) const fn block_rows(self) -> u32 {
        self.lanes * self.rows
    }
}

/// Shape of a workgroup of the rows kernel: a query row per thread, by `keys` keys, `step` at a time. Threads share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowShape {
    pub(crate) threads: u32,
    pub(crate) keys: u32,
    pub(crate) step: u32,
}

/// Shape of a workgroup of the decode kernel: one subgroup of `lanes` threads, `rows` rows by `lanes` keys at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DecodeShape {
    pub(crate) lanes: u32,
    pub(crate) rows: u32,
}

impl DecodeShape {
    /// Keys of a tile, which is skipped as a whole if it is masked.
    pub(crate) const fn block_keys(self) -> u32 {
        4 * self.lanes
    }
}

/// Shape of a workgroup of the two products of the staged algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StagedShape {
    /// Tiles in workgroup memory: shaders/staged.
    Tiles,
    /// Whole rows per thread, in one subgroup: shaders/software.
    Rows(LaneShape),
    /// Few rows: a key, or a vec4 column, per thread.
    Few(DecodeShape),
}

impl StagedShape {
    /// Rows and keys of a tile in workgroup memory.
    pub(crate) const TILE: usize = 32;
    /// Its vec4 columns.
    pub(crate) const COLUMNS: usize = 8;
    /// Keys of a workgroup that computes the scores of few rows.
    pub(crate) const FEW_KEYS: usize = 256;

    /// Threads of a workgroup.
    pub(crate) const fn threads(self) -> u32 {
        match self {
            Self::Tiles => 64,
            Self::Rows(shape) => shape.lanes,
            Self::Few(shape) => shape.lanes,
        }
    }
}

impl std::fmt::Display for StagedShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tiles => write!(f, "tiles {0}x{0}", Self::TILE),
            Self::Rows(shape) => write!(f, "{shape}"),
            Self::Few(shape) => write!(f, "{} lanes for few rows", shape.lanes),
        }
    }
}

/// Shape of a workgroup of the matrix kernel: `tiles` subgroups of `size` query rows each, by tiles of `keys` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixShape {
    /// Rows and columns of a matrix: 8 or 16.
    pub(crate) size: u32,
    pub(crate) tiles: u32,
    /// Threads of the largest possible subgroup.
    pub(crate) lanes: u32,
    pub(crate) keys: u32,
}

impl MatrixShape {
    pub(crate) const fn threads(self) -> u32 {
        self.tiles * self.lanes
    }

    pub(crate) const fn block_rows(self) -> u32 {
        self.tiles * self.size
    }

    /// Threads that share a query row.
    pub(crate) const fn cols(self) -> u32 {
        self.lanes / self.size
    }

    /// Bytes of workgroup memory: the arrays of shaders/fused/matrix.wgsl and shaders/lib/vote.wgsl.
    pub(crate) fn workgroup_bytes(self, head_dim: u32, head_dim_v: u32) -> u32 {
        let whole = |dim: u32| dim.next_multiple_of(self.size);
        let key_tile = 2 * (self.keys * (whole(head_dim) + 8)).max(self.block_rows() * (self.size + 8));
        let value_tile = 2 * whole(head_dim_v) * (self.keys + 8);
        let score_tile = 4 * self.block_rows() * (self.keys + 4);
        let weight_tiles = 2 * 2 * self.block_rows() * (self.keys + 8);
        key_tile + value_tile + score_tile + weight_tiles + 24
    }
}

/// Gradients that a key-gradient kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeySide {
    Both,
    Key,
    Value,
}

/// Shape of a workgroup of a gradient kernel, which owns some rows or keys and streams the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GradientShape {
    /// `threads / cols * own` owned and `cols * stream` streamed vectors at a time: shaders/backward/tiles.wgsl.
    Tiles {
        threads: u32,
        /// Owned vectors of a thread.
        own: u32,
        /// Threads that share an owned vector.
        cols: u32,
        /// Streamed vectors of a thread in each tile.
        stream: u32,
    },
    /// `own` whole owned vectors per thread, and tiles of `tile` streamed vectors, `stream` of them at a time, which
    /// are broadcast across the subgroup of `lanes` threads, the whole workgroup: shaders/software/gradients.wgsl.
    Vectors { lanes: u32, own: u32, tile: u32, stream: u32 },
}

impl GradientShape {
    pub(crate) const fn block_own(self) -> u32 {
        match self {
            Self::Tiles { threads, own, cols, .. } => threads / cols * own,
            Self::Vectors { lanes, own, .. } => lanes * own,
        }
    }

    pub(crate) const fn block_stream(self) -> u32 {
        match self {
            Self::Tiles { cols, stream, .. } => cols * stream,
            Self::Vectors { tile, .. } => tile,
        }
    }

    pub(crate) const fn threads(self) -> u32 {
        match self {
            Self::Tiles { threads, .. } | Self::Vectors { lanes: threads, .. } => threads,
        }
    }

    /// Bytes of workgroup memory: the arrays of the kernel's file and of shaders/lib/vote.wgsl.
    pub(crate) const fn workgroup_bytes(self, head_dim: u32, head_dim_v: u32, weights: bool) -> u32 {
        let (head_vecs, value_vecs) = (head_dim.div_ceil(4), head_dim_v.div_ceil(4));
        let (thread_rows, own, cols) = match self {
            Self::Vectors { .. } => return 0,
            Self::Tiles { threads, own, cols, .. } => (threads / cols, own, cols),
        };
        let strides = ((head_vecs.div_ceil(cols) * cols) | 1) + ((value_vecs.div_ceil(cols) * cols) | 1);
        let owned = 16 * self.block_own() * ((head_vecs | 1) + (value_vecs | 1));
        let others = 16 * self.block_stream() * strides;
        let pairs = 16 * self.block_stream() * ((thread_rows * own.div_ceil(4)) | 1);
        owned + others + pairs + if weights { pairs } else { 16 } + 12
    }
}

impl std::fmt::Display for GradientShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, own, stream) = match *self {
            Self::Tiles { own, stream, .. } => ("tiles", own, stream),
            Self::Vectors { own, stream, .. } => ("vectors by shuffles", own, stream),
        };
        write!(f, "{kind} {}x{}, {} threads of {own}x{stream}", self.block_own(), self.block_stream(), self.threads())
    }
}
