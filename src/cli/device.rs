//! `ai-agent device`: arguments and rendering.

use std::path::Path;

use clap::{Args, Subcommand};
use siem_protocol::agent_event::{DeviceKeyReason, ReceiverTrust};

use super::{
    context::CliContext, failure::Failure, output::print, status::trust_text::trust_text,
    terminal::plain,
};
use crate::control::{self, DeviceStatus, Request, Response, protocol::DeviceRequest};

/// Show and rotate the key with which this device signs what it sends
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show the public key of this device, and its state at each receiver
    Show {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Replace the key by a new one
    ///
    /// The epoch continues. The old key is kept until every receiver has confirmed the new one.
    Rotate,
}

impl Arguments {
    /// Returns true if the command changes no key.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.action, Action::Show { .. })
    }

    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let sources = CliContext::new(explicit)?.sources;
        let (request, json) = match self.action {
            Action::Show { json } => (DeviceRequest::Show, json),
            Action::Rotate => (DeviceRequest::Rotate, false),
        };
        let mut lines = Vec::new();
        control::execute(&sources, &Request::Device(request), &mut |response| {
            match response {
                Response::Device(status) if json => {
                    lines.push(format!("{:#}", serde_json::to_value(status)?));
                }
                Response::Device(status) => lines.extend(status_lines(&status)),
                Response::DeviceRotated { previous, key } => {
                    lines.push(format!("replaced the device key {previous}"));
                    lines.push(format!("by {key}"));
                }
                _ => {}
            }
            Ok(())
        })?;
        lines.iter().try_for_each(|line| print(format_args!("{line}")))
    }
}

fn status_lines(status: &DeviceStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: &str| lines.push(plain(&format!("{name:<12}{text}")));
    if let Some(problem) = &status.problem {
        line("problem", problem);
    }
    if let Some(key) = &status.key {
        line("key", key);
    }
    if let Some(id) = &status.id {
        line("id", id);
    }
    if !status.machine_id.is_empty() {
        line("machine", &status.machine_id);
    }
    if let (Some(at), Some(reason)) = (&status.created_at, status.reason) {
        line("made", &format!("{at}, {}", cause(reason)));
    }
    if let Some(previous) = &status.previous_key {
        line("previous", &format!("{previous}, until every receiver has confirmed the key"));
    }
    for receiver in &status.receivers {
        line("receiver", &format!("{}: {}", receiver.endpoint, trust_text(receiver)));
        receiver_details(receiver).iter().for_each(|detail| line("", detail));
    }
    lines
}

fn receiver_details(receiver: &ReceiverTrust) -> Vec<String> {
    let keys = receiver.receiver_keys.iter().map(|key| format!("its key {key}"));
    keys.chain(receiver.problem.clone()).collect()
}

fn cause(reason: DeviceKeyReason) -> &'static str {
    match reason {
        DeviceKeyReason::First => "the first key of this device",
        DeviceKeyReason::Missing => "since the key before was deleted",
        DeviceKeyReason::Damaged => "since the file of the key before was damaged",
        DeviceKeyReason::OtherMachine => "since the key before was made on another machine",
        DeviceKeyReason::OtherUser => "since the key before was made for another user",
        DeviceKeyReason::Cloned => "since two agents used the key before",
        DeviceKeyReason::Rotated => "by rotation",
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::agent_event::TrustState;

    use super::*;

    #[test]
    fn status_lists_keys_and_receivers() {
        let receiver = ReceiverTrust {
            endpoint: "https://siem.example.com/".to_owned(),
            state: TrustState::Pending,
            level: Some("enrolled".to_owned()),
            receiver: Some("siem.example.com".to_owned()),
            receiver_keys: vec!["siem.example.com+1+AB".to_owned()],
            device_key: None,
            problem: Some("approve it".to_owned()),
        };
        let status = DeviceStatus {
            key: Some("ai-agent-device+2+CD".to_owned()),
            id: Some("00ff".to_owned()),
            machine_id: "m\n1".to_owned(),
            created_at: Some("then".to_owned()),
            reason: Some(DeviceKeyReason::Rotated),
            previous_key: Some("ai-agent-device+3+EF".to_owned()),
            receivers: vec![receiver],
            ..DeviceStatus::default()
        };
        let expected = "\
key         ai-agent-device+2+CD
id          00ff
machine     m 1
made        then, by rotation
previous    ai-agent-device+3+EF, until every receiver has confirmed the key
receiver    https://siem.example.com/: waits for approval, receiver siem.example.com, level enrolled
            its key siem.example.com+1+AB
            approve it";
        assert_eq!(status_lines(&status).join("\n"), expected);
    }

    #[test]
    fn device_without_key_shows_the_problem() {
        let problem = Some("there is no device key".to_owned());
        let status = DeviceStatus { problem, ..DeviceStatus::default() };
        assert_eq!(status_lines(&status), ["problem     there is no device key"]);
    }
}
