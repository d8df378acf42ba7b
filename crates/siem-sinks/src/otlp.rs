//! OTLP/HTTP logs, the protocol of OpenTelemetry, in protobuf.
//!
//! Each event, or part of one, is a log record; its body is the content as string or bytes. The
//! specification: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

mod encode;
mod response;
mod value;

use std::time::Duration;

use reqwest::{
    RequestBuilder, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use siem_protocol::{
    EntryError,
    delivery::{Acknowledged, Delivery, Rest},
};

use self::{
    encode::Sender,
    response::{Outcome, interpret},
};
use crate::{
    Batch, SiemSink,
    clock::Now,
    compression::Compression,
    event::{Event, TimeOf},
    http::{self, Answer, HttpClient, NoAnswer},
    problem::reason,
    request::{Packer, Request, Results},
};

/// Path below the endpoint to which log records are sent.
const PATH: &str = "/v1/logs";
/// Maximum number of bytes kept of a response. The message of a partial success may name each record.
const MAX_RESPONSE: usize = 1 << 20;
/// Maximum number of bytes read of a response.
const MAX_READ: usize = 64 << 20;
/// Smallest limit of a request after responses that it is too large.
const MIN_REQUEST_BYTES: usize = 64 << 10;

/// Settings of the sink.
#[derive(Clone, Debug)]
pub struct Settings {
    /// URL of the receiver. `/v1/logs` is appended to its path, unless the path already ends with
    /// that.
    pub endpoint: Url,
    /// Additional headers of each request, such as one with an API key.
    pub headers: HeaderMap,
    /// Compression of requests.
    pub compression: Compression,
    /// Time of a log record.
    pub time: TimeOf,
    /// Maximum size of an encoded log record in bytes. A larger one is cut into parts.
    pub max_event_bytes: usize,
    /// Maximum size of a request in bytes, before compression.
    pub max_request_bytes: usize,
    /// Maximum time of a request.
    pub timeout: Duration,
}

/// Sends each batch in one request or more.
pub struct Otlp {
    client: HttpClient,
    settings: Settings,
    limits: Limits,
    url: Url,
    headers: HeaderMap,
    now: Now,
    bytes_sent: u64,
    /// The last probe got a response in the form of the protocol.
    probe_is_proof: bool,
}

/// Limits in bytes, lowered after responses that a request is too large.
#[derive(Clone, Copy, Debug)]
struct Limits {
    event: usize,
    request: usize,
}

impl Limits {
    /// Halves the limits after a request of `length` bytes was too large. Returns false if they are at
    /// their minimum.
    fn lower(&mut self, length: usize) -> bool {
        let request = (length.min(self.request) / 2).max(MIN_REQUEST_BYTES);
        if request >= self.request {
            return false;
        }
        *self = Self { request, event: self.event.min(request) };
        true
    }
}

/// Result of sending requests.
enum Sent {
    All,
    /// No further request was sent.
    Stopped(Rest),
    /// The limits were lowered: the entries from this one on must be encoded again.
    TooLarge(usize),
}

impl Otlp {
    /// Creates the sink. The network is not used.
    #[must_use]
    pub fn new(client: HttpClient, settings: Settings, now: Now) -> Self {
        let (url, headers) = (logs_url(&settings.endpoint), headers(&settings));
        let limits =
            Limits { event: settings.max_event_bytes, request: settings.max_request_bytes };
        Self { client, settings, limits, url, headers, now, bytes_sent: 0, probe_is_proof: false }
    }

    /// Encodes the entries of a batch from the one with index `from` on. The requests contain log
    /// records that are ready to be [enclosed](Sender::enclose).
    fn pack(
        &self,
        batch: Batch<'_>,
        sender: &Sender,
        from: usize,
    ) -> Result<Vec<Request>, EntryError> {
        let max_bytes = self.limits.request.saturating_sub(sender.size());
        let mut packer = Packer::new(max_bytes, usize::MAX);
        for (index, line) in batch.entries().enumerate().skip(from) {
            let event = Event::of(line, batch.header, self.settings.time)?;
            encode::log_records(&event, self.limits.event.min(max_bytes), |record| {
                packer.push(index, |body| encode::append(record, body));
            });
        }
        Ok(packer.finish())
    }

    /// Sends requests until one is not completely successful.
    async fn send_all(
        &mut self,
        sender: &Sender,
        requests: &[Request],
        within: Duration,
        results: &mut Results,
    ) -> Sent {
        for request in requests {
            let answer = self.send(sender, &request.body, within).await;
            match interpret(&answer, request.entries.len() as u64, (self.now)()) {
                Outcome::Accepted { warning } => {
                    self.log(warning);
                    request.entries.iter().for_each(|entry| results.accept(*entry));
                }
                Outcome::Partial { rejected, message } => {
                    results.refuse_some(&request.entries, rejected, message);
                    return Sent::Stopped(Rest::Unprocessed);
                }
                Outcome::Failed(Rest::Refused { status: 413, .. })
                    if self.limits.lower(request.body.len()) =>
                {
                    return Sent::TooLarge(request.entries[0]);
                }
                Outcome::Failed(rest) => return Sent::Stopped(rest),
            }
        }
        Sent::All
    }

    /// Logs the message of a receiver that accepted everything.
    fn log(&self, warning: Option<String>) {
        let Some(warning) = warning else { return };
        tracing::warn!(
            code = "receiver_warning",
            destination = self.destination(),
            warning,
            "the receiver accepted log records with a warning"
        );
    }

    /// Sends log records, and returns the response.
    async fn send(
        &mut self,
        sender: &Sender,
        records: &[u8],
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        let body = self.settings.compression.compress(&sender.enclose(records)).into_owned();
        self.bytes_sent += body.len() as u64;
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body);
        exchange(&self.client, &self.url, request, within).await
    }
}

