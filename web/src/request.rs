//! Requests: the objects of `attention` and the like, as problems of the library.

use js_sys::{Float32Array, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wgpu_attention::{
    Alibi, Alignment, BackwardInputs, BroadcastShape, DType, Dims, HostVec, Inputs, Layout, Problem, SummedRows, TensorSpec, WantGradients,
};

use crate::errors::{Answer, invalid, to_js};
use crate::object::{check_names, count, counts, elements, f32s, flag, member, number, u8s, u32s, word};
use crate::terms::user_term;

/// Members of a request, of all functions.
const NAMES: &[&str] = &[
    "shape",
    "dtype",
    "outputDtype",
    "layout",
    "scale",
    "causal",
    "alignment",
    "window",
    "softcap",
    "mask",
    "bias",
    "alibiSlopes",
    "sinks",
    "kvLengths",
    "score",
    "visible",
    "tables",
    "lse",
    "weights",
    "keySums",
    "query",
    "key",
    "value",
    "dOutput",
    "dLse",
    "want",
    "seconds",
    "item",
    "head",
    "signal",
];

/// Storage types of tensors.
const DTYPES: &[(&str, DType)] = &[("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];

/// Problem of a request with the small vectors of its options.
pub(crate) struct Request {
    pub(crate) problem: Problem,
    alibi_slopes: Vec<f32>,
    sinks: Vec<f32>,
    kv_lengths: Vec<u32>,
    term_tables: Vec<u32>,
}

impl Request {
    /// Reads everything but tensors, mask and bias.
    pub(crate) fn read(request: &JsValue) -> Answer<Self> {
        check_names(request, "request", NAMES)?;
        let mut problem = Problem::new(dims(request)?);
        let stored = word(request, "dtype", DTYPES)?.unwrap_or(DType::F32);
        let layout = word(request, "layout", &[("bhsd", Layout::Bhsd), ("bshd", Layout::Bshd)])?.unwrap_or(Layout::Bhsd);
        problem = problem.stored(stored, layout);
        problem.output = TensorSpec::new(word(request, "outputDtype", DTYPES)?.unwrap_or(DType::F32), layout);
        (problem.scale, problem.softcap) = (number(request, "scale")?, number(request, "softcap")?);
        (problem.want.lse, problem.want.weights) = (flag(request, "lse")?, flag(request, "weights")?);
        problem.want.key_sums = summed_rows(request)?;
        place(request, &mut problem)?;
        if let Some(window) = member(request, "window") {
            check_names(&window, "window", &["left", "right"])?;
            let distance = |name| Ok::<_, JsValue>(count(&window, name)?.map(|distance| distance as u32));
            (problem.visibility.window_left, problem.visibility.window_right) = (distance("left")?, distance("right")?);
        }
        problem.visibility.mask = broadcast::<Uint8Array>(request, "mask")?;
        problem.bias = broadcast::<Float32Array>(request, "bias")?;
        let (slopes, sinks, lengths) = (f32s(request, "alibiSlopes")?, f32s(request, "sinks")?, u32s(request, "kvLengths")?);
        problem.alibi = slopes.is_some().then_some(Alibi::Signed);
        (problem.sinks, problem.visibility.kv_lengths) = (sinks.is_some(), lengths.is_some());
        let term_tables = user_term(request, &mut problem)?;
        problem.check().map_err(|error| explained(error, request))?;
        let (alibi_slopes, sinks, kv_lengths) = (slopes.unwrap_or_default(), sinks.unwrap_or_default(), lengths.unwrap_or_default());
        Ok(Self { problem, alibi_slopes, sinks, kv_lengths, term_tables })
    }

    /// Inputs with the small vectors only.
    pub(crate) fn vectors(&self) -> Inputs<'_> {
        let none: &[f32] = &[];
        Inputs {
            alibi_slopes: &self.alibi_slopes,
            sinks: &self.sinks,
            kv_lengths: &self.kv_lengths,
            term_tables: &self.term_tables,
            ..Inputs::new(none, none, none)
        }
    }
}

/// Tensors, mask and bias of a request.
pub(crate) struct Tensors {
    operands: [HostVec; 3],
    mask: Vec<bool>,
    bias: Vec<f32>,
}

impl Tensors {
    pub(crate) fn read(request: &JsValue, problem: &Problem) -> Answer<Self> {
        let operand = |name, spec: TensorSpec| elements(request, name, spec.dtype);
        let operands = [operand("query", problem.query)?, operand("key", problem.key)?, operand("value", problem.value)?];
        Ok(Self { operands, ..Self::options(request)? })
    }

    /// Mask and bias only.
    pub(crate) fn options(request: &JsValue) -> Answer<Self> {
        let data = |name| member(request, name).unwrap_or(JsValue::UNDEFINED);
        let mask = u8s(&data("mask"), "data")?.unwrap_or_default().into_iter().map(|byte| byte != 0).collect();
        let bias = f32s(&data("bias"), "data")?.unwrap_or_default();
        Ok(Self { operands: [(); 3].map(|()| HostVec::F32(Vec::new())), mask, bias })
    }

    pub(crate) fn inputs<'a>(&'a self, request: &'a Request) -> Inputs<'a> {
        let [query, key, value] = self.operands.each_ref().map(HostVec::as_slice);
        Inputs { query, key, value, mask: &self.mask, bias: &self.bias, ..request.vectors() }
    }
}

/// Gradients that are asked for.
pub(crate) fn wanted(request: &JsValue) -> Answer<WantGradients> {
    let mut want = WantGradients { through_lse: member(request, "dLse").is_some(), ..WantGradients::default() };
    let Some(names) = member(request, "want") else { return Ok(want) };
    (want.query, want.key, want.value) = (false, false, false);
    const REMEDY: &str = "some of ['query', 'key', 'value', 'bias', 'sinks']";
    if !js_sys::Array::is_array(&names) {
        return Err(invalid("want", "is no array", REMEDY));
    }
    for name in js_sys::Array::from(&names).iter() {
        match name.as_string().as_deref() {
            Some("query") => want.query = true,
            Some("key") => want.key = true,
            Some("value") => want.value = true,
            Some("bias") => want.bias = true,
            Some("sinks") => want.sinks = true,
            _ => return Err(invalid("want", "has a name that is no gradient", REMEDY)),
        }
    }
    Ok(want)
}

/// Gradients of output and lse in a request.
pub(crate) struct OutputGradients {
    output: HostVec,
    lse: Option<Vec<f32>>,
}

impl OutputGradients {
    pub(crate) fn read(request: &JsValue, problem: &Problem) -> Answer<Self> {
        Ok(Self { output: elements(request, "dOutput", problem.output.dtype)?, lse: f32s(request, "dLse")? })
    }

    pub(crate) fn inputs<'a>(&'a self, output: &'a HostVec, stats: &'a [[f32; 2]]) -> BackwardInputs<'a> {
        BackwardInputs { stats: Some(stats), d_lse: self.lse.as_deref(), ..BackwardInputs::new(output, &self.output) }
    }
}

