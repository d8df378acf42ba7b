//! JSON objects in HTTP requests, for receivers without a protocol of their own.
//!
//! Each event is an object with the names of ECS: `@timestamp`, the record as the string
//! `event.original`, and the fields of the entry. Any status in a configurable set acknowledges a
//! request as a whole. There are no ids: after a lost response the events of one request arrive twice,
//! with the same `event.id`.

mod encode;
mod response;

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use siem_protocol::delivery::{Acknowledged, Delivery, Rest};

use self::{
    encode::encode,
    response::{Outcome, interpret},
};
use crate::{
    Batch, SiemSink,
    clock::Clock,
    compression::Compression,
    event::TimeOf,
    http::{Answer, HttpClient, NoAnswer, exchange, exchange_head},
    problem::reason,
    request::{Limits, Request, Results},
};

/// Bytes of a response that are read.
const MAX_ANSWER: usize = 64 << 10;
/// Number of bytes of a response that are searched for secrets, and may be shown.
const MAX_REDACTED: usize = 4 << 10;
/// Shortest part of a URL or a header that may be a secret.
const MIN_SECRET: usize = 6;

/// Format of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for each event.
    #[default]
    Ndjson,
    /// A JSON array of events.
    Array,
}

impl Format {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Array => "application/json",
        })
    }
}

/// Settings of the sink.
#[derive(Clone)]
pub struct Settings {
    /// URL of each request. It may contain a secret.
    pub url: Url,
    /// Method of each request.
    pub method: Method,
    /// Additional headers of each request. Those with a secret are marked as sensitive.
    pub headers: HeaderMap,
    /// Statuses of a response that acknowledges a request.
    pub success: Vec<RangeInclusive<u16>>,
    /// Format of a body.
    pub format: Format,
    /// Time of an event.
    pub time: TimeOf,
    /// Maximum size of an event in bytes. A larger one is cut into parts.
    pub max_event_bytes: usize,
    /// Maximum size of a request in bytes, before compression.
    pub max_request_bytes: usize,
    /// Maximum number of events in a request.
    pub max_events: usize,
    /// Compression of requests.
    pub compression: Compression,
    /// Maximum time of a request.
    pub timeout: Duration,
}

/// Sends events to a URL.
pub struct JsonHttp {
    client: HttpClient,
    clock: Arc<dyn Clock>,
    settings: Settings,
    headers: HeaderMap,
    /// Limits, lowered after responses that a request is too large.
    limits: Limits,
    bytes_sent: u64,
    /// Parts of the URL and values of headers, as a server may repeat them, the longest first.
    secrets: Vec<String>,
}

