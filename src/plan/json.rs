//! JSON of an exported plan, as docs/export.md describes it.

use std::fmt::Display;

use super::export::{BindingExport, BufferExport, DispatchExport, KernelExport, PlanExport};
use super::tensor::{TensorExport, VectorExport};

impl PlanExport {
    /// Returns the plan as JSON: docs/export.md. A dispatch is one line.
    pub fn to_json(&self) -> String {
        let requires = object([
            ("features", array(self.requires.features.iter().map(|feature| string(feature)))),
            ("limits", object(self.requires.limits.iter().map(|&(name, least)| (name, least.to_string())))),
            ("subgroupSize", or_null(self.requires.subgroup_size)),
        ]);
        let lines = |items: Vec<String>| format!("[\n{}\n]", items.join(",\n"));
        let members = [
            ("version", self.version.to_string()),
            ("summary", string(&self.summary)),
            ("options", array(self.options.iter().map(|option| string(option)))),
            ("requires", requires),
            ("tensors", lines(self.tensors.iter().map(tensor).collect())),
            ("scratch", array(&self.scratch)),
            ("kernels", lines(self.kernels.iter().map(kernel).collect())),
            ("dispatches", lines(self.dispatches.iter().map(dispatch).collect())),
        ];
        let members: Vec<String> = members.iter().map(|(name, value)| format!("{}: {value}", string(name))).collect();
        format!("{{\n{}\n}}\n", members.join(",\n"))
    }
}

fn tensor(tensor: &TensorExport) -> String {
    let vector = |vector: &VectorExport| {
        object([
            ("name", string(vector.name)),
            ("dtype", string(vector.dtype)),
            ("offset", vector.offset.to_string()),
            ("length", vector.len.to_string()),
        ])
    };
    object([
        ("name", string(tensor.name)),
        ("access", string(if tensor.written { "write" } else { "read" })),
        ("dtype", string(tensor.dtype)),
        ("shape", array(&tensor.shape)),
        ("strides", array(&tensor.strides)),
        ("offset", tensor.offset.to_string()),
        ("bytes", tensor.bytes.next_multiple_of(4).to_string()),
        ("vectors", array(tensor.vectors.iter().map(vector))),
    ])
}

fn kernel(kernel: &KernelExport) -> String {
    let file = |(line, name): &(u32, String)| object([("line", line.to_string()), ("name", string(name))]);
    object([
        ("name", string(&kernel.name)),
        ("entryPoint", string("main")),
        ("workgroupSize", array([kernel.threads, 1, 1])),
        ("directives", string(&kernel.directives)),
        ("wgsl", string(&kernel.text)),
        ("files", array(kernel.files.iter().map(file))),
    ])
}

fn dispatch(dispatch: &DispatchExport) -> String {
    object([
        ("kernel", dispatch.kernel.to_string()),
        ("grid", array(dispatch.grid)),
        ("bindings", array(dispatch.bindings.iter().map(binding))),
        ("params", array(&dispatch.params)),
        ("flops", dispatch.flops.to_string()),
    ])
}

fn binding(binding: &BindingExport) -> String {
    let buffer = match binding.buffer {
        BufferExport::Params => string("params"),
        BufferExport::Tensor(name) => string(name),
        BufferExport::Scratch(index) => index.to_string(),
    };
    object([
        ("binding", binding.binding.to_string()),
        ("type", string(binding.kind)),
        ("buffer", buffer),
        ("offset", binding.offset.to_string()),
        ("size", or_null(binding.size)),
    ])
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let members: Vec<String> = members.into_iter().map(|(name, value)| format!("{}: {value}", string(name))).collect();
    format!("{{{}}}", members.join(", "))
}

fn array(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("[{}]", items.join(", "))
}

fn or_null(number: Option<impl Display>) -> String {
    number.map_or("null".into(), |number| number.to_string())
}

/// Returns text in quotes. Only quotes, backslashes and control characters are escaped.
fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            control if control < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}
