//! Kernels that maintain a cache on a device: shaders/cache behind a generated prelude.

use std::fmt::Write;

use bytemuck::{Pod, Zeroable};

use super::{Access, Source};
use crate::numbers::DType;
use crate::numbers::{BLOCK, block_words};
use crate::rotary::Pairing;

/// A variant of the cache kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheKey {
    /// Start of a step: lengths grow.
    Advance,
    /// Copy of pages within a pool.
    CopyPages,
    /// Conversion of lengths and page table from FlashInfer's format.
    PageTable,
    /// Rotation of rows in place.
    Rotate { rows: DType, pairing: Pairing },
    /// Append of new keys and values to the cache.
    Append {
        /// Storage type of the new keys and values.
        new: DType,
        /// Storage type of the cache.
        cache: DType,
        /// Rotation of the new keys, if any.
        rotary: Option<Pairing>,
        /// Storage type of the queries that are rotated in place, if any.
        query: Option<DType>,
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
    pub(crate) padding: u32,
}

impl CacheKey {
    /// Threads of a workgroup.
    pub(crate) const THREADS: u32 = 64;

    /// Elements that a thread appends.
    pub(crate) const fn unit(cache: DType) -> usize {
        match cache {
            DType::F32 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::Q8 | DType::Q4 => BLOCK,
        }
    }

    /// Pairs of a query row that a thread rotates.
    pub(crate) const fn query_pairs(query: DType) -> usize {
        if matches!(query, DType::F32) { 1 } else { 2 }
    }

    /// Returns the bindings in the order of their numbers.
    pub(crate) fn bindings(self) -> Vec<(CacheSlot, Access)> {
        use Access::{Read, ReadWrite, Uniform};
        let mut bindings = vec![(CacheSlot::Params, Uniform)];
        match self {
            Self::Advance => bindings.push((CacheSlot::State, ReadWrite)),
            Self::CopyPages => bindings.extend([(CacheSlot::State, Read), (CacheSlot::Key, ReadWrite)]),
            Self::PageTable => {
                bindings.extend([(CacheSlot::State, ReadWrite), (CacheSlot::NewKey, Read), (CacheSlot::NewValue, Read)]);
                bindings.push((CacheSlot::Query, Read));
            }
            Self::Rotate { .. } => {
                bindings.extend([(CacheSlot::State, Read), (CacheSlot::Query, ReadWrite), (CacheSlot::Angles, Read)]);
            }
            Self::Append { rotary, query, .. } => {
                bindings.extend([(CacheSlot::State, Read), (CacheSlot::NewKey, Read), (CacheSlot::NewValue, Read)]);
                bindings.extend([(CacheSlot::Key, ReadWrite), (CacheSlot::Value, ReadWrite)]);
                bindings.extend(query.map(|_| (CacheSlot::Query, ReadWrite)));
                bindings.extend(rotary.map(|_| (CacheSlot::Angles, Read)));
            }
        }
        bindings
    }
}

impl std::fmt::Display for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let turned = |pairing: &Pairing| if *pairing == Pairing::Interleaved { "interleaved" } else { "half-split" };
        match self {
            Self::Advance => f.write_str("advance"),
            Self::CopyPages => f.write_str("copy pages"),
            Self::PageTable => f.write_str("page table"),
            Self::Rotate { rows, pairing } => write!(f, "rotate {rows}, {}", turned(pairing)),
            Self::Append { new, cache, rotary, query } => {
                write!(f, "append {new} to {cache}")?;
                rotary.iter().try_for_each(|pairing| write!(f, ", {}", turned(pairing)))?;
                query.iter().try_for_each(|_| f.write_str(", with queries"))
            }
        }
    }
}

/// Name and text of a shader file under `shaders/`.
macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("../../", $name)))
    };
}

