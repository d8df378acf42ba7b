//! Header line of a batch, and the responses to it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, Identity, PROTOCOL};

/// First line of a batch.
///
/// A regular batch covers every number from `first_seq` to `last_seq`: each is either the number of
/// a line or listed in `dead_lettered`. A redelivery has `redelivery` and `seqs` in place of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct BatchHeader {
    /// Always `batch`.
    pub kind: BatchKind,
    /// Version of the protocol.
    pub protocol: u32,
    /// Id of the outbox that numbers the entries.
    pub epoch: String,
    /// Stable id of the machine.
    pub machine_id: String,
    /// Name of the machine.
    pub hostname: String,
    /// Name of the user whose sessions are read.
    pub user: String,
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Semantic version of the agent.
    pub agent_version: String,
    /// Last acknowledged number + 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<u64>,
    /// Last number covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// Number of lines that follow.
    pub count: u64,
    /// Numbers in the range that a receiver refused earlier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead_lettered: Vec<DeadLettered>,
    /// Values of the chain before and after the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
    /// Start of a sink that was added later, until its first acknowledgement: the number before its first
    /// entry, 0 if the epoch began after it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ChainPoint>,
    /// The epoch before this one, until the first acknowledgement of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
    /// True if dead-lettered entries are sent again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redelivery: bool,
    /// Numbers of a redelivery, in the order of the lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seqs: Vec<u64>,
    /// Hash of the configuration, secrets excluded, under which the entries were created.
    pub config_hash: Digest,
    /// SHA-256 of the managed configuration in force, as received; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_hash: Option<Digest>,
    /// Note of a [`Seal`](crate::statement::Seal); absent if the sender has no device key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    /// Random id of this run of the agent: two that alternate under one device key reveal a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Time of sending, RFC 3339.
    pub sent_at: String,
}

/// Value of `kind` in a header line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BatchKind {
    /// The only value.
    #[default]
    Batch,
}

impl BatchHeader {
    /// Creates a header with the members of every batch; the caller adds the range.
    #[must_use]
    pub fn new(identity: &Identity, epoch: String, config_hash: Digest, sent_at: String) -> Self {
        Self {
            kind: BatchKind::Batch,
            protocol: PROTOCOL,
            epoch,
            machine_id: identity.machine_id.clone(),
            hostname: identity.hostname.clone(),
            user: identity.user.clone(),
            os: identity.os.clone(),
            arch: identity.arch.clone(),
            agent_version: identity.agent_version.clone(),
            first_seq: None,
            last_seq: None,
            count: 0,
            dead_lettered: Vec::new(),
            chain: None,
            base: None,
            previous_epoch: None,
            redelivery: false,
            seqs: Vec::new(),
            config_hash,
            managed_hash: None,
            seal: None,
            instance: None,
            sent_at,
        }
    }

    /// Returns the sender's identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            machine_id: self.machine_id.clone(),
            hostname: self.hostname.clone(),
            user: self.user.clone(),
            os: self.os.clone(),
            arch: self.arch.clone(),
            agent_version: self.agent_version.clone(),
        }
    }

    /// Returns the value of `X-Siem-Batch-Id`.
    #[must_use]
    pub fn id(&self) -> BatchId {
        let (first, last) = if self.redelivery {
            (self.seqs.iter().min().copied(), self.seqs.iter().max().copied())
        } else {
            (self.first_seq, self.last_seq)
        };
        BatchId {
            epoch: self.epoch.clone(),
            redelivery: self.redelivery,
            first: first.unwrap_or_default(),
            last: last.unwrap_or_default(),
        }
    }
}

/// Value of `X-Siem-Batch-Id`: `<epoch>-<first>-<last>`, with `r-` before the numbers of a
/// redelivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchId {
    /// The epoch.
    pub epoch: String,
    /// True if dead-lettered entries are sent again.
    pub redelivery: bool,
    /// Lowest number.
    pub first: u64,
    /// Highest number.
    pub last: u64,
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = if self.redelivery { "r-" } else { "" };
        write!(f, "{}-{again}{}-{}", self.epoch, self.first, self.last)
    }
}

