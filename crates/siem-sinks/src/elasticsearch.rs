//! Bulk API of Elasticsearch and OpenSearch.
//!
//! Each entry is created as a document with an `_id` of its own, so that a resent entry is refused as
//! a duplicate and counts as delivered. The id contains a hash of the content: a conflict proves that
//! the same bytes are there. Ids are unique within one index only: after a rollover of the data
//! stream an entry that was stored just before it may be stored again.
//!
//! The response has a result for each document, in their order; the flag `errors` is not used.
//! `filter_path` removes what is not used, and an item that loses all its members is removed from the
//! array. Each item has a `status`, which is kept, so that number and order stay those of the documents.
//! Reasons are kept as well: the one of a refused document names the field, and only the reason tells a
//! missing pipeline from a document that is refused. A reason may quote the document, so that the
//! response may be longer than the request: long strings are cut while the response is read. A second
//! request without reasons would store documents in the failure store twice.

mod document;
mod excerpt;
mod response;
mod target;

use std::{borrow::Cow, time::Duration};

use reqwest::{RequestBuilder, Url, header::HeaderValue};
use serde::Deserialize;
use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};

pub use self::target::{DEFAULT_DATA_STREAM, InvalidTarget, Target};
use self::{
    excerpt::Excerpt,
    response::{Interpreted, interpret},
};
use crate::{
    Batch, SiemSink,
    clock::Now,
    compression::Compression,
    event::TimeOf,
    http::{Answer, HttpClient, NoAnswer, exchange, exchange_parts},
    problem::summary,
    request::{Limits, Request, Results},
};

/// Default limit of requests.
pub const REQUEST_BYTES: usize = 5_000_000;
/// Default limit of events.
pub const EVENT_BYTES: usize = 5_000_000;
/// Maximum number of documents in a request, which bounds the response.
const MAX_DOCUMENTS: usize = 10_000;
/// Bytes of a response that are kept, in addition to [`ITEM_BYTES`] for each document.
const ANSWER_BYTES: usize = 64 << 10;
/// Bytes of a response that are kept for each document. A success has about 30, and an error has two
/// strings, which are cut.
const ITEM_BYTES: usize = 2 << 10;
/// Members of the response that are used.
const FILTER_PATH: &str = "error,status,items.*.status,items.*.failure_store,items.*.error.type,\
                           items.*.error.reason";

/// Value of `Authorization`.
#[derive(Clone)]
pub enum Authorization {
    /// None.
    None,
    /// API key: the base64 text that the receiver shows as `encoded`.
    ApiKey(String),
    /// User and password.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
}

/// Settings of the sink.
#[derive(Clone)]
pub struct Settings {
    /// URL of the receiver.
    pub url: Url,
    /// Value of `Authorization`.
    pub authorization: Authorization,
    /// Data stream or index.
    pub target: Target,
    /// Ingest pipeline; `None` for the default of the target.
    pub pipeline: Option<String>,
    /// Time of the events.
    pub time: TimeOf,
    /// Maximum size of an event in bytes, before compression.
    pub max_event_bytes: usize,
    /// Maximum size of a request in bytes, before compression. A larger event gets a request of its
    /// own.
    pub max_request_bytes: usize,
    /// Compression of requests.
    pub compression: Compression,
    /// Maximum time of a request.
    pub timeout: Duration,
}

/// Creates documents in a data stream or index.
pub struct Elasticsearch {
    client: HttpClient,
    now: Now,
    settings: Settings,
    bulk: Url,
    /// Limits, lowered after responses that a request is too large.
    limits: Limits,
    bytes_sent: u64,
    /// The last probe proved that documents may be created.
    probe_is_proof: bool,
}

impl Elasticsearch {
    /// Creates the sink.
    #[must_use]
    pub fn new(client: HttpClient, settings: Settings, now: Now) -> Self {
        // A repeated document has the same id.
        let client = client.repeating();
        let mut bulk = joined(&settings.url, &[settings.target.name(), "_bulk"]);
        bulk.query_pairs_mut().append_pair("filter_path", FILTER_PATH);
        if let Some(pipeline) = &settings.pipeline {
            bulk.query_pairs_mut().append_pair("pipeline", pipeline);
        }
        let limits = Limits::new(settings.max_request_bytes, settings.max_event_bytes);
        Self { client, now, settings, bulk, limits, bytes_sent: 0, probe_is_proof: false }
    }

