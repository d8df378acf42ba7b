//! Which process started which, as far as the log has them.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use ai_agent_audit::facts::Facts;

/// So many executions are remembered.
const MOST: usize = 50_000;
/// No chain is longer.
const LONGEST: usize = 64;

/// A process above another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Parent {
    pub(super) pid: u32,
    /// What it called itself, where the log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comm: Option<String>,
    /// The program, where the log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exe: Option<String>,
}

/// A number of a process is given again, so each counts from when it was seen: process, time, serial.
type Seen = (u32, u64, u64);

/// Processes that were seen.
#[derive(Default)]
pub(super) struct Parents {
    seen: BTreeMap<Seen, (Option<u32>, Parent)>,
    order: VecDeque<Seen>,
}

impl Parents {
    /// Remembers who an event is from.
    pub(super) fn learn(&mut self, facts: &Facts) {
        let Some(pid) = facts.pid else { return };
        let key = (pid, facts.at.0, facts.serial);
        let parent = Parent { pid, comm: facts.comm.clone(), exe: facts.exe.clone() };
        if self.seen.insert(key, (facts.ppid, parent)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }

    /// The processes above the one of an event, its parent first; the last one may be only a number.
    pub(super) fn of(&self, facts: &Facts) -> Vec<Parent> {
        let mut chain: Vec<Parent> = Vec::new();
        let mut next = facts.ppid;
        while let Some(pid) = next.filter(|pid| *pid != 0) {
            if chain.len() == LONGEST || chain.iter().any(|known| known.pid == pid) {
                break;
            }
            let before = ..=(pid, facts.at.0, facts.serial);
            let known = self.seen.range(before).next_back().filter(|((it, ..), _)| *it == pid);
            let (above, parent) = match known {
                Some((_, (above, parent))) => (*above, parent.clone()),
                None => (None, Parent { pid, comm: None, exe: None }),
            };
            chain.push(parent);
            next = above;
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Timestamp;

    fn facts(at: u64, pid: u32, ppid: u32, comm: &str) -> Facts {
        Facts {
            at: Timestamp(at),
            pid: Some(pid),
            ppid: Some(ppid),
            comm: Some(comm.into()),
            ..Facts::default()
        }
    }

    #[test]
    fn the_chain_goes_up_as_far_as_it_was_seen_before() {
        let mut parents = Parents::default();
        let seen =
            [(1, 10, 1, "sshd"), (2, 20, 10, "bash"), (3, 30, 20, "docker"), (9, 20, 7, "later")];
        for (at, pid, ppid, comm) in seen {
            parents.learn(&facts(at, pid, ppid, comm));
        }
        let chain = parents.of(&facts(3, 30, 20, "docker"));
        let chain: Vec<_> = chain.iter().map(|it| (it.pid, it.comm.as_deref())).collect();
        assert_eq!(chain, [(20, Some("bash")), (10, Some("sshd")), (1, None)]);
    }

    #[test]
    fn a_circle_ends() {
        let mut parents = Parents::default();
        parents.learn(&facts(1, 10, 20, "a"));
        parents.learn(&facts(1, 20, 10, "b"));
        assert_eq!(parents.of(&facts(2, 30, 10, "c")).len(), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut parents = Parents::default();
        for pid in 0..60_000 {
            parents.learn(&facts(1, pid, 1, "a"));
        }
        assert_eq!((parents.seen.len(), parents.order.len()), (MOST, MOST));
    }
}