/// Composes the text of a cache kernel.
pub(crate) fn compose_cache(key: CacheKey) -> Source {
    let mut source = Source { text: prelude(key), parts: vec![(1, "prelude")] };
    let mut files = vec![file!("shaders/cache/params.wgsl"), file!("shaders/io/widen.wgsl")];
    match key {
        CacheKey::Advance => files.push(file!("shaders/cache/advance.wgsl")),
        CacheKey::PageTable => files.push(file!("shaders/cache/page_table.wgsl")),
        CacheKey::CopyPages => files.push(file!("shaders/cache/copy_pages.wgsl")),
        CacheKey::Rotate { .. } => files.extend([file!("shaders/cache/rotation.wgsl"), file!("shaders/cache/rotate.wgsl")]),
        CacheKey::Append { cache, .. } => {
            files.extend([file!("shaders/cache/rotation.wgsl"), file!("shaders/cache/append.wgsl")]);
            files.extend(cache.is_quantised().then_some(file!("shaders/cache/blocks.wgsl")));
        }
    }
    for (name, text) in files {
        source.parts.push((source.text.lines().count() + 1, name));
        source.text.push_str(text);
    }
    source
}

fn prelude(key: CacheKey) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}"); // writing to a String does not fail
    };
    line("@group(0) @binding(0) var<uniform> cache: CacheParams;".into());
    match key {
        CacheKey::Advance => line(storage(CacheSlot::State, "read_write", "state", "u32")),
        CacheKey::CopyPages => {
            line(storage(CacheSlot::State, "read", "page_pairs", "vec2<u32>"));
            line(storage(CacheSlot::Key, "read_write", "pool", "u32"));
        }
        CacheKey::PageTable => {
            line(storage(CacheSlot::State, "read_write", "state", "u32"));
            line(storage(CacheSlot::NewKey, "read", "indptr", "u32"));
            line(storage(CacheSlot::NewValue, "read", "indices", "u32"));
            line(storage(CacheSlot::Query, "read", "last_page_len", "u32"));
        }
        CacheKey::Rotate { rows, pairing } => {
            line(storage(CacheSlot::State, "read", "positions", "u32"));
            line("fn load_new_key(i: u32) -> f32 { return 0.0; }".into());
            rotation(&mut line, Some(rows), Some(pairing));
        }
        CacheKey::Append { new, cache, rotary, query } => {
            line(storage(CacheSlot::State, "read", "state", "u32"));
            line(format!("const UNIT: u32 = {}u;", CacheKey::unit(cache)));
            line(format!("const HAS_QUERY: bool = {};", query.is_some()));
            if cache.is_quantised() {
                line(format!("const BLOCK_WORDS: u32 = {}u;", block_words(cache)));
                line(format!("const BITS: u32 = {}u;", if cache == DType::Q4 { 4 } else { 8 }));
            }
            for (name, from, to) in [("key", CacheSlot::NewKey, CacheSlot::Key), ("value", CacheSlot::NewValue, CacheSlot::Value)] {
                line(storage(from, "read", &format!("new_{name}_words"), word(new)));
                line(loader(&format!("new_{name}"), new));
                line(storage(to, "read_write", &format!("{name}_words"), word(cache)));
                line(store(name, cache));
            }
            rotation(&mut line, query, rotary);
        }
    }
    text
}

/// Writes what shaders/cache/rotation.wgsl expects, with dummies for what the variant never calls.
fn rotation(line: &mut impl FnMut(String), query: Option<DType>, rotary: Option<Pairing>) {
    line(format!("const ROTATED: bool = {};", rotary.is_some()));
    line(format!("const INTERLEAVED: bool = {};", rotary == Some(Pairing::Interleaved)));
    let dtype = query.unwrap_or_default();
    line(format!("const QUERY_PAIRS: u32 = {}u;", CacheKey::query_pairs(dtype)));
    if rotary.is_some() {
        line(storage(CacheSlot::Angles, "read", "angles", "vec2<f32>"));
        line("fn angle_at(at: u32) -> vec2<f32> { return angles[at]; }".into());
    } else {
        line("fn angle_at(at: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }".into());
    }
    let signature = "fn store_pairs(at: u32, first: u32, a: array<f32, QUERY_PAIRS>, b: array<f32, QUERY_PAIRS>)";
    if query.is_none() {
        line("fn load_query(i: u32) -> f32 { return 0.0; }".into());
        line(format!("{signature} {{}}"));
        return;
    }
    line(storage(CacheSlot::Query, "read_write", "query_words", word(dtype)));
    line(loader("query", dtype));
    let place = |pair: &str| if rotary == Some(Pairing::Interleaved) { format!("at + 2u * ({pair})") } else { format!("at + {pair}") };
    let step = if rotary == Some(Pairing::Interleaved) { "1u" } else { "cache.pairs" };
    let body = match (dtype, rotary) {
        (DType::F32, _) => format!("    query_words[{0}] = a[0];\n    query_words[{0} + {step}] = b[0];", place("first")),
        (_, Some(Pairing::Interleaved)) => {
            let pair = |n: usize| format!("    query_words[(at + 2u * first) / 2u + {n}u] = {}(vec2<f32>(a[{n}], b[{n}]));", narrow(dtype));
            format!("{}\n{}", pair(0), pair(1))
        }
        _ => {
            let half = |step: &str, from: &str| {
                format!("    query_words[(at + first{step}) / 2u] = {}(vec2<f32>({from}[0], {from}[1]));", narrow(dtype))
            };
            format!("{}\n{}", half("", "a"), half(" + cache.pairs", "b"))
        }
    };
    line(format!("{signature} {{\n{body}\n}}"));
}

