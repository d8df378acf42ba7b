//! What there is to report of who is signed in: once when it begins, once a day while it lasts, and
//! when it ends.
//!
//! A pure function of what was found before and what is found now. What is not known changes
//! nothing: the client's file is half-written many times a day.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    AgentEvent,
    event::{AccountIdentity, ViolationAction},
    managed::{Action, Compliance},
    names::violation,
};

use super::{
    account::{Account, SignInState},
    policy::{self, Evaluation, PolicyFinding},
};
use crate::{event::Event, platform::Timestamp};

/// How often a violation that lasts is reported.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// What was reported, kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationTracker {
    /// By the program and the place that says who is signed in, and by the rule.
    standing: BTreeMap<String, BTreeMap<String, ReportedViolation>>,
}

/// A violation that was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ReportedViolation {
    found: String,
    at: Timestamp,
}

impl ViolationTracker {
    /// Judges all accounts, and says what there is to report now.
    pub fn observe(
        &mut self,
        accounts: &[Account],
        policy: &Compliance,
        now: Timestamp,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for account in accounts {
            let evaluation = policy::evaluate(&account.standing, policy);
            self.observe_one(account, &evaluation, policy, now, &mut events);
        }
        // A program that is gone is in no violation any more; nothing was found to restore.
        let is_there = |key: &String| accounts.iter().any(|account| key_of(account) == *key);
        self.standing.retain(|key, rules| is_there(key) && !rules.is_empty());
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
        let standing = self.standing.entry(key_of(account)).or_default();
        let acted_on = evaluation.violations.iter().map(|finding| (finding, true));
        let noted = evaluation.remarks.iter().map(|finding| (finding, false));
        for (finding, is_acted_on) in acted_on.chain(noted) {
            let known = standing.get(&finding.rule);
            let is_new = known.is_none_or(|said| {
                // A clock that was set back must not make it silent for years.
                said.found != finding.found || now < said.at || now.since(said.at) >= AGAIN
            });
            if is_new {
                let said = ReportedViolation { found: finding.found.clone(), at: now };
                standing.insert(finding.rule.clone(), said);
                events.push(violation_of(account, finding, policy, is_acted_on));
            }
        }
        let lasts = |rule: &str| {
            let mut found = evaluation.violations.iter().chain(&evaluation.remarks);
            let is_unknown = evaluation.unknown.iter().any(|unknown| unknown.rule == rule);
            // Without an account nobody can say whether the key is still used.
            let is_hidden = rule == violation::NO_ACCOUNT
                && matches!(account.standing, SignInState::Unknown(_));
            is_unknown || is_hidden || found.any(|finding| finding.rule == rule)
        };
        standing.retain(|rule, said| {
            let lasts = lasts(rule);
            if !lasts {
                events.push(restored(account, rule, said));
            }
            lasts
        });
    }
}

fn key_of(account: &Account) -> String {
    format!("{} {}", account.source, account.place.display())
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
        file: account.place.to_string_lossy().into_owned(),
        who: identity(account),
        found: finding.found.clone(),
        permitted: finding.permitted.clone(),
        action,
    };
    violation.into()
}

fn restored(account: &Account, rule: &str, said: &ReportedViolation) -> Event {
    let restored = AgentEvent::ComplianceRestored {
        violation: rule.to_owned(),
        program: account.source.to_owned(),
        file: account.place.to_string_lossy().into_owned(),
        who: identity(account),
        found_before: said.found.clone(),
    };
    restored.into()
}

fn identity(account: &Account) -> Option<AccountIdentity> {
    match &account.standing {
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

    fn account(standing: SignInState) -> [Account; 1] {
        [Account { source: source::CLAUDE_CODE, place: "/h/.claude.json".into(), standing }]
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
    fn a_violation_is_said_when_it_begins_changes_lasts_a_day_and_ends() {
        let mut reported = ViolationTracker::default();
        let mut at = |accounts: &[Account], now| {
            // What was said is kept over a restart.
            let kept = serde_json::to_string(&reported).unwrap();
            reported = serde_json::from_str(&kept).unwrap();
            reported.observe(accounts, &policy(), Timestamp(now))
        };
        assert_eq!(names(&at(&who("me@company.com"), 0)), [""; 0]);
        let first = at(&who("me@gmail.com"), 1);
        assert_eq!(names(&first), ["violation"]);
        assert!(first[0].is_urgent());
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
    fn a_policy_that_changes_is_judged_anew() {
        let mut reported = ViolationTracker::default();
        let now = Timestamp(1);
        assert_eq!(names(&reported.observe(&who("me@gmail.com"), &policy(), now)), ["violation"]);
        let open = Compliance::default();
        assert_eq!(names(&reported.observe(&who("me@gmail.com"), &open, now)), ["restored"]);
        assert_eq!(reported.observe(&[], &policy(), now), []);
    }

    #[test]
    fn a_key_is_reported_and_only_acted_on_where_an_account_is_required() {
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
