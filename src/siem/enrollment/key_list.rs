//! Which keys a receiver's list of keys pins: a pure function.

use siem_protocol::{
    KeysAnswer,
    agent_event::UntrustedAnswer,
    minisign::OrganisationKey,
    note::{Note, VerifierKey},
    statement::{KeyList, Statement as _},
};

use super::super::{
    pins::Pins,
    receipts::{open, untrusted},
};

/// Keys of a list that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LearnedKeys {
    pub(super) receiver: String,
    pub(super) keys: Vec<VerifierKey>,
    /// True if the organisation vouches for the list, and no pinned key does.
    pub(super) is_recovery: bool,
}

/// Checks a list of keys. Without pinned keys the first list counts. Afterwards it must be signed by
/// a pinned or configured key that was not replaced, or by the organisation, and name the same
/// receiver; and it must not name a key that was replaced, since it is a recorded one then.
///
/// # Errors
/// What is wrong with the list.
pub(super) fn check(
    answer: &KeysAnswer,
    pins: &Pins,
    organisation: &[OrganisationKey],
) -> Result<LearnedKeys, UntrustedAnswer> {
    let (list, is_recovery) = match open_list(&answer.keys, pins) {
        Ok(list) => (list, false),
        Err(problem) => {
            let minisig = answer.organisation.as_deref().filter(|_| !pins.keys.is_empty());
            let recovered =
                minisig.map(|it| KeyList::open_recovery(&answer.keys, it, organisation));
            (recovered.and_then(Result::ok).ok_or(problem)?.statement, true)
        }
    };
    let keys = list.keys();
    let is_named = keys.iter().all(|key| key.name() == list.receiver);
    let is_pinned_receiver = pins.receiver.as_ref().is_none_or(|name| *name == list.receiver);
    let is_old = keys.iter().any(|key| pins.retired.contains(key));
    if !is_named || !is_pinned_receiver || is_old {
        return Err(UntrustedAnswer::OtherSubject);
    }
    Ok(LearnedKeys { receiver: list.receiver, keys, is_recovery })
}

/// Opens a list that a pinned key has signed; without pinned keys, its own current key.
fn open_list(note: &str, pins: &Pins) -> Result<KeyList, UntrustedAnswer> {
    if pins.keys.is_empty() {
        let text = Note::parse(note).map_err(|error| untrusted(&error.into()))?;
        let list = KeyList::parse(text.unverified_text()).map_err(|error| untrusted(&error))?;
        return open(note, &[list.current]);
    }
    open(note, &pins.vouching())
}
