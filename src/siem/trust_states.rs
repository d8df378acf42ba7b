//! State of this device at its receivers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use siem_protocol::agent_event::ReceiverTrust;

/// State of this device at all receivers, by endpoint. All clones see each change.
///
/// Sinks set it, and `status`, `doctor` and heartbeats report it.
#[derive(Clone, Debug, Default)]
pub struct TrustStates(Arc<Mutex<BTreeMap<String, Weak<SharedTrust>>>>);

type SharedTrust = Mutex<Option<ReceiverTrust>>;

/// State of this device at one receiver; `None` until the receiver has answered. It is reported as
/// long as a sink holds it.
#[derive(Clone, Debug, Default)]
pub struct TrustEntry(Arc<SharedTrust>);

impl TrustStates {
    /// Returns the entry of a receiver. Sinks with the same endpoint share it: a sink that replaces
    /// another continues with what is known.
    #[must_use]
    pub fn entry(&self, endpoint: &str) -> TrustEntry {
        let mut entries = unpoisoned(&self.0);
        entries.retain(|_, entry| entry.strong_count() > 0);
        if let Some(entry) = entries.get(endpoint).and_then(Weak::upgrade) {
            return TrustEntry(entry);
        }
        let entry = TrustEntry::default();
        entries.insert(endpoint.to_owned(), Arc::downgrade(&entry.0));
        entry
    }

    /// Returns the known states, by endpoint.
    #[must_use]
    pub fn all(&self) -> Vec<ReceiverTrust> {
        self.entries().into_iter().filter_map(|entry| entry.get()).collect()
    }

    /// Returns the entries that sinks hold.
    pub(super) fn entries(&self) -> Vec<TrustEntry> {
        unpoisoned(&self.0).values().filter_map(Weak::upgrade).map(TrustEntry).collect()
    }
}

impl TrustEntry {
    /// Sets the state.
    pub fn set(&self, trust: ReceiverTrust) {
        *unpoisoned(&self.0) = Some(trust);
    }

    /// Returns the state, if the receiver has answered.
    #[must_use]
    pub fn get(&self) -> Option<ReceiverTrust> {
        unpoisoned(&self.0).clone()
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use siem_protocol::agent_event::TrustState;

    use super::*;

    fn trust(endpoint: &str) -> ReceiverTrust {
        ReceiverTrust {
            endpoint: endpoint.to_owned(),
            state: TrustState::Shared,
            level: None,
            receiver: None,
            receiver_keys: Vec::new(),
            device_key: None,
            problem: None,
        }
    }

    #[test]
    fn sinks_with_one_endpoint_share_their_entry() {
        let states = TrustStates::default();
        let first = states.entry("https://a/");
        assert_eq!(states.all(), [], "the receiver has not answered");
        first.set(trust("https://a/"));
        let second = states.clone().entry("https://a/");
        assert_eq!(second.get(), Some(trust("https://a/")));
        drop(first);
        assert_eq!(states.all(), [trust("https://a/")]);
    }

    #[test]
    fn state_of_a_dropped_sink_is_not_reported() {
        let states = TrustStates::default();
        let entry = states.entry("https://a/");
        entry.set(trust("https://a/"));
        drop(entry);
        assert_eq!(states.all(), []);
        assert_eq!(states.entry("https://a/").get(), None);
    }
}
