//! Virtual GPUs: their capabilities, and their drivers' names for the figures.

use std::collections::BTreeMap;

use wgpu_attention::plan::{DeviceCaps, DeviceClass};

/// GPU that the lab can stand in for.
pub(crate) struct Target {
    /// Name in the lab.
    pub(crate) name: &'static str,
    /// GPU that the lab stands in for.
    pub(crate) about: &'static str,
    class: DeviceClass,
    /// Smallest and largest subgroup size.
    subgroups: [u32; 2],
    /// Size of cooperative matrices of f16 with f32 sums; 0: none.
    matrix_size: u32,
    workgroup_bytes: u32,
    vendor: Vendor,
}

#[derive(Clone, Copy)]
enum Vendor {
    Amd,
    Nvidia,
    Apple,
    Adreno,
}

/// All targets, with what wgpu 30 reports for each.
pub(crate) const TARGETS: &[Target] = &[
    target("navi31", "AMD RDNA 3", DeviceClass::Discrete, [32, 64], 16, 65536, Vendor::Amd),
    target("gfx1201", "AMD RDNA 4", DeviceClass::Discrete, [32, 64], 16, 65536, Vendor::Amd),
    target("nv172", "NVIDIA Ampere", DeviceClass::Discrete, [32, 32], 16, 49152, Vendor::Nvidia),
    target("nv192", "NVIDIA Ada", DeviceClass::Discrete, [32, 32], 16, 49152, Vendor::Nvidia),
    target("m1", "Apple M1", DeviceClass::Integrated, [32, 32], 0, 32768, Vendor::Apple),
    target("adreno740", "Qualcomm Adreno 740", DeviceClass::Integrated, [64, 64], 0, 32768, Vendor::Adreno),
];

const fn target(
    name: &'static str,
    about: &'static str,
    class: DeviceClass,
    subgroups: [u32; 2],
    matrix_size: u32,
    workgroup_bytes: u32,
    vendor: Vendor,
) -> Target {
    Target { name, about, class, subgroups, matrix_size, workgroup_bytes, vendor }
}

/// Figures that are common to all vendors. Not every driver reports all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    /// Vector registers per thread.
    pub(crate) registers: Option<f64>,
    /// AMD: spilled registers; others: instructions that spill registers (Adreno: or reload them).
    pub(crate) spills: Option<f64>,
    /// Bytes of memory per thread for spills and for arrays with run-time indices.
    pub(crate) scratch: Option<f64>,
    /// AMD: waves per SIMD; NVIDIA: warps per multiprocessor; Apple: threads per core; Adreno: waves per core.
    pub(crate) occupancy: Option<f64>,
    /// Instructions of the whole shader, each counted once.
    pub(crate) instructions: Option<f64>,
    /// AMD: latency; NVIDIA: static cycles, loops counted once.
    pub(crate) cycles: Option<f64>,
}

impl Target {
    /// Finds a target by its name.
    pub(crate) fn find(name: &str) -> Result<&'static Self, String> {
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ");
        TARGETS.iter().find(|target| target.name == name).ok_or_else(|| format!("no target `{name}`; there are {}", names()))
    }

    /// Returns the capabilities that the planner sees.
    pub(crate) fn caps(&self) -> DeviceCaps {
        DeviceCaps {
            class: self.class,
            subgroup_size: self.subgroups[0],
            subgroup_max: self.subgroups[1],
            matrix_size: self.matrix_size,
            workgroup_bytes: self.workgroup_bytes,
            workgroup_threads: 1024,
            binding_bytes: (2 << 30) - 4,
            buffer_bytes: (2 << 30) - 1,
            storage_buffers: 64,
            ..DeviceCaps::webgpu_defaults()
        }
    }

    /// True if the driver returns AMD machine code.
    pub(crate) const fn is_amd(&self) -> bool {
        matches!(self.vendor, Vendor::Amd)
    }

    /// Reads the figures from the driver's statistics.
    pub(crate) fn figures(&self, statistics: &BTreeMap<String, f64>) -> Figures {
        let sum = |names: &[&str]| names.iter().filter_map(|&name| statistics.get(name).copied()).reduce(|a, b| a + b);
        let [registers, spills, scratch, occupancy, instructions, cycles]: [&[&str]; 6] = match self.vendor {
            Vendor::Amd => [&["VGPRs"], &["Spilled VGPRs"], &["Scratch size"], &["Subgroups per SIMD"], &["Instructions"], &["Latency"]],
            Vendor::Nvidia => [
                &["Number of GPRs"],
                &["Spills to memory"],
                &["SLM size"],
                &["Max warps/SM"],
                &["Instruction count"],
                &["Static cycle count"],
            ],
            Vendor::Apple => [&["GPRs"], &["Spills"], &["Scratch"], &["Threads"], &["Instructions"], &[]],
            Vendor::Adreno => [&["Registers used"], &["STP Count", "LDP Count"], &[], &["Max Waves Per Core"], &["Instruction Count"], &[]],
        };
        Figures {
            registers: sum(registers),
            spills: sum(spills),
            scratch: sum(scratch),
            occupancy: sum(occupancy),
            instructions: sum(instructions),
            cycles: sum(cycles),
        }
    }
}
