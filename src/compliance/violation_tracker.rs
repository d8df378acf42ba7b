//! Tracks which violations were reported: each is reported once when it starts, once a day while it
//! lasts, and when it ends.
//!
//! A pure function of the previous and the current state. Unknown facts change nothing, since the
//! client's file is incomplete many times a day.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    AgentEvent,
    agent_event::{AccountIdentity, ViolationAction},
    managed::{Action, Compliance},
    names::violation,
};

use super::{
    account::{Account, SignInState},
    policy::{self, Evaluation, PolicyFinding},
    unknown_accounts::UnknownAccounts,
};
use crate::{event::Event, platform::Timestamp};

/// Interval at which a lasting violation is reported again.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Violations that were reported; stored across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationTracker {
    /// Violations by program and file, and by rule.
    #[serde(rename = "standing")]
    violations: BTreeMap<String, BTreeMap<String, ReportedViolation>>,
    /// Accounts that cannot be determined.
    #[serde(default, skip_serializing_if = "UnknownAccounts::is_empty")]
    pub unknown: UnknownAccounts,
}

/// Violation that was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ReportedViolation {
    found: String,
    at: Timestamp,
}

impl ViolationTracker {
    /// Evaluates all accounts and returns the events to report now.
    pub fn observe(
        &mut self,
        accounts: &[Account],
        policy: &Compliance,
        now: Timestamp,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for account in accounts {
            let evaluation = policy::evaluate(&account.state, policy);
            self.observe_one(account, &evaluation, policy, now, &mut events);
        }
        // A program that was removed is in violation no longer, and nothing was found to restore.
        let is_there = |key: &String| accounts.iter().any(|account| key_of(account) == *key);
        self.violations.retain(|key, rules| is_there(key) && !rules.is_empty());
        events
    }

    fn observe_one(
        &mut self,
        account: &Account,
        evaluation: &Evaluation,
        policy: &Compliance,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) {
        let violations = self.violations.entry(key_of(account)).or_default();
        let acted_on = evaluation.violations.iter().map(|finding| (finding, true));
        let noted = evaluation.remarks.iter().map(|finding| (finding, false));
        for (finding, is_acted_on) in acted_on.chain(noted) {
            let known = violations.get(&finding.rule);
            let is_new = known.is_none_or(|reported| {
                // A clock that was set back must not suppress reports for years.
                reported.found != finding.found || now < reported.at || now - reported.at >= AGAIN
            });
            if is_new {
                let reported = ReportedViolation { found: finding.found.clone(), at: now };
                violations.insert(finding.rule.clone(), reported);
                events.push(violation_of(account, finding, policy, is_acted_on));
            }
        }
        let lasts = |rule: &str| {
            let mut found = evaluation.violations.iter().chain(&evaluation.remarks);
            let is_unknown = evaluation.unknown.iter().any(|unknown| unknown.rule == rule);
            // With an unknown account it cannot be decided whether the key is still used.
            let is_hidden =
                rule == violation::NO_ACCOUNT && matches!(account.state, SignInState::Unknown(_));
            is_unknown || is_hidden || found.any(|finding| finding.rule == rule)
        };
        violations.retain(|rule, reported| {
            let lasts = lasts(rule);
            if !lasts {
                events.push(restored(account, rule, reported));
            }
            lasts
        });
    }
}

fn key_of(account: &Account) -> String {
    format!("{} {}", account.source, account.path.display())
}

fn violation_of(
    account: &Account,
    finding: &PolicyFinding,
    policy: &Compliance,
    is_acted_on: bool,
) -> Event {
    let action = match policy.action {
        _ if !is_acted_on => ViolationAction::None,
        Some(Action::Block) => ViolationAction::Block,
        Some(Action::Warn) | None => ViolationAction::Warn,
    };
    let violation = AgentEvent::ComplianceViolation {
        violation: finding.rule.clone(),
        program: account.source.to_owned(),
        file: account.path.to_string_lossy().into_owned(),
        who: identity(account),
        found: finding.found.clone(),
        permitted: finding.permitted.clone(),
        action,
    };
    violation.into()
}

