//! Which operations of a program are evaluated how often in a tile of rows and keys.

use super::program::{Field, Id, Op, Program};

/// Operations of a program by what their results depend on, without those that nothing reads.
#[derive(Debug)]
pub(crate) struct Schedule<'a> {
    pub(crate) program: &'a Program,
    /// Fields of the pair that are read, by [`Field`].
    pub(crate) fields: [bool; Field::ALL.len()],
    /// Operations without a row and a key that those of pairs read, and what these depend on.
    pub(crate) uniform: Vec<Id>,
    /// Operations of a row without a key and of a key without a row that those of pairs read, and what these depend on.
    pub(crate) of_rows: Vec<Id>,
    pub(crate) of_keys: Vec<Id>,
    /// Those of them that operations of pairs read, or that are the result.
    pub(crate) read_of_rows: Vec<Id>,
    pub(crate) read_of_keys: Vec<Id>,
    /// Operations that depend on a score, or on a row and a key; scores themselves only as a result.
    pub(crate) of_pairs: Vec<Id>,
}

/// Bits of what the result of an operation depends on.
const ROW: u8 = 1;
const KEY: u8 = 2;

impl<'a> Schedule<'a> {
    pub(crate) fn new(program: &'a Program) -> Self {
        let (nodes, last) = (&program.nodes, program.nodes.len() - 1);
        let mut depends: Vec<u8> = Vec::with_capacity(nodes.len());
        for node in nodes {
            depends.push(match node.op {
                Op::Score | Op::ScoreAfter => ROW | KEY,
                Op::Pair(Field::Head | Field::Row | Field::Position) => ROW,
                Op::Pair(Field::Key | Field::KeyPosition) => KEY,
                op => op.operands().fold(0, |all, id| all | depends[id as usize]),
            });
        }
        let mut read = vec![false; nodes.len()];
        read[last] = true;
        for id in (0..=last).filter(|&id| depends[id] == ROW | KEY) {
            nodes[id].op.operands().for_each(|operand| read[operand as usize] = true);
        }
        let those = |wanted: &dyn Fn(usize) -> bool| (0..=last).filter(|&id| wanted(id)).map(|id| id as Id).collect::<Vec<Id>>();
        // Operations of this dependence that are read, and all that they depend on.
        let with_operands = |dependence: u8| {
            let mut needed: Vec<bool> = (0..=last).map(|id| read[id] && depends[id] == dependence).collect();
            for id in (0..=last).rev() {
                if needed[id] {
                    nodes[id].op.operands().for_each(|operand| needed[operand as usize] = true);
                }
            }
            those(&|id| needed[id])
        };
        let is_score = |id: usize| matches!(nodes[id].op, Op::Score | Op::ScoreAfter);
        Self {
            program,
            fields: Field::ALL.map(|field| program.has(|op| op == Op::Pair(field))),
            uniform: with_operands(0),
            of_rows: with_operands(ROW),
            of_keys: with_operands(KEY),
            read_of_rows: those(&|id| read[id] && depends[id] == ROW),
            read_of_keys: those(&|id| read[id] && depends[id] == KEY),
            of_pairs: those(&|id| depends[id] == ROW | KEY && (id == last || !is_score(id))),
        }
    }
}
