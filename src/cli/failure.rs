//! How a command ends when it does not succeed: one line on standard error, one exit code.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use crate::cli::escape::Escaped;

/// Why a command failed. Exit code 1 is a failure, 2 a wrong use of the command line.
#[derive(Debug)]
pub enum Failure {
    /// Something went wrong. The error says what, its sources say why.
    Failed(Box<dyn Error + Send + Sync>),
    /// The command line asks for something that cannot be.
    Usage(String),
}

impl Failure {
    /// A failure that has no error behind it.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into().into())
    }

    /// The exit code that scripts see.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
        }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// The whole chain on one line, without control characters: names come from files and peers.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => write!(f, "{}", Escaped(message)),
            Self::Failed(error) => {
                write!(f, "{}", Escaped(&error.to_string()))?;
                let mut source = error.source();
                while let Some(cause) = source {
                    write!(f, ": {}", Escaped(&cause.to_string()))?;
                    source = cause.source();
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_with_every_cause_and_no_control_characters() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open \x1b[31mred\n")]
        struct Outer(#[source] std::io::Error);

        let failure = Failure::from(Outer(std::io::Error::other("disk on fire")));
        assert_eq!(failure.to_string(), r"cannot open \u{1b}[31mred\n: disk on fire");
    }
}
