//! Who may enter: rules about the holder of a certificate, in ghostunnel's terms.

use std::fmt;

use super::identity::{Fingerprint, PeerIdentity};
use super::pattern::{UriPattern, UriPatternError};

/// One way to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Every verified certificate.
    All,
    /// This common name, exactly.
    CommonName(String),
    /// This organizational unit among those of the certificate, exactly.
    OrganizationalUnit(String),
    /// This host name among the alternative names. In upper or lower case, which does not matter
    /// in DNS. A wildcard in a certificate is that text and nothing more; nothing is resolved.
    Dns(String),
    /// An alternative name that is a URI of this pattern.
    Uri(UriPattern),
    /// This certificate and no other.
    Fingerprint(Fingerprint),
}

/// A rule that would never match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No certificate has an empty name.
    #[error("a rule needs a name to allow: this one is empty")]
    Empty,
    /// As in a shell, but these compare exactly.
    #[error(
        "`*` has no meaning here: names are compared exactly; only the path of a URI takes wildcards"
    )]
    Wildcard,
    /// Not a pattern.
    #[error(transparent)]
    Uri(#[from] UriPatternError),
    /// Not a fingerprint.
    #[error(transparent)]
    Fingerprint(#[from] super::identity::FingerprintError),
}

impl Rule {
    /// A rule about the common name.
    ///
    /// # Errors
    ///
    /// [`RuleError`] if it is empty or holds a `*`.
    pub fn common_name(name: &str) -> Result<Self, RuleError> {
        exact(name).map(Self::CommonName)
    }

    /// A rule about an organizational unit.
    ///
    /// # Errors
    ///
    /// [`RuleError`] if it is empty or holds a `*`.
    pub fn organizational_unit(name: &str) -> Result<Self, RuleError> {
        exact(name).map(Self::OrganizationalUnit)
    }

    /// A rule about a host name. It may begin with `*.`, as that of a certificate may.
    ///
    /// # Errors
    ///
    /// [`RuleError`] if it is empty or holds a `*` elsewhere.
    pub fn dns(name: &str) -> Result<Self, RuleError> {
        exact(name.strip_prefix("*.").unwrap_or(name))?;
        Ok(Self::Dns(name.to_owned()))
    }

    /// A rule about a URI, with wildcards as in [`UriPattern`].
    ///
    /// # Errors
    ///
    /// [`RuleError`] if it is no pattern.
    pub fn uri(pattern: &str) -> Result<Self, RuleError> {
        Ok(Self::Uri(pattern.parse()?))
    }

    /// A rule about one certificate, as in [`Fingerprint::from_str`](std::str::FromStr).
    ///
    /// # Errors
    ///
    /// [`RuleError`] if it is no fingerprint.
    pub fn fingerprint(text: &str) -> Result<Self, RuleError> {
        Ok(Self::Fingerprint(text.parse()?))
    }

    fn matches(&self, peer: &PeerIdentity) -> bool {
        match self {
            Self::All => true,
            Self::CommonName(name) => peer.common_name.as_ref() == Some(name),
            Self::OrganizationalUnit(name) => peer.organizational_units.contains(name),
            Self::Dns(name) => peer.dns_names.iter().any(|dns| dns.eq_ignore_ascii_case(name)),
            Self::Uri(pattern) => peer.uris.iter().any(|uri| pattern.matches(uri)),
            Self::Fingerprint(fingerprint) => peer.fingerprint == *fingerprint,
        }
    }
}

fn exact(name: &str) -> Result<String, RuleError> {
    if name.is_empty() {
        return Err(RuleError::Empty);
    }
    if name.contains('*') {
        return Err(RuleError::Wildcard);
    }
    Ok(name.to_owned())
}

/// As the flags have it, for a log.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::CommonName(name) => write!(f, "cn={name:?}"),
            Self::OrganizationalUnit(name) => write!(f, "ou={name:?}"),
            Self::Dns(name) => write!(f, "dns={name:?}"),
            Self::Uri(pattern) => write!(f, "uri={:?}", pattern.to_string()),
            Self::Fingerprint(fingerprint) => write!(f, "fingerprint={fingerprint}"),
        }
    }
}

/// Why somebody may enter, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// There is no rule, so whoever got through the handshake is welcome.
    NoRules,
    /// This rule lets them in.
    Allowed(&'a Rule),
    /// There are rules and none lets them in.
    Denied,
}

impl Decision<'_> {
    /// Whether they may enter.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        match self {
            Self::NoRules | Self::Allowed(_) => true,
            Self::Denied => false,
        }
    }
}

/// Rules, one of which is enough.
///
/// Without any, whoever got through the handshake may enter. With one, everybody else may not, and
/// that includes clients without a certificate, about whom no rule can say anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Takes rules in the order in which they are tried.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// Whether there is no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules, in the order in which they are tried.
    #[must_use]
    pub fn as_slice(&self) -> &[Rule] {
        &self.0
    }

    /// Decides about a client. `None` is one without a certificate.
    #[must_use]
    pub fn decide(&self, peer: Option<&PeerIdentity>) -> Decision<'_> {
        if self.0.is_empty() {
            return Decision::NoRules;
        }
        let matching = peer.and_then(|peer| self.0.iter().find(|rule| rule.matches(peer)));
        matching.map_or(Decision::Denied, Decision::Allowed)
    }

    /// Whether a client may enter. `None` is one without a certificate.
    #[must_use]
    pub fn allow(&self, peer: Option<&PeerIdentity>) -> bool {
        self.decide(peer).is_allowed()
    }
}

impl FromIterator<Rule> for Rules {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}
