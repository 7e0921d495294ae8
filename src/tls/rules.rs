//! Who may enter: rules about the holder of a certificate, in ghostunnel's terms.

use std::fmt;

use crate::tls::identity::{Fingerprint, FingerprintError, PeerIdentity};
use crate::tls::pattern::{UriPattern, UriPatternError};

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
    Fingerprint(#[from] FingerprintError),
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

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use time::OffsetDateTime;

    fn peer() -> PeerIdentity {
        PeerIdentity {
            common_name: Some("build-7".into()),
            organizational_units: vec!["ops".into(), "Build".into()],
            dns_names: vec!["build-7.corp".into(), "*.build.corp".into()],
            uris: vec!["spiffe://corp/ns/build".into()],
            fingerprint: Fingerprint([7; 32]),
            serial: "7".into(),
            issuer: "CN=test CA".into(),
            not_after: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn each_rule_looks_at_its_own_name_and_compares_all_of_it() {
        let fingerprint = |byte: u8| Rule::fingerprint(&format!("{byte:02x}").repeat(32));
        for (rule, expected) in [
            (Rule::common_name("build-7"), true),
            (Rule::common_name("Build-7"), false),
            (Rule::common_name("build-7 "), false),
            (Rule::common_name("build"), false),
            (Rule::common_name("ops"), false),
            (Rule::organizational_unit("ops"), true),
            (Rule::organizational_unit("Build"), true),
            (Rule::organizational_unit("build"), false),
            (Rule::organizational_unit("build-7"), false),
            (Rule::dns("build-7.corp"), true),
            (Rule::dns("BUILD-7.CORP"), true),
            (Rule::dns("build-7"), false),
            (Rule::dns("corp"), false),
            (Rule::dns("*.build.corp"), true),
            // Neither side's wildcard takes anything but itself.
            (Rule::dns("*.corp"), false),
            (Rule::dns("a.build.corp"), false),
            (Rule::uri("spiffe://corp/ns/build"), true),
            (Rule::uri("spiffe://corp/ns/*"), true),
            (Rule::uri("spiffe://corp/*"), false),
            (Rule::uri("spiffe://corp/**"), true),
            (fingerprint(7), true),
            (fingerprint(8), false),
            (Ok(Rule::All), true),
        ] {
            let rule = rule.unwrap();
            let rules = Rules::new(vec![rule.clone()]);
            let decision = if expected { Decision::Allowed(&rule) } else { Decision::Denied };
            assert_eq!(rules.decide(Some(&peer())), decision, "{rule}");
        }
    }

    #[test]
    fn without_rules_everybody_who_got_here_may_enter_and_with_one_nobody_else() {
        let none = Rules::default();
        assert_eq!(none.decide(None), Decision::NoRules);
        assert!(none.allow(None) && none.allow(Some(&peer())));
        for rule in [Rule::All, Rule::common_name("build-7").unwrap()] {
            let rules: Rules = [rule].into_iter().collect();
            assert!(!rules.allow(None));
            assert!(rules.allow(Some(&peer())));
        }
    }

    #[test]
    fn a_rule_that_could_not_mean_what_it_says_is_refused() {
        for (rule, error) in [
            (Rule::common_name(""), RuleError::Empty),
            (Rule::organizational_unit(""), RuleError::Empty),
            (Rule::dns(""), RuleError::Empty),
            (Rule::dns("*."), RuleError::Empty),
            (Rule::common_name("build-*"), RuleError::Wildcard),
            (Rule::organizational_unit("*"), RuleError::Wildcard),
            (Rule::dns("*"), RuleError::Wildcard),
            (Rule::dns("a.*.corp"), RuleError::Wildcard),
            (Rule::uri("*"), RuleError::Uri(UriPatternError::NoScheme)),
        ] {
            assert_eq!(rule, Err(error));
        }
        assert!(matches!(Rule::fingerprint("7"), Err(RuleError::Fingerprint(_))));
    }

    #[test]
    fn what_a_rule_prints_cannot_move_a_cursor() {
        for rule in [
            Rule::common_name("\u{1b}[2J"),
            Rule::organizational_unit("\n"),
            Rule::dns("\r"),
            Rule::uri("spiffe://corp/\u{1b}"),
        ] {
            let shown = rule.unwrap().to_string();
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
    }

    fn name() -> impl Strategy<Value = String> {
        "[abAB]{1,2}"
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        prop_oneof![
            name().prop_map(|name| Rule::common_name(&name).unwrap()),
            name().prop_map(|name| Rule::organizational_unit(&name).unwrap()),
            name().prop_map(|name| Rule::dns(&name).unwrap()),
            name().prop_map(|name| Rule::uri(&format!("spiffe://corp/{name}")).unwrap()),
            (0..4_u8).prop_map(|byte| Rule::Fingerprint(Fingerprint([byte; 32]))),
            Just(Rule::All),
        ]
    }

    fn any_peer() -> impl Strategy<Value = PeerIdentity> {
        let names = || proptest::collection::vec(name(), 0..3);
        (proptest::option::of(name()), names(), names(), names(), 0..4_u8).prop_map(
            |(common_name, organizational_units, dns_names, uris, byte)| PeerIdentity {
                common_name,
                organizational_units,
                dns_names,
                uris: uris.iter().map(|name| format!("spiffe://corp/{name}")).collect(),
                fingerprint: Fingerprint([byte; 32]),
                ..peer()
            },
        )
    }

    proptest! {
        #[test]
        fn rules_are_a_union_and_their_order_changes_nothing(
            mut rules in proptest::collection::vec(any_rule(), 1..6),
            peer in any_peer(),
        ) {
            let each = |rule: &Rule| Rules::new(vec![rule.clone()]).allow(Some(&peer));
            let expected = rules.iter().any(each);
            prop_assert_eq!(Rules::new(rules.clone()).allow(Some(&peer)), expected);
            rules.reverse();
            prop_assert_eq!(Rules::new(rules).allow(Some(&peer)), expected);
        }

        #[test]
        fn who_has_no_certificate_passes_no_rule(
            rules in proptest::collection::vec(any_rule(), 1..6),
        ) {
            let rules = Rules::new(rules);
            prop_assert_eq!(rules.decide(None), Decision::Denied);
        }

        #[test]
        fn the_rule_that_is_named_is_one_that_is_given_and_that_matches(
            rules in proptest::collection::vec(any_rule(), 1..6),
            peer in any_peer(),
        ) {
            let rules = Rules::new(rules);
            if let Decision::Allowed(rule) = rules.decide(Some(&peer)) {
                prop_assert!(rules.as_slice().contains(rule) && rule.matches(&peer));
            }
        }
    }
}
