//! Results of delivering a batch, shared by sinks and the retry policy.

use std::time::Duration;

/// Result of a delivery. Reasons and answers are texts for people, without secrets and record
/// content.
///
/// Exhaustive on purpose: the policy must decide about every result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The entries are stored safely elsewhere.
    Acknowledged,
    /// The receiver decided about some entries, each by itself. The others are described by `rest`.
    PerEntry {
        /// Results in the order of the batch's lines, one for each.
        entries: Vec<EntryResult>,
        /// Result for the entries that are [`EntryResult::Undecided`].
        rest: Rest,
    },
    /// The receiver stored the batch except for some entries, and does not say which. Sending the
    /// batch again would duplicate the others, so it is not sent again; the loss is reported.
    Unidentified {
        /// Maximum number of refused entries; at least 1 and at most the number of entries.
        refused: u64,
        /// Response of the receiver, at most 4 KiB.
        answer: String,
    },
    /// The batch could not be delivered; it is retried later.
    Retry {
        /// Delay that the receiver requested.
        after: Option<Duration>,
        /// Description of the failure.
        reason: String,
    },
    /// No response arrived in time. A smaller batch is tried later: the connection may be slow.
    Slow {
        /// Time waited for the response.
        waited: Duration,
        /// Description of the failure.
        reason: String,
    },
    /// A problem that waiting alone does not solve and that is not about the data, such as a
    /// rejected token: an alarm is raised, and the batch is retried later.
    Hold {
        /// Delay that the receiver requested.
        after: Option<Duration>,
        /// Description of the failure.
        reason: String,
    },
    /// The receiver rejects the content. The batch is split until the entry that causes it is
    /// found, which becomes a dead letter.
    Refused {
        /// HTTP status: 413 if the batch is too large, another one if its content is invalid.
        status: u16,
        /// Response of the receiver, at most 4 KiB.
        answer: String,
    },
    /// The receiver has other entries under these numbers.
    Conflict {
        /// Next number that the receiver expects, if the response contains it.
        expected: Option<u64>,
    },
}

/// Result for one entry of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryResult {
    /// The receiver has the entry, since this delivery or an earlier one.
    Accepted,
    /// The receiver stored the entry, but not where searches find it, such as in a failure store.
    Misfiled {
        /// Description of the problem, at most 4 KiB.
        answer: String,
    },
    /// The receiver refused some of `among` entries, this one and those after it, stored the others,
    /// and does not say which. As [`Delivery::Unidentified`], for a part of the batch: the entries
    /// after it are [`EntryResult::Accepted`], none is sent again, and the loss is reported.
    Unidentified {
        /// Maximum number of refused entries; at least 1.
        refused: u64,
        /// Number of entries among which they are; at least 2.
        among: u64,
        /// Response of the receiver, at most 4 KiB.
        answer: String,
    },
    /// The receiver refuses this entry permanently: it becomes a dead letter.
    Refused {
        /// HTTP status, or the status of the entry in the response.
        status: u16,
        /// Response of the receiver, at most 4 KiB.
        answer: String,
    },
    /// The receiver does not have the entry, or the response does not say.
    Undecided,
}

/// Result for the undecided entries of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// The receiver did not process them, because of an entry before them: they are sent at once.
    Unprocessed,
    /// They were sent over a connection without acknowledgements. The batch is delivered again, with
    /// the entries that follow it, when there are new entries or after a delay.
    InTransit {
        /// Delay after which at least one of them counts as accepted.
        recheck: Duration,
    },
    /// As [`Delivery::Retry`].
    Retry {
        /// Delay that the receiver requested.
        after: Option<Duration>,
        /// Description of the failure.
        reason: String,
    },
    /// As [`Delivery::Slow`].
    Slow {
        /// Time waited for the response.
        waited: Duration,
        /// Description of the failure.
        reason: String,
    },
    /// As [`Delivery::Hold`].
    Hold {
        /// Delay that the receiver requested.
        after: Option<Duration>,
        /// Description of the failure.
        reason: String,
    },
    /// As [`Delivery::Refused`].
    Refused {
        /// HTTP status: 413 if the request is too large, another one if its content is invalid.
        status: u16,
        /// Response of the receiver, at most 4 KiB.
        answer: String,
    },
}

/// Meaning of an acknowledgement: what a sink knows when it reports entries as delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledged {
    /// The entries are on disk, and the receiver checked their numbers and hash chain.
    Verified,
    /// The entries are indexed, or on disk.
    Indexed,
    /// The next hop has received the entries; it may lose them.
    #[default]
    Received,
    /// The protocol has no acknowledgements.
    Nothing,
}
