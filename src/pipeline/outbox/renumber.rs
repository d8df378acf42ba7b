//! A new epoch: what is not acknowledged is numbered anew, from 1.
//!
//! A store that was restored from a copy counts on from numbers that the receiver holds already,
//! with other entries. The receiver says so, and the entries that are left get numbers of their
//! own.

use std::{mem, time::Duration};

use redb::{ReadableTable as _, WriteTransaction};
use siem_protocol::{ChainPoint, Digest};

use super::{
    super::accounting::Totals, ACCOUNTS, BLOCKS, CURSORS, Cursor, Outbox, OutboxError, State,
    block, checksum::seal_json, cursors::read_cursors, dead_letters::take_back_unnamed,
};
use crate::{
    frame::{Encoder, Frame},
    platform::Timestamp,
};

/// The least time between two new epochs: a receiver that always conflicts must not make one each
/// time.
const LEAST: Duration = Duration::from_secs(3600);

/// What came of a new epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenumberOutcome {
    /// It began.
    Started {
        /// The epoch before.
        previous: String,
        /// The new one.
        epoch: String,
        /// How many entries it began with.
        entries: u64,
        /// The last number of the one before, and what was counted up to there: no heartbeat of it
        /// may ever say so.
        ended: (u64, Box<Totals>),
    },
    /// Another sink was quicker.
    AlreadyDone,
    /// The last one began less than an hour ago.
    TooSoon,
}

/// Sinks and how far each is.
type Cursors = Vec<(String, Cursor)>;

impl Outbox {
    /// Ends `epoch` and begins `new` in its place, in one transaction: every entry that some sink
    /// has not acknowledged gets a new number, dead letters that no header has named yet are
    /// entries again, and each sink goes on where it was.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn renumber(
        &self,
        epoch: &str,
        new: String,
        now: Timestamp,
    ) -> Result<RenumberOutcome, OutboxError> {
        let mut outcome = RenumberOutcome::AlreadyDone;
        self.write("number anew the entries of", |transaction, state| {
            if state.epoch != epoch {
                return Ok(Ok(()));
            }
            let is_first = state.renumbered_at == Timestamp::default();
            // A clock that was set back says nothing about how long ago it was.
            let is_known = !is_first && now >= state.renumbered_at;
            if is_known && now.since(state.renumbered_at) < LEAST {
                outcome = RenumberOutcome::TooSoon;
                return Ok(Ok(()));
            }
            let cursors = read_cursors(&transaction.open_table(CURSORS)?)?;
            let last_seq = state.next_seq - 1;
            let places = match number_anew(transaction, state, &cursors)? {
                Ok(places) => places,
                Err(what) => return Ok(Err(self.damaged(what))),
            };
            let previous = mem::replace(&mut state.epoch, new.clone());
            // They count for an epoch, and what is left was counted in the one before.
            let totals = mem::replace(&mut state.totals, Totals::after(state.next_seq - 1));
            state.dead_lettered.clear();
            transaction.open_table(ACCOUNTS)?.retain(|_, _| false)?;
            take_back_unnamed(transaction, &previous, &cursors)?;
            let mut table = transaction.open_table(CURSORS)?;
            for ((name, cursor), place) in cursors.iter().zip(places) {
                let cursor = Cursor {
                    epoch: new.clone(),
                    acknowledged: place,
                    base: (place.seq > 0).then_some(place),
                    previous_epoch: Some(previous.clone()),
                    destination: cursor.destination.clone(),
                    refusals: cursor.refusals,
                };
                table.insert(name.as_str(), seal_json(name.as_str(), &cursor).as_slice())?;
            }
            state.renumbered_at = now;
            let ended = (last_seq, Box::new(totals));
            outcome = RenumberOutcome::Started {
                previous,
                epoch: new,
                entries: state.next_seq - 1,
                ended,
            };
            Ok(Ok(()))
        })?;
        self.backup().forget();
        Ok(outcome)
    }
}

/// Numbers all entries after the slowest cursor from 1 on. Returns where each cursor is in the new
/// count, or what is damaged.
fn number_anew(
    transaction: &WriteTransaction,
    state: &mut State,
    cursors: &Cursors,
) -> Result<Result<Vec<ChainPoint>, &'static str>, redb::Error> {
    let slowest = cursors.iter().map(|(_, cursor)| cursor.acknowledged.seq).min();
    let slowest = slowest.unwrap_or(state.next_seq - 1);
    let mut at = ChainPoint { seq: 0, hash: Digest::ZERO };
    let mut places = vec![at; cursors.len()];
    let mut values = transaction.open_table(BLOCKS)?;
    let keys: Vec<u64> =
        values.iter()?.map(|row| Ok(row?.0.value())).collect::<Result<_, redb::StorageError>>()?;
    state.stored = 0;
    state.urgent_seq = state.urgent_seq.saturating_sub(slowest);
    // New numbers are never above the old ones, so no value is written over one yet to be read.
    for key in keys {
        let old: Vec<Frame> = {
            let Some(old) = values.remove(key)? else { continue };
            let Some(frames) = block::decode(old.value()) else { return Ok(Err("a value")) };
            frames.map(|(head, body)| Frame { head, body: body.to_vec() }).collect()
        };
        let mut frames = Vec::with_capacity(old.len());
        for frame in old.iter().filter(|frame| frame.head.last_seq() > slowest) {
            let mut encoder = Encoder::new(frame.head.codec);
            let show = |point: ChainPoint| {
                for (place, (_, cursor)) in places.iter_mut().zip(cursors) {
                    if cursor.acknowledged.seq == slowest + point.seq {
                        *place = point;
                    }
                }
            };
            let Ok(new) = frame.renumbered(slowest, at, &mut encoder, show) else {
                return Ok(Err("a frame"));
            };
            at = ChainPoint { seq: new.head.last_seq(), hash: new.head.after };
            frames.push(new);
        }
        if let Some(first) = frames.first() {
            let value = block::encode(&frames);
            state.stored += value.len() as u64;
            values.insert(first.head.first_seq, value.as_slice())?;
        }
    }
    state.next_seq = at.seq + 1;
    state.chain = at.hash;
    Ok(Ok(places))
}
