//! HTTP Event Collector of Splunk, LogScale and Falcon Next-Gen SIEM.
//!
//! Each entry is an object with the record as the string `event`. HEC reads a request object by object:
//! it stores those before an invalid one and names that one by its number, so that the others are not
//! sent twice. It has no ids: after a lost response the events of one request arrive twice, with the
//! same `event.id`.
//!
//! With indexer acknowledgement, entries count as delivered when the receiver reports them as
//! indexed. What it does not report in time is sent again, over a new channel.

mod acknowledgements;
mod encode;
mod response;

use std::{sync::Arc, time::Duration};

use reqwest::{
    RequestBuilder, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use siem_protocol::delivery::{Acknowledged, Delivery, Rest};

pub use self::acknowledgements::Indexed;
use self::{
    acknowledgements::{Acknowledgements, Unconfirmed},
    encode::encode,
    response::{NO_DATA, RestOfRequest, Verdict, interpret},
};
use crate::{
    Batch, SiemSink,
    clock::Clock,
    compression::Compression,
    event::TimeOf,
    http::{Answer, HttpClient, NoAnswer, exchange},
    problem::reason,
    request::{Limits, Request, Results},
};

/// Default limit of requests and events: Splunk Cloud documents 1 MB.
pub const SPLUNK_BYTES: usize = 900_000;
/// Default limit of requests to LogScale.
pub const LOGSCALE_REQUEST_BYTES: usize = 5_000_000;
/// Default limit of events for LogScale, which cuts those above 1 MB.
pub const LOGSCALE_EVENT_BYTES: usize = 1_000_000;
/// Bytes of a response that are read.
const MAX_ANSWER: usize = 64 << 10;

/// Receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Splunk.
    #[default]
    Splunk,
    /// LogScale and Falcon Next-Gen SIEM.
    LogScale,
}

/// Settings of the sink.
#[derive(Clone)]
pub struct Settings {
    /// URL of the receiver, with or without the path of its collector.
    pub url: Url,
    /// Token.
    pub token: String,
    /// Receiver.
    pub dialect: Dialect,
    /// `index` of the events; `None` for the default of the token.
    pub index: Option<String>,
    /// `sourcetype` of the events; `None` for one by kind, such as `claude_code:session`.
    pub sourcetype: Option<String>,
    /// Time of the events.
    pub time: TimeOf,
    /// Maximum size of an event in bytes, before compression.
    pub max_event_bytes: usize,
    /// Maximum size of a request in bytes, before compression.
    pub max_request_bytes: usize,
    /// Compression of requests.
    pub compression: Compression,
    /// Indexer acknowledgement; `None` if the receipt of events is enough.
    pub indexed: Option<Indexed>,
    /// Maximum time of a request.
    pub timeout: Duration,
}

/// Sends events to a collector.
pub struct SplunkHec {
    collector: Collector,
    /// Limits, lowered after responses that a request is too large.
    limits: Limits,
    acknowledgements: Option<Acknowledgements>,
    bytes_sent: u64,
    /// The last probe got a response in the form of the protocol.
    probe_is_proof: bool,
}

/// The receiver.
struct Collector {
    client: HttpClient,
    clock: Arc<dyn Clock>,
    settings: Settings,
    /// URL of the collector, below which Splunk has its endpoints.
    url: Url,
}

/// Result of sending requests.
enum Sent {
    All,
    /// No further request was sent.
    Stopped(Rest),
    /// The limits were lowered: the entries from this one on must be encoded again.
    TooLarge(usize),
}

impl SplunkHec {
    /// Creates the sink. The network is not used.
    #[must_use]
    pub fn new(client: HttpClient, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        let url = collector_url(&settings.url, settings.dialect);
        let acknowledgements = settings.indexed.clone().map(Acknowledgements::new);
        let limits = Limits::new(settings.max_request_bytes, settings.max_event_bytes);
        let collector = Collector { client, clock, settings, url };
        Self { collector, limits, acknowledgements, bytes_sent: 0, probe_is_proof: false }
    }

