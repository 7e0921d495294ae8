//! What is served, and to whom: everything that a reload replaces, as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::export::{Catalogue, View};
use crate::server::Shared;
use crate::tls::HandshakeFailure;
use crate::tls::IdentityError;
use crate::tls::PeerIdentity;
use crate::tls::Rules;
use crate::tls::TlsConfig;

/// What is served, and to whom. Immutable: a reload makes a new one.
#[derive(Debug)]
pub struct Policy {
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// How clients show who they are. `None` for plaintext only.
    pub tls: Option<Tls>,
    /// Who may read what.
    pub access: Access,
}

/// TLS, and whether a client has a choice.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Whether anything is answered without it.
    pub mode: TlsMode,
    /// Certificates and whom to trust.
    pub config: TlsConfig,
}

/// What a client may do without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Read the exports that are marked for plaintext, and see no others. `SELECTIVETLS`.
    Selective,
    /// Nothing. `FORCEDTLS`.
    Required,
}

/// Who may read what.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// For exports without rules of their own.
    pub rules: Rules,
    /// What is special about an export, by its name.
    pub exports: BTreeMap<String, ExportAccess>,
    /// Who may see the status where other hosts can reach it.
    pub status: Rules,
}

/// Who may read one export.
#[derive(Debug, Clone, Default)]
pub struct ExportAccess {
    /// In place of the common rules, if there are any.
    pub rules: Rules,
    /// Whether clients without TLS may read it, where others need TLS.
    pub plaintext: bool,
}

/// What is known of a client when it asks for exports.
#[derive(Debug, Clone)]
pub(crate) enum Shown {
    /// Nothing, on a server without TLS.
    Nothing,
    /// Nothing, on a server that has TLS for those who want it.
    Plaintext,
    /// It finished a TLS handshake, with a certificate or with none.
    Tls(Option<Arc<Certified>>),
}

/// A client that has shown a certificate.
#[derive(Debug)]
pub(crate) struct Certified {
    pub(crate) identity: PeerIdentity,
    /// As it was shown, to be verified again when the CAs or revocation lists change.
    chain: Vec<CertificateDer<'static>>,
}

impl Certified {
    /// From a chain that was verified in a handshake.
    pub(crate) fn new(chain: &[CertificateDer<'_>]) -> Result<Self, IdentityError> {
        let identity = PeerIdentity::from_chain(chain)?;
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        Ok(Self { identity, chain })
    }
}

/// Why a client that reads an export may not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Withdrawn {
    #[error("the export is no longer served")]
    Export,
    #[error("exports are no longer served like this")]
    Mode,
    #[error("the client's certificate is no longer good: {0}")]
    Certificate(HandshakeFailure),
    #[error("no rule allows the client any more")]
    Rules,
}

impl Policy {
    /// Everything to everybody, without TLS.
    #[must_use]
    pub fn plaintext(catalogue: Catalogue) -> Self {
        Self { catalogue: Arc::new(catalogue), tls: None, access: Access::default() }
    }

    /// Whether a client that reads an export may go on: the export is still there, or was only
    /// removed from a directory; its certificate is still good, and the rules still allow it.
    ///
    /// # Errors
    ///
    /// [`Withdrawn`] if not.
    pub(crate) fn still_allows(&self, shown: &Shown, export: &str) -> Result<(), Withdrawn> {
        match (shown, &self.tls) {
            (Shown::Nothing, None) => {}
            (Shown::Plaintext, Some(tls)) if tls.mode == TlsMode::Selective => {}
            (Shown::Tls(client), Some(tls)) => {
                let chain = client.as_ref().map(|client| &*client.chain);
                tls.config.verify_again(chain).map_err(Withdrawn::Certificate)?;
            }
            _ => return Err(Withdrawn::Mode),
        }
        if !self.catalogue.keeps(export) {
            return Err(Withdrawn::Export);
        }
        if self.access.allows(shown, export) { Ok(()) } else { Err(Withdrawn::Rules) }
    }
}

impl Access {
    /// Deny by default once any rule is given, for whatever export.
    fn allows(&self, shown: &Shown, export: &str) -> bool {
        let own = self.exports.get(export);
        match shown {
            Shown::Nothing => true,
            Shown::Plaintext => own.is_some_and(|own| own.plaintext),
            Shown::Tls(client) => {
                let own = own.map(|own| &own.rules).filter(|rules| !rules.is_empty());
                let rules = own.unwrap_or(&self.rules);
                if rules.is_empty() {
                    return !self.has_rules();
                }
                rules.allow(client.as_ref().map(|client| &client.identity))
            }
        }
    }

    /// Whether a client may see the status, where it has to show a certificate for it: names of all
    /// exports and of those who read them. Without rules about the status, only where there are no others
    /// either, so that every certificate may read everything anyway.
    pub(crate) fn allows_status(&self, identity: Option<&PeerIdentity>) -> bool {
        if self.status.is_empty() { !self.has_rules() } else { self.status.allow(identity) }
    }

    /// Whether any rule is given.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty() || self.exports.values().any(|own| !own.rules.is_empty())
    }

    /// Whether no identity whatever may read an export: others have rules, and it has none.
    #[must_use]
    pub fn forgets(&self, export: &str) -> bool {
        let own = self.exports.get(export).is_some_and(|own| !own.rules.is_empty());
        self.has_rules() && self.rules.is_empty() && !own
    }
}

