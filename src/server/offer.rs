//! What one client is offered, and for the operator why it is not offered more.

use std::sync::Arc;

use crate::export::Export;
use crate::nbd::{Absent, ExportDirectory, Listing};
use crate::server::Shared;
use crate::server::client::Client;
use crate::server::policy::{Policy, Shown};
use crate::server::refusal::{Reason, Refusal};

const NO_RULE: &str = "no rule allows this client; allow it with --allow-cn, --allow-ou, \
                       --allow-dns, --allow-uri or --allow-fingerprint, or in the rules of the \
                       export";
const NEEDS_TLS: &str = "it is not marked `plaintext`, and the client has not begun TLS";
const NO_EXPORT: &str = "there is no export of that name";
const BROKEN: &str = "its snapshot cannot be opened; an earlier line says why";

/// The exports that one client may read. A hidden one and a made-up one look the same to the
/// client, and different in the log.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    shared: &'a Shared,
    /// What was in force when the client came.
    policy: Arc<Policy>,
    shown: Shown,
    client: Arc<Client>,
}

impl<'a> Offer<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        policy: Arc<Policy>,
        shown: Shown,
        client: Arc<Client>,
    ) -> Self {
        Self { shared, policy, shown, client }
    }

    fn view(&self) -> impl ExportDirectory<Export = Arc<Export>> {
        self.shared.view(&self.policy, self.shown.clone())
    }

    fn hidden(&self) -> (Reason, &'static str) {
        match &self.shown {
            Shown::Plaintext => (Reason::NotForPlaintext, NEEDS_TLS),
            Shown::Nothing | Shown::Tls(_) => (Reason::NotAllowed, NO_RULE),
        }
    }

    fn refuse(&self, export: Option<&str>, (reason, detail): (Reason, &str)) {
        let refusal = match export {
            Some(name) => Refusal::of_export(name, reason, detail),
            None => Refusal::of_all(reason, detail),
        };
        self.client.refused(refusal, self.shared);
    }
}

impl ExportDirectory for Offer<'_> {
    type Export = Arc<Export>;

    fn list(&self) -> Vec<Listing> {
        let listed = self.view().list();
        if listed.is_empty() && !self.policy.catalogue.is_empty() {
            self.refuse(None, self.hidden());
        }
        listed
    }

    fn find(&self, name: &str) -> Result<Arc<Export>, Absent> {
        let found = self.view().find(name);
        let reason = match &found {
            Ok(_) => return found,
            Err(Absent::Broken) => (Reason::BrokenExport, BROKEN),
            Err(Absent::Unknown) if self.policy.catalogue.offers(name) => self.hidden(),
            Err(Absent::Unknown) => (Reason::NoExport, NO_EXPORT),
        };
        self.refuse(Some(name), reason);
        found
    }
}
