//! What a client is told to connect to. The NBD project's `doc/uri.md`.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use crate::server::Endpoint;

/// The URI of an export on an endpoint, with TLS or without.
pub(crate) fn uri(endpoint: &Endpoint, export: &str, tls: bool) -> String {
    let export = escape(export.as_bytes());
    let scheme = if tls { "nbds" } else { "nbd" };
    match endpoint {
        Endpoint::Tcp(address) => format!("{scheme}://{address}/{export}"),
        Endpoint::Unix(path) => {
            format!("{scheme}+unix:///{export}?socket={}", escape(path.as_os_str().as_bytes()))
        }
    }
}

/// Escapes a name or path so that it can stand in a URI.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            escaped.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_escaped() {
        let tcp = Endpoint::Tcp("[::1]:10809".parse().unwrap());
        assert_eq!(uri(&tcp, "my disk/ü", false), "nbd://[::1]:10809/my%20disk/%C3%BC");
        let unix = Endpoint::Unix("/run/a b&c".into());
        assert_eq!(uri(&unix, "", true), "nbds+unix:///?socket=/run/a%20b%26c");
    }
}
