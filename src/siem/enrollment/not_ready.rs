//! Reason why a batch is not sent.

use siem_protocol::{agent_event::UntrustedAnswer, delivery::Delivery};
use siem_sinks::http::NoAnswer;

/// Reason why a batch is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// Result for the batch.
    pub delivery: Delivery,
    /// HTTP status of a response that must not be believed, and what is wrong with it.
    pub untrusted: Option<(u16, UntrustedAnswer)>,
}

impl NotReady {
    /// Holds delivery for a reason.
    #[must_use]
    pub fn hold(reason: impl Into<String>) -> Self {
        let delivery = Delivery::Hold { after: None, reason: reason.into() };
        Self { delivery, untrusted: None }
    }

    pub(super) fn retry(reason: String) -> Self {
        Self { delivery: Delivery::Retry { after: None, reason }, untrusted: None }
    }
}

impl From<NoAnswer> for NotReady {
    fn from(NoAnswer { reason, needs_person, .. }: NoAnswer) -> Self {
        if needs_person { Self::hold(reason) } else { Self::retry(reason) }
    }
}
