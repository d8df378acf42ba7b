//! What an agent says about the end of the epoch before its own.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{MAX_NAME, MAX_SEQ};
use crate::ledger::number;

/// End of the epoch before another one, according to the event that reports the start of the latter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedEpoch {
    /// Number of the event.
    #[serde(deserialize_with = "number")]
    pub(crate) seq: u64,
    /// The epoch that ended.
    pub(crate) epoch: String,
    /// Number up to which every sink of the agent had delivered it. The entries after it are in the new
    /// epoch.
    #[serde(deserialize_with = "number")]
    pub(crate) delivered: u64,
}

impl EndedEpoch {
    /// Reads the `data` of the event with the number `seq` in the epoch `own`. Returns `None` if nothing was
    /// delivered, if the members are missing or contradict each other, or if it reports the start of another
    /// epoch: such an event was carried over.
    pub(super) fn parse(seq: u64, data: &str, own: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Data<'a> {
            #[serde(borrow)]
            epoch: Cow<'a, str>,
            #[serde(borrow)]
            previous_epoch: Cow<'a, str>,
            entries: u64,
            previous_last_seq: u64,
        }
        let data: Data<'_> = serde_json::from_str(data).ok()?;
        let delivered = data.previous_last_seq.checked_sub(data.entries)?;
        let is_sound = data.epoch == own
            && data.previous_epoch != own
            && (1..=MAX_NAME).contains(&data.previous_epoch.len())
            && data.previous_last_seq <= MAX_SEQ
            && delivered > 0;
        is_sound.then(|| Self { seq, epoch: data.previous_epoch.into_owned(), delivered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(members: &str) -> Option<EndedEpoch> {
        EndedEpoch::parse(4, &format!(r#"{{"reason":"conflict",{members}}}"#), "new")
    }

    #[test]
    fn entries_that_were_not_carried_over_were_delivered() {
        let found = parse(
            r#""epoch":"new","previous_epoch":"old","entries":3,"previous_last_seq":10,"previous_totals":{}"#,
        );
        assert_eq!(found, Some(EndedEpoch { seq: 4, epoch: "old".into(), delivered: 7 }));
    }

    #[test]
    fn start_without_sound_numbers_says_nothing() {
        let long = "x".repeat(257);
        for members in [
            // First start, lost outbox, and agents of release 0.1.
            r#""epoch":"new","previous_epoch":null"#,
            r#""epoch":"new","previous_epoch":"old""#,
            r#""epoch":"new","previous_epoch":"old","entries":3"#,
            r#""epoch":"new","previous_epoch":"old","previous_last_seq":3"#,
            // Nothing was delivered.
            r#""epoch":"new","previous_epoch":"old","entries":3,"previous_last_seq":3"#,
            // Carried over from an older epoch, or of the epoch itself.
            r#""epoch":"old","previous_epoch":"older","entries":0,"previous_last_seq":3"#,
            r#""epoch":"new","previous_epoch":"new","entries":0,"previous_last_seq":3"#,
            // Numbers and names that cannot be right.
            r#""epoch":"new","previous_epoch":"old","entries":4,"previous_last_seq":3"#,
            r#""epoch":"new","previous_epoch":"old","entries":18446744073709551615,"previous_last_seq":3"#,
            r#""epoch":"new","previous_epoch":"old","entries":0,"previous_last_seq":18446744073709551615"#,
            r#""epoch":"new","previous_epoch":"old","entries":9007199254740990,"previous_last_seq":9007199254740992"#,
            r#""epoch":"new","previous_epoch":"old","entries":-1,"previous_last_seq":3"#,
            r#""epoch":"new","previous_epoch":"old","entries":"0","previous_last_seq":3"#,
            r#""epoch":"new","previous_epoch":"","entries":0,"previous_last_seq":3"#,
            &format!(
                r#""epoch":"new","previous_epoch":"{long}","entries":0,"previous_last_seq":3"#
            ),
        ] {
            assert_eq!(parse(members), None, "{members}");
        }
        assert_eq!(EndedEpoch::parse(1, "[]", "new"), None);
    }
}
