//! Indexer acknowledgement: ids of requests are polled until the receiver reports them as indexed.
//!
//! Each indexer counts the requests of a channel from 0. An id that was given and never reported stays
//! with its indexer. Another indexer, or the same one after a restart, may give the same id to a later
//! request, and a poll for that one might be answered with the state of the earlier one. After such an
//! id, which a request without a response may have as well, requests get a new channel.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use reqwest::{RequestBuilder, header::HeaderMap};
use serde::Deserialize;
use siem_protocol::delivery::Rest;

use super::{
    Collector,
    response::{NO_ACKNOWLEDGEMENT, RestOfRequest},
};
use crate::{problem::reason, request::Results};

/// First wait between two polls; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between two polls.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of cookies that are kept.
const MAX_COOKIES: usize = 16;

/// Settings of indexer acknowledgement.
#[derive(Clone)]
pub struct Indexed {
    /// Returns a new GUID for a channel. The receiver numbers the requests of each channel, so that two
    /// senders must not share one.
    pub new_channel: Arc<dyn Fn() -> String + Send + Sync>,
    /// Time after which entries without acknowledgement are sent again.
    pub within: Duration,
}

impl fmt::Debug for Indexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Indexed").field("within", &self.within).finish_non_exhaustive()
    }
}

/// Polls for acknowledgements.
pub(super) struct Acknowledgements {
    indexed: Indexed,
    /// GUID of the current channel.
    channel: String,
    /// True after the receiver has answered a poll.
    is_checked: bool,
    /// Cookies of a load balancer, with which a poll reaches the indexer that has the events.
    cookies: BTreeMap<String, String>,
}

/// Requests that are received and not known to be indexed.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    /// Entries of each event, by the id of the request.
    requests: BTreeMap<u64, Vec<usize>>,
    /// True if an id may remain with the receiver that is not in `requests`.
    has_unknown_ids: bool,
}

impl Unconfirmed {
    /// Adds a request. Without an id it can never be confirmed.
    pub(super) fn add(&mut self, id: Option<u64>, entries: &[usize]) -> Result<(), Rest> {
        let Some(id) = id else {
            return Err(Rest::Hold { after: None, reason: NO_ACKNOWLEDGEMENT.to_owned() });
        };
        if self.requests.insert(id, entries.to_vec()).is_some() {
            // Another indexer, or one that was restarted, counts from the beginning: `true` for this id
            // would not say which of the two requests it is about.
            self.requests.remove(&id);
            self.has_unknown_ids = true;
            let reason = format!(
                "the receiver gave the acknowledgement id {id} to two requests of a channel: behind a load \
                 balancer, requests and polls need sticky sessions"
            );
            return Err(Rest::Retry { after: None, reason });
        }
        Ok(())
    }

    /// Records that a request got no response, and may have an id.
    pub(super) fn add_unanswered(&mut self) {
        self.has_unknown_ids = true;
    }

    /// Removes the events of the entries from `from` on, which are encoded again: parts that were sent
    /// say nothing about the new ones.
    pub(super) fn forget(&mut self, from: usize) {
        for entries in self.requests.values_mut() {
            entries.retain(|entry| *entry < from);
        }
    }
}

#[derive(Deserialize)]
struct Acks {
    acks: BTreeMap<u64, bool>,
}

impl Acknowledgements {
    pub(super) fn new(indexed: Indexed) -> Self {
        let channel = (indexed.new_channel)();
        Self { indexed, channel, is_checked: false, cookies: BTreeMap::new() }
    }

    /// Adds the channel and the cookies to a request.
    pub(super) fn add_headers(&self, builder: RequestBuilder) -> RequestBuilder {
        let builder = builder.header("x-splunk-request-channel", &self.channel);
        if self.cookies.is_empty() {
            return builder;
        }
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        builder.header("cookie", cookies.collect::<Vec<_>>().join("; "))
    }

    /// Keeps the cookies of a response.
    pub(super) fn keep_cookies(&mut self, headers: &HeaderMap) {
        for cookie in headers.get_all("set-cookie") {
            let pair = cookie.to_str().ok().and_then(|cookie| cookie.split(';').next());
            let Some((name, value)) = pair.and_then(|pair| pair.split_once('=')) else { continue };
            let name = name.trim();
            if self.cookies.len() < MAX_COOKIES || self.cookies.contains_key(name) {
                self.cookies.insert(name.to_owned(), value.trim().to_owned());
            }
        }
    }

