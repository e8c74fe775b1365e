//! Errors, typed by what the caller can do about them.

use std::fmt;
use std::sync::Arc;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why a call was refused or failed.
///
/// `Invalid` and `Limit` are found before any work is done: nothing is computed, and nothing stored is lost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// An argument contradicts itself or another one.
    Invalid {
        /// Name of the argument in the API (`num_kv_heads`, `key`, ...).
        argument: &'static str,
        /// Description of the contradiction, with the values seen.
        why: String,
    },
    /// A valid request is not implemented by this path. It never falls through to a wrong answer.
    Unsupported {
        /// Request that is not supported.
        what: String,
        /// Alternative that is supported.
        remedy: String,
    },
    /// A valid request exceeds a limit of the device or of this machine.
    Limit {
        /// Name of the limit; wgpu's own name where it is one of wgpu's.
        limit: &'static str,
        /// Amount that the request needs.
        needed: u64,
        /// Amount that is available.
        available: u64,
        /// Suggestion that would help.
        remedy: String,
    },
    /// No adapter matches the request.
    NoAdapter {
        /// Adapter that was looked for, and those that were found.
        why: String,
    },
    /// The device refused an operation, or the operation failed.
    Device {
        /// Error of wgpu.
        why: Cause,
    },
    /// The device is lost: make a new one, and a new engine on it.
    Lost {
        /// Error of wgpu.
        why: Cause,
    },
    /// A shader did not compile. The location is given in the project's own shader files.
    Shader {
        /// Location `shaders/FILE.wgsl:LINE`, or the variant if the location is unknown.
        at: String,
        /// Message of the compiler.
        why: String,
    },
    /// A kernel computed a tiny problem wrong and was not used: its compiler, its driver, or the kernel is broken.
    Miscomputed {
        /// Plan that used the kernel.
        kernel: String,
        /// Adapter, backend and driver.
        device: String,
    },
    /// The caller's progress function asked to stop.
    Cancelled,
    /// A file could not be read or written, or its contents are invalid.
    File {
        /// Path of the file.
        path: String,
        /// Description of the error.
        why: Cause,
    },
}

/// Reason of a failure: its message, and the error that is [`std::error::Error::source`] where one is known. Causes are
/// equal if their messages are.
#[derive(Clone)]
pub struct Cause {
    message: String,
    error: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Cause {
    /// Wraps an error.
    pub fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { message: error.to_string(), error: Some(Arc::new(error)) }
    }
}

impl From<String> for Cause {
    fn from(message: String) -> Self {
        Self { message, error: None }
    }
}

impl From<&str> for Cause {
    fn from(message: &str) -> Self {
        message.to_string().into()
    }
}

impl std::ops::Deref for Cause {
    type Target = str;

    fn deref(&self) -> &str {
        &self.message
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.message, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    /// Creates an error about a file.
    pub fn file(path: impl fmt::Display, why: impl Into<Cause>) -> Self {
        Self::File { path: path.to_string(), why: why.into() }
    }

    pub(crate) fn invalid(argument: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { argument, why: why.into() }
    }

    pub(crate) fn limit(limit: &'static str, needed: usize, available: usize, remedy: impl Into<String>) -> Self {
        Self::Limit { limit, needed: needed as u64, available: available as u64, remedy: remedy.into() }
    }

    /// Refuses sizes of 0.
    pub(crate) fn check_sizes<const N: usize>(sizes: [(&'static str, usize); N]) -> Result<()> {
        match sizes.into_iter().find(|&(_, size)| size == 0) {
            Some((argument, _)) => Err(Self::invalid(argument, "is 0; it must be at least 1")),
            None => Ok(()),
        }
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Device { why } | Self::Lost { why } | Self::File { why, .. } => why.error.as_deref().map(|error| error as _),
            _ => None,
        }
    }
}
