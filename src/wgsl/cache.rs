//! Kernels that maintain a cache on a device: shaders/cache behind a generated prelude.

use bytemuck::{Pod, Zeroable};

use super::{Access, Source};
use crate::numbers::{BLOCK, DType, Hadamard, block_words};
use crate::rotary::Pairing;
use crate::shader_text::File;

/// A variant of the cache kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheKey {
    /// Start of a step: lengths grow.
    Advance,
    /// Copy of pages within a pool.
    CopyPages,
    /// Copies of single tokens within the pools.
    MoveTokens,
    /// Conversion of lengths and page table from FlashInfer's format.
    PageTable,
    /// Gathering of the angles of tokens.
    TokenAngles,
    /// Rotation of rows in place.
    Rotate { rows: DType, pairing: Pairing },
    /// Append of new keys and values to the cache.
    Append {
        /// Storage type of the new keys and values.
        new: DType,
        /// Storage type of the cache's keys.
        key: DType,
        /// Storage type of the cache's values.
        value: DType,
        /// True if new keys, and queries, are normalised first.
        norm: bool,
        /// Rotation of the new keys, if any.
        rotary: Option<Pairing>,
        /// True if the angles are those of each token, not of each position.
        by_token: bool,
        /// Storage type of the queries that are normalised and rotated in place, if any.
        query: Option<DType>,
        /// Rotations under which keys and values are stored, if any.
        hadamard: [Option<Hadamard>; 2],
    },
}

/// Binding of a cache kernel; its discriminant is the binding number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheSlot {
    Params,
    State,
    NewKey,
    NewValue,
    Key,
    Value,
    Query,
    Angles,
    Norm,
}

/// CacheParams of shaders/cache/params.wgsl, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct CacheParams {
    pub(crate) key_strides: [u32; 4],
    pub(crate) value_strides: [u32; 4],
    pub(crate) query_strides: [u32; 4],
    pub(crate) key_pool_strides: [u32; 4],
    pub(crate) value_pool_strides: [u32; 4],
    pub(crate) batch: u32,
    pub(crate) seq_len: u32,
    pub(crate) num_heads: u32,
    pub(crate) num_kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) head_dim_v: u32,
    pub(crate) slots: u32,
    pub(crate) first_slot: u32,
    pub(crate) page_size: u32,
    pub(crate) pages_per_slot: u32,
    pub(crate) pairs: u32,
    pub(crate) copies: u32,
    pub(crate) page_words: u32,
    pub(crate) grid_width: u32,
    pub(crate) workgroups: u32,
    pub(crate) distance: u32,
}

impl CacheKey {
    /// Threads of a workgroup.
    pub(crate) const THREADS: u32 = 64;

    /// Elements that a thread writes: one f32, a word of two halves, or a block. Also the pairs of a query row that a
    /// thread rotates.
    pub(crate) const fn unit(dtype: DType) -> usize {
        match dtype {
            DType::F32 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::Q8 | DType::Q4 => BLOCK,
        }
    }

    /// Elements that a thread writes of rows that may be rotated: a part of a block then.
    pub(crate) const fn unit_of(dtype: DType, hadamard: Option<Hadamard>) -> usize {
        if hadamard.is_some() { BLOCK } else { Self::unit(dtype) }
    }

    /// Returns the bindings in the order of their numbers.
    pub(crate) fn bindings(self) -> Vec<(CacheSlot, Access)> {
        let buffers = self.buffers().into_iter().map(|(slot, access, ..)| (slot, access));
        std::iter::once((CacheSlot::Params, Access::Uniform)).chain(buffers).collect()
    }