    /// Sends requests until one is not completely successful.
    async fn send(
        &mut self,
        requests: &[Request],
        within: Duration,
        results: &mut Results,
        unconfirmed: &mut Unconfirmed,
    ) -> Sent {
        for request in requests {
            let reply = self.post(request, within).await;
            if reply.is_err() {
                unconfirmed.add_unanswered();
            }
            let size = (request.entries.len(), request.body.len());
            let Verdict { stored, rest } = self.collector.interpret(&reply, size);
            let (accepted, others) = request.entries.split_at(stored);
            match rest {
                RestOfRequest::None { ack_id } if self.acknowledgements.is_some() => {
                    match unconfirmed.add(ack_id, &request.entries) {
                        Ok(()) => continue,
                        Err(rest) => return Sent::Stopped(rest),
                    }
                }
                RestOfRequest::TooLarge { .. } if self.limits.lower(request.body.len()) => {
                    return Sent::TooLarge(request.entries[0]);
                }
                _ => accepted.iter().for_each(|entry| results.accept(*entry)),
            }
            return Sent::Stopped(match rest {
                RestOfRequest::None { .. } => continue,
                RestOfRequest::FirstRefused { status, answer } => {
                    results.refuse(others[0], status, answer);
                    Rest::Unprocessed
                }
                RestOfRequest::TooLarge { status, answer } => Rest::Refused { status, answer },
                RestOfRequest::Undecided(rest) => rest,
            });
        }
        Sent::All
    }

    async fn post(&mut self, request: &Request, within: Duration) -> Result<Answer, NoAnswer> {
        let compression = self.collector.settings.compression;
        let body = compression.compress(&request.body).into_owned();
        self.bytes_sent += body.len() as u64;
        let mut builder = self.collector.request("event", self.acknowledgements.as_ref());
        if let Some(encoding) = compression.name() {
            builder = builder.header("content-encoding", encoding);
        }
        let reply = self.collector.exchange(builder.body(body), within).await;
        if let (Some(acknowledgements), Ok(answer)) = (&mut self.acknowledgements, &reply) {
            acknowledgements.keep_cookies(&answer.headers);
        }
        reply
    }
}

impl Collector {
    /// Creates a request to an endpoint.
    fn request(&self, endpoint: &str, acks: Option<&Acknowledgements>) -> RequestBuilder {
        let (url, scheme) = match self.settings.dialect {
            Dialect::Splunk => (below(&self.url, endpoint), "Splunk"),
            Dialect::LogScale => (self.url.clone(), "Bearer"),
        };
        // A token with characters that a header cannot contain is refused by the receiver.
        let token = HeaderValue::try_from(format!("{scheme} {}", self.settings.token));
        let mut token = token.unwrap_or_else(|_| HeaderValue::from_static(""));
        token.set_sensitive(true);
        let builder = self.client.post(url).header(AUTHORIZATION, token);
        let builder = builder.header(CONTENT_TYPE, "application/json");
        acks.into_iter().fold(builder, |builder, acks| acks.add_headers(builder))
    }

    async fn exchange(
        &self,
        request: RequestBuilder,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        exchange(&self.client, &self.url, request, MAX_ANSWER, within).await
    }

    /// Interprets the response to a request with a number of events, and of bytes before compression.
    fn interpret(&self, reply: &Result<Answer, NoAnswer>, size: (usize, usize)) -> Verdict {
        interpret(reply, self.settings.dialect, size, self.clock.now())
    }
}

