//! Visibility of whole tiles of rows and keys: from the user's `status`, or else derived from `visible`.

#[cfg(all(test, feature = "verify"))]
mod tests;

use super::emit;
use super::interval::Intervals;
use super::program::{Field, Op, Program, Scalar};
use super::scalar;
use super::tile::{Status, Tile};

/// Rule for what a term's `visible` shows of a tile.
#[derive(Debug)]
pub(crate) enum TileRule {
    /// Interval arithmetic over `visible`.
    Derived(Intervals),
    /// The user's `status`, whose result is at most 2.
    Own(Program),
}

impl TileRule {
    /// Status of a tile.
    pub(crate) fn of(&self, tile: &Tile, tables: &[&[u32]]) -> Status {
        match self {
            Self::Derived(intervals) => intervals.status(tile, tables),
            Self::Own(program) => {
                let end = |field: Field, is_last: bool| tile[field as usize][usize::from(is_last)] as u32;
                let input = |op| if let Op::Tile(field, is_last) = op { end(field, is_last) } else { 0 };
                match run(program, input, tables, &mut Vec::new()) {
                    0 => Status::None,
                    2 => Status::All,
                    _ => Status::Some,
                }
            }
        }
    }

    /// Writes `fn NAME(at: Tile) -> u32`, which returns 0 for none, 1 for some and 2 for all. Expects lib/interval.wgsl.
    pub(crate) fn emit(&self, text: &mut String, name: &str, first_table: u32) {
        match self {
            Self::Derived(intervals) => intervals.emit(text, name, first_table),
            Self::Own(program) => emit::function(text, name, "at: Tile", program, first_table),
        }
    }

    /// True if a tile that shows nothing may go unnoticed.
    pub(crate) fn is_vague(&self) -> bool {
        matches!(self, Self::Derived(intervals) if intervals.is_vague())
    }

    /// True if the status depends on the position of the rows.
    pub(super) fn uses_position(&self) -> bool {
        matches!(self, Self::Own(program) if program.has(|op| matches!(op, Op::Tile(Field::Position, _))))
    }
}

/// Finds a pair that contradicts the status of its tile, by the fields of the pair.
pub(crate) fn contradiction(visible: &Program, status: Status, tile: &Tile, tables: &[&[u32]]) -> Option<[i32; Field::ALL.len()]> {
    let wrong = match status {
        Status::None => 1,
        Status::Some => return None,
        Status::All => 0,
    };
    let of = |field: Field| tile[field as usize];
    let range = |field: Field| of(field)[0]..=of(field)[1];
    let offset = of(Field::Position)[0] - of(Field::Row)[0];
    let mut values = Vec::new();
    for (head, row) in range(Field::Head).flat_map(|head| range(Field::Row).map(move |row| (head, row))) {
        for key in range(Field::Key) {
            let pair = Field::ALL.map(|field| match field {
                Field::Head => head as i32,
                Field::Row => row as i32,
                Field::Key | Field::KeyPosition => key as i32,
                Field::Position => (row + offset) as i32,
                Field::Batch | Field::KvHead | Field::LenQ | Field::LenKv => of(field)[0] as i32,
            });
            let input = |op| if let Op::Pair(field) = op { pair[field as usize] as u32 } else { 0 };
            if run(visible, input, tables, &mut values) == wrong {
                return Some(pair);
            }
        }
    }
    None
}

/// Runs a program once. `input` returns the bits of the inputs that the program reads.
fn run(program: &Program, input: impl Fn(Op) -> u32, tables: &[&[u32]], values: &mut Vec<u32>) -> u32 {
    values.clear();
    for node in &program.nodes {
        let ty = |id: u32| program.nodes[id as usize].ty;
        let value = match node.op {
            Op::Score | Op::ScoreAfter | Op::Pair(_) | Op::Tile(..) => input(node.op),
            Op::Constant(bits) => bits,
            Op::Length(table) => tables[table as usize].len() as u32,
            Op::Load(table, index) => scalar::element(tables[table as usize], ty(index) == Scalar::I32, values[index as usize]),
            op => {
                let mut operands = [0; 3];
                operands.iter_mut().zip(op.operands()).for_each(|(to, id)| *to = values[id as usize]);
                scalar::apply(op, op.operands().next().map_or(node.ty, ty), node.ty, operands)
            }
        };
        values.push(value);
    }
    values.last().copied().unwrap_or_default()
}
