//! Order of managed configurations: the one with the most specific audience wins.

use siem_protocol::managed::Audience;

/// Specificity of an audience. Members are compared in the order of their declaration: an audience
/// that names machines is more specific than any that does not, and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    /// It names machines.
    pub machines: bool,
    /// It names users.
    pub users: bool,
    /// It names groups.
    pub groups: bool,
    /// It names operating systems.
    pub os: bool,
    /// It names a part of the machines.
    pub percentage: bool,
}

impl Specificity {
    /// Returns the specificity of an audience.
    #[must_use]
    pub fn of(audience: &Audience) -> Self {
        Self {
            machines: audience.machines.is_some(),
            users: audience.users.is_some(),
            groups: audience.groups.is_some(),
            os: audience.os.is_some(),
            percentage: audience.percentage.is_some(),
        }
    }
}

/// Reports whether there can be a device that both audiences include. A user may be in any number of
/// groups.
pub(super) fn overlap(one: &Audience, other: &Audience) -> bool {
    let lists = |one: &Option<Vec<String>>, other: &Option<Vec<String>>| match (one, other) {
        (Some(one), Some(other)) => one.iter().any(|value| other.contains(value)),
        (Some(list), None) | (None, Some(list)) => !list.is_empty(),
        (None, None) => true,
    };
    let some_group = |audience: &Audience| audience.groups.as_ref().is_none_or(|it| !it.is_empty());
    let some_machine = |audience: &Audience| audience.percentage != Some(0);
    lists(&one.machines, &other.machines)
        && lists(&one.users, &other.users)
        && lists(&one.os, &other.os)
        && some_group(one)
        && some_group(other)
        && some_machine(one)
        && some_machine(other)
}

/// Reports whether no device can be included in an audience.
pub(super) fn is_empty(audience: &Audience) -> bool {
    !overlap(audience, &Audience::default())
}
