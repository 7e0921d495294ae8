//! The name of a client, which becomes the name of a file.

use crate::cli::certs::directory::FIXED;

/// Longest name, in bytes: a common name has no room for more.
const BYTES_MAX: usize = 64;

/// A name that stays in its directory, overwrites nothing of it, and needs no quotes in a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientName(String);

/// Why a text is not the name of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ClientNameError {
    #[error(
        "a client's name begins with a letter or digit and has letters, digits, `.`, `_`, `-` and \
         `@` only, since its files are named after it"
    )]
    Characters,
    #[error("a client's name has at most {BYTES_MAX} bytes")]
    TooLong,
    #[error("{0:?} is not for clients: {0}.pem is a file of the CA or the server")]
    Taken(String),
    #[error("a client's name does not end with .pem: its files do")]
    Extension,
}

impl ClientName {
    pub(super) fn parse(text: &str) -> Result<Self, ClientNameError> {
        let allowed = |c: char| c.is_alphanumeric() || "._-@".contains(c);
        if !text.starts_with(char::is_alphanumeric) || !text.chars().all(allowed) {
            return Err(ClientNameError::Characters);
        }
        if text.len() > BYTES_MAX {
            return Err(ClientNameError::TooLong);
        }
        // There are file systems on which upper and lower case are the same.
        let lower = text.to_ascii_lowercase();
        if lower.ends_with(".pem") {
            return Err(ClientNameError::Extension);
        }
        if FIXED.contains(&format!("{lower}.pem").as_str()) {
            return Err(ClientNameError::Taken(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the file that has all of it.
    pub(super) fn bundle(&self) -> String {
        format!("{}.pem", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_file_name() {
        for name in ["alice", "host-7.example.com", "jane_doe@example.com", "größe", "7", "a..b"]
        {
            assert_eq!(ClientName::parse(name).unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "../alice",
            "a/b",
            "/etc/passwd",
            ".hidden",
            "-rf",
            "a b",
            "a\nb",
            "a\0b",
            "a\x1b[31m",
            "a'b",
            "$a",
            "a\u{202e}b",
        ] {
            assert_eq!(ClientName::parse(name), Err(ClientNameError::Characters), "{name:?}");
        }
        assert!(ClientName::parse(&"x".repeat(64)).is_ok());
        assert_eq!(ClientName::parse(&"x".repeat(65)), Err(ClientNameError::TooLong));
    }

    #[test]
    fn a_name_is_not_that_of_another_file() {
        for name in ["ca-cert", "ca-key", "ca-crl", "server-cert", "server-key", "srv", "SRV"] {
            assert_eq!(ClientName::parse(name), Err(ClientNameError::Taken(name.into())), "{name}");
        }
        for name in ["srv.pem", "ca-key.pem", "alice.PEM"] {
            assert_eq!(ClientName::parse(name), Err(ClientNameError::Extension), "{name}");
        }
    }
}
