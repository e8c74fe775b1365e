//! Choices of the caller: backend and algorithm.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Backend on which an engine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A real GPU if there is one, else the CPU path. wgpu's variables (`WGPU_BACKEND`, `WGPU_ADAPTER_NAME`,
    /// `WGPU_POWER_PREF`) are obeyed; a software adapter is used only if one of the first two asks for it.
    #[default]
    Auto,
    /// CPU path.
    Cpu,
    /// Naive f64 oracle, for verification; slow.
    Oracle,
    /// First adapter, software or not, for which each word of this text is its wgpu backend or part of its name:
    /// `vulkan`, `gl`, `metal`, `dx12`, `rtx 4090`, `llvmpipe gl`; in browsers, which show one adapter, `webgpu`.
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

/// Algorithm of an attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Fused; staged if scores or weights are wanted, or if the head is too wide for workgroup memory. The default.
    #[default]
    Auto,
    /// One pass over the keys with a running max and a running sum; memory grows with seq_len.
    Fused,
    /// QKᵀ, softmax and weighted V one after the other; memory grows with seq_len_q x seq_len_kv.
    Staged,
}