fn storage(slot: CacheSlot, access: &str, name: &str, word: &str) -> String {
    format!("@group(0) @binding({}) var<storage, {access}> {name}: array<{word}>;", slot as u32)
}

const fn word(dtype: DType) -> &'static str {
    if matches!(dtype, DType::F32) { "f32" } else { "u32" }
}

const fn narrow(dtype: DType) -> &'static str {
    if matches!(dtype, DType::BF16) { "narrow_bf16" } else { "narrow_f16" }
}

/// Returns `load_NAME(i)`, which reads element i.
fn loader(name: &str, dtype: DType) -> String {
    let number = match dtype {
        DType::F16 => format!("widen_f16_at({name}_words[i / 2u], i)"),
        DType::BF16 => format!("widen_bf16_at({name}_words[i / 2u], i)"),
        _ => format!("{name}_words[i]"),
    };
    format!("fn load_{name}(i: u32) -> f32 {{ return {number}; }}")
}

/// Returns `store_NAME(at, numbers)`, which writes UNIT elements from element `at` on.
fn store(name: &str, dtype: DType) -> String {
    let body = match dtype {
        DType::F32 => format!("    {name}_words[at] = (*numbers)[0];"),
        DType::F16 | DType::BF16 => {
            format!("    {name}_words[at / 2u] = {}(vec2<f32>((*numbers)[0], (*numbers)[1]));", narrow(dtype))
        }
        DType::Q8 | DType::Q4 => format!(
            "    let block = quantise(numbers);\n    \
                 for (var i = 0u; i < BLOCK_WORDS; i++) {{\n        \
                     {name}_words[at / UNIT * BLOCK_WORDS + i] = block[i];\n    \
                 }}"
        ),
    };
    format!("fn store_{name}(at: u32, numbers: ptr<function, array<f32, UNIT>>) {{\n{body}\n}}")
}

/// Returns every variant.
pub(crate) fn every_cache_key() -> Vec<CacheKey> {
    let mut keys = vec![CacheKey::Advance, CacheKey::CopyPages, CacheKey::PageTable];
    let pairings = [Pairing::HalfSplit, Pairing::Interleaved];
    for new in DType::FLOATS {
        keys.extend(pairings.map(|pairing| CacheKey::Rotate { rows: new, pairing }));
        for cache in DType::FLOATS.into_iter().chain(DType::QUANTISED) {
            keys.push(CacheKey::Append { new, cache, rotary: None, query: None });
            for pairing in pairings {
                keys.extend([None, Some(new)].map(|query| CacheKey::Append { new, cache, rotary: Some(pairing), query }));
            }
        }
    }
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
            for (handle, variable) in module.global_variables.iter().filter(|(handle, _)| !entry[*handle].is_empty()) {
                let access = match variable.space {
                    naga::AddressSpace::Uniform => {
                        assert_eq!(layouter[variable.ty].size as usize, size_of::<CacheParams>());
                        Access::Uniform
                    }
                    naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Access::ReadWrite,
                    _ => Access::Read,
                };
                assert!(!entry[handle].is_empty());
                found.push((variable.binding.expect("bound").binding, access));
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
