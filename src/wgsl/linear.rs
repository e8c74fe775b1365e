//! The projections of a multi-head layer: shaders/linear behind a generated prelude.

use std::fmt::Write;

use bytemuck::{Pod, Zeroable};

use super::Source;
use super::caps::{DeviceCaps, DeviceClass};
use crate::shader_text::File;

/// A variant of the projection kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearKey {
    pub(crate) tile: LinearTile,
    pub(crate) bias: bool,
    /// True if rows of X and W are read four elements at a time, else one by one.
    pub(crate) vectors: bool,
}

/// Tile of a workgroup: TILE_M x TILE_N sums, ROWS x COLS of them per thread. TILE_K elements of each row pass through
/// workgroup memory at a time (shaders/linear/tiles.wgsl); with TILE_K = 0 none do (shaders/linear/columns.wgsl).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearTile {
    pub(crate) tile_m: u32,
    pub(crate) tile_n: u32,
    pub(crate) tile_k: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
}

impl LinearTile {
    const LARGE: Self = Self { tile_m: 64, tile_n: 64, tile_k: 16, rows: 4, cols: 4 };
    /// Tile for few rows or a device with small workgroups: more workgroups, less waste.
    const SMALL: Self = Self { tile_m: 16, tile_n: 32, tile_k: 32, rows: 2, cols: 4 };
    /// Tile for software adapters. On a busy 2-core machine with lavapipe 26.1, 512 rows of 768 by 768 took 200 ms a
    /// projection (LARGE 560, SMALL 560), 9 rows of 384 by 384 took 2 ms (LARGE 30, SMALL 4).
    const COLUMNS: Self = Self { tile_m: 16, tile_n: 128, tile_k: 0, rows: 16, cols: 2 };

    pub(crate) const ALL: [Self; 3] = [Self::LARGE, Self::SMALL, Self::COLUMNS];

    /// Returns the first choice for `rows` rows of X.
    pub(crate) fn choose(rows: usize, caps: &DeviceCaps) -> Self {
        let large_fits = Self::LARGE.threads() <= caps.workgroup_threads && Self::LARGE.workgroup_bytes() <= caps.workgroup_bytes;
        match caps.class {
            DeviceClass::Software => Self::COLUMNS,
            _ if rows > 32 && large_fits => Self::LARGE,
            _ => Self::SMALL,
        }
    }

    pub(crate) const fn threads(self) -> u32 {
        self.tile_m / self.rows * (self.tile_n / self.cols)
    }

    /// Bytes of workgroup memory: the two arrays of shaders/linear/tiles.wgsl.
    pub(crate) const fn workgroup_bytes(self) -> u32 {
        if self.tile_k == 0 { 0 } else { 16 * (self.tile_m + self.tile_n) * (self.tile_k / 4 + 1) }
    }
}

impl std::fmt::Display for LinearKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LinearTile { tile_m, tile_n, tile_k, rows, cols } = self.tile;
        write!(f, "projection {tile_m}x{tile_n}x{tile_k}, {rows}x{cols} a thread")?;
        f.write_str(if self.vectors { ", vec4s" } else { "" })?;
        f.write_str(if self.bias { ", bias" } else { "" })
    }
}

/// Returns every variant.
pub(crate) fn every_linear_key() -> impl Iterator<Item = LinearKey> {
    let variants = [(false, false), (false, true), (true, false), (true, true)];
    LinearTile::ALL.into_iter().flat_map(move |tile| variants.map(|(bias, vectors)| LinearKey { tile, bias, vectors }))
}

/// Runtime quantities of one dispatch: LinearParams of shaders/linear/params.wgsl, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct LinearParams {
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) depth: u32,
    pub(crate) item_rows: u32,
    pub(crate) item_stride: u32,
    pub(crate) grid_width: u32,
    pub(crate) first_workgroup: u32,
    pub(crate) end_workgroup: u32,
}

