//! Tiles of rows and keys, which kernels visit or skip.

use super::program::Field;

/// Least and greatest value of an i32, of the i32 with the bits of a u32, or of a bool.
pub(crate) type Interval = [i64; 2];

/// Visibility of a tile, as far as it is known before pairs are tested; in the order of the numbers that `status` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// No pair is visible: the tile is skipped.
    None,
    /// Some pairs may be visible: they are tested.
    Some,
    /// All pairs are visible: none is tested.
    All,
}

/// Tile of rows and keys: the interval of each field of its pairs, by [`Field`].
pub(crate) type Tile = [Interval; Field::ALL.len()];

/// Fields of `Tile` as users read it: name, field of its pairs, and true for the greatest value of that field.
pub(super) const TILE_FIELDS: [(&str, Field, bool); 12] = [
    ("batch", Field::Batch, false),
    ("kv_head", Field::KvHead, false),
    ("first_head", Field::Head, false),
    ("last_head", Field::Head, true),
    ("first_row", Field::Row, false),
    ("last_row", Field::Row, true),
    ("first_key", Field::Key, false),
    ("last_key", Field::Key, true),
    ("first_position", Field::Position, false),
    ("last_position", Field::Position, true),
    ("len_q", Field::LenQ, false),
    ("len_kv", Field::LenKv, false),
];