impl SiemSink for SplunkHec {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        let within = self.collector.settings.timeout.max(batch.patience.unwrap_or_default());
        if let Some(acknowledgements) = &mut self.acknowledgements
            && let Err(rest) = acknowledgements.check(&self.collector, within).await
        {
            return delivery(rest);
        }
        let mut requests = match encode(&self.collector.settings, self.limits, batch, 0) {
            Ok(requests) => requests,
            Err(reason) => return Delivery::Hold { after: None, reason },
        };
        let mut results = Results::new(batch.entries().count(), &requests);
        let mut unconfirmed = Unconfirmed::default();
        let sent = loop {
            match self.send(&requests, within, &mut results, &mut unconfirmed).await {
                Sent::All => break None,
                Sent::Stopped(rest) => break Some(rest),
                Sent::TooLarge(from) => {
                    requests = match encode(&self.collector.settings, self.limits, batch, from) {
                        Ok(requests) => requests,
                        Err(reason) => break Some(Rest::Hold { after: None, reason }),
                    };
                    results.replace(&requests);
                    unconfirmed.forget(from);
                }
            }
        };
        let overdue = match &mut self.acknowledgements {
            Some(acknowledgements) => {
                let waiting =
                    acknowledgements.wait(&self.collector, unconfirmed, &mut results, within);
                waiting.await.err()
            }
            None => None,
        };
        let rest = sent.filter(|rest| *rest != Rest::Unprocessed).or(overdue);
        if let (Some(acknowledgements), true) = (&mut self.acknowledgements, rest.is_some()) {
            acknowledgements.recheck();
        }
        results.finish(rest.unwrap_or(Rest::Unprocessed))
    }

    fn destination(&self) -> String {
        self.collector.url.to_string()
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn acknowledged(&self) -> Acknowledged {
        match self.acknowledgements {
            Some(_) => Acknowledged::Indexed,
            None => Acknowledged::Received,
        }
    }

    /// Sends a request without an event: the receiver checks the token first.
    async fn probe(&mut self, within: Duration) -> Result<String, String> {
        if let Some(acknowledgements) = &mut self.acknowledgements {
            acknowledgements.check(&self.collector, within).await.map_err(reason)?;
        }
        let collector = &self.collector;
        let builder = collector.request("event", self.acknowledgements.as_ref());
        let reply = collector.exchange(builder, within).await;
        let dialect = collector.settings.dialect;
        let status = reply.as_ref().map(|answer| answer.status).unwrap_or_default();
        let code = reply.as_ref().ok().and_then(|answer| response::code(&answer.body));
        self.probe_is_proof = code.is_some();
        match (dialect, status, code) {
            (Dialect::Splunk, 400, Some(NO_DATA)) => {
                return Ok("HTTP Event Collector of Splunk; the token is accepted".to_owned());
            }
            (Dialect::LogScale, 200 | 400, Some(_)) => {
                return Ok("HTTP Event Collector of LogScale; the token is accepted".to_owned());
            }
            (Dialect::LogScale, 200 | 400, None) => {
                return Ok(format!(
                    "response {status} to a request without an event: the token is accepted if this is LogScale"
                ));
            }
            _ => {}
        }
        match collector.interpret(&reply, (0, 0)).rest {
            RestOfRequest::Undecided(rest) => Err(reason(rest)),
            _ => Err(format!("response {status} to a request without an event: check `endpoint`")),
        }
    }

    fn probe_is_proof(&self) -> bool {
        self.probe_is_proof
    }
}

/// Returns the delivery of a batch that was not sent.
fn delivery(rest: Rest) -> Delivery {
    match rest {
        Rest::Retry { after, reason } => Delivery::Retry { after, reason },
        Rest::Slow { reason, .. } => Delivery::Retry { after: None, reason },
        rest => Delivery::Hold { after: None, reason: reason(rest) },
    }
}

/// Returns the URL of the collector.
fn collector_url(url: &Url, dialect: Dialect) -> Url {
    const PATH: &str = "/services/collector";
    let path = url.path().trim_end_matches('/');
    let mut collector = url.clone();
    match (dialect, path.find(PATH)) {
        (Dialect::Splunk, Some(at)) => collector.set_path(&path[..at + PATH.len()]),
        (Dialect::Splunk, None) => collector.set_path(&format!("{path}{PATH}")),
        (Dialect::LogScale, _) if path.is_empty() => collector.set_path("/api/v1/ingest/hec"),
        (Dialect::LogScale, _) => {}
    }
    collector
}

fn below(collector: &Url, endpoint: &str) -> Url {
    let mut url = collector.clone();
    url.set_path(&format!("{}/{endpoint}", collector.path()));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_may_have_the_path_of_the_collector() {
        let url = |text: &str, dialect| collector_url(&text.parse().unwrap(), dialect).to_string();
        let expected = "https://splunk.test:8088/services/collector";
        for path in ["", "/", "/services/collector", "/services/collector/event/1.0"] {
            let text = format!("https://splunk.test:8088{path}");
            assert_eq!(url(&text, Dialect::Splunk), expected);
        }
        let prefixed = url("https://proxy.test/splunk/", Dialect::Splunk);
        assert_eq!(prefixed, "https://proxy.test/splunk/services/collector");
        let cloud = url("https://cloud.test", Dialect::LogScale);
        assert_eq!(cloud, "https://cloud.test/api/v1/ingest/hec");
        let connector = "https://ingest.test/api/ingest/hec/0123/v1/services/collector";
        assert_eq!(url(connector, Dialect::LogScale), connector);
    }
}
