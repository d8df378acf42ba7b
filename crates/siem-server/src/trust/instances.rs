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

/// Instances of each key, since the receiver started.
#[derive(Debug, Default)]
pub(super) struct Instances(HashMap<DeviceKey, KeyInstances>);

#[derive(Debug, Default)]
struct KeyInstances {
    /// Instance of the batch before.
    last: String,
    seen: VecDeque<Instance>,
}

#[derive(Debug)]
struct Instance {
    id: String,
    returns: u32,
}

impl Instances {
    /// Takes the instance of a batch; returns the finding if two agents use the key.
    pub(super) fn observe(&mut self, key: DeviceKey, instance: &str) -> Option<CloneFinding> {
        if instance.len() > LENGTH {
            return None;
        }
        let known = self.0.entry(key).or_default();
        if known.last == instance {
            return None;
        }
        let before = std::mem::replace(&mut known.last, instance.to_owned());
        let Some(returned) = known.seen.iter_mut().find(|one| one.id == instance) else {
            remember(&mut known.seen, instance);
            return None;
        };
        returned.returns += 1;
        if returned.returns < RETURNS {
            return None;
        }
        self.0.remove(&key);
        Some(CloneFinding { instances: [instance.to_owned(), before] })
    }
}

fn remember(known: &mut VecDeque<Instance>, id: &str) {
    known.push_back(Instance { id: id.to_owned(), returns: 0 });
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
        for (at, instance) in instances.iter().enumerate() {
            if let Some(found) = observed.observe(key, instance) {
                assert_eq!(found.instances, [instance.clone(), instances[at - 1].clone()]);
                return Some(at);
            }
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
        for _ in 0..8 {
            assert_eq!(observed.observe(key, &long), None);
            observed.observe(key, "a");
        }
    }
}
