//! Shapes of the kernels that own rows or keys and stream the others: gradients and key sums.

use super::suited::{ANY, Suited};
use crate::wgsl::GradientShape;

/// Shapes of the gradient kernels, fastest first, smallest last, each with the fewest rows or keys it is meant for.
pub(super) const TILES: &[Suited<GradientShape>] = &[
    Suited { min_rows: 17, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 128, own: 4, cols: 16, stream: 2 } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 128, own: 4, cols: 16, stream: 1 } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 64, own: 4, cols: 16, stream: 1 } },
    Suited { min_rows: 9, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 64, own: 2, cols: 8, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 32, own: 2, cols: 8, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 32, own: 1, cols: 8, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 8, own: 1, cols: 4, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 4, own: 1, cols: 2, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 2, own: 1, cols: 2, stream: 1 } },
];

/// Shapes of the gradient kernels' generic variants.
pub(super) const GENERIC: &[GradientShape] =
    &[GradientShape::Tiles { threads: 32, own: 1, cols: 8, stream: 1 }, GradientShape::Tiles { threads: 8, own: 1, cols: 4, stream: 1 }];

/// Most streamed rows of an item for which a thread has a key of its own: a tile of more rows would be mostly empty.
pub(super) const FEW: usize = 4;
/// Shapes for so few rows, as in decoding.
pub(super) const FEW_ROWS: &[Suited<GradientShape>] = &[
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 64, own: 1, cols: 1, stream: 1 } },
    Suited { min_rows: 1, max_rows: ANY, max_dim: ANY, shape: GradientShape::Tiles { threads: 32, own: 1, cols: 1, stream: 1 } },
];
