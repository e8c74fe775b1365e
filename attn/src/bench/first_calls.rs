//! `attn bench --overheads`: the first call on a fresh device and the calls after it, by phase.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wgpu_attention::gpu::{CompiledKernel, Gpu, Phase, Spent};
use wgpu_attention::{Backend, Dims, Engine, Outputs, Problem, WantGradients};

use super::candidate::both;
use super::check;
use super::machine::milliseconds;
use crate::backend;
use crate::failure::Failure;

/// Largest length of the calls whose lengths grow by one.
const LENGTHS: usize = 128;

/// Passes that begin on a device of their own, and whether gradients are computed too.
const PASSES: [(&str, usize, usize, bool); 3] =
    [("forward", 64, 64, false), ("forward and backward", 64, 64, true), ("decoding step", 1, 512, false)];

/// First calls of a backend.
pub(super) struct FirstCalls {
    calls: Vec<Call>,
    /// Lengths whose call compiled kernels, each with their number.
    compiling: Vec<(usize, usize)>,
}

struct Call {
    name: String,
    ms: f64,
    spent: Spent,
    kernels: Vec<CompiledKernel>,
}

impl FirstCalls {
    /// Measures a backend; `None` without a device.
    pub(super) fn measure(backend: &Backend) -> Result<Option<Self>, Failure> {
        let mut calls = Vec::new();
        for (name, rows, keys, backward) in PASSES {
            let engine = backend::open_fused(backend, false)?;
            let Some(gpu) = engine.gpu() else { return Ok(None) };
            let longer = if rows == 1 { rows } else { rows + 1 };
            for (which, rows, keys) in [("first", rows, keys), ("again", rows, keys), ("one longer", longer, keys + 1)] {
                let name = format!("{name} {rows} x {keys}, {which}");
                calls.push(Call::measure(name, &engine, gpu, &problem(rows, keys), backward)?);
            }
        }
        let engine = backend::open_fused(backend, false)?;
        let Some(gpu) = engine.gpu() else { return Ok(None) };
        let mut compiling = Vec::new();
        for length in 1..=LENGTHS {
            let mut kernels = 0;
            for rows in [1, length] {
                kernels += Call::measure(String::new(), &engine, gpu, &problem(rows, length), false)?.kernels.len();
            }
            if kernels > 0 {
                compiling.push((length, kernels));
            }
        }
        Ok(Some(Self { calls, compiling }))
    }

    pub(super) fn as_json(&self) -> Value {
        let kernel = |kernel: &CompiledKernel| {
            let CompiledKernel { name, text, parse, pipeline, first_run, .. } = kernel;
            json!({
                "name": name, "text_ms": ms(*text), "parse_ms": ms(*parse), "pipeline_ms": ms(*pipeline), "first_run_ms": first_run.map(ms),
            })
        };
        let call = |call: &Call| {
            let phases: serde_json::Map<_, _> =
                Phase::ALL.iter().map(|&phase| (phase.name().into(), ms(call.spent[phase]).into())).collect();
            let kernels: Vec<_> = call.kernels.iter().map(kernel).collect();
            json!({ "call": call.name, "ms": call.ms, "phases_ms": phases, "kernels": kernels })
        };
        let compiling: Vec<_> = self.compiling.iter().map(|(length, kernels)| json!({ "length": length, "kernels": kernels })).collect();
        json!({ "calls": self.calls.iter().map(call).collect::<Vec<_>>(), "lengths": LENGTHS, "compiling": compiling })
    }

    /// Rows of tables: calls by phase, then the kernels that they compiled.
    pub(super) fn tables(&self) -> [Vec<String>; 2] {
        let names: Vec<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
        let mut calls = vec![format!("call, ms\ttotal\t{}\tother\tkernels", names.join("\t"))];
        let mut kernels = vec!["kernel, ms\ttext\tparse\tpipeline\tfirst run\tfor".to_string()];
        for call in &self.calls {
            let phases: String = Phase::ALL.iter().map(|&phase| format!("\t{:.2}", ms(call.spent[phase]))).collect();
            let other = (call.ms - ms(call.spent.total())).max(0.0);
            calls.push(format!("{}\t{:.2}{phases}\t{other:.2}\t{}", call.name, call.ms, call.kernels.len()));
            kernels.extend(call.kernels.iter().map(|kernel| {
                let [text, parse, pipeline, run] =
                    [kernel.text, kernel.parse, kernel.pipeline, kernel.first_run.unwrap_or_default()].map(ms);
                format!("{}\t{text:.2}\t{parse:.2}\t{pipeline:.2}\t{run:.2}\t{}", kernel.name, call.name)
            }));
        }
        [calls, kernels]
    }

    /// Says which of the calls whose lengths grow by one compiled kernels.
    pub(super) fn growing(&self) -> String {
        let kernels: usize = self.compiling.iter().map(|(_, kernels)| kernels).sum();
        let lengths: Vec<_> = self.compiling.iter().map(|(length, _)| length.to_string()).collect();
        format!("1 row, then as many rows as keys, 1 to {LENGTHS} keys: {kernels} kernels compiled, at {} keys", lengths.join(", "))
    }
}

impl Call {
    fn measure(name: String, engine: &Engine, gpu: &Gpu, problem: &Problem, backward: bool) -> Result<Self, Failure> {
        let tensors = check::tensors(problem)?;
        let (before, compiled, started) = (gpu.spent(), gpu.pipelines_compiled(), Instant::now());
        if backward {
            both(engine, problem, &WantGradients::default(), &tensors, &mut Outputs::default())?;
        } else {
            engine.attention(problem, &tensors.inputs())?;
        }
        let (ms, spent) = (milliseconds(started), gpu.spent().since(&before));
        let new = gpu.pipelines_compiled() - compiled;
        let mut kernels = gpu.compiled_kernels();
        let kernels = kernels.split_off(kernels.len().saturating_sub(new));
        Ok(Self { name, ms, spent, kernels })
    }
}

fn problem(rows: usize, keys: usize) -> Problem {
    Problem::new(Dims { seq_len_q: rows, ..Dims::self_attention(1, 2, keys, 64) })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
