//! Functions of a term: as naga has them, and as programs.

use std::hash::{Hash, Hasher};

use super::owner::TableGradient;
use super::program::Program;
use super::status::TileRule;

/// Type of a table's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableType {
    /// `array<f32>`.
    F32,
    /// `array<i32>`.
    I32,
    /// `array<u32>`.
    U32,
}

/// Functions of a term, which two terms with the same text and tables share as far as kernels are concerned: those of the
/// gradient of a table are the same whoever owns it.
#[derive(Debug)]
pub(crate) struct Functions {
    pub(crate) text: String,
    pub(crate) tables: Vec<(String, TableType)>,
    /// True for each table that is declared sorted.
    pub(super) sorted: Vec<bool>,
    pub(crate) module: naga::Module,
    /// `None` if every pair is visible.
    pub(crate) visible: Option<Program>,
    /// Rule for what `visible` shows of a tile.
    pub(crate) status: Option<TileRule>,
    /// `None` if the score stays as it is.
    pub(crate) score: Option<Program>,
    /// The user's `slope`, or the derivative of `score`, or the reason why there is none.
    pub(super) slope: Option<std::result::Result<Program, String>>,
    /// Gradients of the tables that have an owner, in the order of the tables.
    pub(crate) gradients: Vec<TableGradient>,
}

impl PartialEq for Functions {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.tables, &self.sorted) == (&other.text, &other.tables, &other.sorted)
    }
}

impl Eq for Functions {}

impl Hash for Functions {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.text, &self.tables, &self.sorted).hash(state);
    }
}

impl Functions {
    /// Program of the derivative of the score, if it is not 1 everywhere.
    pub(crate) fn slope(&self) -> Option<&Program> {
        let slope = self.slope.as_ref()?.as_ref().ok()?;
        (slope.constant() != Some(1f32.to_bits())).then_some(slope)
    }

    /// True if the term changes nothing.
    pub(crate) fn is_identity(&self) -> bool {
        self.visible.is_none() && self.score.is_none() && self.slope().is_none()
    }

    /// A function of the text.
    pub(crate) fn function(&self, name: &str) -> Option<&naga::Function> {
        self.module.functions.iter().map(|(_, function)| function).find(|function| function.name.as_deref() == Some(name))
    }
}
