//! The virtual GPUs, what they can do, and what their drivers call what we count.

use std::collections::BTreeMap;

use wgpu_attention::plan::{DeviceCaps, DeviceClass};

/// A GPU that the lab can stand in for.
pub(crate) struct Target {
    /// The lab's name for it.
    pub(crate) name: &'static str,
    /// What it stands for.
    pub(crate) about: &'static str,
    class: DeviceClass,
    /// Smallest and largest.
    subgroups: [u32; 2],
    /// Of cooperative matrices of f16 with f32 sums.
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

/// All of them, with what wgpu 30 reports of each.
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

/// What we count, whoever the driver is of. Not every driver counts everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    /// Vector registers of a thread.
    pub(crate) registers: Option<f64>,
    /// AMD: registers put into memory; others: instructions that put them there (Adreno: or fetch them).
    pub(crate) spills: Option<f64>,
    /// Bytes of memory a thread for those and for arrays with run-time indices.
    pub(crate) scratch: Option<f64>,
    /// AMD: waves a SIMD; NVIDIA: warps a multiprocessor; Apple: threads a core; Adreno: waves a core.
    pub(crate) occupancy: Option<f64>,
    /// In the whole shader, each once.
    pub(crate) instructions: Option<f64>,
    /// AMD: latency; NVIDIA: static cycles, loops counted once.
    pub(crate) cycles: Option<f64>,
}

impl Target {
    /// The one of that name.
    pub(crate) fn find(name: &str) -> Result<&'static Self, String> {
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ");
        TARGETS.iter().find(|target| target.name == name).ok_or_else(|| format!("no target `{name}`; there are {}", names()))
    }

    /// What the planner gets to know.
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

    /// Whether the driver hands out AMD machine code.
    pub(crate) const fn is_amd(&self) -> bool {
        matches!(self.vendor, Vendor::Amd)
    }

    /// Reads them from the driver's statistics.
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