    /// Returns the buffers in the order of their numbers, with the name and the element type that the text gives them.
    fn buffers(self) -> Vec<(CacheSlot, Access, &'static str, &'static str)> {
        use Access::{Read, ReadWrite};
        use CacheSlot::{Angles, Key, NewKey, NewValue, Norm, Query, State, Value};
        let angles = (Angles, Read, "angles", "vec2<f32>");
        match self {
            Self::Advance => vec![(State, ReadWrite, "state", "u32")],
            Self::CopyPages => vec![(State, Read, "page_pairs", "vec2<u32>"), (Key, ReadWrite, "pool", "u32")],
            Self::MoveTokens => {
                vec![(State, Read, "moves", "vec2<u32>"), (Key, ReadWrite, "key_words", "u32"), (Value, ReadWrite, "value_words", "u32")]
            }
            Self::PageTable => vec![
                (State, ReadWrite, "state", "u32"),
                (NewKey, Read, "indptr", "u32"),
                (NewValue, Read, "indices", "u32"),
                (Query, Read, "last_page_len", "u32"),
            ],
            Self::TokenAngles => {
                vec![(State, Read, "positions", "u32"), (NewKey, Read, "tables", "vec2<f32>"), (Angles, ReadWrite, "angles", "vec2<f32>")]
            }
            Self::Rotate { rows, .. } => vec![(State, Read, "positions", "u32"), (Query, ReadWrite, "query_words", word(rows)), angles],
            Self::Append { new, key, value, norm, rotary, query, .. } => {
                let mut buffers = vec![
                    (State, Read, "state", "u32"),
                    (NewKey, Read, "new_key_words", word(new)),
                    (NewValue, Read, "new_value_words", word(new)),
                    (Key, ReadWrite, "key_words", word(key)),
                    (Value, ReadWrite, "value_words", word(value)),
                ];
                buffers.extend(query.map(|query| (Query, ReadWrite, "query_words", word(query))));
                buffers.extend(rotary.map(|_| angles));
                buffers.extend(norm.then_some((Norm, Read, "norm_words", "f32")));
                buffers
            }
        }
    }

    /// Returns the files after the prelude.
    fn files(self) -> impl Iterator<Item = File> {
        let shared: &[File] = files!("cache/params.wgsl", "io/widen.wgsl");
        let own: [&[File]; 6] = match self {
            Self::Advance => [files!("cache/advance.wgsl"), &[], &[], &[], &[], &[]],
            Self::PageTable => [files!("cache/page_table.wgsl"), &[], &[], &[], &[], &[]],
            Self::TokenAngles => [files!("cache/token_angles.wgsl"), &[], &[], &[], &[], &[]],
            Self::CopyPages => [files!("cache/copy_pages.wgsl"), &[], &[], &[], &[], &[]],
            Self::MoveTokens => [files!("cache/move_tokens.wgsl"), &[], &[], &[], &[], &[]],
            Self::Rotate { .. } => [files!("cache/rotate_query.wgsl", "cache/rotate.wgsl"), &[], &[], &[], &[], &[]],
            Self::Append { key, value, norm, rotary, query, hadamard, .. } => [
                if norm { files!("cache/norm.wgsl", "cache/append_rows.wgsl") } else { files!("cache/append.wgsl") },
                files!("cache/append_unit.wgsl"),
                if rotary.is_some() { files!("cache/rotate_key.wgsl") } else { &[] },
                if rotary.and(query).is_some() { files!("cache/rotate_query.wgsl") } else { &[] },
                if key.is_quantised() || value.is_quantised() { files!("cache/blocks.wgsl") } else { &[] },
                if hadamard == [None; 2] { &[] } else { files!("cache/hadamard.wgsl") },
            ],
        };
        [shared].into_iter().chain(own).flatten().copied()
    }
}