    /// Sends a batch, until some entries of a request get no result.
    async fn send(&mut self, batch: Batch<'_>) -> Result<Delivery, String> {
        let within = self.settings.timeout.max(batch.patience.unwrap_or_default());
        let mut requests = document::encode(&self.settings, self.limits, batch, |_| true)?;
        let mut results = Results::new(batch.entries().count(), &requests);
        let rest = loop {
            let sizes = requests.iter().map(|request| request.body.len());
            let largest = sizes.max().unwrap_or_default();
            let Err(rest) = self.send_all(requests, within, &mut results).await else {
                break Rest::Unprocessed;
            };
            let is_too_large = matches!(rest, Rest::Refused { status: 413, .. });
            if !is_too_large || !self.limits.lower(largest) {
                break rest;
            }
            let is_wanted = |entry| results.is_undecided(entry);
            requests = document::encode(&self.settings, self.limits, batch, is_wanted)?;
            results.replace(&requests);
        };
        Ok(results.finish(rest))
    }

    async fn send_all(
        &mut self,
        requests: Vec<Request>,
        within: Duration,
        results: &mut Results,
    ) -> Result<(), Rest> {
        for Request { body, entries } in requests {
            let Interpreted { items, rest } = self.post(body, entries.len(), within).await;
            record(&entries, items, results);
            if let Some(rest) = rest {
                return Err(rest);
            }
        }
        Ok(())
    }

    /// Sends `count` documents.
    async fn post(&mut self, body: Vec<u8>, count: usize, within: Duration) -> Interpreted {
        let compressed = match self.settings.compression.compress(&body) {
            Cow::Owned(compressed) => Some(compressed),
            Cow::Borrowed(_) => None,
        };
        let body = compressed.unwrap_or(body);
        self.bytes_sent += body.len() as u64;
        let mut builder = self.authorized(self.client.post(self.bulk.clone()));
        builder = builder.header("content-type", "application/x-ndjson");
        if let Some(encoding) = self.settings.compression.name() {
            builder = builder.header("content-encoding", encoding);
        }
        let mut excerpt = Excerpt::new(ANSWER_BYTES + count * ITEM_BYTES);
        let keep = |piece: &[u8], kept: &mut Vec<u8>| excerpt.add(piece, kept);
        let builder = builder.body(body);
        let reply = exchange_parts(&self.client, &self.settings.url, builder, within, keep).await;
        let reply = reply.and_then(|(answer, error)| error.map_or(Ok(answer), Err));
        interpret(&reply, count, self.settings.target.name(), (self.now)())
    }

    fn authorized(&self, builder: RequestBuilder) -> RequestBuilder {
        match &self.settings.authorization {
            Authorization::None => builder,
            Authorization::ApiKey(key) => {
                let value = HeaderValue::try_from(format!("ApiKey {key}"));
                let mut value = value.unwrap_or(HeaderValue::from_static("ApiKey"));
                value.set_sensitive(true);
                builder.header("authorization", value)
            }
            Authorization::Basic { user, password } => builder.basic_auth(user, Some(password)),
        }
    }

    /// Sends a request without an effect and reads its response.
    async fn call(&self, builder: RequestBuilder, within: Duration) -> Result<Answer, NoAnswer> {
        let builder = self.authorized(builder);
        exchange(&self.client, &self.settings.url, builder, ANSWER_BYTES, within).await
    }

    /// Returns name and version of the receiver; `None` if the credentials may not read them.
    async fn version(&self, within: Duration) -> Result<Option<String>, String> {
        let answer = self.call(self.client.get(self.settings.url.clone()), within).await;
        let answer = answer.map_err(|no_answer| no_answer.reason)?;
        match answer.status {
            200 => product(&answer.body).map(Some).ok_or_else(|| {
                "the response is not from Elasticsearch or OpenSearch: check `endpoint`".to_owned()
            }),
            // A key that may only create documents.
            403 => Ok(None),
            _ => Err(self.probe_error(answer)),
        }
    }