impl JsonHttp {
    /// Creates the sink. The network is not used.
    #[must_use]
    pub fn new(client: HttpClient, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, settings.format.content_type());
        if let Some(encoding) = settings.compression.name() {
            headers.insert("content-encoding", HeaderValue::from_static(encoding));
        }
        // Headers of the configuration replace those of the format.
        for (name, value) in &settings.headers {
            headers.insert(name.clone(), value.clone());
        }
        let limits = Limits::new(settings.max_request_bytes, settings.max_event_bytes);
        let secrets = secrets(&settings);
        Self { client, clock, settings, headers, limits, bytes_sent: 0, secrets }
    }

    /// Sends the entries of a batch until a request is not successful, and returns the reason.
    async fn send(&mut self, batch: Batch<'_>) -> Result<(Results, Option<Rest>), String> {
        let within = self.settings.timeout.max(batch.patience.unwrap_or_default());
        let mut requests = encode(&self.settings, self.limits, batch, 0)?;
        let mut results = Results::new(batch.entries().count(), &requests);
        'encoded: loop {
            for request in &requests {
                match self.post(request, within).await {
                    Outcome::Accepted => {
                        request.entries.iter().for_each(|entry| results.accept(*entry));
                    }
                    Outcome::TooLarge { .. } if self.limits.lower(request.body.len()) => {
                        requests = encode(&self.settings, self.limits, batch, request.entries[0])?;
                        results.replace(&requests);
                        continue 'encoded;
                    }
                    Outcome::TooLarge { answer } => {
                        return Ok((results, Some(Rest::Refused { status: 413, answer })));
                    }
                    Outcome::Failed(rest) => return Ok((results, Some(rest))),
                }
            }
            return Ok((results, None));
        }
    }

    async fn post(&mut self, request: &Request, within: Duration) -> Outcome {
        let body = match self.settings.format {
            Format::Ndjson => self.settings.compression.compress(&request.body).into_owned(),
            Format::Array => {
                self.settings.compression.compress(&encode::array(request)).into_owned()
            }
        };
        self.bytes_sent += body.len() as u64;
        let builder = self.client.request(self.settings.method.clone(), self.settings.url.clone());
        let builder = builder.headers(self.headers.clone()).body(body);
        let url = &self.settings.url;
        // The status decides, even if the body does not arrive.
        let reply = exchange_head(&self.client, url, builder, MAX_ANSWER, within).await;
        self.interpret(&reply.map(|(answer, _)| answer))
    }

    fn interpret(&self, reply: &Result<Answer, NoAnswer>) -> Outcome {
        let reply = match reply {
            Ok(answer) => Ok(Answer { body: self.redacted(&answer.body), ..answer.clone() }),
            Err(failed) => Err(failed.clone()),
        };
        interpret(&reply, &self.settings.success, self.clock.now())
    }

    /// Returns the start of a response without the parts of the URL and the values of headers: some
    /// servers repeat them in error pages, and they may be secrets.
    fn redacted(&self, body: &[u8]) -> Vec<u8> {
        let mut text = String::from_utf8_lossy(&body[..body.len().min(MAX_REDACTED)]).into_owned();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "…");
        }
        text.into_bytes()
    }
}

/// Returns the parts of the URL and the values of headers that are long enough to be a secret.
fn secrets(settings: &Settings) -> Vec<String> {
    let url = &settings.url;
    let query = url.query_pairs().map(|(_, value)| value.into_owned());
    let raw_query =
        url.query().into_iter().flat_map(|query| query.split(['&', '='])).map(str::to_owned);
    let path = url.path().split('/').flat_map(|part| {
        let decoded = percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        [part.to_owned(), decoded]
    });
    let headers = settings.headers.iter().filter_map(|(_, value)| value.to_str().ok());
    let headers = headers.flat_map(str::split_whitespace).map(str::to_owned);
    let mut secrets: Vec<String> = query.chain(raw_query).chain(path).chain(headers).collect();
    secrets.retain(|secret| secret.len() >= MIN_SECRET);
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    secrets
}

impl SiemSink for JsonHttp {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        match self.send(batch).await {
            Ok((results, rest)) => results.finish(rest.unwrap_or(Rest::Unprocessed)),
            Err(reason) => Delivery::Hold { after: None, reason },
        }
    }

    /// Returns the URL without its path and query, which contain a secret with some receivers.
    fn destination(&self) -> String {
        self.settings.url.origin().ascii_serialization()
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Received
    }

    /// Sends a HEAD request, which most receivers answer with 404 or 405: it proves that they can be
    /// reached, and not that they accept the headers.
    async fn probe(&mut self, within: Duration) -> Result<String, String> {
        let mut headers = self.headers.clone();
        headers.remove(CONTENT_TYPE);
        headers.remove("content-encoding");
        let builder = self.client.head(self.settings.url.clone()).headers(headers);
        let reply = exchange(&self.client, &self.settings.url, builder, MAX_ANSWER, within).await;
        match (&reply, self.interpret(&reply)) {
            (Err(failed), _) => Err(failed.reason.clone()),
            (Ok(Answer { status: 401 | 403 | 407 | 500.., .. }), Outcome::Failed(rest)) => {
                Err(reason(rest))
            }
            (Ok(answer), _) => {
                Ok(format!("HTTP server; response {} to a request without events", answer.status))
            }
        }
    }

    fn probe_is_proof(&self) -> bool {
        false
    }
}