/// An entry that a receiver refused for good; its hash keeps the chain verifiable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct DeadLettered {
    /// Number of the entry.
    pub seq: u64,
    /// SHA-256 of its line.
    pub line_sha256: Digest,
}

/// Values of the chain around a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Chain {
    /// `h(first_seq - 1)`.
    pub before: Digest,
    /// `h(last_seq)`.
    pub after: Digest,
}

/// Value of the chain at one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ChainPoint {
    /// The number.
    pub seq: u64,
    /// `h(seq)`.
    pub hash: Digest,
}

/// Response to a batch that is on stable storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Receipt {
    /// At least the last number of the batch; absent in the response to a redelivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// Number of entries that were stored.
    #[serde(default)]
    pub accepted: u64,
    /// Number of entries that were already stored.
    #[serde(default)]
    pub duplicates: u64,
    /// For a redelivery: its numbers that the receiver holds now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_seqs: Option<Vec<u64>>,
    /// Note of a [`StoredReceipt`](crate::statement::StoredReceipt); absent if the receiver has no
    /// key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// For a redelivery of which the receiver holds every entry: note of a
    /// [`Verdict`](crate::statement::Verdict) with status 200 and type
    /// [`STORED`](crate::names::verdict::STORED) about its body. The receipt is that of the head of
    /// the epoch, and says nothing about the entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// True if the receiver enrolls device keys and does not know the one of the batch, or the batch
    /// has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enroll: bool,
}

/// Body of `POST /enroll`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct EnrollRequest {
    /// Note of an [`Enroll`](crate::statement::Enroll).
    pub enroll: String,
    /// Random id of this run of the agent.
    pub instance: String,
    /// Time of sending, RFC 3339. With `instance` it makes the hash of the body unique, so that a
    /// [`Verdict`](crate::statement::Verdict) about an earlier request does not fit this one.
    pub sent_at: String,
}

/// Response to `POST /enroll`. The same key again gives the same response, with its present state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct EnrollAnswer {
    /// Note of a [`Device`](crate::statement::Device).
    pub device: String,
    /// The receiver's keys.
    pub keys: KeysAnswer,
}

/// Response to `GET /keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct KeysAnswer {
    /// Note of a [`KeyList`](crate::statement::KeyList).
    pub keys: String,
    /// Text of a `.minisig` file over the text of `keys`: the organisation's signature, for agents
    /// that know only a lost key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organisation: Option<String>,
}

/// Body of an error as defined by RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Problem {
    /// URI reference that identifies the problem type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short summary, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Explanation of this occurrence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// With status 409: the next number that the receiver expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seq: Option<u64>,
    /// Note of a [`Verdict`](crate::statement::Verdict): the part of this response that a device
    /// which pinned the receiver's key may act on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// As in [`Receipt::enroll`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enroll: bool,
}

/// Compression of a body: its `Content-Encoding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Zstandard (RFC 8878), one or several frames.
    #[default]
    Zstd,
    /// gzip (RFC 1952), one or several members.
    Gzip,
    /// No compression.
    Identity,
}

impl Encoding {
    /// Returns the value of the header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }
}

impl FromStr for Encoding {
    type Err = UnknownEncoding;

    fn from_str(text: &str) -> Result<Self, UnknownEncoding> {
        [Self::Zstd, Self::Gzip, Self::Identity]
            .into_iter()
            .find(|encoding| encoding.as_str().eq_ignore_ascii_case(text.trim()))
            .ok_or_else(|| UnknownEncoding(text.to_owned()))
    }
}

/// A content encoding that the protocol does not support.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown content encoding `{0}`, expected zstd, gzip or identity")]
pub struct UnknownEncoding(String);
