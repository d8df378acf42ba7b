//! Result of one check, and its rendering.

use serde_json::{Value, json};

use crate::{
    cli::terminal::{Colours, plain, wrap},
    config::LoadedConfig,
    stages::AgentContext,
};

/// Width of the subject in front of the text.
const SUBJECT_WIDTH: usize = 13;
/// Width of everything in front of the text.
const INDENT: usize = 4 + 2 + SUBJECT_WIDTH + 2;

/// Configuration and context that the checks inspect.
pub(super) struct Checkup {
    pub(super) loaded: LoadedConfig,
    pub(super) context: AgentContext,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct CheckResult {
    /// The subject; its stable code in JSON, with `_` in place of spaces.
    pub(super) subject: &'static str,
    pub(super) outcome: CheckOutcome,
    /// The finding and the remedy.
    pub(super) text: String,
}

/// Outcome of one check, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CheckOutcome {
    Ok,
    Warn,
    Fail,
}

impl CheckOutcome {
    /// Name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl CheckResult {
    pub(super) fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, outcome: CheckOutcome::Ok, text: text.into() }
    }

    pub(super) fn warn(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, outcome: CheckOutcome::Warn, text: text.into() }
    }

    /// A check that could prove nothing.
    pub(super) fn not_verified(subject: &'static str, text: impl std::fmt::Display) -> Self {
        Self::warn(subject, format!("not verified: {text}"))
    }

    pub(super) fn fail(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, outcome: CheckOutcome::Fail, text: text.into() }
    }

    /// Returns the result as `--json` prints it. The code is the subject.
    pub(super) fn json(&self) -> Value {
        json!({
            "code": self.subject.to_lowercase().replace(' ', "_"),
            "outcome": self.outcome.name(),
            "text": self.text,
        })
    }

    /// Renders the result in one or more lines.
    pub(super) fn render(&self, colours: Colours, width: Option<usize>) -> String {
        let outcome = match self.outcome {
            CheckOutcome::Ok => colours.green("ok  "),
            CheckOutcome::Warn => colours.yellow("warn"),
            CheckOutcome::Fail => colours.red("FAIL"),
        };
        let lines = wrap(&self.text, width.map(|width| width.saturating_sub(INDENT)));
        // The name of a file and the text of a receiver must not move the cursor.
        let lines: Vec<String> = lines.iter().map(|line| plain(line)).collect();
        let text = lines.join(&format!("\n{:INDENT$}", ""));
        format!("{outcome}  {:<SUBJECT_WIDTH$}  {text}", self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_wrapped_behind_its_subject() {
        let text = "`/etc/ai-agent/token` cannot be read: permission denied (os error 13)";
        let result = CheckResult::fail("token", text);
        let expected = "\
FAIL  token          `/etc/ai-agent/token` cannot be read:
                     permission denied (os error 13)";
        assert_eq!(result.render(Colours::None, Some(64)), expected);
        let two = CheckResult::fail("sessions", "`/x/\u{1b}[2J`\r\nand more");
        let expected = "FAIL  sessions       `/x/ [2J`\n                     and more";
        assert_eq!(two.render(Colours::None, None), expected);
        assert_eq!(
            CheckResult::ok("disk", "fine").render(Colours::Shown, None),
            "\x1b[32mok  \x1b[0m  disk           fine"
        );
    }
}
