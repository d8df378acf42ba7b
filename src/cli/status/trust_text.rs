//! State of the device at a receiver, for people.

use siem_protocol::agent_event::{ReceiverTrust, TrustState};

use super::report::{Level, Problem};
use crate::control::{DeviceStatus, status::SinkStatus};

/// Describes the state of the device at a receiver.
pub(in crate::cli) fn trust_text(trust: &ReceiverTrust) -> String {
    let mut text = match trust.state {
        TrustState::Shared => return "shared, since the receiver has no key".to_owned(),
        TrustState::Unconfirmed => "unconfirmed",
        TrustState::Pending => "waits for approval",
        TrustState::NotEnrolled => "not enrolled",
        TrustState::Confirmed => "confirmed",
        TrustState::Revoked => "revoked",
        TrustState::ReceiptUntrusted => "answers are not signed by the receiver",
    }
    .to_owned();
    if let Some(receiver) = &trust.receiver {
        text += &format!(", receiver {receiver}");
    }
    if let Some(level) = &trust.level {
        text += &format!(", level {level}");
    }
    text
}

/// Returns the problem in the state of the device at the receiver of a sink, with the remedy.
pub(in crate::cli) fn trust_problem(
    sink: &SinkStatus,
    device: Option<&DeviceStatus>,
) -> Option<Problem> {
    let trust = sink.trust.as_ref()?;
    let name = &sink.name;
    let id = device.and_then(|device| device.id.as_deref()).unwrap_or("ID");
    let approve = format!(
        "have an operator of the receiver run `siem-server devices approve {id}`, or set an \
         enrollment token for this machine"
    );
    let (level, what, remedy) = match trust.state {
        TrustState::Shared | TrustState::Confirmed => return None,
        TrustState::Unconfirmed => (
            Level::Warning,
            "the receiver stores entries as unconfirmed, because the device key is not confirmed",
            approve,
        ),
        TrustState::Pending => (
            Level::Failing,
            "the receiver accepts nothing until the device key is approved",
            approve,
        ),
        TrustState::NotEnrolled => {
            (Level::Failing, "the receiver refuses this device, which is not enrolled", approve)
        }
        TrustState::Revoked => (
            Level::Failing,
            "the receiver has revoked the key of this device, and nothing is delivered",
            "ask an operator of the receiver why; a revoked key stays revoked: to admit the machine \
             again, delete `device.key` in the state directory, restart the agent and have its new \
             key approved"
                .to_owned(),
        ),
        TrustState::ReceiptUntrusted => (
            Level::Failing,
            "answers are not signed by the receiver's pinned key, so nothing is deleted",
            "check for a proxy or another server at the endpoint, and compare the pinned keys \
             (`ai-agent device show`) with those of the receiver (`siem-server keys list`)"
                .to_owned(),
        ),
    };
    let cause = trust.problem.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    Some(Problem { level, what: format!("sink `{name}`: {what}{cause}"), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(state: TrustState) -> SinkStatus {
        let trust = ReceiverTrust {
            endpoint: "https://siem.example.com/".to_owned(),
            state,
            level: Some("enrolled".to_owned()),
            receiver: Some("siem.example.com".to_owned()),
            receiver_keys: Vec::new(),
            device_key: None,
            problem: None,
        };
        SinkStatus { name: "siem".to_owned(), trust: Some(trust), ..SinkStatus::default() }
    }

    #[test]
    fn each_state_has_its_level() {
        let level = |state| trust_problem(&sink(state), None).map(|problem| problem.level);
        assert_eq!(level(TrustState::Shared), None);
        assert_eq!(level(TrustState::Confirmed), None);
        assert_eq!(level(TrustState::Unconfirmed), Some(Level::Warning));
        for state in [
            TrustState::Pending,
            TrustState::NotEnrolled,
            TrustState::Revoked,
            TrustState::ReceiptUntrusted,
        ] {
            assert_eq!(level(state), Some(Level::Failing), "{state:?}");
        }
        assert_eq!(trust_problem(&SinkStatus::default(), None), None);
    }

    #[test]
    fn remedy_names_the_device() {
        let device = DeviceStatus { id: Some("00ff".to_owned()), ..DeviceStatus::default() };
        let mut sink = sink(TrustState::Pending);
        if let Some(trust) = &mut sink.trust {
            trust.problem = Some("no token".to_owned());
        }
        let problem = trust_problem(&sink, Some(&device)).unwrap();
        assert!(problem.what.ends_with("is approved: no token"), "{}", problem.what);
        assert!(
            problem.remedy.contains("`siem-server devices approve 00ff`"),
            "{}",
            problem.remedy
        );
    }

    #[test]
    fn state_is_shown_with_receiver_and_level() {
        let text = |state| trust_text(&sink(state).trust.unwrap());
        assert_eq!(
            text(TrustState::Confirmed),
            "confirmed, receiver siem.example.com, level enrolled"
        );
        assert_eq!(text(TrustState::Shared), "shared, since the receiver has no key");
    }
}
