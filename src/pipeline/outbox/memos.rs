//! Memos: small facts of other parts of the agent that must last as long as the store.
//!
//! Each is a row of its own beside the state row, which an agent that does not know it leaves alone.
//! A store that replaces a lost or damaged one has none.

use serde::{Serialize, de::DeserializeOwned};
use siem_protocol::AgentEvent;

use super::{
    Outbox, OutboxError,
    checksum::{protect_json, verify_json},
    tables::META,
    unreported::UnreportedEvent,
};

/// Prefix of the keys, which keeps them apart from the other rows of the table.
const PREFIX: &str = "memo.";

impl Outbox {
    /// Returns the memo called `name`; `None` if the store has none.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn memo<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, OutboxError> {
        let key = format!("{PREFIX}{name}");
        self.read("read a memo of", |transaction| {
            let meta = transaction.open_table(META)?;
            let row = meta.get(&*key)?;
            row.map(|row| verify_json(&*key, row.value(), "a memo")).transpose()
        })
    }

    /// Stores the memo called `name`, synced when it returns.
    ///
    /// # Errors
    /// [`OutboxError`]: the memo is unchanged.
    pub fn set_memo<T: Serialize>(&self, name: &str, memo: &T) -> Result<(), OutboxError> {
        self.set_memo_with_events(name, memo, &[])
    }

    /// Stores a memo together with events about what it replaces, for
    /// [`unreported_events`](Self::unreported_events): neither is stored without the other.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing is stored.
    pub fn set_memo_with_events<T: Serialize>(
        &self,
        name: &str,
        memo: &T,
        events: &[AgentEvent],
    ) -> Result<(), OutboxError> {
        let key = format!("{PREFIX}{name}");
        self.write("store a memo in", |transaction, state| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(&*key, protect_json(&*key, memo).as_slice())?;
            state.unreported.extend(events.iter().cloned().map(UnreportedEvent::from));
            Ok(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{commit, store};

    #[test]
    fn event_of_a_memo_stays_until_an_entry_is_stored() {
        let store = store();
        let event = siem_protocol::AgentEvent::AgentStopped {};
        store.outbox.set_memo_with_events("files", &1, std::slice::from_ref(&event)).unwrap();
        assert_eq!(store.outbox.unreported_events(), [event.into()]);
        commit(&store.outbox, 1);
        assert_eq!(store.outbox.unreported_events(), []);
        assert_eq!(store.outbox.memo::<u64>("files").unwrap(), Some(1));
    }

    #[test]
    fn memo_lasts_as_long_as_the_store() {
        let store = store();
        assert_eq!(store.outbox.memo::<u64>("serial").unwrap(), None);
        store.outbox.set_memo("serial", &7_u64).unwrap();
        store.outbox.set_memo("files", &["a"]).unwrap();
        commit(&store.outbox, 3);
        store.outbox.set_memo("serial", &8_u64).unwrap();
        assert_eq!(store.outbox.memo::<u64>("serial").unwrap(), Some(8));
        assert_eq!(store.outbox.memo::<Vec<String>>("files").unwrap().unwrap(), ["a"]);
        assert!(store.outbox.verify().is_ok());
    }
}