    /// Checks once that the token has acknowledgement, before events are sent that could not be
    /// confirmed, and would be sent again and again.
    pub(super) async fn check(
        &mut self,
        collector: &Collector,
        within: Duration,
    ) -> Result<(), Rest> {
        if !self.is_checked {
            // An id that was never given: the receiver answers `false`.
            self.poll(collector, &[u64::from(u32::MAX)], within).await?;
            self.is_checked = true;
        }
        Ok(())
    }

    /// Waits until the requests are indexed, and records their entries as accepted. If ids are left, the
    /// next request gets a new channel.
    pub(super) async fn wait(
        &mut self,
        collector: &Collector,
        mut unconfirmed: Unconfirmed,
        results: &mut Results,
        within: Duration,
    ) -> Result<(), Rest> {
        let waited = self.poll_all(collector, &mut unconfirmed, results, within).await;
        if unconfirmed.has_unknown_ids || !unconfirmed.requests.is_empty() {
            self.channel = (self.indexed.new_channel)();
        }
        waited
    }

    async fn poll_all(
        &self,
        collector: &Collector,
        unconfirmed: &mut Unconfirmed,
        results: &mut Results,
        within: Duration,
    ) -> Result<(), Rest> {
        let (mut waited, mut pause) = (Duration::ZERO, FIRST_WAIT);
        let mut last = None;
        while !unconfirmed.requests.is_empty() {
            if waited >= self.indexed.within {
                return Err(match last {
                    Some(hold @ Rest::Hold { .. }) => hold,
                    last => self.overdue(unconfirmed.requests.len(), last.map(reason)),
                });
            }
            collector.clock.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LONGEST_WAIT);
            let ids: Vec<u64> = unconfirmed.requests.keys().copied().collect();
            let left = (self.indexed.within - waited.min(self.indexed.within)).max(FIRST_WAIT);
            match self.poll(collector, &ids, within.min(left)).await {
                // The receiver forgets an id after it has answered `true`: it is not polled again.
                Ok(indexed) => {
                    last = None;
                    let entries = indexed.iter().filter_map(|id| unconfirmed.requests.remove(id));
                    entries.flatten().for_each(|entry| results.accept(entry));
                }
                // The ids stay valid, even if a proxy or a changed token answers in between.
                Err(failed) => {
                    if let Rest::Slow { waited: polled, .. } = &failed {
                        waited += *polled;
                    }
                    last = Some(failed);
                }
            }
        }
        Ok(())
    }

    /// Causes a new check before the next batch.
    pub(super) fn recheck(&mut self) {
        self.is_checked = false;
    }

    fn overdue(&self, requests: usize, last: Option<String>) -> Rest {
        let seconds = self.indexed.within.as_secs_f64();
        let what =
            if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
        let last = last.map(|last| format!("; the last poll failed: {last}")).unwrap_or_default();
        let reason = format!(
            "the receiver did not report {what} as indexed within {seconds} s: the events are sent \
             again, and may be there twice with the same `event.id`{last}"
        );
        Rest::Retry { after: None, reason }
    }

    /// Returns those of `ids` that are indexed.
    async fn poll(
        &self,
        collector: &Collector,
        ids: &[u64],
        within: Duration,
    ) -> Result<Vec<u64>, Rest> {
        let body = serde_json::json!({ "acks": ids }).to_string();
        let builder = collector.request("ack", Some(self)).body(body);
        let reply = collector.exchange(builder, within).await;
        if let Ok(answer) = &reply
            && answer.status == 200
            && let Ok(Acks { acks }) = serde_json::from_slice(&answer.body)
        {
            return Ok(acks.into_iter().filter_map(|(id, done)| done.then_some(id)).collect());
        }
        match collector.interpret(&reply, (0, 0)).rest {
            RestOfRequest::Undecided(rest) => Err(rest),
            _ => {
                let reason = "the response to a poll has no acknowledgements".to_owned();
                Err(Rest::Hold { after: None, reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_two_requests_confirms_none_of_them() {
        let mut unconfirmed = Unconfirmed::default();
        unconfirmed.add(Some(0), &[0, 1]).unwrap();
        unconfirmed.add(Some(1), &[2]).unwrap();
        assert!(matches!(unconfirmed.add(Some(0), &[3]), Err(Rest::Retry { .. })));
        assert_eq!(unconfirmed.requests.keys().collect::<Vec<_>>(), [&1]);
    }
}