fn restored(account: &Account, rule: &str, reported: &ReportedViolation) -> Event {
    let restored = AgentEvent::ComplianceRestored {
        violation: rule.to_owned(),
        program: account.source.to_owned(),
        file: account.path.to_string_lossy().into_owned(),
        who: identity(account),
        found_before: reported.found.clone(),
    };
    restored.into()
}

fn identity(account: &Account) -> Option<AccountIdentity> {
    match &account.state {
        SignInState::SignedIn(who) => Some(who.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use siem_protocol::names::source;

    use super::*;
    use crate::compliance::account::SignedInAccount;

    const DAY: u64 = 24 * 3600 * 1000;

    fn account(state: SignInState) -> [Account; 1] {
        [Account { source: source::CLAUDE_CODE, path: "/h/.claude.json".into(), state }]
    }

    fn who(email: &str) -> [Account; 1] {
        account(SignInState::SignedIn(SignedInAccount {
            email: Some(email.into()),
            ..SignedInAccount::default()
        }))
    }

    fn policy() -> Compliance {
        let permitted_email_domains = Some(vec!["company.com".into()]);
        let action = Some(Action::Block);
        Compliance { permitted_email_domains, action, ..Compliance::default() }
    }

    fn names(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.name.trim_start_matches("compliance_")).collect()
    }

    #[test]
    fn violation_is_reported_on_start_change_each_day_and_end() {
        let mut reported = ViolationTracker::default();
        let mut at = |accounts: &[Account], now| {
            // The state is stored across a restart.
            let stored = serde_json::to_string(&reported).unwrap();
            reported = serde_json::from_str(&stored).unwrap();
            reported.observe(accounts, &policy(), Timestamp(now))
        };
        assert_eq!(names(&at(&who("me@company.com"), 0)), [""; 0]);
        let first = at(&who("me@gmail.com"), 1);
        assert_eq!(names(&first), ["violation"]);
        assert_eq!(first[0].severity, "high");
        assert_eq!(first[0].source, "compliance");
        let data = json!({
            "violation": "email_domain", "program": "claude-code", "file": "/h/.claude.json",
            "who": { "email": "me@gmail.com" }, "found": "me@gmail.com",
            "permitted": ["company.com"], "action": "block",
        });
        assert_eq!(first[0].data, data);
        assert_eq!(names(&at(&who("me@gmail.com"), 2)), [""; 0]);
        assert_eq!(names(&at(&who("other@gmail.com"), 3)), ["violation"]);
        assert_eq!(names(&at(&who("other@gmail.com"), DAY + 2)), [""; 0]);
        assert_eq!(names(&at(&who("other@gmail.com"), DAY + 3)), ["violation"]);
        // A clock that was set back.
        assert_eq!(names(&at(&who("other@gmail.com"), 5)), ["violation"]);
        let unknown = account(SignInState::Unknown("half-written".into()));
        assert_eq!(names(&at(&unknown, 6)), [""; 0]);
        assert_eq!(names(&at(&who("other@gmail.com"), 7)), [""; 0], "it was never restored");
        let restored = at(&who("me@company.com"), 8);
        assert_eq!(names(&restored), ["restored"]);
        assert_eq!(restored[0].data["found_before"], "other@gmail.com");
        assert_eq!(names(&at(&who("me@company.com"), 9)), [""; 0]);
    }

    #[test]
    fn changed_policy_is_evaluated_again() {
        let mut reported = ViolationTracker::default();
        let now = Timestamp(1);
        assert_eq!(names(&reported.observe(&who("me@gmail.com"), &policy(), now)), ["violation"]);
        let open = Compliance::default();
        assert_eq!(names(&reported.observe(&who("me@gmail.com"), &open, now)), ["restored"]);
        assert_eq!(reported.observe(&[], &policy(), now), []);
    }

    #[test]
    fn key_is_reported_and_acted_on_only_if_account_required() {
        let key = account(SignInState::Key("ANTHROPIC_API_KEY".into()));
        for (required, level, action) in [(false, "warning", "none"), (true, "high", "block")] {
            let policy = Compliance { require_account: Some(required), ..policy() };
            let events = ViolationTracker::default().observe(&key, &policy, Timestamp(1));
            assert_eq!((names(&events), events[0].severity), (vec!["violation"], level));
            assert_eq!(events[0].data["violation"], "no_account");
            assert_eq!(events[0].data["action"], action);
        }
    }
}
