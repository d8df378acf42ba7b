//! Detection of two agents that use one device key.
//!
//! An agent names a random instance for each of its starts, so instances replace each other: A, B,
//! C. Two agents with one key alternate: A, B, A, B, A. A request of a stopped agent can arrive
//! late, after the first one of its successor: A, B, A, B. So an instance must return twice.

use std::collections::{HashMap, VecDeque};

use super::devices::DeviceKey;

/// Number of instances of a key that are remembered.
const REMEMBERED: usize = 8;
/// Number of returns of one instance that make a clone.
const RETURNS: u32 = 2;
/// Maximum length of an instance in bytes; a longer one is ignored.
const LENGTH: usize = 128;

/// Two instances that use one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneFinding {
    /// The instances, the latest one first.
    pub instances: [String; 2],
}

/// Result of an observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    /// The instance is that of the batch before.
    Same,
    /// Another start of the agent, or a late request of the one before.
    Changed,
    /// Two agents use the key.
    Cloned(CloneFinding),
}

/// Instances of each key, since the receiver started.
#[derive(Debug, Default)]
pub(super) struct Instances(HashMap<DeviceKey, VecDeque<Instance>>);

#[derive(Debug)]
struct Instance {
    id: String,
    returns: u32,
}

impl Instances {
    /// Takes the instance of a batch; `last` is that of the batch before.
    pub(super) fn observe(
        &mut self,
        key: DeviceKey,
        last: Option<&str>,
        instance: &str,
    ) -> Observed {
        if instance.len() > LENGTH || last == Some(instance) {
            return Observed::Same;
        }
        let Some(last) = last else { return Observed::Changed };
        let known = self.0.entry(key).or_default();
        remember(known, last);
        if let Some(returned) = known.iter_mut().find(|one| one.id == instance) {
            returned.returns += 1;
            if returned.returns >= RETURNS {
                self.0.remove(&key);
                let instances = [instance.to_owned(), last.to_owned()];
                return Observed::Cloned(CloneFinding { instances });
            }
        } else {
            remember(known, instance);
        }
        Observed::Changed
    }
}

fn remember(known: &mut VecDeque<Instance>, id: &str) {
    if known.iter().all(|one| one.id != id) {
        known.push_back(Instance { id: id.to_owned(), returns: 0 });
    }
    if known.len() > REMEMBERED {
        known.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observes one instance after the other, and returns the position of the first clone.
    fn clone_at(instances: &str) -> Option<usize> {
        let mut observed = Instances::default();
        let key = DeviceKey::from_bytes([7; 32]);
        let instances: Vec<String> = instances.chars().map(String::from).collect();
        let mut last = None;
        for (at, instance) in instances.iter().enumerate() {
            if let Observed::Cloned(found) = observed.observe(key, last, instance) {
                assert_eq!(found.instances, [instance.clone(), last.unwrap().to_owned()]);
                return Some(at);
            }
            last = Some(instance);
        }
        None
    }

    #[test]
    fn restarts_are_no_clone() {
        assert_eq!(clone_at("AAABBCCCDEFGHIJKLMNOP"), None);
    }

    #[test]
    fn late_request_of_a_stopped_agent_is_no_clone() {
        assert_eq!(clone_at("AABABBBB"), None);
    }

    #[test]
    fn alternating_instances_are_a_clone() {
        assert_eq!(clone_at("ABABA"), Some(4));
        assert_eq!(clone_at("AAABBAAABBBAAA"), Some(11));
    }

    #[test]
    fn overlong_instance_is_ignored() {
        let mut observed = Instances::default();
        let long = "x".repeat(LENGTH + 1);
        let key = DeviceKey::from_bytes([7; 32]);
        for last in [None, Some("a")] {
            assert_eq!(observed.observe(key, last, &long), Observed::Same);
        }
    }
}
