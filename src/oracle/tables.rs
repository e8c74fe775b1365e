//! Derivatives of scores by the elements of the tables that users' terms read.

use super::walk;
use crate::problem::{Inputs, Problem};

/// Element that a pair reads of a table, and the derivative of the pair's last score by it.
pub(crate) type Read = (usize, f64);

/// For each table that has an owner, in order: what the pair reads, if it reads the table at all; `x` is its score
/// before the user's terms.
pub(super) fn reads(problem: &Problem, inputs: &Inputs<'_>, x: f64, pair: [i32; 9]) -> Vec<Option<Read>> {
    let owned: Vec<_> = problem.owned_tables().collect();
    let mut reads = vec![None; owned.len()];
    if owned.is_empty() {
        return reads;
    }
    let mut score = x;
    for (index, term) in problem.user_terms.iter().enumerate() {
        let tables = problem.tables_of(index, inputs.term_tables);
        let (next, slope) = walk::score(term.functions(), &tables, score, pair);
        for (table, read) in owned.iter().zip(&mut reads) {
            if index == table.term {
                *read = walk::by_table(term.functions(), &tables, table.gradient.table as usize, score, pair);
            } else if let Some((_, by_element)) = read {
                // A derivative of 0 makes 0, even of what is infinite.
                *by_element = if *by_element == 0.0 || slope == 0.0 { 0.0 } else { *by_element * slope };
            }
        }
        score = if (next as f32).is_infinite() { f64::from(next as f32) } else { next };
    }
    reads
}