/// Composes a projection kernel with bindings 0 params, 1 X, 2 W, 3 Y, and 4 b if there is a bias.
pub(crate) fn compose_linear(key: LinearKey) -> Source {
    let files: &[File] = match key.tile.tile_k {
        0 => files!("linear/params.wgsl", "linear/columns.wgsl"),
        _ => files!("linear/params.wgsl", "linear/tiles.wgsl"),
    };
    Source::of(prelude(key), files.iter().copied())
}

/// Composes the transposition kernel with bindings 0 params, 1 X, 2 Y.
pub(crate) fn compose_transpose() -> Source {
    let prelude = "const TILE_M: u32 = 1u;\nconst TILE_N: u32 = 1u;\nconst HAS_BIAS: bool = false;\n\
                   @group(0) @binding(0) var<uniform> linear: LinearParams;\n\
                   @group(0) @binding(1) var<storage, read> x: array<f32>;\n\
                   @group(0) @binding(2) var<storage, read_write> y: array<f32>;\n\
                   fn bias_at(column: u32) -> f32 { return 0.0; }\n";
    Source::of(prelude.into(), files!("linear/params.wgsl", "linear/transpose.wgsl").iter().copied())
}

fn prelude(key: LinearKey) -> String {
    let LinearTile { tile_m, tile_n, tile_k, rows, cols } = key.tile;
    let mut text = String::new();
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}"); // writing to a String does not fail
    };
    for (name, value) in [("TILE_M", tile_m), ("TILE_N", tile_n), ("TILE_K", tile_k), ("ROWS", rows), ("COLS", cols)] {
        line(format!("const {name}: u32 = {value}u;"));
    }
    line(format!("const HAS_BIAS: bool = {};", key.bias));
    line("@group(0) @binding(0) var<uniform> linear: LinearParams;".into());
    for (name, number) in [("x", 1), ("w", 2)] {
        let word = if key.vectors { "vec4<f32>" } else { "f32" };
        line(format!("@group(0) @binding({number}) var<storage, read> {name}_words: array<{word}>;"));
        line(format!("fn load_{name}(row: u32, k: u32) -> vec4<f32> {{"));
        if key.vectors {
            line(format!("    return {name}_words[(row * linear.depth + k) / 4u];\n}}"));
        } else {
            line("    var numbers = vec4<f32>(0.0);".into());
            line("    for (var c = 0u; c < 4u && k + c < linear.depth; c++) {".into());
            line(format!("        numbers[c] = {name}_words[row * linear.depth + k + c];\n    }}\n    return numbers;\n}}"));
        }
    }
    line("@group(0) @binding(3) var<storage, read_write> y: array<f32>;".into());
    if key.bias {
        line("@group(0) @binding(4) var<storage, read> bias_words: array<f32>;".into());
        line("fn bias_at(column: u32) -> f32 { return bias_words[column]; }".into());
    } else {
        line("fn bias_at(column: u32) -> f32 { return 0.0; }".into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant parses, validates, translates to SPIR-V, and uses the workgroup memory that it declares.
    #[test]
    fn variants_are_valid() {
        for key in every_linear_key() {
            let source = compose_linear(key);
            let module = naga::front::wgsl::parse_str(&source.text)
                .unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
            let flags = naga::valid::ValidationFlags::all();
            let info = naga::valid::Validator::new(flags, naga::valid::Capabilities::empty()).validate(&module);
            let info = info.unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
            assert_eq!(module.entry_points[0].workgroup_size, [key.tile.threads(), 1, 1]);
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("a valid module has a layout");
            let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            assert_eq!(shared.map(|(_, v)| layouter[v.ty].size).sum::<u32>(), key.tile.workgroup_bytes());
            let options = naga::back::spv::Options::default();
            naga::back::spv::write_vec(&module, &info, &options, None).expect("SPIR-V");
            assert_eq!(layouter[struct_type(&module, "LinearParams")].size as usize, size_of::<LinearParams>());
            let first = source.text.lines().position(|line| line.starts_with("// Defines: LinearParams")).expect("its first line");
            assert_eq!(source.locate(first + 1), "shaders/linear/params.wgsl:1");
        }
    }

    fn struct_type(module: &naga::Module, name: &str) -> naga::Handle<naga::Type> {
        module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).expect("the shader has it").0
    }
}
