//! Reports places whose file system does not answer.

use std::sync::{Arc, Weak};

use siem_protocol::{AgentEvent, agent_event::UnreadableReason};
use tracing::{info, warn};

use crate::{
    pipeline::ingest::Inbox,
    platform::bounded::{BoundedCalls, DoesNotAnswer, PlaceChange},
};

/// Reports each place that stops to answer as one event, from now on to `inbox`; wakes reading when a
/// place answers again.
pub(super) fn report(calls: &BoundedCalls, inbox: &Arc<Inbox>) {
    let inbox = Arc::downgrade(inbox);
    calls.listen(move |change| report_change(change, &inbox));
}

fn report_change(change: &PlaceChange, inbox: &Weak<Inbox>) {
    let inbox = inbox.upgrade();
    match change {
        PlaceChange::Silent(place) => {
            let path = place.path.to_string_lossy().into_owned();
            let error = DoesNotAnswer { place: place.path.clone() }.to_string();
            warn!(code = "file_system_hangs", path, "{error}; it is left alone until it has");
            let unreadable =
                AgentEvent::PathUnreadable { path, reason: UnreadableReason::DoesNotAnswer, error };
            if let Some(inbox) = inbox {
                inbox.report(unreadable.into());
            }
        }
        PlaceChange::Answers(place) => {
            let path = place.path.display();
            info!(code = "file_system_answers", %path, "its file system answers again");
            if let Some(inbox) = inbox {
                inbox.wake();
            }
        }
    }
}
