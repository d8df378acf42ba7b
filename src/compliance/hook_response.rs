//! Response to a hook of Claude Code: a pure function of the evaluation and the policy.
//!
//! Observed behaviour of the client: exit code 2 blocks a prompt and shows stderr, while at the
//! start of a session it only shows it. Every other exit code lets the prompt through.
//! `systemMessage` is shown to the user, `additionalContext` is passed to the model. `"continue":
//! false` is never used, because it keeps the prompt for later.

use std::fmt;

use serde_json::json;
use siem_protocol::{
    managed::{Action, Compliance, OnUnknown},
    names::violation,
};

use super::policy::{Evaluation, PolicyFinding};

/// Maximum number of characters. The client writes a longer text to a file and shows only its
/// start.
const LONGEST: usize = 8000;
/// Maximum number of permitted domains or organisations in a message.
const NAMED: usize = 5;

/// Event of the client that calls a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A session starts or is resumed.
    SessionStart,
    /// The user has sent a prompt.
    UserPromptSubmit,
}

/// Decision about a session or a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No objection.
    Allowed,
    /// The user is warned and may continue.
    Warned,
    /// Prompts are blocked.
    Blocked,
}

/// Output and exit code of a hook process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookResponse {
    /// Decision.
    pub decision: Decision,
    /// JSON that the client reads, or nothing.
    pub stdout: String,
    /// Message that the user sees if a prompt is blocked.
    pub stderr: String,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 2] = [Self::SessionStart, Self::UserPromptSubmit];

    /// Returns the client's name of the event.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionStart => "SessionStart",
            Self::UserPromptSubmit => "UserPromptSubmit",
        }
    }

    /// Returns the hook with the client's name `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }
}

impl Decision {
    /// Returns the name used in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Blocked => "blocked",
        }
    }
}

impl HookResponse {
    /// Returns the response to `hook`.
    #[must_use]
    pub fn new(hook: Hook, evaluation: &Evaluation, policy: &Compliance) -> Self {
        let banner = policy.banner.as_deref().map(printable).filter(|banner| !banner.is_empty());
        let Some(objection) = Objection::new(evaluation, policy) else {
            let output = match (hook, banner) {
                (Hook::SessionStart, Some(banner)) => {
                    json!({ "systemMessage": cut(banner) }).to_string()
                }
                _ => String::new(),
            };
            return Self::with_stdout(Decision::Allowed, output);
        };
        let Objection { message, blocks } = objection;
        if blocks {
            return Self::blocked(message);
        }
        let reminder = format!("{message}\n\nTell the user so before anything else.");
        let context = json!({
            "hookEventName": hook.name(), "additionalContext": cut(reminder),
        });
        let output = match hook {
            Hook::SessionStart => {
                let seen = banner.into_iter().chain([message]).collect::<Vec<_>>().join("\n\n");
                json!({ "systemMessage": cut(seen), "hookSpecificOutput": context })
            }
            Hook::UserPromptSubmit => json!({ "hookSpecificOutput": context }),
        };
        Self::with_stdout(Decision::Warned, output.to_string())
    }

    /// Returns a response that blocks with a message of full sentences.
    #[must_use]
    pub fn blocked(message: String) -> Self {
        Self { decision: Decision::Blocked, stdout: String::new(), stderr: cut(message) }
    }

    fn with_stdout(decision: Decision, stdout: String) -> Self {
        Self { decision, stdout, stderr: String::new() }
    }

    /// Returns the exit code: the client takes 2 as a block, 0 as a response, and others as an
    /// error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.decision == Decision::Blocked { 2 } else { 0 }
    }
}

/// Objection of the policy to an account.
struct Objection {
    /// Message to the user.
    message: String,
    /// True if prompts are blocked.
    blocks: bool,
}

impl Objection {
    /// Returns the objection, if there is one.
    fn new(evaluation: &Evaluation, policy: &Compliance) -> Option<Self> {
        let on_unknown = policy.on_unknown.unwrap_or_default();
        let is_unknown = !evaluation.unknown.is_empty() && on_unknown != OnUnknown::Allow;
        let violation = evaluation.is_violation().then(|| message(evaluation, policy));
        let unknown = is_unknown.then(|| unknown_message(evaluation));
        let blocks = violation.is_some() && policy.action == Some(Action::Block)
            || unknown.is_some() && on_unknown == OnUnknown::Block;
        let messages: Vec<String> = violation.into_iter().chain(unknown).collect();
        (!messages.is_empty()).then(|| Self { message: messages.join("\n\n"), blocks })
    }
}

