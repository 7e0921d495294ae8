//! Names that stand in certificates.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::SanType;
use rustls::pki_types::DnsName;

/// Longest common name and organizational unit, in characters. X.520 has this bound, and what is
/// longer is refused by some of those who read it.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// Why a name cannot stand in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Neither a host name nor an address.
    #[error("{0:?} is neither a DNS name nor an IP address (without port and brackets)")]
    Host(String),
    /// Not a host name.
    #[error("{0:?} is not a DNS name")]
    Dns(String),
    /// Not a URI.
    #[error("{0:?} is not a URI, such as spiffe://example.org/builder")]
    Uri(String),
    /// Empty, too long, or with characters that nobody can see.
    #[error("{0:?} is not 1 to {NAME_CHARACTERS_MAX} characters without control characters")]
    Text(String),
}

/// What clients dial to reach a server: a DNS name, which may begin with `*.`, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name.
    Dns(String),
    /// An IP address.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match dns_name(text) {
            Ok(name) => Ok(Self::Dns(name)),
            Err(_) => Err(NameError::Host(text.to_owned())),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Host {
    /// The host among the alternative names.
    pub(super) fn subject_alternative_name(&self) -> Result<SanType, NameError> {
        match self {
            Self::Dns(name) => dns_san(name),
            Self::Address(address) => Ok(SanType::IpAddress(*address)),
        }
    }
}

/// Text of a distinguished name.
pub(super) fn text(name: &str) -> Result<&str, NameError> {
    let fits = (1..=NAME_CHARACTERS_MAX).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) {
        Ok(name)
    } else {
        Err(NameError::Text(name.to_owned()))
    }
}

/// A DNS name, in lower case.
pub(super) fn dns_name(name: &str) -> Result<String, NameError> {
    let plain = match name.strip_prefix("*.") {
        // `*.com` would be all of them, and is accepted by nobody.
        Some(parent) if !parent.contains('.') => return Err(NameError::Dns(name.to_owned())),
        Some(parent) => parent,
        None => name,
    };
    match DnsName::try_from(plain) {
        Ok(_) if !plain.ends_with('.') => Ok(name.to_ascii_lowercase()),
        Ok(_) | Err(_) => Err(NameError::Dns(name.to_owned())),
    }
}

/// A DNS name among the alternative names.
pub(super) fn dns_san(name: &str) -> Result<SanType, NameError> {
    match name.try_into() {
        Ok(name) => Ok(SanType::DnsName(name)),
        Err(_) => Err(NameError::Dns(name.to_owned())),
    }
}

/// A URI among the alternative names: a scheme, a colon, and printable ASCII behind it.
pub(super) fn uri_san(uri: &str) -> Result<SanType, NameError> {
    let (scheme, rest) = uri.split_once(':').unwrap_or_default();
    let well_formed = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !rest.is_empty()
        && rest.chars().all(|c| c.is_ascii_graphic());
    match uri.try_into() {
        Ok(uri) if well_formed => Ok(SanType::URI(uri)),
        Ok(_) | Err(_) => Err(NameError::Uri(uri.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_and_nothing_else() {
        for (text, shown) in [
            ("NBD.example.com", "nbd.example.com"),
            ("localhost", "localhost"),
            ("*.example.com", "*.example.com"),
            ("10.0.0.5", "10.0.0.5"),
            ("2001:DB8::0:1", "2001:db8::1"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), shown);
        }
        for text in
            ["", " ", "a b", "host:10809", "[::1]", "*", "*.com", "a.*.com", "a..b", "a.", "größe"]
        {
            assert_eq!(text.parse::<Host>(), Err(NameError::Host(text.into())), "{text}");
        }
    }
}