fn dims(request: &JsValue) -> Answer<Dims> {
    const REMEDY: &str = "give { numHeads, seqLenQ, headDim }, and what differs from them";
    let shape = member(request, "shape").ok_or_else(|| invalid("shape", "is missing", REMEDY))?;
    check_names(&shape, "shape", &["batch", "numHeads", "numKvHeads", "seqLenQ", "seqLenKv", "headDim", "headDimV"])?;
    let required = |name| count(&shape, name)?.ok_or_else(|| invalid(name, "is missing", REMEDY));
    let (num_heads, seq_len_q, head_dim) = (required("numHeads")?, required("seqLenQ")?, required("headDim")?);
    Ok(Dims {
        batch: count(&shape, "batch")?.unwrap_or(1),
        num_heads,
        num_kv_heads: count(&shape, "numKvHeads")?.unwrap_or(num_heads),
        seq_len_q,
        seq_len_kv: count(&shape, "seqLenKv")?.unwrap_or(seq_len_q),
        head_dim,
        head_dim_v: count(&shape, "headDimV")?.unwrap_or(head_dim),
    })
}

/// Rows of `keySums`: all, or a number of last ones.
fn summed_rows(request: &JsValue) -> Answer<Option<SummedRows>> {
    let Some(rows) = member(request, "keySums") else { return Ok(None) };
    match (rows.as_string().as_deref(), rows.as_f64().filter(|rows| rows.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(rows))) {
        (Some("all"), _) => Ok(Some(SummedRows::All)),
        (_, Some(rows)) => Ok(Some(SummedRows::Last(rows as usize))),
        _ => Err(invalid("keySums", "names no rows", "'all', or the number of the last rows to sum")),
    }
}

