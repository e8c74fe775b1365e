//! The generated head of every kernel: constants, bindings, and the functions that read and write them.

use std::fmt::Write;

use super::{
    Access, DecodeShape, GradientShape, Kernel, KernelKey, KeySide, LaneShape, Lines, RowShape, Slot, StagedShape, Storage, TileShape,
    directives, terms,
};
use crate::numbers::{DType, Hadamard};
use crate::problem::Operand;

/// Renders the prelude of `key`.
pub(super) fn render(key: &KernelKey) -> String {
    let mut text = String::new();
    if let Kernel::Matrix(shape) = key.kernel {
        matrices(&mut text, shape.size);
    }
    constants(&mut text, key);
    for (slot, access) in key.bindings() {
        binding(&mut text, key, slot, access);
    }
    missing(&mut text, key);
    text
}

/// Writes the directives and types of cooperative matrices.
fn matrices(text: &mut String, size: u32) {
    text.push_str(directives::MATRICES);
    for (role, number) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
        let _ = writeln!(text, "alias Matrix{role} = coop_mat{size}x{size}<{number}, {role}>;");
    }
}

fn constants(text: &mut String, key: &KernelKey) {
    let mut line = |name: &str, value: u32| {
        let _ = writeln!(text, "const {name}: u32 = {value}u;"); // writing to a String does not fail
    };
    line("HEAD_DIM", key.head_dim);
    line("HEAD_VECS", key.head_dim.div_ceil(4));
    line("VALUE_DIM", key.head_dim_v);
    line("VALUE_VECS", key.head_dim_v.div_ceil(4));
    if let Kernel::Tiles(shape) = key.kernel {
        let TileShape { threads, rows, cols, keys, .. } = shape;
        for (name, value) in [("THREADS", threads), ("ROWS", rows), ("COLS", cols), ("KEYS", keys)] {
            line(name, value);
        }
        line("BLOCK_ROWS", shape.block_rows());
        line("BLOCK_KEYS", shape.block_keys());
    }
    if let Kernel::Lanes(shape) | Kernel::Scores(StagedShape::Rows(shape)) | Kernel::WeightedValues(StagedShape::Rows(shape)) = key.kernel {
        let LaneShape { lanes, rows, keys, step } = shape;
        for (name, value) in [("THREADS", lanes), ("ROWS", rows), ("KEYS", keys), ("STEP", step), ("LANES", lanes)] {
            line(name, value);
        }
        line("BLOCK_ROWS", shape.block_rows());
        line("BLOCK_KEYS", keys);
    }
    if let Kernel::Rows(RowShape { threads, keys, step }) = key.kernel {
        for (name, value) in [("THREADS", threads), ("STEP", step), ("BLOCK_ROWS", threads), ("BLOCK_KEYS", keys)] {
            line(name, value);
        }
    }
    if let Kernel::Scores(StagedShape::Few(shape)) | Kernel::WeightedValues(StagedShape::Few(shape)) = key.kernel {
        for (name, value) in
            [("THREADS", shape.lanes), ("LANES", shape.lanes), ("ROWS", shape.rows), ("KEYS", StagedShape::FEW_KEYS as u32)]
        {
            line(name, value);
        }
    }
    if let Kernel::Softmax(threads) = key.kernel {
        line("ROW_THREADS", threads);
    }
    if let Kernel::Decode(shape) = key.kernel {
        let DecodeShape { lanes, rows } = shape;
        for (name, value) in [("THREADS", lanes), ("LANES", lanes), ("ROWS", rows), ("KEYS", shape.block_keys())] {
            line(name, value);
        }
        line("BLOCK_ROWS", rows);
        line("BLOCK_KEYS", shape.block_keys());
    }
    if let Kernel::Matrix(shape) = key.kernel {
        for (name, value) in [
            ("SIZE", shape.size),
            ("TILES", shape.tiles),
            ("THREADS", shape.threads()),
            ("COLS", shape.cols()),
            ("KEYS", shape.keys / shape.cols()),
            ("BLOCK_ROWS", shape.block_rows()),
            ("BLOCK_KEYS", shape.keys),
        ] {
            line(name, value);
        }
    }
    gradient(text, key.kernel);
    let _ = writeln!(text, "const IS_GENERIC: bool = {};", key.generic);
    let _ = writeln!(text, "const LANES_ARE_VECTORS: bool = {};", key.kernel.runs_lanes_as_vectors());
    let _ = writeln!(text, "const OF_TABLE: bool = {};", key.kernel.table().is_some());
    if let Kernel::TableLines(lines, _) = key.kernel {
        let _ = writeln!(text, "const LINES_ARE_KEYS: bool = {};", lines == Lines::Keys);
    }
    let partial = if key.kernel == Kernel::Merge { "PARTS_OF_LSE" } else { "PARTIAL" };
    let _ = writeln!(text, "const {partial}: bool = {};", key.partial);
    if let Some(rotation) = Hadamard::of(key.hadamard as usize) {
        let [scale, root] = rotation.factors();
        let _ = writeln!(
            text,
            "const HADAMARD: u32 = {}u;\nconst HADAMARD_SCALE: f32 = {scale:?};\nconst HADAMARD_ROOT: f32 = {root:?};",
            key.hadamard
        );
    }
    sizes(text, key);
    switches(text, key);
    terms::chains(text, key);
    terms::user_functions(text, key);
}

