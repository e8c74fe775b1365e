//! How a command can fail, and what the shell is told.

use std::fmt;
use std::io;

use wgpu_attention::Error;

/// Why a command did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for is wrong or cannot be done: exit code 2.
    Input(String),
    /// A check failed, or the device did: exit code 1.
    Check(String),
    /// Standard output is gone or full.
    Output(io::Error),
}

impl Failure {
    pub(crate) fn input(why: impl Into<String>) -> Self {
        Self::Input(why.into())
    }

    /// A closed pipe (`attn explain | head -3`) is the reader's choice, not a failure.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Check(_) | Self::Output(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(why) | Self::Check(why) => f.write_str(why),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Device { .. } | Error::Lost { .. } | Error::Shader { .. } | Error::Miscomputed { .. } => Self::Check(error.to_string()),
            _ => Self::Input(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
