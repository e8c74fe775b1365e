//! Contents of the tables buffer.

use std::ops::Range;

use super::table_layout::{COUNT, TableLayout, TableVector, words};
use crate::error::Result;
use crate::problem::{Dropout, Inputs, PageTable, Problem};

/// Contents of the tables buffer of a problem: lengths, slopes, sinks and other small vectors, which
/// [`crate::gpu::Bindings`] bind as one buffer.
///
/// ```
/// use wgpu_attention::gpu::{TableVector, Tables};
/// use wgpu_attention::{Alibi, Alignment, Dims, Problem};
///
/// let mut problem = Problem::new(Dims::self_attention(2, 4, 16, 32)).aligned(Alignment::BottomRight);
/// (problem.visibility.kv_lengths, problem.alibi) = (true, Some(Alibi::Signed));
/// let tables = Tables::new(&problem).kv_lengths(&[16, 9]).alibi_slopes(&[0.5, 0.25, 0.125, 0.0625]);
/// assert_eq!(tables.bytes()?.len(), 4 * (2 + 4));
/// assert_eq!(tables.words(TableVector::AlibiSlopes), Some(2..6));
/// assert_eq!(tables.words(TableVector::Sinks), None);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is written until the bytes are"]
pub struct Tables<'a> {
    problem: &'a Problem,
    inputs: Inputs<'a>,
}

impl<'a> Tables<'a> {
    /// Creates tables without vectors.
    pub fn new(problem: &'a Problem) -> Self {
        let empty: &[f32] = &[];
        Self::of_inputs(problem, &Inputs::new(empty, empty, empty))
    }

    /// Creates tables with the vectors of `inputs`.
    pub fn of_inputs(problem: &'a Problem, inputs: &Inputs<'a>) -> Self {
        Self { problem, inputs: *inputs }
    }

    /// Sets [`Inputs::kv_lengths`].
    pub fn kv_lengths(mut self, kv_lengths: &'a [u32]) -> Self {
        self.inputs.kv_lengths = kv_lengths;
        self
    }

    /// Sets [`Inputs::prefix_lengths`].
    pub fn prefix_lengths(mut self, prefix_lengths: &'a [u32]) -> Self {
        self.inputs.prefix_lengths = prefix_lengths;
        self
    }

    /// Sets [`Inputs::segment_ids_q`] and [`Inputs::segment_ids_kv`].
    pub fn segment_ids(mut self, of_rows: &'a [i32], of_keys: &'a [i32]) -> Self {
        (self.inputs.segment_ids_q, self.inputs.segment_ids_kv) = (of_rows, of_keys);
        self
    }

    /// Sets [`Inputs::cu_seqlens_q`] and [`Inputs::cu_seqlens_kv`].
    pub fn cu_seqlens(mut self, of_rows: &'a [u32], of_keys: &'a [u32]) -> Self {
        (self.inputs.cu_seqlens_q, self.inputs.cu_seqlens_kv) = (of_rows, of_keys);
        self
    }

    /// Sets [`Inputs::alibi_slopes`].
    pub fn alibi_slopes(mut self, alibi_slopes: &'a [f32]) -> Self {
        self.inputs.alibi_slopes = alibi_slopes;
        self
    }

    /// Sets [`Inputs::relative_bias`].
    pub fn relative_bias(mut self, relative_bias: &'a [f32]) -> Self {
        self.inputs.relative_bias = relative_bias;
        self
    }

    /// Sets [`Inputs::sinks`].
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.inputs.sinks = sinks;
        self
    }

    /// Sets [`Inputs::page_table`].
    pub fn page_table(mut self, page_table: &'a [u32]) -> Self {
        self.inputs.page_table = page_table;
        self
    }

    /// Sets [`Inputs::block_list`].
    pub fn block_list(mut self, words: &'a [u32]) -> Self {
        self.inputs.block_list = words;
        self
    }

    /// Sets [`Inputs::term_tables`].
    pub fn term_tables(mut self, term_tables: &'a [u32]) -> Self {
        self.inputs.term_tables = term_tables;
        self
    }

    /// Sets [`Inputs::dropout`].
    pub fn dropout(mut self, dropout: Dropout) -> Self {
        self.inputs.dropout = dropout;
        self
    }

    /// Returns the bytes of the buffer. A vector that a shader will write needs its elements too: zeros, for example.
    ///
    /// Errors: those of [`Problem::check`], and those of [`Inputs::check`] about the vectors.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.problem.check()?;
        self.inputs.check_tables(self.problem)?;
        Ok(table_bytes(self.problem, &self.inputs))
    }

    /// Range of a vector in the buffer, in words of four bytes; `None` if the problem does not have it, or has more
    /// elements than a shader can count.
    pub fn words(&self, vector: TableVector) -> Option<Range<u32>> {
        let start: [u32; COUNT] = bytemuck::cast(TableLayout::new(self.problem)?.0);
        let (start, words) = (start[vector as usize], words(self.problem)[vector as usize] as u32);
        (words > 0).then_some(start..start + words)
    }
}

/// Contents of the tables buffer, from inputs that have been checked.
pub(crate) fn table_bytes(problem: &Problem, inputs: &Inputs<'_>) -> Vec<u8> {
    let mut bytes = inputs.vectors().map(|(_, bytes)| bytes).concat();
    // Kernels may load keys that they mask. A page that is missing is page 0 to them.
    if let Some(words) = Tables::of_inputs(problem, inputs).words(TableVector::PageTable) {
        let table = &mut bytes[4 * words.start as usize..4 * words.end as usize];
        table.chunks_exact_mut(4).filter(|entry| **entry == PageTable::UNUSED.to_ne_bytes()).for_each(|entry| entry.fill(0));
    }
    if problem.dropout_rule().is_some() {
        let seed = inputs.dropout.seed;
        bytes.extend_from_slice(bytemuck::cast_slice(&[seed as u32, (seed >> 32) as u32, inputs.dropout.offset]));
    }
    bytes
}
