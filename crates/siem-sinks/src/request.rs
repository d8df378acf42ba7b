//! Packs encoded events into requests, and collects the results of their entries.

use std::mem;

use siem_protocol::delivery::{Delivery, EntryResult, Rest};

/// Body of one request, and which entries its events belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The encoded events.
    pub body: Vec<u8>,
    /// For each event the index of its entry in the batch. An entry that was cut into parts has
    /// several events, and may be spread over several requests.
    pub entries: Vec<usize>,
}

/// Limit below which a request is not made smaller by itself: servers accept at least as much.
const MIN_REQUEST_BYTES: usize = 64 << 10;
/// Smallest limit of an event, with room for fields and content.
const MIN_EVENT_BYTES: usize = 16 << 10;

/// Limits in bytes, before compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a request.
    pub request: usize,
    /// Maximum size of an encoded event; at most that of a request.
    pub event: usize,
}

impl Limits {
    /// Creates limits, which are raised if they leave too little room.
    #[must_use]
    pub fn new(request: usize, event: usize) -> Self {
        let request = request.max(MIN_EVENT_BYTES);
        Self { request, event: event.clamp(MIN_EVENT_BYTES, request) }
    }

    /// Halves the limits after a request of `length` bytes was too large for the receiver. Returns
    /// false if they are at their minimum.
    pub fn lower(&mut self, length: usize) -> bool {
        let least = MIN_REQUEST_BYTES.min(self.request);
        let request = (length.min(self.request) / 2).max(least);
        let is_lower = request < self.request;
        *self = Self::new(request, self.event);
        is_lower
    }
}

/// Packs events into requests of limited size.
#[derive(Debug)]
pub struct Packer {
    max_bytes: usize,
    max_events: usize,
    full: Vec<Request>,
    current: Request,
}

impl Packer {
    /// Creates a packer for requests of at most `max_bytes` and `max_events`. An event that is
    /// larger than `max_bytes` gets a request of its own.
    #[must_use]
    pub fn new(max_bytes: usize, max_events: usize) -> Self {
        let (full, current) = (Vec::new(), Request::default());
        Self { max_bytes, max_events: max_events.max(1), full, current }
    }

    /// Allocates room for events of `bytes` together, as far as they fit into one request.
    pub fn reserve(&mut self, bytes: usize) {
        self.current.body.reserve(bytes.min(self.max_bytes));
    }

    /// Adds an event of the entry with index `entry`, which `encode` appends to the body.
    pub fn push(&mut self, entry: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.push_within(entry, usize::MAX, encode);
    }

    /// Adds an event unless it turns out larger than `max_event`, and reports whether it was added.
    pub fn push_within(
        &mut self,
        entry: usize,
        max_event: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if self.current.entries.len() >= self.max_events {
            self.next_request(Vec::new());
        }
        let start = self.current.body.len();
        encode(&mut self.current.body);
        if self.current.body.len() - start > max_event {
            self.current.body.truncate(start);
            return false;
        }
        if self.current.body.len() > self.max_bytes && start > 0 {
            let event = self.current.body.split_off(start);
            self.next_request(event);
        }
        self.current.entries.push(entry);
        true
    }

    /// Begins a request with the first event in `body`. It is likely to become as large as the one
    /// before.
    fn next_request(&mut self, mut body: Vec<u8>) {
        body.reserve(self.current.body.len().saturating_sub(body.len()));
        let next = Request { body, ..Request::default() };
        self.full.push(mem::replace(&mut self.current, next));
    }

    /// Returns the requests in order, none of them empty.
    #[must_use]
    pub fn finish(mut self) -> Vec<Request> {
        if !self.current.entries.is_empty() {
            self.full.push(self.current);
        }
        self.full
    }
}

/// Results of the entries of a batch, collected from the responses to its requests.
#[derive(Debug)]
pub struct Results {
    entries: Vec<Collected>,
}

#[derive(Clone, Debug)]
struct Collected {
    /// Number of events without result.
    missing: usize,
    result: EntryResult,
}

