//! Stores that older agents wrote. They are taken over when they are opened; an agent that is
//! older than the store refuses it.
//!
//! | schema | what is other |
//! | --- | --- |
//! | 1 | totals count bytes of lines with their endings; no accounts of generations |

use serde_json::{Value, json};

use super::{super::accounting::Totals, State};

/// The state of a store of schema 1. What it counted can't be split as it is counted now: its
/// entries are uncounted, and the totals begin behind them.
pub(super) fn from_1(row: &[u8]) -> Option<State> {
    let mut state: Value = serde_json::from_slice(row).ok()?;
    let next_seq = state.get("next_seq")?.as_u64()?;
    let totals = Totals::after(next_seq.checked_sub(1)?);
    state.as_object_mut()?.insert("totals".into(), json!(totals));
    serde_json::from_value(state).ok()
}