impl Shared {
    /// The exports that a client may read: those of the policy that it came under, as long as the
    /// one in force allows them too.
    pub(crate) fn view<'a>(
        &'a self,
        came_under: &Arc<Policy>,
        shown: Shown,
    ) -> View<impl Fn(&str) -> bool + use<'a>> {
        let came_under = Arc::clone(came_under);
        View::new(Arc::clone(&came_under.catalogue), move |name: &str| {
            let in_force = Arc::clone(&self.policy.borrow());
            // To verify certificates again is work, and mostly nothing has changed.
            let still = || {
                Arc::ptr_eq(&came_under, &in_force)
                    || in_force.catalogue.offers(name)
                        && in_force.still_allows(&shown, name).is_ok()
            };
            came_under.access.allows(&shown, name) && still()
        })
    }

    /// Ends when a reload takes an export away from a client.
    pub(crate) async fn until_withdrawn(&self, shown: Shown, export: String) -> Withdrawn {
        let mut policies = self.policy.subscribe();
        loop {
            let policy = Arc::clone(&policies.borrow_and_update());
            if let Err(withdrawn) = policy.still_allows(&shown, &export) {
                return withdrawn;
            }
            // The sender lives as long as the server.
            if policies.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use time::OffsetDateTime;

    use crate::tls::Rule;
    use crate::tls::issue::{Authority, Client, Validity};

    /// A client that has shown a certificate with this common name.
    fn certified(name: &str) -> Shown {
        let now = OffsetDateTime::from(std::time::SystemTime::now());
        let day = Validity::days(now, 1).unwrap();
        let (authority, _) = Authority::generate(day).unwrap();
        let client = Client { common_name: name.to_owned(), ..Client::default() };
        let issued = authority.client(&client, day).unwrap();
        Shown::Tls(Some(Arc::new(Certified::new(&[issued.certificate]).unwrap())))
    }

    fn allow(names: &[&str]) -> Rules {
        names.iter().map(|name| Rule::common_name(name).unwrap()).collect()
    }

    /// Common rules, and those of exports: name, rules, whether it is open to plaintext.
    fn access(common: &[&str], exports: &[(&str, &[&str], bool)]) -> Access {
        let exports = exports.iter().map(|(name, rules, plaintext)| {
            let own = ExportAccess { rules: allow(rules), plaintext: *plaintext };
            ((*name).to_owned(), own)
        });
        Access { rules: allow(common), exports: exports.collect(), ..Access::default() }
    }

    #[test]
    fn with_any_rule_whoever_is_not_allowed_is_denied_and_own_rules_replace_the_common_ones() {
        let (alice, bob) = (certified("alice"), certified("bob"));
        let none = access(&[], &[("disk", &[], false)]);
        let common = access(&["alice"], &[("disk", &[], false)]);
        let own = access(&[], &[("disk", &["alice"], false), ("other", &[], false)]);
        let both = access(&["alice"], &[("disk", &["bob"], false)]);
        for (access, export, alice_may, bob_may, anonymous_may) in [
            (&none, "disk", true, true, true),
            (&none, "unheard of", true, true, true),
            (&common, "disk", true, false, false),
            (&common, "unheard of", true, false, false),
            (&own, "disk", true, false, false),
            // Rules elsewhere are rules.
            (&own, "other", false, false, false),
            (&own, "unheard of", false, false, false),
            (&both, "disk", false, true, false),
            (&both, "other", true, false, false),
        ] {
            for (shown, may) in
                [(&alice, alice_may), (&bob, bob_may), (&Shown::Tls(None), anonymous_may)]
            {
                assert_eq!(access.allows(shown, export), may, "{access:?} {export} {shown:?}");
            }
        }
    }

    #[test]
    fn without_tls_the_mark_of_the_export_decides_and_no_rule() {
        for rules in [&[][..], &["alice"]] {
            let access = access(rules, &[("open", rules, true), ("closed", rules, false)]);
            for (export, in_plaintext) in [("open", true), ("closed", false), ("", false)] {
                assert_eq!(access.allows(&Shown::Plaintext, export), in_plaintext, "{export}");
                // A server without TLS has nobody to keep out, and does not start with rules.
                assert!(access.allows(&Shown::Nothing, export), "{export}");
            }
        }
    }

    /// Open to clients without TLS says nothing about those with.
    #[test]
    fn an_export_that_is_open_in_plaintext_has_rules_in_tls_all_the_same() {
        let access = access(&["alice"], &[("open", &[], true)]);
        assert!(access.allows(&Shown::Plaintext, "open"));
        assert!(access.allows(&certified("alice"), "open"));
        assert!(!access.allows(&certified("bob"), "open"));
        assert!(!access.allows(&Shown::Tls(None), "open"));
    }

    #[test]
    fn an_export_is_forgotten_if_only_others_have_rules() {
        for (access, export, forgotten) in [
            (access(&[], &[]), "disk", false),
            (access(&[], &[("disk", &["alice"], false)]), "disk", false),
            (access(&[], &[("disk", &["alice"], false)]), "other", true),
            (access(&[], &[("disk", &["alice"], false), ("other", &[], false)]), "other", true),
            (access(&["bob"], &[("disk", &["alice"], false)]), "other", false),
        ] {
            assert_eq!(access.forgets(export), forgotten, "{access:?} {export}");
            let anybody = ["alice", "bob"].map(certified);
            let may_nobody = anybody.iter().all(|shown| !access.allows(shown, export));
            assert_eq!(may_nobody, forgotten, "{access:?} {export}");
        }
    }
}