/// Returns the message to a user whose account cannot be determined.
fn unknown_message(evaluation: &Evaluation) -> String {
    let why = evaluation.unknown.first().map(|unknown| printable(&unknown.why));
    format!(
        "Your organisation's policy depends on the account that Claude Code uses, and ai-agent cannot \
         determine it: {}.\nSign in with a permitted account: `/login` in Claude Code. If you are \
         signed in, try again.",
        why.unwrap_or_default()
    )
}

/// Returns the message to the user: the finding, the policy, and the remedy.
#[must_use]
pub fn message(evaluation: &Evaluation, policy: &Compliance) -> String {
    let own = policy.violation_message.as_deref().map(printable).filter(|own| !own.is_empty());
    let own = own.unwrap_or_else(|| {
        "Your organisation does not permit the account that Claude Code uses.".to_owned()
    });
    let found = evaluation.violations.iter().map(|finding| Sentence(finding).to_string());
    let has_key = evaluation.violations.iter().any(|finding| finding.rule == violation::NO_ACCOUNT);
    let remedy = if has_key {
        "Unset that variable and sign in with a permitted account: `/login` in Claude Code."
    } else {
        "Sign in with a permitted account: `/login` in Claude Code."
    };
    [own].into_iter().chain(found).chain([remedy.to_owned()]).collect::<Vec<_>>().join("\n")
}

/// Sentence with the value found and the permitted values.
struct Sentence<'a>(&'a PolicyFinding);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PolicyFinding { rule, found, permitted } = self.0;
        let (found, permitted) = (printable(found), Permitted(permitted));
        match rule.as_str() {
            violation::EMAIL_DOMAIN => write!(
                f,
                "Claude Code is signed in as {found}; your organisation's policy permits addresses of \
                 {permitted}."
            ),
            violation::ORG_ID => write!(
                f,
                "Claude Code is signed in for the organisation {found}; your organisation's policy \
                 permits {permitted}."
            ),
            _ => write!(
                f,
                "Claude Code uses {found} instead of an account; your organisation's policy requires \
                 an account."
            ),
        }
    }
}

/// First entries of the permitted values.
struct Permitted<'a>(&'a [String]);

