//! Composition of WGSL: a [`KernelKey`] becomes a generated prelude followed by the chosen files.

mod bindings;
mod cache;
mod caps;
mod directives;
mod files;
mod key;
mod linear;
mod params;
mod prelude;
mod shapes;
mod terms;
#[cfg(test)]
mod tests;

pub(crate) use bindings::{Access, Slot};
pub(crate) use cache::{CacheKey, CacheParams, CacheSlot, compose_cache, every_cache_key};
pub use caps::{DeviceCaps, DeviceClass, Specialise};
pub(crate) use key::{Kernel, KernelKey, Lines, ROW_STATS, Storage};
pub(crate) use linear::{LinearKey, LinearParams, LinearTile, compose_linear, compose_transpose, every_linear_key};
pub(crate) use params::{Flags, Params};
pub(crate) use shapes::{DecodeShape, GradientShape, KeySide, LaneShape, MatrixShape, RowShape, StagedShape, TileShape};

/// WGSL of a kernel as naga takes it, with the origin of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) text: String,
    /// First line (from 1) and name of each part, in order.
    parts: Vec<(usize, &'static str)>,
}

impl Source {
    /// Concatenates a prelude and files, given by name and text.
    fn of(prelude: String, files: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        let mut line = prelude.lines().count() + 1;
        let mut source = Self { text: prelude, parts: vec![(1, "prelude")] };
        for (name, text) in files {
            source.parts.push((line, name));
            source.text.push_str(text);
            line += text.lines().count();
        }
        source
    }

    /// Reads the params from a read-only storage buffer instead of a uniform buffer: `DeviceCaps::params_in_storage`.
    pub(crate) fn with_params_in_storage(mut self) -> Self {
        self.text = self.text.replacen("var<uniform>", "var<storage, read>", 1);
        self
    }

    /// Writes the value of switches that are constants in the kernel, such as `is_paged()`, where they are called. SwiftShader
    /// inlines all functions before it folds branches: in one run it took 0.91 of the processor time without those never taken.
    pub(crate) fn with_constant_switches(mut self) -> Self {
        let name = |line: &str| line.strip_prefix("fn ")?.split_once("() -> bool { return ").map(|(name, _)| name.to_string());
        let names: Vec<String> = self.text.lines().filter_map(name).collect();
        // In the order of the text: a switch may be the value of an earlier one.
        for name in names {
            let is = |value: &&str| self.text.contains(&format!("fn {name}() -> bool {{ return {value}; }}"));
            if let Some(value) = ["true", "false"].into_iter().find(is) {
                let called = self.text.replace(&format!("{name}()"), value);
                self.text = called.replacen(&format!("fn {value} "), &format!("fn {name}() "), 1);
            }
        }
        self
    }

    /// Returns the directives that standard WGSL needs before the text; `None` for kernels of cooperative matrices.
    pub(crate) fn directives(&self) -> Option<String> {
        directives::standard(&self.text, self.parts.iter().map(|&(_, name)| name))
    }

    /// Returns the kernel in standard WGSL, as Tint and browsers take it, with extensions enabled by name; `None` for
    /// kernels of cooperative matrices, which the standard does not have.
    pub(crate) fn standard(&self) -> Option<Self> {
        let directives = self.directives()?;
        let lines = directives.lines().count();
        let mut parts = self.parts.clone();
        parts.iter_mut().skip(1).for_each(|(first, _)| *first += lines);
        Some(Self { text: directives + &self.text, parts })
    }

    /// First line (from 1) and name of each part, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.parts.iter().copied()
    }

    /// Locates a line of the text, counted from 1, in the project's files.
    pub(crate) fn locate(&self, line: usize) -> String {
        let at = self.parts.partition_point(|&(first, _)| first <= line).saturating_sub(1);
        let (first, name) = self.parts[at];
        format!("{name}:{}", line - first + 1)
    }
}

/// Composes the text of a kernel.
pub(crate) fn compose(key: &KernelKey) -> Source {
    Source::of(prelude::render(key), key.files())
}
