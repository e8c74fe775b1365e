//! The generated suite, on plans that the package's JavaScript runs.

use js_sys::{Array, Function, Object, Promise, Uint8Array};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
#[cfg(feature = "cpu")]
use wgpu_attention::cpu;
use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan, PlanExport, TensorBytes, gradients_of, outputs_of};
use wgpu_attention::verify::{Awaited, Row, Subject, Verdict, count, run_generated_async};
use wgpu_attention::{
    Algorithm, BackwardInputs, Error, Gradients, Inputs, Outputs, Problem, Progress, Result as Checked, Returns, WantGradients, oracle,
};

use crate::device::{caps, is_empty};
use crate::errors::{Thrown, to_js};
use crate::object::{member, number, set, text};
use crate::progress::progress;

/// Runs the suite on a device that is described and runs plans by `run(json, { name: bytes })`, a promise of the written
/// bytes; without a description, on the CPU path. Returns `{ passed, failed, skipped, rows }`.
#[wasm_bindgen]
pub async fn verify(options: JsValue, described: JsValue, run: Function, watch: Option<Function>) -> Result<Object, Thrown> {
    let seed = number(&options, "seed")?.unwrap_or(1.0) as u64;
    let random = number(&options, "random")?.unwrap_or(20.0) as u64;
    let filter = text(&options, "filter")?.unwrap_or_default();
    let subject: &dyn Subject = match described.is_undefined() {
        #[cfg(feature = "cpu")]
        true => &CpuPath,
        _ => &Host { caps: caps(&described)?, run },
    };
    let mut watch = progress(watch);
    let rows = run_generated_async(&[subject], seed, random, &filter, &mut Progress::new(&mut watch)).await.map_err(to_js)?;
    let report = Object::new();
    for (name, count) in ["passed", "failed", "skipped"].into_iter().zip(count(&rows)) {
        set(&report, name, &(count as f64).into());
    }
    set(&report, "rows", &rows.iter().map(row).collect::<Array>());
    Ok(report)
}

fn row(row: &Row) -> Object {
    let (verdict, detail) = match &row.verdict {
        Verdict::Passed => ("passed", &row.note),
        Verdict::Failed(why) => ("failed", why),
        Verdict::Skipped(why) => ("skipped", why),
    };
    let object = Object::new();
    for (name, text) in [("suite", &row.suite[..]), ("case", &row.case), ("verdict", verdict), ("detail", detail)] {
        set(&object, name, &text.into());
    }
    object
}

/// Device that JavaScript has.
struct Host {
    caps: DeviceCaps,
    run: Function,
}

impl Host {
    /// Runs a plan.
    async fn run(&self, plan: &PlanExport, contents: TensorBytes) -> Checked<TensorBytes> {
        let device = |error: JsValue| {
            let message = member(&error, "message").and_then(|message| message.as_string());
            Error::Device { why: message.unwrap_or_else(|| "the plan did not run".into()).into() }
        };
        let given = Object::new();
        contents.iter().for_each(|(name, bytes)| set(&given, name, &Uint8Array::from(&bytes[..])));
        let promise = self.run.call2(&JsValue::UNDEFINED, &plan.to_json().into(), &given).map_err(device)?;
        let results = JsFuture::from(promise.unchecked_into::<Promise>()).await.map_err(device)?;
        let bytes = |name: &str| member(&results, name).map(|bytes| Uint8Array::new(&bytes).to_vec());
        Ok(plan.tensors.iter().filter(|tensor| tensor.written).filter_map(|tensor| Some((tensor.name, bytes(tensor.name)?))).collect())
    }

    async fn attend(&self, problem: &Problem, inputs: &Inputs<'_>) -> Checked<Outputs> {
        if is_empty(problem) {
            return Ok(oracle::attention(problem, inputs)?.into_outputs(problem, inputs));
        }
        let plan = Plan::new(problem, &self.caps, Algorithm::Auto)?.export()?;
        inputs.check(problem)?;
        Ok(outputs_of(problem, &self.run(&plan, plan.contents(problem, inputs, None)).await?))
    }
}

impl Subject for Host {
    fn name(&self) -> &str {
        "webgpu"
    }

    fn attention<'a>(&'a self, problem: &'a Problem, inputs: &'a Inputs<'a>) -> Awaited<'a, Outputs> {
        Box::pin(self.attend(problem, inputs))
    }

    fn backward<'a>(
        &'a self,
        problem: &'a Problem,
        inputs: &'a Inputs<'a>,
        backward: &'a BackwardInputs<'a>,
        want: &'a WantGradients,
    ) -> Awaited<'a, Gradients> {
        Box::pin(async move {
            if is_empty(problem) {
                return Ok(oracle::gradients(problem, inputs, backward.d_output, backward.d_lse)?.into_gradients(problem, want));
            }
            let plan = Plan::backward(problem, want, &self.caps)?.export()?;
            let forward = Problem { want: Returns { stats: true, ..Returns::default() }, dropout: None, ..problem.clone() };
            let made = if backward.stats.is_some() { None } else { self.attend(&forward, inputs).await?.stats };
            let backward = BackwardInputs { stats: backward.stats.or(made.as_deref()), ..*backward };
            let contents = plan.contents(problem, inputs, Some(&backward));
            Ok(gradients_of(problem, want, &self.run(&plan, contents).await?))
        })
    }

    fn has_gradients(&self) -> bool {
        true
    }

    fn compiles_slowly(&self) -> bool {
        self.caps.class == DeviceClass::Software
    }
}

/// The CPU path of this module.
#[cfg(feature = "cpu")]
struct CpuPath;

#[cfg(feature = "cpu")]
impl Subject for CpuPath {
    fn name(&self) -> &str {
        "cpu"
    }

    fn attention<'a>(&'a self, problem: &'a Problem, inputs: &'a Inputs<'a>) -> Awaited<'a, Outputs> {
        Box::pin(async { cpu::tiled::attention(problem, inputs, &mut Progress::default()) })
    }

    fn backward<'a>(
        &'a self,
        problem: &'a Problem,
        inputs: &'a Inputs<'a>,
        backward: &'a BackwardInputs<'a>,
        want: &'a WantGradients,
    ) -> Awaited<'a, Gradients> {
        Box::pin(async { cpu::backward::attention(problem, inputs, backward, want, &mut Progress::default()) })
    }

    fn has_gradients(&self) -> bool {
        true
    }

    fn compiles_slowly(&self) -> bool {
        false
    }
}