impl std::fmt::Display for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let turned = |pairing: &Pairing| if *pairing == Pairing::Interleaved { "interleaved" } else { "half-split" };
        match self {
            Self::Advance => f.write_str("advance"),
            Self::CopyPages => f.write_str("copy pages"),
            Self::MoveTokens => f.write_str("move tokens"),
            Self::PageTable => f.write_str("page table"),
            Self::TokenAngles => f.write_str("token angles"),
            Self::Rotate { rows, pairing } => write!(f, "rotate {rows}, {}", turned(pairing)),
            Self::Append { new, key, value, norm, rotary, by_token, query, hadamard } => {
                write!(f, "append {new} to {key}")?;
                (if key == value { Ok(()) } else { write!(f, " and {value}") })?;
                (if *norm { f.write_str(", normalised") } else { Ok(()) })?;
                rotary.iter().try_for_each(|pairing| write!(f, ", {}", turned(pairing)))?;
                (if *by_token { f.write_str(" by token") } else { Ok(()) })?;
                query.iter().try_for_each(|_| f.write_str(", with queries"))?;
                let named = hadamard.iter().zip(["keys", "values"]);
                named.filter_map(|(rotation, rows)| rotation.map(|rotation| (rotation, rows))).try_for_each(|(rotation, rows)| {
                    write!(f, ", {rows} in Hadamard blocks of {}", rotation.block()) // words after the types
                })
            }
        }
    }
}

/// Composes the text of a cache kernel.
pub(crate) fn compose_cache(key: CacheKey) -> Source {
    Source::of(prelude(key), key.files())
}

fn prelude(key: CacheKey) -> String {
    let mut lines = vec!["@group(0) @binding(0) var<uniform> cache: CacheParams;".to_string()];
    for (slot, access, name, word) in key.buffers() {
        let access = if access == Access::Read { "read" } else { "read_write" };
        lines.push(format!("@group(0) @binding({}) var<storage, {access}> {name}: array<{word}>;", slot as u32));
    }
    if let CacheKey::Rotate { pairing, .. } | CacheKey::Append { rotary: Some(pairing), .. } = key {
        lines.push(format!("const INTERLEAVED: bool = {};", pairing == Pairing::Interleaved));
    }
    match key {
        CacheKey::Advance | CacheKey::CopyPages | CacheKey::MoveTokens | CacheKey::PageTable | CacheKey::TokenAngles => {}
        CacheKey::Rotate { rows, .. } => lines.extend([loader("load_query", "query", rows), writer("query", rows, None)]),
        CacheKey::Append { new, key, value, norm, rotary, by_token, query, hadamard: [of_key, of_value] } => {
            // A norm is between what a row holds and what is loaded.
            let [of_keys, of_queries] = if norm { ["raw_new_key", "raw_query"] } else { ["load_new_key", "load_query"] };
            lines.extend([loader(of_keys, "new_key", new), loader("load_new_value", "new_value", new)]);
            lines.extend([writer("key", key, of_key), writer("value", value, of_value)]);
            let line = if by_token { "token" } else { "position" };
            lines.push(format!("fn angle_line(token: u32, position: u32) -> u32 {{ return {line}; }}"));
            lines.push("fn stored_value(at: u32, i: u32, line: u32) -> f32 { return load_new_value(at + i); }".into());
            lines.extend([taker("key", "rotated", of_key), taker("value", "stored_value", of_value)]);
            lines.push(format!("const HAS_QUERY: bool = {};", query.is_some()));
            match query {
                Some(query) => lines.extend([loader(of_queries, "query", query), writer("query", query, None)]),
                None => lines.push(NO_QUERY.into()),
            }
            if norm {
                let of_query = if query.is_some() { "if (is_query) { return raw_query(i); } " } else { "" };
                lines.push(format!("fn raw_row(is_query: bool, i: u32) -> f32 {{ {of_query}return raw_new_key(i); }}"));
            }
            if rotary.is_none() {
                lines.push("fn rotated(at: u32, i: u32, line: u32) -> f32 { return load_new_key(at + i); }".into());
            }
            if rotary.and(query).is_none() {
                lines.push("fn rotate_query(at: u32, unit: u32, line: u32) {}".into());
            }
        }
    }
    lines.join("\n") + "\n"
}

/// Functions of queries in kernels without.
const NO_QUERY: &str = "const QUERY_UNIT: u32 = 1u;
fn store_query(at: u32, numbers: ptr<function, array<f32, QUERY_UNIT>>) {}";

const fn word(dtype: DType) -> &'static str {
    if matches!(dtype, DType::F32) { "f32" } else { "u32" }
}

