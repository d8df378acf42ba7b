//! Sequence of the organisation's signed configurations: a pure function of a configuration and of
//! the highest one that this agent has applied.
//!
//! A signature alone does not protect from an old configuration that was signed once: a receiver, or
//! a user who copies files, could send it again.

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, ManagedConfig};

/// Highest serial that was ever applied, with the configuration that had it. It is stored in the
/// outbox, beyond the reach of a copied file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HighestSerial {
    pub(super) serial: u64,
    /// SHA-256 of the body.
    pub(super) content: Digest,
}

/// Where a signed configuration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigCopy {
    /// From the server, in answer to a request.
    Fresh,
    /// From the state directory.
    Stored,
}

/// Reason why a signed configuration does not continue the sequence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SequenceError {
    /// A member is missing.
    #[error(
        "`{0}` of the managed configuration is missing: with `managed.keys` a configuration needs \
         `serial`, `issued` and `audience`"
    )]
    Missing(&'static str),
    /// A later one was applied before.
    #[error(
        "`serial` of the managed configuration is {found}, and {highest} was applied before: sign it \
         again with a higher number"
    )]
    Lower {
        /// Its serial.
        found: u64,
        /// The highest that was applied.
        highest: u64,
    },
    /// Another one with its serial was applied before.
    #[error(
        "`serial` of the managed configuration is {0}, which was applied with another content: sign \
         it again with a higher number"
    )]
    Reused(u64),
    /// The outbox does not say which serial was applied, so that a stored copy may be an old one.
    #[error(
        "`serial` of the stored managed configuration cannot be checked, because the outbox has no \
         record of it: it counts once the server sends it again"
    )]
    NoRecord,
}

/// Checks that a configuration, whose signature is valid, may be applied after `highest`.
///
/// # Errors
/// [`SequenceError`].
pub(super) fn check(
    config: &ManagedConfig,
    content: Digest,
    highest: Option<HighestSerial>,
    copy: ConfigCopy,
) -> Result<HighestSerial, SequenceError> {
    let serial = config.serial.ok_or(SequenceError::Missing("serial"))?;
    config.issued.as_ref().ok_or(SequenceError::Missing("issued"))?;
    config.audience.as_ref().ok_or(SequenceError::Missing("audience"))?;
    match highest {
        None if copy == ConfigCopy::Stored => Err(SequenceError::NoRecord),
        Some(highest) if serial < highest.serial => {
            Err(SequenceError::Lower { found: serial, highest: highest.serial })
        }
        Some(highest) if serial == highest.serial && content != highest.content => {
            Err(SequenceError::Reused(serial))
        }
        _ => Ok(HighestSerial { serial, content }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siem_protocol::managed::Audience;

    use super::*;

    fn config(serial: Option<u64>) -> ManagedConfig {
        ManagedConfig {
            version: 1,
            serial,
            issued: Some("2026-11-29T00:00:00Z".into()),
            audience: Some(Audience::default()),
            ..ManagedConfig::default()
        }
    }

    fn content(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    #[test]
    fn lower_or_reused_serial_is_refused() {
        use ConfigCopy::{Fresh, Stored};

        let highest = Some(HighestSerial { serial: 5, content: content(5) });
        let lower = |found| Err(SequenceError::Lower { found, highest: 5 });
        let applied = |serial, of| Ok(HighestSerial { serial, content: content(of) });
        for copy in [Fresh, Stored] {
            for (serial, of, expected) in [
                (4, 4, lower(4)),
                (0, 5, lower(0)),
                (5, 5, applied(5, 5)),
                (5, 6, Err(SequenceError::Reused(5))),
                (6, 6, applied(6, 6)),
                (u64::MAX, 7, applied(u64::MAX, 7)),
            ] {
                assert_eq!(check(&config(Some(serial)), content(of), highest, copy), expected);
            }
        }
        assert_eq!(check(&config(Some(1)), content(1), None, Fresh), applied(1, 1));
        let stored = check(&config(Some(1)), content(1), None, Stored);
        assert_eq!(stored, Err(SequenceError::NoRecord));
    }

    #[test]
    fn incomplete_configuration_is_refused() {
        let complete = config(Some(1));
        for (config, member) in [
            (config(None), "serial"),
            (ManagedConfig { issued: None, ..complete.clone() }, "issued"),
            (ManagedConfig { audience: None, ..complete }, "audience"),
        ] {
            let error = check(&config, content(1), None, ConfigCopy::Fresh).unwrap_err();
            assert_eq!(error, SequenceError::Missing(member));
            assert!(error.to_string().starts_with(&format!("`{member}`")));
        }
    }

    proptest! {
        /// Whatever a receiver sends, and in whatever order, serials never go back, and one serial
        /// never has two contents.
        #[test]
        fn applied_serials_never_go_back(
            offers in prop::collection::vec((0..20_u64, 0..3_u64, any::<bool>()), 0..60),
        ) {
            let mut highest: Option<HighestSerial> = None;
            let mut contents = std::collections::BTreeMap::new();
            for (serial, of, is_fresh) in offers {
                let copy = if is_fresh { ConfigCopy::Fresh } else { ConfigCopy::Stored };
                let Ok(applied) = check(&config(Some(serial)), content(of), highest, copy) else {
                    continue;
                };
                prop_assert!(is_fresh || highest.is_some());
                prop_assert!(highest.is_none_or(|highest| applied.serial >= highest.serial));
                prop_assert_eq!(*contents.entry(serial).or_insert(of), of);
                highest = Some(applied);
            }
        }
    }
}
