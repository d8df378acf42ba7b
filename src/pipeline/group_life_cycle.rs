//! The life cycle of a group: `Open → Storing → Stored | Lost`.
//!
//! ```text
//!          ┌───────────── restore ──────────────┐
//!          ▼                                    │
//!        Open ──── sealed ────► Storing ────► Lost
//!          │                       │            ▲
//!          └───── a failure ───────┼────────────┘
//!                                  ▼
//!                               Stored
//! ```
//!
//! While one group is being stored the next one is open. Filters, sources, the events in a group
//! and the heartbeat all keep something until their group is stored. Each of them learns of a
//! change from the same [`GroupChange`], which the ingest thread sends from one place.

use crate::stages::source::Source;

/// Number of groups after which filters must be notified that everything is stored. Until then a
/// failure takes their memory back to where it was at the last such notification.
const MAX_UNCONFIRMED: u32 = 8;

/// A change in the life of a group, sent to everything that keeps something until its group is
/// stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// The open group is being stored. Everything that is added from now on belongs to the next group.
    Storing,
    /// The group that was being stored is in the store.
    Stored {
        /// True if nothing has been added since that group was sealed, so that everything that was
        /// ever added is stored.
        all: bool,
    },
    /// No group is stored that has not been reported as stored: the open one and the one that was
    /// being stored, if any, are lost. Their records are added again.
    Lost,
}

/// State of the open group and of the one that is being stored.
#[derive(Debug)]
pub struct GroupLifeCycle {
    /// True if the open group is lost: nothing may be stored before a restore.
    is_open_lost: bool,
    /// Number of groups that the store holds once the group that is being stored is in it. After a
    /// failed write this stays until the store says whether the group is in it: a disk may fail
    /// after the commit.
    storing: Option<u64>,
    /// Groups that were sealed since the last [`GroupChange::Stored`] with `all`.
    unconfirmed: u32,
}

/// A pipeline starts with a restore, as after a failure.
impl Default for GroupLifeCycle {
    fn default() -> Self {
        Self { is_open_lost: true, storing: None, unconfirmed: 0 }
    }
}

impl GroupChange {
    /// Sends the change to a source. [`GroupChange::Lost`] is followed by [`Source::restore`].
    pub fn send_to_source(self, source: &mut dyn Source) {
        match self {
            Self::Storing => source.sealed(),
            Self::Stored { .. } => source.committed(),
            Self::Lost => {}
        }
    }
}

impl GroupLifeCycle {
    /// Returns whether a restore is needed before anything is added.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_open_lost
    }

    /// Returns whether so many groups are unconfirmed that reading must wait for the store.
    #[must_use]
    pub fn must_confirm(&self) -> bool {
        self.unconfirmed >= MAX_UNCONFIRMED
    }

    /// The open group is handed over to be stored as group `number` of the store.
    #[must_use = "the change must be sent"]
    pub fn seal(&mut self, number: u64) -> GroupChange {
        debug_assert!(
            !self.is_open_lost && self.storing.is_none(),
            "one group is stored at a time"
        );
        self.storing = Some(number);
        self.unconfirmed += 1;
        GroupChange::Storing
    }

    /// The group that was being stored is in the store.
    #[must_use = "the change must be sent"]
    pub fn stored(&mut self, is_open_empty: bool) -> GroupChange {
        self.storing = None;
        // The filters may have seen records that a failure kept out of the open group.
        let all = is_open_empty && !self.is_open_lost;
        if all {
            self.unconfirmed = 0;
        }
        GroupChange::Stored { all }
    }

    /// A write, a stage or a source failed. Takes effect with the next restore.
    pub fn lose(&mut self) {
        self.is_open_lost = true;
    }

    /// Determines the state of the group whose write failed, given how many groups the store holds.
    /// Returns the change if it is in the store after all.
    #[must_use = "the change must be sent"]
    pub fn resolve(&mut self, groups_in_store: u64) -> Option<GroupChange> {
        let is_stored = self.storing.take().is_some_and(|number| number <= groups_in_store);
        is_stored.then_some(GroupChange::Stored { all: false })
    }

    /// Everything that is not stored is lost. Sent before sources continue from the store.
    #[must_use = "the change must be sent"]
    pub fn lost(&mut self) -> GroupChange {
        debug_assert!(self.is_open_lost && self.storing.is_none(), "resolve comes first");
        self.unconfirmed = 0;
        GroupChange::Lost
    }

    /// Everything continues from the store: the open group is a new one.
    pub fn reopen(&mut self) {
        self.is_open_lost = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> GroupLifeCycle {
        let mut groups = GroupLifeCycle::default();
        groups.reopen();
        groups
    }

    #[test]
    fn stored_with_an_empty_open_group_means_all_is_stored() {
        for is_open_empty in [true, false] {
            let mut groups = open();
            assert_eq!(groups.seal(1), GroupChange::Storing);
            let expected = GroupChange::Stored { all: is_open_empty };
            assert_eq!(groups.stored(is_open_empty), expected);
        }
    }

    /// A filter that saw a record of a failed chunk must forget it, although the open group is
    /// empty: otherwise `dedupe` drops the record when it comes again.
    #[test]
    fn stored_after_a_failure_never_means_all_is_stored() {
        let mut groups = open();
        assert_eq!(groups.seal(1), GroupChange::Storing);
        groups.lose();
        assert_eq!(groups.stored(true), GroupChange::Stored { all: false });
        assert_eq!(groups.lost(), GroupChange::Lost);
    }

    #[test]
    fn failed_write_is_resolved_by_the_number_of_stored_groups() {
        for (groups_in_store, expected) in
            [(6, None), (7, Some(GroupChange::Stored { all: false }))]
        {
            let mut groups = open();
            assert_eq!(groups.seal(7), GroupChange::Storing);
            groups.lose();
            assert_eq!(groups.resolve(groups_in_store), expected);
            assert_eq!(groups.resolve(groups_in_store), None, "reported once");
        }
    }

    #[test]
    fn filters_are_confirmed_after_eight_groups_at_the_latest() {
        let mut groups = open();
        for number in 1..=u64::from(MAX_UNCONFIRMED) {
            assert!(!groups.must_confirm());
            assert_eq!(groups.seal(number), GroupChange::Storing);
            assert!(matches!(groups.stored(false), GroupChange::Stored { .. }));
        }
        assert!(groups.must_confirm());
        assert_eq!(groups.seal(9), GroupChange::Storing);
        assert!(matches!(groups.stored(true), GroupChange::Stored { .. }));
        assert!(!groups.must_confirm());
    }
}