/// Returns `FUNCTION(i)`, which reads element i of `NAME_words`.
fn loader(function: &str, name: &str, dtype: DType) -> String {
    let number = match dtype {
        DType::F16 => format!("widen_f16_at({name}_words[i / 2u], i)"),
        DType::BF16 => format!("widen_bf16_at({name}_words[i / 2u], i)"),
        _ => format!("{name}_words[i]"),
    };
    format!("fn {function}(i: u32) -> f32 {{ return {number}; }}")
}

/// Returns `NAME_UNIT` and `store_NAME(at, numbers)`, which writes so many elements from element `at` on.
fn writer(name: &str, dtype: DType, hadamard: Option<Hadamard>) -> String {
    let (unit, constant) = (CacheKey::unit_of(dtype, hadamard), format!("{}_UNIT", name.to_uppercase()));
    let half = |narrow: &str| {
        format!(
            "for (var i = 0u; i < {constant}; i += 2u) {{ \
             {name}_words[(at + i) / 2u] = {narrow}(vec2<f32>((*numbers)[i], (*numbers)[i + 1u])); }}"
        )
    };
    let body = match dtype {
        DType::F32 => format!("for (var i = 0u; i < {constant}; i++) {{ {name}_words[at + i] = (*numbers)[i]; }}"),
        DType::F16 => half("narrow_f16"),
        DType::BF16 => half("narrow_bf16"),
        DType::Q8 | DType::Q4 => format!(
            "let block = quantise(numbers, {}u);\n    \
             for (var i = 0u; i < {words}u; i++) {{ {name}_words[at / {BLOCK}u * {words}u + i] = block[i]; }}",
            if dtype == DType::Q4 { 4 } else { 8 },
            words = block_words(dtype),
        ),
    };
    format!(
        "const {constant}: u32 = {unit}u;\n\
         fn store_{name}(at: u32, numbers: ptr<function, array<f32, {constant}>>) {{\n    {body}\n}}"
    )
}

/// Returns `take_NAME(numbers, at, unit, line)`, which takes a unit of the new row at element `at` to `numbers`, all 0: its
/// elements as `element` returns them, or that part of a rotated block. `line` is the row's line of angles.
fn taker(name: &str, element: &str, hadamard: Option<Hadamard>) -> String {
    let constant = format!("{}_UNIT", name.to_uppercase());
    let body = match hadamard {
        None => format!("for (var i = 0u; i < {constant}; i++) {{ (*numbers)[i] = {element}(at, unit * {constant} + i, line); }}"),
        Some(hadamard) => {
            let ([scale, root], parts) = (hadamard.factors(), hadamard.block() / BLOCK);
            format!(
                "var largest = 0u;\n    \
                 for (var part = 0u; part < {parts}u; part++) {{\n        \
                     let sign = select({scale:?}, -{scale:?}, (countOneBits((unit % {parts}u) & part) & 1u) == 1u);\n        \
                     for (var i = 0u; i < {constant}; i++) {{\n            \
                         let x = {element}(at, (unit / {parts}u * {parts}u + part) * {constant} + i, line);\n            \
                         largest = max(largest, bitcast<u32>(x) & 0x7fffffffu);\n            \
                         (*numbers)[i] += sign * x;\n        \
                     }}\n    \
                 }}\n    \
                 rotate_part(numbers, largest, {root:?});"
            )
        }
    };
    format!("fn take_{name}(numbers: ptr<function, array<f32, {constant}>>, at: u32, unit: u32, line: u32) {{\n    {body}\n}}")
}

