//! What a caller can choose: where to run, and which way to compute.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Where to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A real GPU if there is one, else the CPU path. wgpu's variables (`WGPU_BACKEND`, `WGPU_ADAPTER_NAME`, `WGPU_POWER_PREF`)
    /// are obeyed; a software adapter is taken only if one of the first two asks for it.
    #[default]
    Auto,
    /// The CPU path.
    Cpu,
    /// The f64 oracle: slow, right.
    Oracle,
    /// The first adapter whose wgpu backend or name has every word of this text, software or not: `vulkan`, `gl`, `metal`, `dx12`, `rtx 4090`,
    /// `llvmpipe gl`.
    Adapter(String),
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.trim() {
            "" => {
                return Err(Error::invalid(
                    "backend",
                    "is empty: say auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name",
                ));
            }
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "oracle" => Self::Oracle,
            name => Self::Adapter(name.to_string()),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Oracle => f.pad("oracle"),
            Self::Adapter(name) => f.pad(name),
        }
    }
}

/// Which of the two ways to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Fused, unless scores or weights are asked for.
    #[default]
    Auto,
    /// One pass over the keys with a running maximum and sum; memory grows with seq_len.
    Fused,
    /// QKᵀ, softmax, weighted V, one after the other; memory grows with seq_len_q x seq_len_kv.
    Staged,
}
