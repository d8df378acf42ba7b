//! Tracks the accounts that cannot be determined: each is reported once a day while that lasts.
//!
//! The client rewrites its file many times a day, so an account counts as unknown only after a while.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    AgentEvent,
    agent_event::{UncheckedRule, ViolationAction},
    managed::{Compliance, OnUnknown},
};

use super::{
    account::Account,
    policy::{self, UndecidedRule},
};
use crate::{event::Event, platform::Timestamp};

/// Time for which an account must be unknown before it is reported.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shortest time between two reports of one account.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Accounts that cannot be determined, by program and file; stored across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownAccounts(BTreeMap<String, UnknownAccount>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct UnknownAccount {
    /// Time since which the account is unknown; `None` while it is known.
    since: Option<Timestamp>,
    /// Time of the last report.
    reported: Option<Timestamp>,
}

impl UnknownAccounts {
    /// Returns true if nothing has to be stored.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the events to report now about accounts on which rules of the policy depend.
    pub fn observe(
        &mut self,
        accounts: &[&Account],
        policy: &Compliance,
        now: Timestamp,
    ) -> Vec<Event> {
        for account in self.0.values_mut() {
            account.reported = account.reported.filter(|at| *at <= now && now - *at < AGAIN);
        }
        let mut events = Vec::new();
        let mut unknown = BTreeMap::new();
        for account in accounts {
            let undecided = policy::evaluate(&account.state, policy).unknown;
            if undecided.is_empty() {
                continue;
            }
            let key = format!("{} {}", account.source, account.path.display());
            let mut known = self.0.remove(&key).unwrap_or_default();
            // A clock that was set back starts the time again.
            let since = known.since.filter(|since| *since <= now).unwrap_or(now);
            known.since = Some(since);
            if now - since >= PATIENCE && known.reported.is_none() {
                known.reported = Some(now);
                events.push(event(account, &undecided, policy));
            }
            unknown.insert(key, known);
        }
        // An account that is known by now is remembered as long as it must not be reported again.
        self.0.retain(|_, account| {
            account.since = None;
            account.reported.is_some()
        });
        self.0.append(&mut unknown);
        events
    }
}

fn event(account: &Account, undecided: &[UndecidedRule], policy: &Compliance) -> Event {
    let action = match policy.on_unknown.unwrap_or_default() {
        OnUnknown::Allow => ViolationAction::None,
        OnUnknown::Warn => ViolationAction::Warn,
        OnUnknown::Block => ViolationAction::Block,
    };
    let unknown = AgentEvent::AccountUnknown {
        program: account.source.to_owned(),
        file: account.path.to_string_lossy().into_owned(),
        unknown: undecided.iter().map(UncheckedRule::from).collect(),
        action,
    };
    unknown.into()
}

#[cfg(test)]
mod tests {
    use siem_protocol::names::source;

    use super::*;
    use crate::compliance::{SignInState, account::SignedInAccount};

    const MINUTE: u64 = 60_000;
    const DAY: u64 = 24 * 60 * MINUTE;

    fn policy() -> Compliance {
        let permitted_email_domains = Some(vec!["company.com".into()]);
        Compliance { permitted_email_domains, ..Compliance::default() }
    }

    fn account(email: Option<&str>) -> Account {
        let state = match email {
            Some(email) => SignInState::SignedIn(SignedInAccount {
                email: Some(email.into()),
                ..SignedInAccount::default()
            }),
            None => SignInState::Unknown("it is half written".into()),
        };
        Account { source: source::CLAUDE_CODE, path: "/h/.claude.json".into(), state }
    }

    #[test]
    fn unknown_account_is_reported_after_a_minute_and_once_a_day() {
        let mut accounts = UnknownAccounts::default();
        let table = [
            (0, None, 0),
            (MINUTE - 1, None, 0),
            (MINUTE, None, 1),
            (2 * MINUTE, None, 0),
            (3 * MINUTE, Some("me@company.com"), 0),
            (4 * MINUTE, None, 0),
            (6 * MINUTE, None, 0),
            (MINUTE + DAY - 1, None, 0),
            (MINUTE + DAY, None, 1),
            (2 * MINUTE + DAY, Some("me@gmail.com"), 0),
            // A clock that was set back.
            (5, None, 0),
            (5 + MINUTE, None, 1),
        ];
        for (at, email, expected) in table {
            let stored = serde_json::to_string(&accounts).unwrap();
            accounts = serde_json::from_str(&stored).unwrap();
            let events = accounts.observe(&[&account(email)], &policy(), Timestamp(at));
            assert_eq!(events.len(), expected, "{at}");
        }
    }

    #[test]
    fn account_without_a_rule_is_not_reported() {
        let mut accounts = UnknownAccounts::default();
        for at in [0, MINUTE, DAY] {
            let events = accounts.observe(&[&account(None)], &Compliance::default(), Timestamp(at));
            assert_eq!(events, []);
        }
        assert!(accounts.is_empty());
    }

    #[test]
    fn event_names_rule_and_action() {
        let mut accounts = UnknownAccounts::default();
        let policy = Compliance { on_unknown: Some(OnUnknown::Block), ..policy() };
        accounts.observe(&[&account(None)], &policy, Timestamp(0));
        let events = accounts.observe(&[&account(None)], &policy, Timestamp(MINUTE));
        assert_eq!((events[0].name, events[0].severity), ("account_unknown", "high"));
        assert_eq!(events[0].data["action"], "block");
        assert_eq!(events[0].data["unknown"][0]["rule"], "email_domain");
    }
}
