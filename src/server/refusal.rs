//! Why a client is not given what it came for.

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What it asked for, if it came that far.
    pub(crate) export: Option<String>,
    pub(crate) reason: Reason,
    /// The reason for people. No secret of others is in it, and it does not go to the client.
    pub(crate) detail: String,
}

/// Characters of a name that was made up and is recorded. Whoever makes up names must not fill disks.
const NAME_CHARACTERS_MAX: usize = 200;

impl Refusal {
    /// Of an export that was asked for. A long name is cut.
    pub(crate) fn of_export(export: &str, reason: Reason, detail: &str) -> Self {
        let mut name: String = export.chars().take(NAME_CHARACTERS_MAX).collect();
        if name.len() < export.len() {
            name.push('…');
        }
        Self { export: Some(name), reason, detail: detail.to_owned() }
    }

    /// Of whatever the client came for.
    pub(crate) fn of_all(reason: Reason, detail: impl Into<String>) -> Self {
        Self { export: None, reason, detail: detail.into() }
    }
}

/// The kinds of reasons. docs/audit.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Too many connections of one address.
    AddressLimit,
    /// The server demands TLS, and the client did not begin it.
    TlsRequired,
    /// The TLS handshake failed, or took too long.
    Handshake,
    /// Nothing was chosen in time.
    Timeout,
    /// What came is not NBD, or not as it must be.
    Protocol,
    /// No rule allows it.
    NotAllowed,
    /// The export is not for clients without TLS.
    NotForPlaintext,
    /// There is no such export.
    NoExport,
    /// Its snapshot cannot be opened.
    BrokenExport,
}

impl Reason {
    /// The word of the metrics and of the audit log.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::AddressLimit => "address_limit",
            Self::TlsRequired => "tls_required",
            Self::Handshake => "tls_handshake",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::NotAllowed => "not_allowed",
            Self::NotForPlaintext => "not_for_plaintext",
            Self::NoExport => "no_such_export",
            Self::BrokenExport => "broken_export",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_and_marked() {
        let refusal = |name: &str| Refusal::of_export(name, Reason::NoExport, "").export.unwrap();
        assert_eq!(refusal("disk"), "disk");
        assert_eq!(refusal(&"ü".repeat(200)), "ü".repeat(200));
        assert_eq!(refusal(&"ü".repeat(201)), "ü".repeat(200) + "…");
    }
}
