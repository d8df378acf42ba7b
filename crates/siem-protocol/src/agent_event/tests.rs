//! Events as JSON, and their severity.

use serde_json::json;

use super::*;
use crate::names::{severity, source, violation};

#[test]
fn tag_equals_name_and_data_reads_back() {
    let events = [
        AgentEvent::AgentStopped {},
        AgentEvent::Heartbeat(Box::default()),
        AgentEvent::HookAnswered(Box::default()),
        AgentEvent::ConfigApplied {
            hash: Digest::ZERO,
            revision: None,
            previous_hash: Some(Digest::ZERO),
            previous_revision: Some(None),
        },
        AgentEvent::OutboxFull { lack: Shortage::Disk, outbox_bytes: 1, disk_free: None },
        AgentEvent::DeviceKeyCreated {
            key: "k".to_owned(),
            reason: DeviceKeyReason::OtherMachine,
            previous: None,
        },
        AgentEvent::PolicyTampered {
            path: "/p".to_owned(),
            file: PolicyFile::Policy,
            tampering: PolicyTampering::Deleted,
            expected_sha256: Digest::ZERO,
            found_sha256: None,
            restored: true,
        },
        AgentEvent::ReceiptUntrusted {
            sink: "s".to_owned(),
            status: 200,
            problem: UntrustedAnswer::WrongKey,
            epoch: None,
            last_seq: None,
        },
        AgentEvent::UpdateAvailable {
            from: "0.2.0".to_owned(),
            to: "0.3.0".to_owned(),
            reason: UpdateReason::MachineWide,
        },
        AgentEvent::UpdateRefused {
            from: "0.2.0".to_owned(),
            to: None,
            reason: UpdateReason::Manifest,
            detail: "d".to_owned(),
        },
    ];
    for event in events {
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], event.name());
        assert!(event.data().is_object(), "{json}");
        assert_eq!(serde_json::from_value::<AgentEvent>(json).unwrap(), event);
    }
}

#[test]
fn absent_members_differ_from_null() {
    let first = AgentEvent::ConfigApplied {
        hash: Digest::ZERO,
        revision: None,
        previous_hash: None,
        previous_revision: None,
    };
    assert_eq!(first.data(), json!({ "hash": Digest::ZERO, "revision": null }));
}

#[test]
fn severity_of_a_violation_follows_its_action() {
    for (action, severity) in [
        (ViolationAction::None, severity::WARNING),
        (ViolationAction::Warn, severity::HIGH),
        (ViolationAction::Block, severity::HIGH),
    ] {
        let event = AgentEvent::ComplianceViolation {
            violation: violation::NO_ACCOUNT.to_owned(),
            program: source::CLAUDE_CODE.to_owned(),
            file: "/h/.claude.json".to_owned(),
            who: None,
            found: String::new(),
            permitted: Vec::new(),
            action,
        };
        assert_eq!((event.severity(), event.source()), (severity, source::COMPLIANCE));
    }
}