/// Writes the shape of a kernel of gradients or key sums, and which of its sums are wanted.
fn gradient(text: &mut String, kernel: Kernel) {
    let (shape, rows, [a, b]) = match kernel {
        Kernel::QueryGradient(shape) => (shape, true, [true, false]),
        Kernel::KeyGradient(shape, side) => (shape, false, [side != KeySide::Value, side != KeySide::Key]),
        Kernel::KeySums(shape) => (shape, false, [false, true]),
        _ => return,
    };
    let (own, cols, stream) = match shape {
        GradientShape::Tiles { own, cols, stream, .. } => (own, cols, stream),
        GradientShape::Vectors { own, stream, .. } => (own, 1, stream),
    };
    let (block_own, block_stream) = (shape.block_own(), shape.block_stream());
    let (block_rows, block_keys) = if rows { (block_own, block_stream) } else { (block_stream, block_own) };
    for (name, value) in [
        ("THREADS", shape.threads()),
        ("LANES", if let GradientShape::Vectors { lanes, .. } = shape { lanes } else { 0 }),
        ("OWN", own),
        ("COLS", cols),
        ("STREAM", stream),
        ("BLOCK_OWN", block_own),
        ("BLOCK_STREAM", block_stream),
        ("BLOCK_ROWS", block_rows),
        ("BLOCK_KEYS", block_keys),
    ] {
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    let _ = writeln!(text, "const GIVES_QK: bool = {a};\nconst GIVES_VO: bool = {b};");
}

/// Writes the bounds of loops over a row: constants in specialised variants, params in generic ones.
fn sizes(text: &mut String, key: &KernelKey) {
    for (name, specialised, generic) in [
        ("head_dim()", "HEAD_DIM", "params.head_dim"),
        ("head_vecs()", "HEAD_VECS", "(params.head_dim + 3u) / 4u"),
        ("value_dim()", "VALUE_DIM", "params.head_dim_v"),
        ("value_vecs()", "VALUE_VECS", "(params.head_dim_v + 3u) / 4u"),
        ("rolled(n: u32)", "n", "n + params.zero"),
    ] {
        let _ = writeln!(text, "fn {name} -> u32 {{ return {}; }}", if key.generic { generic } else { specialised });
    }
}

/// Writes the switches of paging and dropout, which are constants where a variant has no switches.
fn switches(text: &mut String, key: &KernelKey) {
    for (name, specialised, flag) in [("is_paged", key.paged, "FLAG_PAGED"), ("is_dropping", key.dropout, "FLAG_DROPOUT")] {
        // The backward pass does not support paged keys.
        let by_flag = key.is_switched() && !(flag == "FLAG_PAGED" && key.kernel.reads_row_stats());
        let value = if by_flag { format!("(params.flags & {flag}) != 0u") } else { specialised.to_string() };
        let _ = writeln!(text, "fn {name}() -> bool {{ return {value}; }}");
    }
    let _ = writeln!(text, "const READS_VECTORS: bool = {};", key.key.vectors && key.value.vectors);
}

fn binding(text: &mut String, key: &KernelKey, slot: Slot, access: Access) {
    let number = slot as u32;
    let mut declare = |name: &str, word: &str| {
        let space = match access {
            Access::Uniform => "uniform",
            Access::Read => "storage, read",
            Access::ReadWrite => "storage, read_write",
        };
        let _ = writeln!(text, "@group(0) @binding({number}) var<{space}> {name}: {word};");
    };
    let gradient_of = |storage: Storage| Storage { dtype: key.gradient.unwrap_or(storage.dtype), ..storage };
    match slot {
        Slot::Params => declare("params", "Params"),
        Slot::Query => reader(text, number, [if key.hadamard > 0 { "stored_query" } else { "query" }, "query"], key.query, "head_dim"),
        Slot::Key => reader(text, number, ["key", "key"], key.key, "head_dim"),
        Slot::Value => reader(text, number, ["value", "value"], key.value, "value_dim"),
        Slot::Output => {
            writer(text, number, ["output", "output"], key.output, "value_dim", false);
            if key.partial {
                text.push_str(
                    "fn prior_output(at: u32, dim: u32) -> vec4<f32> { return bitcast<vec4<f32>>(output_words[(at + dim) / 4u]); }\n",
                );
            }
        }
        Slot::Result => reader(text, number, ["result", "output"], key.output, "value_dim"),
        Slot::DOutput => reader(text, number, ["d_output", "output"], key.output, "value_dim"),
        Slot::DLse => {
            declare("d_lse", "array<f32>");
            text.push_str("fn d_lse_at(at: u32) -> f32 { return d_lse[at]; }\n");
        }
        Slot::DQuery => writer(text, number, ["d_query", "query"], gradient_of(key.query), "head_dim", true),
        Slot::DKey => writer(text, number, ["d_key", "key"], gradient_of(key.key), "head_dim", true),
        Slot::DValue => writer(text, number, ["d_value", "value"], gradient_of(key.value), "value_dim", true),
        // A sum and the element that it belongs to, or a range of elements.
        Slot::Parts if key.kernel == Kernel::TableGradient => declare("parts", "array<vec2<u32>>"),
        Slot::Sums if matches!(key.kernel, Kernel::TableLines(..)) => declare("sums", "array<vec2<u32>>"),
        Slot::Parts => declare("parts", "array<f32>"),
        Slot::Sums => declare("sums", "array<f32>"),
        Slot::Bits => declare("tile_bits", "array<u32>"),
        Slot::ForwardStats => declare("forward_stats", "array<u32>"),
        Slot::RowStats => {
            declare("row_stats", "array<u32>");
            if access == Access::Read {
                text.push_str("fn table(at: u32) -> u32 { return row_stats[at]; }\n");
            }
        }
        Slot::Lse => {
            declare("lse_words", "array<u32>");
            text.push_str("fn store_lse(at: u32, bits: u32) { lse_words[at] = bits; }\n");
        }
        Slot::Stats => {
            declare("stats_words", "array<vec2<u32>>");
            text.push_str("fn store_stats(at: u32, bits: vec2<u32>) { stats_words[at] = bits; }\n");
        }
        Slot::Tables => {
            declare("table_words", "array<u32>");
            text.push_str("fn table(at: u32) -> u32 { return table_words[at]; }\n");
        }
        Slot::Bias => {
            declare("bias_words", "array<f32>");
            text.push_str("fn bias_at(at: u32) -> f32 { return bias_words[at]; }\n");
        }
        Slot::Mask => {
            declare("mask_words", "array<u32>");
            text.push_str("fn mask_at(at: u32) -> bool { return ((mask_words[at / 4u] >> (at % 4u * 8u)) & 0xffu) != 0u; }\n");
        }
        Slot::Scores => declare("scores", "array<u32>"),
        Slot::PartialOutput => declare("partial_output", "array<vec4<f32>>"),
        Slot::PartialStats => declare("partial_stats", "array<u32>"),
        Slot::Cache => {
            declare("cache_words", "array<u32>");
            text.push_str("fn cache_word(at: u32) -> u32 { return cache_words[at]; }\n");
        }
    }
}

/// Writes `load_NAME(at, dim)`: elements dim..dim+4 of the row that starts at element `at`, 0 past its end, with the
/// strides of `like`. `fetch_NAME` is its memory access, `widen_NAME` its conversion: a kernel can work in between.
fn reader(text: &mut String, number: u32, [name, like]: [&str; 2], storage: Storage, width: &str) {
    let (word, words, fetch, widened) = match (storage.vectors, storage.dtype) {
        (_, dtype) if dtype.is_quantised() => block_reader(name, dtype),
        (true, DType::F32) => ("vec4<f32>", "vec4<f32>", format!("return {name}_words[(at + dim) / 4u];"), "words"),
        (true, DType::F16) => ("vec2<u32>", "vec2<u32>", format!("return {name}_words[(at + dim) / 4u];"), "widen_f16(words)"),
        (true, _) => ("vec2<u32>", "vec2<u32>", format!("return {name}_words[(at + dim) / 4u];"), "widen_bf16(words)"),
        (false, dtype) => number_reader(text, [name, like], dtype, width),
    };
    let _ = writeln!(
        text,
        "@group(0) @binding({number}) var<storage, read> {name}_words: array<{word}>;\n\
         alias fetched_{name} = {words};\n\
         fn fetch_{name}(at: u32, dim: u32) -> fetched_{name} {{ {fetch} }}\n\
         fn widen_{name}(words: fetched_{name}, dim: u32) -> vec4<f32> {{ return {widened}; }}\n\
         fn load_{name}(at: u32, dim: u32) -> vec4<f32> {{ return widen_{name}(fetch_{name}(at, dim), dim); }}"
    );
}

/// Writes `number_NAME(at, dim)`, which reads one element. Returns the type of the buffer's elements, the fetched type, the
/// fetch, and the widening.
fn number_reader(
    text: &mut String,
    [name, like]: [&str; 2],
    dtype: DType,
    width: &str,
) -> (&'static str, &'static str, String, &'static str) {
    let (word, one) = match dtype {
        DType::F32 => ("f32", format!("{name}_words[i]")),
        DType::F16 => ("u32", format!("widen_f16_at({name}_words[i / 2u], i)")),
        _ => ("u32", format!("widen_bf16_at({name}_words[i / 2u], i)")),
    };
    let _ = writeln!(
        text,
        "fn number_{name}(at: u32, dim: u32) -> f32 {{\n    \
             if (dim >= {width}()) {{\n        \
                 return 0.0;\n    \
             }}\n    \
             let i = at + dim * params.{like}_strides.w;\n    \
             return {one};\n\
         }}"
    );
    let numbers = [0, 1, 2, 3].map(|c| format!("number_{name}(at, dim + {c}u)")).join(", ");
    (word, "vec4<f32>", format!("return vec4<f32>({numbers});"), "words")
}

/// Reads rows of quantised blocks (layout: src/numbers/blocks.rs). A fetch is a word of 4 or 8 elements and their scale.
fn block_reader(name: &str, dtype: DType) -> (&'static str, &'static str, String, &'static str) {
    let (words, per_word, widened) = match dtype {
        DType::Q4 => (5, 8, "bitcast<f32>(words.y) * widen_q4(words.x, dim)"),
        _ => (9, 4, "bitcast<f32>(words.y) * widen_q8(words.x)"),
    };
    let fetch = format!(
        "\n    \
             let i = at + dim;\n    \
             let block = i / 32u * {words}u;\n    \
             return vec2<u32>({name}_words[block + 1u + i % 32u / {per_word}u], {name}_words[block]);\n"
    );
    ("u32", "vec2<u32>", fetch, widened)
}

/// Writes `store_NAME(at, dim, bits)`: elements dim..dim+4, as f32 bits, of the row that starts at element `at`; those
/// past its end are dropped. With `adds`, f32 accumulates under FLAG_ADDS. Words of two halves are shared by atomics.
fn writer(text: &mut String, number: u32, [name, like]: [&str; 2], storage: Storage, width: &str, adds: bool) {
    let narrow = if storage.dtype == DType::BF16 { "narrow_bf16" } else { "narrow_f16" };
    let sums = |to: &str, place: &str, [words, numbers]: [&str; 2]| {
        if adds {
            format!("if (has_flag(FLAG_ADDS)) {{ {to} = bitcast<{words}>(bitcast<{numbers}>({to}) + bitcast<{numbers}>({place})); }}")
        } else {
            String::new()
        }
    };
    let (word, body) = match (storage.vectors, storage.dtype) {
        (true, DType::F32) => {
            let place = format!("{name}_words[(at + dim) / 4u]");
            (
                "vec4<u32>",
                format!("    var words = bits;\n    {}\n    {place} = words;\n", sums("words", &place, ["vec4<u32>", "vec4<f32>"])),
            )
        }
        (true, _) => (
            "vec2<u32>",
            format!(
                "    let numbers = bitcast<vec4<f32>>(bits);\n    \
                     {name}_words[(at + dim) / 4u] = vec2<u32>({narrow}(numbers.xy), {narrow}(numbers.zw));\n"
            ),
        ),
        (false, DType::F32) => {
            let place = format!("{name}_words[i]");
            let sums = sums("word", &place, ["u32", "f32"]);
            ("u32", format!("    var word = bits;\n    {sums}\n    {place} = word;\n"))
        }
        (false, _) => (
            "atomic<u32>",
            format!(
                "    let shift = (i & 1u) * 16u;\n    \
                     atomicAnd(&{name}_words[i / 2u], 0xffff0000u >> shift);\n    \
                     atomicOr(&{name}_words[i / 2u], ({narrow}(vec2<f32>(bitcast<f32>(bits), 0.0)) & 0xffffu) << shift);\n"
            ),
        ),
    };
    let _ = writeln!(text, "@group(0) @binding({number}) var<storage, read_write> {name}_words: array<{word}>;");
    let body = if storage.vectors {
        body
    } else {
        let _ = writeln!(
            text,
            "fn store_number_{name}(at: u32, dim: u32, bits: u32) {{\n    \
                 if (dim >= {width}()) {{\n        \
                     return;\n    \
                 }}\n    \
                 let i = at + dim * params.{like}_strides.w;\n{body}}}"
        );
        (0..4).map(|c| format!("    store_number_{name}(at, dim + {c}u, bits[{c}]);\n")).collect()
    };
    let _ = writeln!(text, "fn store_{name}(at: u32, dim: u32, bits: vec4<u32>) {{\n{body}}}");
}

/// Writes dummies for the functions of bindings that this variant lacks: they must be declared, but their results never
/// matter. Without a cache, lengths and page table are in the tables.
fn missing(text: &mut String, key: &KernelKey) {
    if !key.cached {
        text.push_str("fn cache_word(at: u32) -> u32 { return table(at); }\n");
    }
    let bindings = key.bindings();
    let has = |slot| bindings.iter().any(|&(there, _)| there == slot);
    if !has(Slot::Tables) && !bindings.contains(&(Slot::RowStats, Access::Read)) {
        text.push_str("fn table(at: u32) -> u32 { return 0u; }\n");
    }
    if !has(Slot::Bias) {
        text.push_str("fn bias_at(at: u32) -> f32 { return 0.0; }\n");
    }
    if !has(Slot::Mask) {
        text.push_str("fn mask_at(at: u32) -> bool { return true; }\n");
    }
    if !has(Slot::Stats) {
        text.push_str("fn store_stats(at: u32, bits: vec2<u32>) {}\n");
    }
    if has(Slot::Output) && !key.partial {
        text.push_str("fn prior_output(at: u32, dim: u32) -> vec4<f32> { return vec4<f32>(0.0); }\n");
    }
    if key.kernel == Kernel::Merge && key.hadamard == 0 {
        text.push_str("fn rotated_back(numbers: vec4<f32>, thread: u32) -> vec4<f32> { return numbers; }\n");
    }
    if key.kernel == (Kernel::Preprocess { through_lse: false }) {
        text.push_str("fn d_lse_at(at: u32) -> f32 { return 0.0; }\n");
    }
    if let Kernel::NarrowGradient(operand) = key.kernel {
        let (name, at) = (operand.name(), operand as usize);
        let width = if operand == Operand::Value { "value" } else { "head" };
        let _ = writeln!(
            text,
            "fn gradient_row(batch: u32, head: u32, row: u32) -> u32 {{ return row_start(params.offsets[{at}], params.{name}_strides, batch, head, row); }}\n\
             fn gradient_stride() -> u32 {{ return params.{name}_strides.w; }}\n\
             fn gradient_vecs() -> u32 {{ return {width}_vecs(); }}\n\
             fn gradient_dim() -> u32 {{ return {width}_dim(); }}\n\
             fn store_gradient(at: u32, dim: u32, bits: vec4<u32>) {{ store_d_{name}(at, dim, bits); }}"
        );
    }
    if let Kernel::KeyGradient(_, side) = key.kernel {
        if side == KeySide::Value {
            text.push_str("fn load_value(at: u32, dim: u32) -> vec4<f32> { return vec4<f32>(0.0); }\n");
            text.push_str("fn store_d_key(at: u32, dim: u32, bits: vec4<u32>) {}\n");
        } else if side == KeySide::Key {
            text.push_str("fn store_d_value(at: u32, dim: u32, bits: vec4<u32>) {}\n");
        }
    }
}
