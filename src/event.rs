//! What the agent itself reports.

use serde_json::Value;
use siem_protocol::{
    AgentEvent,
    names::{severity, source},
};

/// A fact about the agent or a file, on its way to the SIEM as an entry of kind `event`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where it comes from: one of [`siem_protocol::names::source`].
    pub source: &'static str,
    /// Its name: one of [`siem_protocol::names::event`].
    pub name: &'static str,
    /// How much it matters: one of [`siem_protocol::names::severity`].
    pub severity: &'static str,
    /// Its facts: a JSON object. Never a record's content, never a secret.
    pub data: Value,
}

impl Event {
    /// An event of the agent's own, for the record.
    #[must_use]
    pub fn info(name: &'static str, data: Value) -> Self {
        Self { source: source::AGENT, name, severity: severity::INFO, data }
    }

    /// An event of the agent's own that is worth a look.
    #[must_use]
    pub fn warning(name: &'static str, data: Value) -> Self {
        Self { severity: severity::WARNING, ..Self::info(name, data) }
    }

    /// The same event from another source.
    #[must_use]
    pub fn from_source(self, source: &'static str) -> Self {
        Self { source, ..self }
    }

    /// Whether the event must be sent at once, with all that lies before it.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.severity == severity::HIGH
    }
}

impl From<AgentEvent> for Event {
    fn from(event: AgentEvent) -> Self {
        Self {
            source: event.source(),
            name: event.name(),
            severity: event.severity(),
            data: event.data(),
        }
    }
}