impl Results {
    /// Creates the results of a batch with `count` entries that is sent as `requests`.
    #[must_use]
    pub fn new(count: usize, requests: &[Request]) -> Self {
        let none = Collected { missing: 0, result: EntryResult::Accepted };
        let mut results = Self { entries: vec![none; count] };
        results.replace(requests);
        results
    }

    /// Records that the entries with events in `requests` are sent as these, and not as before.
    pub fn replace(&mut self, requests: &[Request]) {
        let events = || requests.iter().flat_map(|request| &request.entries);
        events().for_each(|entry| self.entries[*entry].missing = 0);
        events().for_each(|entry| self.entries[*entry].missing += 1);
    }

    /// Returns true if an event of `entry` has no result.
    #[must_use]
    pub fn is_undecided(&self, entry: usize) -> bool {
        self.entries[entry].missing > 0
    }

    /// Records that one event of `entry` was accepted.
    pub fn accept(&mut self, entry: usize) {
        let collected = &mut self.entries[entry];
        collected.missing = collected.missing.saturating_sub(1);
    }

    /// Records that one event of `entry` was stored where searches do not find it.
    pub fn misfile(&mut self, entry: usize, answer: String) {
        self.accept(entry);
        let result = &mut self.entries[entry].result;
        if *result == EntryResult::Accepted {
            *result = EntryResult::Misfiled { answer };
        }
    }

    /// Records that one event of `entry`, and with it the entry, was refused.
    pub fn refuse(&mut self, entry: usize, status: u16, answer: String) {
        let collected = &mut self.entries[entry];
        collected.missing = 0;
        collected.result = EntryResult::Refused { status, answer };
    }

    /// Records that `refused` events of a request with an event for each of `entries` were refused and
    /// the others accepted, and that it is not known which.
    pub fn refuse_some(&mut self, entries: &[usize], refused: u64, answer: String) {
        let Some(first) = entries.first() else { return };
        let among = entries.chunk_by(|a, b| a == b).count() as u64;
        if among == 1 {
            return self.refuse(*first, 400, answer);
        }
        entries.iter().for_each(|entry| self.accept(*entry));
        // All events of the first entry have a result now: those after it are in the same request.
        let refused = refused.clamp(1, among);
        self.entries[*first].result = EntryResult::Unidentified { refused, among, answer };
    }

