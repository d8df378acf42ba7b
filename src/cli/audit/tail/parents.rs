//! Parents of processes, as far as they are in the log.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use ai_agent_auditd::facts::Facts;

/// Executions that are remembered.
const MAX_REMEMBERED: usize = 50_000;
/// Longest chain of parents.
const MAX_CHAIN: usize = 64;

/// Parent of a process, or its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Parent {
    pub(super) pid: u32,
    /// Its name, if it is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comm: Option<String>,
    /// Its program, if it is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exe: Option<String>,
}

/// Key of an execution: process, time, serial. Process ids are reused, so each is valid from its time.
type ExecutionKey = (u32, u64, u64);

/// Processes that are in the log.
#[derive(Default)]
pub(super) struct Parents {
    seen: BTreeMap<ExecutionKey, (Option<u32>, Parent)>,
    order: VecDeque<ExecutionKey>,
}

impl Parents {
    /// Remembers the process of an event.
    pub(super) fn learn(&mut self, facts: &Facts) {
        let Some(pid) = facts.pid else { return };
        let key = (pid, facts.at.0, facts.serial);
        let parent = Parent { pid, comm: facts.comm.clone(), exe: facts.exe.clone() };
        if self.seen.insert(key, (facts.ppid, parent)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }

    /// Chain of parents of an event's process, its parent first. The last one may have only an id.
    pub(super) fn of(&self, facts: &Facts) -> Vec<Parent> {
        let mut chain: Vec<Parent> = Vec::new();
        let mut next = facts.ppid;
        while let Some(pid) = next.filter(|pid| *pid != 0) {
            if chain.len() == MAX_CHAIN || chain.iter().any(|known| known.pid == pid) {
                break;
            }
            let before = ..=(pid, facts.at.0, facts.serial);
            let known = self.seen.range(before).next_back().filter(|((it, ..), _)| *it == pid);
            let (next_parent, parent) = match known {
                Some((_, (next_parent, parent))) => (*next_parent, parent.clone()),
                None => (None, Parent { pid, comm: None, exe: None }),
            };
            chain.push(parent);
            next = next_parent;
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
    fn chain_ends_at_the_first_unknown_process() {
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
    fn circular_chain_ends() {
        let mut parents = Parents::default();
        parents.learn(&facts(1, 10, 20, "a"));
        parents.learn(&facts(1, 20, 10, "b"));
        assert_eq!(parents.of(&facts(2, 30, 10, "c")).len(), 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut parents = Parents::default();
        for pid in 0..60_000 {
            parents.learn(&facts(1, pid, 1, "a"));
        }
        assert_eq!((parents.seen.len(), parents.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    }
}
