//! The header line of a batch: its members are in range, and agree with each other.

use std::collections::BTreeSet;

use siem_protocol::{BatchHeader, PROTOCOL};

use super::{BatchError, MAX_ENTRIES, MAX_SEQ};

/// Maximum length of the identity's values, in bytes.
pub(crate) const MAX_NAME: usize = 256;

fn member(member: &'static str, why: &'static str) -> BatchError {
    BatchError::Member { member, why }
}

/// Parses the header line and checks its members.
pub(super) fn header(line: &[u8]) -> Result<BatchHeader, BatchError> {
    // The version comes first: the header of another version may have other members.
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u64,
    }
    let Version { protocol } = serde_json::from_slice(line).map_err(BatchError::Header)?;
    if protocol != u64::from(PROTOCOL) {
        return Err(BatchError::Protocol(protocol));
    }
    let header: BatchHeader = serde_json::from_slice(line).map_err(BatchError::Header)?;
    check_names(&header)?;
    let covered = if header.redelivery { check_seqs(&header)? } else { check_range(&header)? };
    if header.dead_lettered.len() as u64 > covered
        || covered - header.dead_lettered.len() as u64 != header.count
    {
        return Err(member("count", "and `dead_lettered` do not cover the numbers named"));
    }
    Ok(header)
}

fn check_names(header: &BatchHeader) -> Result<(), BatchError> {
    let names = [
        ("machine_id", &header.machine_id),
        ("epoch", &header.epoch),
        ("hostname", &header.hostname),
        ("user", &header.user),
        ("os", &header.os),
        ("arch", &header.arch),
        ("agent_version", &header.agent_version),
        ("previous_epoch", header.previous_epoch.as_ref().unwrap_or(&header.epoch)),
    ];
    for (index, (name, value)) in names.into_iter().enumerate() {
        if value.len() > MAX_NAME {
            return Err(member(name, "is longer than 256 bytes"));
        }
        if index < 2 && value.is_empty() {
            return Err(member(name, "is empty"));
        }
    }
    Ok(())
}

/// Checks a regular batch and returns how many numbers it covers.
fn check_range(header: &BatchHeader) -> Result<u64, BatchError> {
    let first = header.first_seq.ok_or_else(|| member("first_seq", "is missing"))?;
    let last = header.last_seq.ok_or_else(|| member("last_seq", "is missing"))?;
    if header.chain.is_none() {
        return Err(member("chain", "is missing"));
    }
    if !header.seqs.is_empty() {
        return Err(member("seqs", "is present, but the batch is not a redelivery"));
    }
    if first == 0 || last < first || last > MAX_SEQ {
        return Err(member("last_seq", "and `first_seq` are not a range of numbers"));
    }
    if last - first >= MAX_ENTRIES {
        return Err(BatchError::TooMany);
    }
    let mut least = first;
    for dead in &header.dead_lettered {
        if dead.seq < least || dead.seq > last {
            return Err(member("dead_lettered", "is not ascending within the batch's range"));
        }
        least = dead.seq + 1;
    }
    if header.base.is_some_and(|base| base.seq >= first) {
        return Err(member("base", "is not before `first_seq`"));
    }
    Ok(last - first + 1)
}

/// Checks a redelivery and returns how many numbers it names.
fn check_seqs(header: &BatchHeader) -> Result<u64, BatchError> {
    let odd = [
        ("first_seq", header.first_seq.is_some()),
        ("last_seq", header.last_seq.is_some()),
        ("chain", header.chain.is_some()),
        ("dead_lettered", !header.dead_lettered.is_empty()),
        ("base", header.base.is_some()),
    ];
    if let Some((name, _)) = odd.into_iter().find(|(_, there)| *there) {
        return Err(member(name, "is present in a redelivery"));
    }
    let count = header.seqs.len() as u64;
    if count > MAX_ENTRIES {
        return Err(BatchError::TooMany);
    }
    let distinct: BTreeSet<_> = header.seqs.iter().collect();
    if count == 0 || distinct.len() != header.seqs.len() {
        return Err(member("seqs", "is empty or names a number twice"));
    }
    if header.seqs.iter().any(|seq| *seq == 0 || *seq > MAX_SEQ) {
        return Err(member("seqs", "names a number out of range"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use siem_protocol::Digest;

    use super::*;
    use crate::{batch::Batch, testing::BatchText};

    fn parse(text: &str) -> Result<Batch, BatchError> {
        Batch::parse(text.as_bytes().to_vec(), UNIX_EPOCH)
    }

    #[test]
    fn contradictory_headers_are_rejected() {
        type Edit = fn(&mut BatchHeader);
        let edits: [(&str, Edit); 17] = [
            ("first_seq", |header| header.first_seq = None),
            ("last_seq", |header| header.last_seq = None),
            ("last_seq", |header| header.first_seq = Some(0)),
            ("last_seq", |header| header.last_seq = Some(1)),
            ("last_seq", |header| header.last_seq = Some(MAX_SEQ + 1)),
            ("chain", |header| header.chain = None),
            ("seqs", |header| header.seqs = vec![1]),
            ("count", |header| header.count = 2),
            ("count", |header| header.last_seq = Some(5)),
            ("base", |header| {
                header.base = Some(siem_protocol::ChainPoint { seq: 2, hash: Digest::ZERO })
            }),
            ("epoch", |header| header.epoch.clear()),
            ("machine_id", |header| header.machine_id.clear()),
            ("machine_id", |header| header.machine_id = "x".repeat(257)),
            ("user", |header| header.user = "x".repeat(257)),
            ("dead_lettered", |header| {
                header.dead_lettered =
                    vec![siem_protocol::DeadLettered { seq: 1, line_sha256: Digest::ZERO }];
            }),
            ("first_seq", |header| header.redelivery = true),
            ("seqs", |header| {
                (header.first_seq, header.last_seq, header.chain) = (None, None, None);
                (header.redelivery, header.seqs) = (true, vec![2, 2, 3]);
            }),
        ];
        for (expected, edit) in edits {
            let mut batch = BatchText::new(2, 4);
            edit(&mut batch.header);
            let refused = parse(&batch.text()).unwrap_err();
            assert!(
                matches!(refused, BatchError::Member { member, .. } if member == expected),
                "{expected}: {refused}"
            );
        }
    }

    #[test]
    fn other_protocol_versions_are_rejected() {
        let text = "{\"kind\":\"packet\",\"protocol\":2}\n";
        assert!(matches!(parse(text), Err(BatchError::Protocol(2))));
        assert!(matches!(parse(""), Err(BatchError::Header(_))));
    }

    #[test]
    fn huge_range_is_rejected() {
        let mut batch = BatchText::new(1, 1);
        batch.header.last_seq = Some(MAX_SEQ);
        assert!(matches!(parse(&batch.text()), Err(BatchError::TooMany)));
    }
}
