//! Arguments of a plan for a device that need not be here, shared by `attn shader` and `attn export`.

use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan, PlanExport};
use wgpu_attention::{Algorithm, Alignment, SummedRows, WantGradients};

use crate::backend::one_of;
use crate::bench::ShapeArgs;
use crate::failure::Failure;
use crate::terminal::note;
use crate::user_terms::TermArgs;

/// Problem, and the device that it is planned for.
#[derive(clap::Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    terms: TermArgs,
    /// Positions of the rows, if something counts from them [default: that of --causal or --term, else bottom-right]
    #[arg(long, value_name = "top-left|bottom-right|OFFSET", value_parser = str::parse::<Alignment>, allow_negative_numbers = true)]
    align: Option<Alignment>,
    /// Also write the lse of each row
    #[arg(long, conflicts_with = "backward")]
    lse: bool,
    /// Also write (m, l) of each row, which --backward reads
    #[arg(long, conflicts_with = "backward")]
    stats: bool,
    /// Also write the sums of each key's weights over these rows: all, or the last N of each item
    #[arg(long, value_name = "all|N", value_parser = summed_rows, conflicts_with = "backward")]
    key_sums: Option<SummedRows>,
    /// Plan the gradients of query, key and value instead of the forward pass
    #[arg(long, conflicts_with = "algorithm")]
    backward: bool,
    /// Kernels: auto (fused, but staged where heads are too wide), fused or staged
    #[arg(long, value_name = "KERNELS", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// Kind of device: discrete, integrated or software
    #[arg(long, value_name = "CLASS", default_value = "discrete", value_parser = class)]
    class: DeviceClass,
    /// Size of the device's subgroups, a power of two; 0 where it has none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = subgroups)]
    subgroups: u32,
    /// Limit of the device, such as maxStorageBufferBindingSize=1073741824; may be repeated [default: WebGPU's own]
    #[arg(long, value_name = "NAME=NUMBER")]
    limit: Vec<String>,
}

/// Reads the rows of key sums.
pub(crate) fn summed_rows(text: &str) -> Result<SummedRows, String> {
    match text {
        "all" => Ok(SummedRows::All),
        _ => text.parse().map(SummedRows::Last).map_err(|_| format!("`{text}` is neither `all` nor a number of rows")),
    }
}

fn class(text: &str) -> Result<DeviceClass, String> {
    let classes = [("discrete", DeviceClass::Discrete), ("integrated", DeviceClass::Integrated), ("software", DeviceClass::Software)];
    one_of(text, &classes)
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    one_of(text, &[("auto", Algorithm::Auto), ("fused", Algorithm::Fused), ("staged", Algorithm::Staged)])
}

fn subgroups(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|&size: &u32| size == 0 || (4..=128).contains(&size) && size.is_power_of_two());
    size.ok_or("say 0, 4, 8, 16, 32, 64 or 128".into())
}

impl PlanArgs {
    /// Plans the problem. Notes the plan's summary on standard error.
    pub(crate) fn export(&self) -> Result<PlanExport, Failure> {
        let mut tasks = self.shapes.tasks(&["1,8,8,512,512,64"])?;
        let [task] = &mut tasks[..] else { return Err(Failure::at("--shape", "is given twice; a plan is of one shape")) };
        if let Some(align) = self.align
            && let Some(said) = task.problem.visibility.alignment.replace(align)
        {
            return Err(Failure::at("--align", format!("--causal or --term says where the rows stand: {said:?}")));
        }
        let terms = self.terms.read()?;
        task.add(&terms)?;
        let want = &mut task.problem.want;
        (want.lse, want.stats, want.key_sums) = (self.lse, self.stats, self.key_sums);
        let (problem, caps) = (&task.problem, self.caps()?);
        let plan = match self.backward {
            true => Plan::backward(problem, &WantGradients::default(), &caps),
            false => Plan::new(problem, &caps, self.algorithm.unwrap_or(Algorithm::Auto)),
        };
        let plan = plan.map_err(|error| terms.explain(error))?;
        note(format_args!("{task}: {}", plan.summary()));
        Ok(plan.export()?)
    }

    fn caps(&self) -> Result<DeviceCaps, Failure> {
        let defaults = DeviceCaps::webgpu_defaults();
        let mut caps = DeviceCaps { class: self.class, subgroup_size: self.subgroups, subgroup_max: self.subgroups, ..defaults };
        for limit in &self.limit {
            set_limit(&mut caps, limit).map_err(|why| Failure::at(format!("--limit {limit}"), why))?;
        }
        Ok(caps)
    }
}

/// Sets one limit, given as `NAME=NUMBER` with WebGPU's name.
fn set_limit(caps: &mut DeviceCaps, text: &str) -> Result<(), String> {
    let (name, number) = text.split_once('=').ok_or("write NAME=NUMBER")?;
    let number: u64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    let small = u32::try_from(number).map_err(|_| "is too large");
    match name {
        "maxBufferSize" => caps.buffer_bytes = number,
        "maxStorageBufferBindingSize" => caps.binding_bytes = number,
        "maxStorageBuffersPerShaderStage" => caps.storage_buffers = small?,
        "maxComputeWorkgroupStorageSize" => caps.workgroup_bytes = small?,
        "maxComputeInvocationsPerWorkgroup" => caps.workgroup_threads = small?,
        "maxComputeWorkgroupsPerDimension" => caps.workgroups_per_dimension = small?,
        _ => {
            return Err("say maxBufferSize, maxStorageBufferBindingSize, maxStorageBuffersPerShaderStage, \
                maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup or maxComputeWorkgroupsPerDimension"
                .into());
        }
    }
    Ok(())
}
