//! From a [`KernelKey`] to WGSL text: a generated prelude and the chosen files, in a row.

mod cache;
mod key;
mod linear;
mod params;
mod prelude;
#[cfg(test)]
mod tests;

pub(crate) use cache::{CacheKey, CacheParams, CacheSlot, compose_cache, every_cache_key};
pub(crate) use key::{Access, FewShape, Kernel, KernelKey, RowShape, Slot, Storage, TileShape};
pub(crate) use linear::{LinearKey, LinearParams, LinearTile, compose_linear};
pub(crate) use params::Params;

/// The text of a kernel, and where its lines come from.
pub(crate) struct Source {
    pub(crate) text: String,
    /// First line (from 1) and name of each part, in order.
    parts: Vec<(usize, &'static str)>,
}

impl Source {
    /// The place in the project's own files of a line of the text.
    pub(crate) fn locate(&self, line: usize) -> String {
        let at = self.parts.partition_point(|&(first, _)| first <= line).saturating_sub(1);
        let (first, name) = self.parts[at];
        format!("{name}:{}", line - first + 1)
    }
}

/// Composes the text of a kernel.
pub(crate) fn compose(key: &KernelKey) -> Source {
    let mut source = Source { text: prelude::render(key), parts: vec![(1, "prelude")] };
    let mut line = source.text.lines().count() + 1;
    for &(name, text) in key.files() {
        source.parts.push((line, name));
        source.text.push_str(text);
        line += text.lines().count();
    }
    source
}
