//! Failures of a command, and their exit codes.

use std::fmt;
use std::io;

use wgpu_attention::Error;

/// Reason why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Invalid or unsupported request: exit code 2.
    Input(String),
    /// Failed check, or a failure of the device: exit code 1.
    Check(String),
    /// Standard output is closed or full: exit code 1.
    Output(io::Error),
}

impl Failure {
    pub(crate) fn input(why: impl Into<String>) -> Self {
        Self::Input(why.into())
    }

    /// Invalid request, with its place: a file or an option.
    pub(crate) fn at(place: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Input(format!("{place}: {why}"))
    }

    /// True for a closed pipe (`attn explain | head -3`): the reader's choice, not a failure.
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
