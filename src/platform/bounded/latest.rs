//! Latest result of a call that is repeated.

use std::{path::Path, time::Duration};

use super::{BoundedCalls, CurrentPlace, PendingCall, Polled};

/// Latest result of a call that is repeated. A call that does not return leaves the result of the one
/// before, and is not repeated.
pub struct Latest<T> {
    value: Option<T>,
    pending: Option<PendingCall<T>>,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { value: None, pending: None }
    }
}

impl<T: Send + 'static> Latest<T> {
    /// Begins the call unless one has not returned yet, or another one in the same place; returns true
    /// if there is a new result. Waits at most for `patience`, once for each call.
    pub fn refresh(
        &mut self,
        calls: &BoundedCalls,
        place: &Path,
        patience: Duration,
        call: impl FnOnce(&CurrentPlace) -> T + Send + 'static,
    ) -> bool {
        let (mut pending, wait) = match self.pending.take() {
            Some(pending) => (pending, Duration::ZERO),
            None if calls.is_busy(place) => return false,
            None => match calls.begin(place, call) {
                Ok(pending) => (pending, patience),
                Err(_) => return false,
            },
        };
        match pending.poll(wait) {
            Polled::Done(value) => {
                self.value = Some(value);
                true
            }
            Polled::Waiting | Polled::Overdue(_) => {
                self.pending = Some(pending);
                false
            }
        }
    }

    /// Result of the last call that returned.
    pub fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }
}
