//! Events: facts about the agent, a file or a stage.

use serde_json::Value;
use siem_protocol::{
    AgentEvent,
    names::{severity, source},
};

/// A fact about the agent, a file or a stage; reaches the SIEM as an entry of kind `event`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Origin of the event: one of [`siem_protocol::names::source`], or the label of a source. The
    /// pipeline sets the label of the source that reported the event.
    pub source: &'static str,
    /// Name in snake_case, such as `file_rewritten`.
    pub name: &'static str,
    /// Severity: one of [`siem_protocol::names::severity`]. An event of severity `high` is sent at
    /// once, together with all entries before it.
    pub severity: &'static str,
    /// Details: a JSON object. Never contains a record's content or a secret.
    pub data: Value,
}

impl Event {
    /// Creates an event of severity `info`.
    #[must_use]
    pub fn info(name: &'static str, data: Value) -> Self {
        Self { source: source::AGENT, name, severity: severity::INFO, data }
    }

    /// Creates an event of severity `warning`.
    #[must_use]
    pub fn warning(name: &'static str, data: Value) -> Self {
        Self { severity: severity::WARNING, ..Self::info(name, data) }
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
