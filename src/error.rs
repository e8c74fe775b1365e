//! What can go wrong, typed by what the caller can do about it.

use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call was refused or could not be carried out.
///
/// `Invalid` and `Limit` are found before any work is done; nothing is computed, and nothing already stored is lost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// An argument contradicts itself or another one.
    Invalid {
        /// The argument, by its name in the API (`num_kv_heads`, `key`, ...).
        argument: &'static str,
        /// What is wrong with it, with the values seen.
        why: String,
    },
    /// A valid request that this path does not implement. It never falls through to a wrong answer.
    Unsupported {
        /// What was asked for.
        what: String,
        /// What would work instead.
        remedy: String,
    },
    /// A valid request that is over a limit of the device, or of this machine.
    Limit {
        /// The limit, by its name in wgpu where it is one of wgpu's.
        limit: &'static str,
        /// What the request needs.
        needed: u64,
        /// What there is.
        available: u64,
        /// What would help.
        remedy: String,
    },
    /// No adapter fits what was asked for.
    NoAdapter {
        /// What was looked for, and what was found instead.
        why: String,
    },
    /// The device refused or failed an operation.
    Device {
        /// wgpu's own message.
        why: String,
    },
    /// The device is gone: make a new one, and a new engine on it.
    Lost {
        /// wgpu's own message.
        why: String,
    },
    /// A shader did not compile. The place is given in the project's own shader files.
    Shader {
        /// `shaders/FILE.wgsl:LINE`, or the variant where the place is not known.
        at: String,
        /// The compiler's message.
        why: String,
    },
    /// A kernel gave a wrong answer to a tiny problem, so it was not used: its compiler or driver is broken, or our kernel is.
    Miscomputed {
        /// What was planned.
        kernel: String,
        /// Adapter, backend and driver.
        device: String,
    },
    /// The caller's progress function asked to stop.
    Cancelled,
    /// A file could not be read or written, or does not hold what it should.
    File {
        /// Its path.
        path: String,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    pub(crate) fn invalid(argument: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { argument, why: why.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { argument, why } => write!(f, "invalid `{argument}`: {why}"),
            Self::Unsupported { what, remedy } => write!(f, "not supported: {what}; {remedy}"),
            Self::Limit { limit, needed, available, remedy } => {
                write!(f, "over the limit `{limit}`: needs {needed}, has {available}; {remedy}")
            }
            Self::NoAdapter { why } => write!(f, "no adapter: {why}"),
            Self::Device { why } => write!(f, "the device reported: {why}"),
            Self::Lost { why } => write!(f, "the device is lost: {why}; make a new device and a new engine"),
            Self::Shader { at, why } => write!(f, "shader error at {at}: {why}"),
            Self::Miscomputed { kernel, device } => write!(
                f,
                "{device} computes a tiny problem wrong by `{kernel}`, which was not used; another driver or Backend::Cpu will do, and \
                 please report it (WGPU_ATTENTION_CANARY=off computes regardless)"
            ),
            Self::Cancelled => write!(f, "cancelled"),
            Self::File { path, why } => write!(f, "{path}: {why}"),
        }
    }
}

impl std::error::Error for Error {}