/// Returns every variant. Keys and values are written by functions of their own, so of the kernels that store them in
/// different types only the plain ones are listed.
pub(crate) fn every_cache_key() -> Vec<CacheKey> {
    let mut keys = vec![CacheKey::Advance, CacheKey::CopyPages, CacheKey::MoveTokens, CacheKey::PageTable, CacheKey::TokenAngles];
    let pairings = [Pairing::HalfSplit, Pairing::Interleaved];
    let stored = || DType::FLOATS.into_iter().chain(DType::QUANTISED);
    let none = [None; 2];
    let append = |new, [key, value]: [DType; 2], norm: bool, rotary: Option<Pairing>, query: Option<DType>, hadamard| CacheKey::Append {
        new,
        key,
        value,
        norm,
        rotary,
        by_token: norm && query.is_some() && rotary.is_some(),
        query,
        hadamard,
    };
    for new in DType::FLOATS {
        keys.extend(pairings.map(|pairing| CacheKey::Rotate { rows: new, pairing }));
        for (key, value) in stored().flat_map(|key| stored().map(move |value| (key, value))) {
            keys.push(append(new, [key, value], false, None, None, none));
            for rotary in pairings.map(Some).into_iter().filter(|_| key == value) {
                keys.extend([None, Some(new)].map(|query| append(new, [key, value], false, rotary, query, none)));
            }
        }
        // Norms, with and without queries and rotary embedding.
        let rotaries = [None, Some(Pairing::HalfSplit), Some(Pairing::Interleaved)];
        let variants = rotaries.into_iter().flat_map(|rotary| [None, Some(new)].map(|query| (rotary, query)));
        keys.extend(variants.map(|(rotary, query)| append(new, [new, DType::Q8], true, rotary, query, none)));
    }
    // Rotated rows of every type, beside a rotary embedding and without, and those of one side.
    let new = DType::F32;
    let [of_key, of_value] = [64, 32].map(Hadamard::of);
    for stored in stored() {
        let both = [of_key, of_value];
        keys.push(append(new, [stored; 2], false, None, None, both));
        keys.extend([false, true].map(|norm| append(new, [stored; 2], norm, Some(Pairing::HalfSplit), Some(new), both)));
    }
    let one_side = [[of_key, None], [None, of_value]];
    keys.extend(one_side.map(|hadamard| append(new, [new, DType::F16], false, None, None, hadamard)));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::back::{hlsl, msl, spv};

    /// Every variant parses, validates, translates to SPIR-V, MSL and HLSL, and has the bindings that it declares.
    #[test]
    fn variants_are_valid() {
        for key in every_cache_key() {
            let source = compose_cache(key);
            let module = naga::front::wgsl::parse_str(&source.text)
                .unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
            let flags = naga::valid::ValidationFlags::all();
            let info = naga::valid::Validator::new(flags, naga::valid::Capabilities::all()).validate(&module);
            let info = info.unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
            assert_eq!(module.entry_points[0].workgroup_size, [CacheKey::THREADS, 1, 1]);
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("a valid module has a layout");
            let entry = info.get_entry_point(0);
            let mut found = Vec::new();
            for (handle, variable) in module.global_variables.iter() {
                let Some(binding) = variable.binding.filter(|_| !entry[handle].is_empty()) else { continue };
                let access = match variable.space {
                    naga::AddressSpace::Uniform => {
                        assert_eq!(layouter[variable.ty].size as usize, size_of::<CacheParams>());
                        Access::Uniform
                    }
                    naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Access::ReadWrite,
                    _ => Access::Read,
                };
                found.push((binding.binding, access));
            }
            found.sort_by_key(|&(number, _)| number);
            let believed: Vec<_> = key.bindings().into_iter().map(|(slot, access)| (slot as u32, access)).collect();
            assert_eq!(found, believed, "{key:?}");
            spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap_or_else(|error| panic!("{key:?}: spirv: {error}"));
            let options = msl::Options { lang_version: (3, 0), fake_missing_bindings: true, ..Default::default() };
            msl::write_string(&module, &info, &options, &Default::default()).unwrap_or_else(|error| panic!("{key:?}: msl: {error}"));
            let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, fake_missing_bindings: true, ..Default::default() };
            let written = hlsl::Writer::new(&mut String::new(), &options, &Default::default()).write(&module, &info, None);
            written.unwrap_or_else(|error| panic!("{key:?}: hlsl: {error}"));
        }
    }
}