/// Reads causality and alignment.
fn place(request: &JsValue, problem: &mut Problem) -> Answer<()> {
    const WORDS: &[(&str, Alignment)] = &[("top-left", Alignment::TopLeft), ("bottom-right", Alignment::BottomRight)];
    let causal = match member(request, "causal") {
        Some(value) if value.as_bool() == Some(false) => None,
        Some(value) if value.as_bool() == Some(true) => {
            let remedy =
                "'top-left' (PyTorch's is_causal) or 'bottom-right' (FlashAttention, decoding), which are the same for square problems";
            return Err(invalid("causal", "does not say where the rows are", remedy));
        }
        _ => word(request, "causal", WORDS)?,
    };
    let alignment = match member(request, "alignment").filter(JsValue::is_object) {
        Some(object) => {
            check_names(&object, "alignment", &["offset"])?;
            let offset = number(&object, "offset")?.ok_or_else(|| invalid("alignment", "has no offset", "give { offset: 0 }"))?;
            Some(Alignment::Offset(offset as i32))
        }
        None => word(request, "alignment", WORDS)?,
    };
    if causal.is_some() && alignment.is_some() && causal != alignment {
        return Err(invalid("alignment", "contradicts `causal`", "leave one of them out"));
    }
    problem.visibility.causal = causal.is_some();
    problem.visibility.alignment = causal.or(alignment);
    Ok(())
}

/// Shape of a mask or bias, padded on the left to four axes, whose data must have its size.
fn broadcast<T: JsCast>(request: &JsValue, name: &str) -> Answer<Option<BroadcastShape>> {
    let Some(value) = member(request, name) else { return Ok(None) };
    check_names(&value, name, &["data", "shape"])?;
    let shape = counts(&value, "shape")?;
    if shape.len() > 4 {
        return Err(invalid(
            name,
            "has a shape of more than four axes",
            "give one that broadcasts to [batch, numHeads, seqLenQ, seqLenKv]",
        ));
    }
    let mut axes = [1; 4];
    axes[4 - shape.len()..].copy_from_slice(&shape);
    let data = member(&value, "data").filter(JsCast::is_instance_of::<T>);
    let data = data.ok_or_else(|| {
        invalid(name, "has no typed array", "give { data, shape }: a mask's data is a Uint8Array, a bias's a Float32Array")
    })?;
    let len = member(&data, "length").and_then(|len| len.as_f64());
    let needed = axes.iter().map(|&extent| extent as f64).product::<f64>();
    if len != Some(needed) {
        let why = format!("has {} elements, its shape {shape:?} needs {needed}", len.unwrap_or(0.0));
        return Err(invalid(name, &why, "give data of its shape"));
    }
    Ok(Some(BroadcastShape(axes)))
}

/// Error of a check, with what the package calls it.
fn explained(error: wgpu_attention::Error, request: &JsValue) -> JsValue {
    let argument = match &error {
        wgpu_attention::Error::Invalid { argument, .. } => *argument,
        _ => "",
    };
    if argument == "alignment" && member(request, "causal").is_none() {
        return invalid("alignment", "is missing: positions are counted from it", "'top-left', 'bottom-right' or { offset }");
    }
    to_js(error)
}