impl fmt::Display for Permitted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = self.0.iter().take(NAMED).map(|name| printable(name)).collect();
        f.write_str(&named.join(", "))?;
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Removes control characters from text of a file or a server, so that a terminal can show it.
fn printable(text: &str) -> String {
    let is_shown = |symbol: &char| !symbol.is_control() || *symbol == '\n';
    text.trim().chars().filter(is_shown).collect()
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::compliance::account::{SignInState, SignedInAccount};

    fn policy(action: Option<Action>) -> Compliance {
        Compliance {
            permitted_email_domains: Some(vec!["company.com".into(), "*.company.com".into()]),
            banner: Some("This session is logged.".into()),
            violation_message: Some("Personal accounts are not permitted.".into()),
            action,
            ..Compliance::default()
        }
    }

    fn evaluation(email: &str, policy: &Compliance) -> Evaluation {
        let who = SignedInAccount { email: Some(email.into()), ..SignedInAccount::default() };
        super::super::policy::evaluate(&SignInState::SignedIn(who), policy)
    }

    fn answer(hook: Hook, email: &str, policy: &Compliance) -> (HookResponse, Value) {
        let answer = HookResponse::new(hook, &evaluation(email, policy), policy);
        let json = serde_json::from_str(&answer.stdout).unwrap_or_default();
        (answer, json)
    }

    const MESSAGE: &str = "Personal accounts are not permitted.\nClaude Code is signed in as \
        me@gmail.com; your organisation's policy permits addresses of company.com, \
        *.company.com.\nSign in with a permitted account: `/login` in Claude Code.";

    #[test]
    fn compliant_user_sees_only_the_banner() {
        let without_output = HookResponse::with_stdout(Decision::Allowed, String::new());
        for action in [None, Some(Action::Warn), Some(Action::Block)] {
            let policy = policy(action);
            let (start, json) = answer(Hook::SessionStart, "me@company.com", &policy);
            assert_eq!(json, json!({ "systemMessage": "This session is logged." }));
            assert_eq!((start.exit_code(), start.stderr.as_str()), (0, ""));
            let (prompt, _) = answer(Hook::UserPromptSubmit, "me@company.com", &policy);
            assert_eq!(prompt, without_output);
            let silent = Compliance { banner: Some(" ".into()), ..policy };
            let (start, _) = answer(Hook::SessionStart, "me@company.com", &silent);
            assert_eq!(start, without_output);
        }
    }

    #[test]
    fn warning_is_shown_to_user_and_model() {
        for action in [None, Some(Action::Warn)] {
            let policy = policy(action);
            let (start, json) = answer(Hook::SessionStart, "me@gmail.com", &policy);
            assert_eq!((start.exit_code(), start.decision), (0, Decision::Warned));
            assert_eq!(json["systemMessage"], format!("This session is logged.\n\n{MESSAGE}"));
            assert_eq!(json["hookSpecificOutput"]["hookEventName"], "SessionStart");
            let (prompt, json) = answer(Hook::UserPromptSubmit, "me@gmail.com", &policy);
            assert_eq!((prompt.exit_code(), prompt.decision), (0, Decision::Warned));
            assert_eq!(json["hookSpecificOutput"]["hookEventName"], "UserPromptSubmit");
            let context = json["hookSpecificOutput"]["additionalContext"].as_str().unwrap();
            assert!(context.starts_with(MESSAGE), "{context}");
            assert_eq!(json.as_object().unwrap().len(), 1);
        }
    }

    #[test]
    fn block_exits_2_with_the_message_on_stderr() {
        let policy = policy(Some(Action::Block));
        for hook in Hook::ALL {
            let (answer, _) = answer(hook, "me@gmail.com", &policy);
            assert_eq!(answer.exit_code(), 2);
            assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("", MESSAGE));
        }
    }

    #[test]
    fn unknown_account_is_answered_by_its_own_option() {
        let unknown = super::super::policy::evaluate(
            &SignInState::Unknown("it is half written".into()),
            &policy(Some(Action::Block)),
        );
        for (on_unknown, decision) in [
            (None, Decision::Allowed),
            (Some(OnUnknown::Allow), Decision::Allowed),
            (Some(OnUnknown::Warn), Decision::Warned),
            (Some(OnUnknown::Block), Decision::Blocked),
        ] {
            let policy = Compliance { on_unknown, ..policy(Some(Action::Block)) };
            for hook in Hook::ALL {
                let response = HookResponse::new(hook, &unknown, &policy);
                assert_eq!(response.decision, decision, "{on_unknown:?}");
                let text = response.stdout + &response.stderr;
                assert_eq!(
                    text.contains("half written"),
                    decision != Decision::Allowed,
                    "{on_unknown:?}: {text}"
                );
            }
            // No rule depends on the account.
            let open = Compliance { on_unknown, ..Compliance::default() };
            let response = HookResponse::new(Hook::UserPromptSubmit, &Evaluation::default(), &open);
            assert_eq!(response.decision, Decision::Allowed);
        }
        // A violation that only warns does not weaken the block.
        let policy = Compliance {
            permitted_org_ids: Some(vec!["o-1".into()]),
            on_unknown: Some(OnUnknown::Block),
            ..policy(Some(Action::Warn))
        };
        let response = HookResponse::new(
            Hook::UserPromptSubmit,
            &evaluation("me@gmail.com", &policy),
            &policy,
        );
        assert_eq!(response.decision, Decision::Blocked);
        assert!(
            response.stderr.contains("me@gmail.com") && response.stderr.contains("organisation")
        );
    }

    #[test]
    fn message_states_finding_policy_and_remedy() {
        let bare = Compliance {
            permitted_org_ids: Some((1..9).map(|n| format!("org-{n}")).collect()),
            require_account: Some(true),
            ..Compliance::default()
        };
        let who =
            SignedInAccount { organization: Some("mine".into()), ..SignedInAccount::default() };
        let text = |state| message(&super::super::policy::evaluate(&state, &bare), &bare);
        assert_eq!(
            text(SignInState::SignedIn(who)),
            "Your organisation does not permit the account that Claude Code uses.\nClaude Code is \
             signed in for the organisation mine; your organisation's policy permits org-1, org-2, \
             org-3, org-4, org-5 and 3 more.\nSign in with a permitted account: `/login` in Claude \
             Code."
        );
        assert_eq!(
            text(SignInState::Key("ANTHROPIC_API_KEY".into())),
            "Your organisation does not permit the account that Claude Code uses.\nClaude Code uses \
             ANTHROPIC_API_KEY instead of an account; your organisation's policy requires an \
             account.\nUnset that variable and sign in with a permitted account: `/login` in Claude \
             Code."
        );
    }

    /// Text of a user's file is shown in a terminal.
    #[test]
    fn response_has_no_control_characters_and_a_limited_length() {
        let mut policy = policy(Some(Action::Block));
        let (response, _) = answer(Hook::UserPromptSubmit, "\u{1b}[2Jme\u{7}@gmail.com\r", &policy);
        assert!(response.stderr.contains("as [2Jme@gmail.com;"), "{}", response.stderr);
        policy.violation_message = Some("ü".repeat(20_000));
        policy.banner = Some("ü".repeat(20_000));
        let (response, _) = answer(Hook::UserPromptSubmit, "me@gmail.com", &policy);
        assert!(response.stderr.chars().count() < 10_000);
        policy.action = None;
        let (_, json) = answer(Hook::SessionStart, "me@gmail.com", &policy);
        assert!(json["systemMessage"].as_str().unwrap().chars().count() < 10_000);
    }
}
