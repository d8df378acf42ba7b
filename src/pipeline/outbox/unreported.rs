//! Events that were recorded with a change of the store, and are not among its entries yet.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use siem_protocol::{
    AgentEvent,
    names::{severity, source},
};

use crate::event::Event;

/// An event of the agent as the state row holds it.
///
/// It has no type of its own for each event: a store keeps events that another version of the agent
/// recorded, and reading every type takes half a megabyte of code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct UnreportedEvent {
    event: String,
    #[serde(default = "warning")]
    severity: String,
    data: Value,
}

fn warning() -> String {
    severity::WARNING.to_owned()
}

impl From<AgentEvent> for UnreportedEvent {
    fn from(event: AgentEvent) -> Self {
        let Event { name, severity, data, .. } = event.into();
        Self { event: name.to_owned(), severity: severity.to_owned(), data }
    }
}

impl From<UnreportedEvent> for Event {
    /// Leaks the names, which are static in an event: a start reads a few at most.
    fn from(stored: UnreportedEvent) -> Self {
        let mut event = Self::info(stored.event.leak(), stored.data);
        (event.source, event.severity) = (source::AGENT, stored.severity.leak());
        event
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use siem_protocol::agent_event::DeviceKeyReason;

    use super::*;

    #[test]
    fn stored_event_reads_back_as_it_was() {
        for reason in [DeviceKeyReason::First, DeviceKeyReason::Missing] {
            let event =
                AgentEvent::DeviceKeyCreated { key: "k".to_owned(), reason, previous: None };
            let row = serde_json::to_vec(&UnreportedEvent::from(event.clone())).unwrap();
            let stored: UnreportedEvent = serde_json::from_slice(&row).unwrap();
            assert_eq!(Event::from(stored), Event::from(event.clone()));
            assert_eq!(serde_json::from_slice::<AgentEvent>(&row).unwrap(), event);
        }
    }

    #[test]
    fn event_of_another_version_is_kept() {
        let row = json!({ "event": "new", "data": { "a": [1, null] }, "more": 1 });
        let event = Event::from(serde_json::from_value::<UnreportedEvent>(row).unwrap());
        assert_eq!(event, Event::warning("new", json!({ "a": [1, null] })));
    }
}