impl SiemSink for Otlp {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        let sender = Sender::of(batch.header);
        let within = self.settings.timeout.max(batch.patience.unwrap_or_default());
        let mut results = Results::new(batch.entries().count(), &[]);
        let mut from = 0;
        loop {
            let requests = match self.pack(batch, &sender, from) {
                Ok(requests) => requests,
                Err(error) => {
                    let reason = format!("an entry cannot be read: {}", http::causes(&error));
                    return Delivery::Hold { after: None, reason };
                }
            };
            results.replace(&requests);
            match self.send_all(&sender, &requests, within, &mut results).await {
                Sent::All => return results.finish(Rest::Unprocessed),
                Sent::Stopped(rest) => return results.finish(rest),
                Sent::TooLarge(entry) => from = entry,
            }
        }
    }

    fn destination(&self) -> String {
        destination(&self.url)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Received
    }

    /// Sends a request without log records, which is valid and stores nothing.
    async fn probe(&mut self, within: Duration) -> Result<String, String> {
        let answer = self.send(&Sender::empty(), &[], within).await;
        self.probe_is_proof = answer.as_ref().is_ok_and(|answer| self.is_of_protocol(answer));
        match interpret(&answer, 0, (self.now)()) {
            Outcome::Accepted { .. } => Ok(description(answer.ok().as_ref())),
            Outcome::Partial { .. } => Err("the response is invalid".to_owned()),
            // Some receivers check the API key, and then refuse a request without log records.
            Outcome::Failed(Rest::Refused { status: 422, .. }) => {
                Ok(description(answer.ok().as_ref()))
            }
            Outcome::Failed(Rest::Refused { status, answer }) => Err(format!(
                "the receiver refuses a request without log records with {status}: {answer}"
            )),
            Outcome::Failed(rest) => Err(reason(rest)),
        }
    }

    fn probe_is_proof(&self) -> bool {
        self.probe_is_proof
    }
}

impl Otlp {
    /// Returns whether a response accepts a request, in the content type of the protocol: any server may
    /// respond with status 200, and an empty body is a valid response.
    fn is_of_protocol(&self, answer: &Answer) -> bool {
        let of = |headers: &HeaderMap| headers.get(CONTENT_TYPE).cloned();
        let is_same = |own: HeaderValue| {
            let own = own.as_bytes();
            of(&answer.headers).is_some_and(|theirs| theirs.as_bytes().starts_with(own))
        };
        answer.status == 200 && of(&self.headers).is_some_and(is_same)
    }
}

/// Sends a request and reads its response, of which a long message is not kept.
async fn exchange(
    client: &HttpClient,
    url: &Url,
    request: RequestBuilder,
    within: Duration,
) -> Result<Answer, NoAnswer> {
    let mut length = 0;
    let keep_start = |piece: &[u8], start: &mut Vec<u8>| {
        length += piece.len();
        let room = MAX_RESPONSE - start.len();
        start.extend_from_slice(&piece[..piece.len().min(room)]);
        length <= MAX_READ
    };
    let (mut answer, error) =
        http::exchange_parts(client, url, request, within, keep_start).await?;
    if let Some(error) = error {
        return Err(error);
    }
    if answer.body.len() < length {
        let shortened = response::shortened(&answer.body, length).filter(|_| answer.is_whole);
        answer.is_whole = shortened.is_some();
        answer.body = shortened.unwrap_or(answer.body);
    }
    Ok(answer)
}

/// Returns the URL for log records below `endpoint`, as the exporters of OpenTelemetry form it.
fn logs_url(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    let path = endpoint.path().trim_end_matches('/');
    if !path.ends_with(PATH) {
        url.set_path(&format!("{path}{PATH}"));
    }
    url
}

/// Returns the headers of each request.
fn headers(settings: &Settings) -> HeaderMap {
    let mut headers = settings.headers.clone();
    for value in headers.values_mut() {
        value.set_sensitive(true);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(response::PROTOBUF));
    if let Some(encoding) = settings.compression.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    headers
}

/// Returns a URL without user, password, query and fragment.
fn destination(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// Describes the receiver by its header `Server`.
fn description(answer: Option<&Answer>) -> String {
    let server = answer.and_then(|answer| answer.headers.get(reqwest::header::SERVER));
    match server.and_then(|server| server.to_str().ok()) {
        Some(server) => format!("OTLP receiver, {server}"),
        None => "OTLP receiver".to_owned(),
    }
}