    /// Fails if the receiver says that the credentials may not create documents. Returns false if it
    /// does not say: OpenSearch has no such request, nor has an Elasticsearch without security.
    async fn may_create(&self, within: Duration) -> Result<bool, String> {
        let name = self.settings.target.name();
        let url = joined(&self.settings.url, &["_security", "user", "_has_privileges"]);
        let index = serde_json::json!({ "names": [name], "privileges": ["create_doc"] });
        let body = serde_json::json!({ "index": [index] }).to_string();
        let builder = self.client.post(url).header("content-type", "application/json").body(body);
        let answer = self.call(builder, within).await.map_err(|no_answer| no_answer.reason)?;
        if answer.status != 200 {
            return Ok(false);
        }
        match serde_json::from_slice(&answer.body) {
            Ok(Privileges { has_all_requested: true }) => Ok(true),
            Ok(Privileges { has_all_requested: false }) => Err(format!(
                "the credentials may not create documents in `{name}`: give them the privilege \
                 `create_doc`"
            )),
            Err(_) => Ok(false),
        }
    }

    /// Returns the reason why a response to a probe is a problem.
    fn probe_error(&self, answer: Answer) -> String {
        let status = answer.status;
        match interpret(&Ok(answer), 0, self.settings.target.name(), (self.now)()).rest {
            Some(Rest::Hold { reason, .. } | Rest::Retry { reason, .. }) => reason,
            _ => format!("the receiver responded with {status}"),
        }
    }
}

/// Response about privileges.
#[derive(Deserialize)]
struct Privileges {
    has_all_requested: bool,
}

fn record(entries: &[usize], items: Vec<EntryResult>, results: &mut Results) {
    for (entry, item) in entries.iter().zip(items) {
        match item {
            EntryResult::Accepted => results.accept(*entry),
            EntryResult::Misfiled { answer } => results.misfile(*entry, answer),
            EntryResult::Refused { status, answer } => results.refuse(*entry, status, answer),
            EntryResult::Unidentified { .. } | EntryResult::Undecided => {}
        }
    }
}

/// Returns a URL with more segments in its path.
fn joined(url: &Url, segments: &[&str]) -> Url {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// Returns name and version from the response to a request for the root.
fn product(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Root {
        version: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        number: String,
        distribution: Option<String>,
    }
    let Root { version: Version { number, distribution } } = serde_json::from_slice(body).ok()?;
    let name = match distribution.as_deref() {
        Some("opensearch") => "OpenSearch",
        _ => "Elasticsearch",
    };
    summary(format!("{name} {number}").as_bytes())
}

impl SiemSink for Elasticsearch {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        match self.send(batch).await {
            Ok(delivery) => delivery,
            Err(reason) => Delivery::Hold { after: None, reason },
        }
    }

    fn destination(&self) -> String {
        joined(&self.settings.url, &[self.settings.target.name()]).to_string()
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Indexed
    }

    /// Requests the version, and whether the credentials may create documents.
    async fn probe(&mut self, within: Duration) -> Result<String, String> {
        let version = self.version(within).await?;
        let is_proven = self.may_create(within).await?;
        self.probe_is_proof = is_proven;
        let name = version.as_deref().unwrap_or("Elasticsearch");
        let target = self.settings.target.name();
        Ok(match (is_proven, version.is_some()) {
            (true, _) => format!("{name}, may create documents in `{target}`"),
            (false, true) => format!("{name}; it does not say whether `{target}` can be written"),
            (false, false) => {
                return Err(format!(
                    "the credentials may not read the version of the receiver, and it does not \
                     say whether they may create documents in `{target}` (403)"
                ));
            }
        })
    }

    fn probe_is_proof(&self) -> bool {
        self.probe_is_proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_requests_keeps_the_path_of_the_endpoint() {
        let joined = |url: &str| joined(&url.parse().unwrap(), &["a b", "_bulk"]).to_string();
        assert_eq!(joined("https://es.test"), "https://es.test/a%20b/_bulk");
        assert_eq!(joined("https://es.test/proxy/"), "https://es.test/proxy/a%20b/_bulk");
    }

    #[test]
    fn version_names_the_product() {
        let elastic = br#"{"name":"n","version":{"number":"9.1.0","build_flavor":"default"}}"#;
        assert_eq!(product(elastic).unwrap(), "Elasticsearch 9.1.0");
        let other = br#"{"version":{"number":"3.8.0","distribution":"opensearch"}}"#;
        assert_eq!(product(other).unwrap(), "OpenSearch 3.8.0");
        assert_eq!(product(b"<html>"), None);
    }
}