    /// Returns the delivery, with `rest` for the entries with an event that has no result.
    #[must_use]
    pub fn finish(self, rest: Rest) -> Delivery {
        let is_accepted =
            |entry: &Collected| entry.missing == 0 && entry.result == EntryResult::Accepted;
        if self.entries.iter().all(is_accepted) {
            return Delivery::Acknowledged;
        }
        let result = |entry: Collected| match entry.missing {
            0 => entry.result,
            _ => EntryResult::Undecided,
        };
        let count = self.entries.len() as u64;
        let is_whole = self.entries.iter().all(|entry| entry.missing == 0);
        let mut entries: Vec<_> = self.entries.into_iter().map(result).collect();
        if let Some(EntryResult::Unidentified { refused, among, answer }) = entries.first_mut()
            && is_whole
            && *among == count
        {
            return Delivery::Unidentified { refused: *refused, answer: mem::take(answer) };
        }
        if entries.iter().any(|entry| *entry != EntryResult::Undecided) {
            return Delivery::PerEntry { entries, rest };
        }
        match rest {
            Rest::Retry { after, reason } => Delivery::Retry { after, reason },
            Rest::Slow { waited, reason } => Delivery::Slow { waited, reason },
            Rest::Hold { after, reason } => Delivery::Hold { after, reason },
            Rest::Refused { status, answer } => Delivery::Refused { status, answer },
            Rest::Unprocessed | Rest::InTransit { .. } => Delivery::PerEntry { entries, rest },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(events: &[(usize, usize)], max_bytes: usize, max_events: usize) -> Vec<Request> {
        let mut packer = Packer::new(max_bytes, max_events);
        for (entry, size) in events {
            packer.push(*entry, |body| body.resize(body.len() + size, b'x'));
        }
        packer.finish()
    }

    fn retry() -> Rest {
        Rest::Retry { after: None, reason: "busy".into() }
    }

    #[test]
    fn limits_are_halved_down_to_a_minimum() {
        let mut limits = Limits::new(1_000_000, 900_000);
        assert!(limits.lower(5_000_000));
        assert_eq!(limits, Limits { request: 500_000, event: 500_000 });
        assert!(limits.lower(200_000));
        assert_eq!(limits, Limits { request: 100_000, event: 100_000 });
        assert!(limits.lower(100_000));
        assert!(!limits.lower(100_000));
        assert_eq!(limits, Limits { request: 64 << 10, event: 64 << 10 });
        assert_eq!(Limits::new(1, 1), Limits { request: 16 << 10, event: 16 << 10 });
        let mut small = Limits::new(32 << 10, 16 << 10);
        assert!(!small.lower(32 << 10));
        assert_eq!(small.request, 32 << 10);
    }

    #[test]
    fn entry_that_is_sent_in_other_parts_needs_all_of_them() {
        let mut results = Results::new(2, &pack(&[(0, 1), (1, 1), (1, 1)], 1, 10));
        results.accept(0);
        results.accept(1);
        results.replace(&pack(&[(1, 1), (1, 1), (1, 1)], 1, 10));
        results.accept(1);
        results.accept(1);
        let Delivery::PerEntry { entries, .. } = results.finish(retry()) else { panic!() };
        assert_eq!(entries, [EntryResult::Accepted, EntryResult::Undecided]);
    }

    #[test]
    fn entry_without_all_results_is_undecided() {
        let requests = pack(&[(0, 4), (1, 4), (1, 4), (2, 4)], 8, 10);
        let mut results = Results::new(3, &requests);
        results.accept(0);
        results.accept(1);
        let Delivery::PerEntry { entries, rest } = results.finish(retry()) else { panic!() };
        let expected = [EntryResult::Accepted, EntryResult::Undecided, EntryResult::Undecided];
        assert_eq!(entries, expected);
        assert_eq!(rest, retry());
    }

    #[test]
    fn batch_without_any_result_has_the_result_of_the_rest() {
        let results = Results::new(2, &pack(&[(0, 1), (1, 1)], 8, 10));
        let expected = Delivery::Retry { after: None, reason: "busy".into() };
        assert_eq!(results.finish(retry()), expected);
    }

    #[test]
    fn batch_is_acknowledged_when_each_event_is_accepted() {
        let mut results = Results::new(2, &pack(&[(0, 1), (1, 1), (1, 1)], 1, 10));
        for entry in [0, 1, 1] {
            results.accept(entry);
        }
        assert_eq!(results.finish(Rest::Unprocessed), Delivery::Acknowledged);
    }

    #[test]
    fn refusals_of_some_entries_keep_the_results_of_others() {
        // Requests with the entries 0, 1 and 2, 3, 4 and 5, 6; the second is refused in part.
        let events: Vec<_> = (0..7).map(|entry| (entry, if entry < 2 { 15 } else { 10 })).collect();
        let mut requests = pack(&events, 30, 10);
        assert_eq!(requests.len(), 3);
        let mut results = Results::new(7, &requests);
        requests.remove(0).entries.iter().for_each(|entry| results.accept(*entry));
        results.refuse_some(&requests[0].entries, 2, "no".into());
        let Delivery::PerEntry { entries, rest } = results.finish(Rest::Unprocessed) else {
            panic!()
        };
        let some = EntryResult::Unidentified { refused: 2, among: 3, answer: "no".into() };
        let mut expected = vec![EntryResult::Accepted; 5];
        expected[2] = some;
        expected.extend([EntryResult::Undecided, EntryResult::Undecided]);
        assert_eq!((entries, rest), (expected, Rest::Unprocessed));
    }

    #[test]
    fn refusals_in_a_single_request_are_of_the_batch() {
        let requests = pack(&[(0, 1), (1, 1), (1, 1)], 8, 10);
        let mut results = Results::new(2, &requests);
        results.refuse_some(&requests[0].entries, 2, "no".into());
        let expected = Delivery::Unidentified { refused: 2, answer: "no".into() };
        assert_eq!(results.finish(Rest::Unprocessed), expected);
    }

    #[test]
    fn refused_parts_of_one_entry_refuse_the_entry() {
        let requests = pack(&[(0, 1), (0, 1), (1, 1)], 8, 2);
        let mut results = Results::new(2, &requests);
        results.refuse_some(&requests[0].entries, 1, "no".into());
        let refused = EntryResult::Refused { status: 400, answer: "no".into() };
        let entries = vec![refused, EntryResult::Undecided];
        let expected = Delivery::PerEntry { entries, rest: Rest::Unprocessed };
        assert_eq!(results.finish(Rest::Unprocessed), expected);
    }

    proptest! {
        /// A request is accepted, refused in part, or fails, which ends the delivery.
        #[test]
        fn results_accept_only_what_a_response_covers(
            parts in proptest::collection::vec(1_usize..5, 1..12), per_request in 1_usize..6,
            fates in proptest::collection::vec(0_u64..6, 16..60),
        ) {
            let events: Vec<_> = parts.iter().enumerate()
                .flat_map(|(entry, parts)| vec![(entry, 1); *parts]).collect();
            let requests = pack(&events, 100, per_request);
            let mut results = Results::new(parts.len(), &requests);
            let (mut answered, mut rejected, mut rest) = (0, None, Rest::Unprocessed);
            for (request, fate) in requests.iter().zip(fates.iter().cycle()) {
                let count = request.entries.len() as u64;
                match *fate {
                    0 => {
                        rest = retry();
                        break;
                    }
                    refused if refused < 5 && refused < count => {
                        results.refuse_some(&request.entries, refused, "no".into());
                        rejected = Some((request.entries.clone(), refused));
                        answered += request.entries.len();
                        break;
                    }
                    _ => request.entries.iter().for_each(|entry| results.accept(*entry)),
                }
                answered += request.entries.len();
            }
            let delivery = results.finish(rest);
            // The last entry with an answer may have parts in requests that were not sent.
            let covered = |entry: &usize| events.iter().rposition(|it| it.0 == *entry) < Some(answered);
            let results = match &delivery {
                Delivery::Acknowledged => vec![EntryResult::Accepted; parts.len()],
                Delivery::PerEntry { entries, .. } => entries.clone(),
                Delivery::Unidentified { .. } => vec![EntryResult::Accepted; parts.len()],
                _ => vec![EntryResult::Undecided; parts.len()],
            };
            let alone = rejected.clone().filter(|(entries, _)| entries.first() == entries.last());
            let alone = alone.map(|(entries, _)| entries[0]);
            for (entry, result) in results.iter().enumerate() {
                let is_refused = alone == Some(entry);
                prop_assert_eq!(matches!(result, EntryResult::Refused { .. }), is_refused);
                let is_decided = *result != EntryResult::Undecided;
                prop_assert_eq!(is_decided, is_refused || covered(&entry), "{}: {:?}", entry, result);
            }
            // The number of refused events is kept, if it is not that of a single entry.
            let reported = match &delivery {
                Delivery::Unidentified { refused, .. } => Some(*refused),
                _ => results.iter().find_map(|result| match result {
                    EntryResult::Unidentified { refused, .. } => Some(*refused),
                    _ => None,
                }),
            };
            let expected = rejected.filter(|_| alone.is_none()).map(|(entries, refused)| {
                refused.min(entries.chunk_by(|a, b| a == b).count() as u64)
            });
            prop_assert_eq!(reported, expected);
        }
    }

    proptest! {
        #[test]
        fn packing_keeps_order_and_limits(
            sizes in proptest::collection::vec(1_usize..40, 0..60), max_bytes in 1_usize..100,
            max_events in 1_usize..8,
        ) {
            let events: Vec<_> = sizes.iter().copied().enumerate().collect();
            let requests = pack(&events, max_bytes, max_events);
            let order: Vec<_> = requests.iter().flat_map(|r| r.entries.clone()).collect();
            prop_assert_eq!(order, (0..sizes.len()).collect::<Vec<_>>());
            for request in &requests {
                let size: usize = request.entries.iter().map(|entry| sizes[*entry]).sum();
                prop_assert_eq!(size, request.body.len());
                prop_assert!(!request.entries.is_empty() && request.entries.len() <= max_events);
                prop_assert!(size <= max_bytes || request.entries.len() == 1);
            }
        }
    }
}
