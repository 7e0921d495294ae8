//! Who is here, and who was refused lately: what the status tells of clients.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::audit::EventKind;
use crate::server::Shared;
use crate::server::client::Client;
use crate::server::connection_id::ConnectionId;
use crate::server::session::Peer;

/// Refusals that are remembered.
const REFUSALS_MAX: usize = 50;

/// All clients of a server.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    here: Mutex<BTreeMap<ConnectionId, Arc<Client>>>,
    /// The newest last.
    refused: Mutex<VecDeque<Refused>>,
}

/// Somebody was refused something.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) at: SystemTime,
    pub(crate) id: Option<ConnectionId>,
    pub(crate) peer: Peer,
    pub(crate) identity: Option<String>,
    pub(crate) reason: String,
}

/// A client, listed until this is dropped.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    shared: &'a Shared,
    client: Arc<Client>,
}

impl Listed<'_> {
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.shared.roster.lock().remove(&self.client.id);
        // Otherwise its session was dropped before its end: by a panic, or with the server.
        self.client.gone("cut off by the server".to_owned(), self.shared);
    }
}

impl Roster {
    /// A client has come.
    pub(crate) fn add(peer: Peer, shared: &Shared) -> Listed<'_> {
        let client = Arc::new(Client::new(peer));
        shared.roster.lock().insert(client.id, Arc::clone(&client));
        client.record(shared, &client.known(), || EventKind::Connect);
        Listed { shared, client }
    }

    pub(crate) fn was_refused(
        &self,
        id: Option<ConnectionId>,
        peer: Peer,
        identity: Option<String>,
        reason: &str,
    ) {
        let (at, reason) = (SystemTime::now(), reason.to_owned());
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSALS_MAX {
            refused.pop_front();
        }
        refused.push_back(Refused { at, id, peer, identity, reason });
    }

    /// Those who are here, in the order in which they came.
    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        self.lock().values().cloned().collect()
    }

    /// The names of what they have open.
    pub(crate) fn open_exports(&self) -> HashSet<String> {
        self.clients().iter().filter_map(|client| client.known().export).collect()
    }

    /// All who are here are taken for gone.
    pub(crate) fn cut(&self, shared: &Shared) {
        for client in self.clients() {
            client.gone("cut off: the server was stopped at once".to_owned(), shared);
        }
    }

    /// The newest refusals first.
    pub(crate) fn refusals(&self) -> Vec<Refused> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Arc<Client>>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
