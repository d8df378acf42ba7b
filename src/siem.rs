//! The way to a receiver: requests with the agent's identity, signed.

mod failure;
mod revision;
mod signed_config;

use std::time::{Duration, Instant, SystemTime};

use failure::Failure;
use reqwest::{
    Client, Method, RequestBuilder, Url,
    header::{self, HeaderMap},
};
pub use revision::Revision;
use siem_protocol::{
    BatchId, Digest, Encoding, Identity, ManagedError,
    managed::MAX_BYTES,
    names::{content_type, header as siem, path},
    sign,
};
pub use signed_config::SignedConfig;

use crate::{config::Secret, units::Time};

/// How much of an answer is read: receipts and problems are short, a captive portal is not.
const ANSWER_LIMIT: usize = 64 << 10;

/// A receiver and the way to it.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    base: Url,
    token: Secret,
    secret: Secret,
    identity: Identity,
    /// Value of `X-Siem-Config-Version`.
    revision: Revision,
    /// Whether only signed answers count.
    requires_signature: bool,
}

/// What came back for a request.
#[derive(Clone, Debug)]
pub enum RequestOutcome {
    /// No answer, or not a whole one.
    Failed {
        /// What happened, for people. No secret.
        reason: String,
        /// Whether a person should know: waiting alone will not mend it.
        alarm: bool,
        /// How long an answer was waited for, where none came in time on a connection that stood.
        waited: Option<Duration>,
    },
    /// An answer.
    Answered {
        /// Its status.
        status: u16,
        /// Its headers.
        headers: HeaderMap,
        /// Its body, as far as it was read.
        body: Vec<u8>,
        /// Whether that is all of the body.
        whole: bool,
    },
}

/// What a receiver shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The status of its answer.
    pub status: u16,
    /// Its clock, to the second.
    pub date: Option<SystemTime>,
    /// Whether the answer is signed with the secret that is configured here; none without a signature.
    pub is_signed: Option<bool>,
    /// How long the answer took.
    pub took: Duration,
}

/// Why there is no managed configuration.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The receiver could not be asked.
    #[error("cannot fetch the managed configuration: {reason}")]
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// The receiver answered with an error.
    #[error("the receiver answered {status} when asked for the managed configuration")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The answer carries no signature.
    #[error(
        "the answer from `{url}` carries no signature, so it is not the receiver's: does a captive \
         portal or a proxy answer in its place?"
    )]
    Unsigned {
        /// What was asked.
        url: String,
    },
    /// The answer is not signed with the secret that is configured here, or not for this request.
    #[error(
        "the managed configuration from `{url}` is not signed with the HMAC secret that this agent \
         has, over this request: is the secret another there, or is the answer an old one?"
    )]
    Signature {
        /// What was asked.
        url: String,
        /// The hash of what came.
        content: Digest,
    },
    /// What came can't be a managed configuration.
    #[error(transparent)]
    Content(#[from] ManagedError),
}

/// What came of asking for the managed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchedConfig {
    /// The receiver manages nothing here.
    Nothing,
    /// It is the one that is known already.
    Unchanged {
        /// Whether the receiver's secret signed that.
        is_signed: bool,
    },
    /// One whose signature is right; its content is still to be read.
    Answer(SignedConfig),
}

impl FetchError {
    /// Whether an answer came and was refused, rather than none.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Unsigned { .. } | Self::Signature { .. } | Self::Content(_))
    }

    /// Whether it is likely to pass by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Names what was refused, so that it is said once: its content, or, of what proves to come from
    /// nobody, why.
    #[must_use]
    pub fn content(&self) -> Digest {
        match self {
            Self::Signature { content, .. } => *content,
            other => Digest::of(other.to_string().as_bytes()),
        }
    }
}

impl Connection {
    /// A way to the receiver at `base`, over `client`, under the managed configuration that
    /// `revision` names.
    #[must_use]
    pub fn new(
        client: Client,
        base: Url,
        token: Secret,
        secret: Secret,
        identity: Identity,
        revision: Revision,
    ) -> Self {
        Self { client, base, token, secret, identity, revision, requires_signature: true }
    }

    /// The receiver's base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        self.base.as_str()
    }

    /// Sends a batch's body, and waits for the answer no longer than `within`.
    pub async fn post(
        &self,
        id: &BatchId,
        encoding: Encoding,
        body: Vec<u8>,
        within: Duration,
    ) -> RequestOutcome {
        let request = self
            .request(Method::POST, path::INGEST)
            .header(header::CONTENT_TYPE, content_type::NDJSON)
            .header(header::CONTENT_ENCODING, encoding.as_str())
            .header(siem::BATCH_ID, id.to_string())
            .header(siem::SIGNATURE, sign(self.secret.expose().as_bytes(), &body))
            .body(body);
        self.exchange(request, ANSWER_LIMIT, within).await
    }

    /// The same, which takes answers that nobody signed.
    #[must_use]
    pub fn without_signatures(self) -> Self {
        Self { requires_signature: false, ..self }
    }

    /// Whether the receiver's secret signed an answer.
    #[must_use]
    pub fn has_signed(&self, answer: &SignedConfig) -> bool {
        answer.is_signed_with(&self.secret)
    }

    /// Whether an answer counts: one that the receiver's secret signed, unless none needs to be.
    #[must_use]
    pub fn accepts(&self, answer: &SignedConfig) -> bool {
        !self.requires_signature || self.has_signed(answer)
    }

    /// Fetches the managed configuration, unless it is the one that has this `ETag`.
    ///
    /// # Errors
    /// [`FetchError`]: the caller keeps what is in force.
    pub async fn managed_config(
        &self,
        known: Option<&str>,
        timeout: Duration,
    ) -> Result<FetchedConfig, FetchError> {
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let mut request = self.request(Method::GET, path::CONFIG).header(siem::NONCE, &nonce);
        if let Some(etag) = known {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let url = || self.base.origin().ascii_serialization();
        match self.exchange(request, MAX_BYTES, timeout).await {
            RequestOutcome::Failed { reason, .. } => Err(FetchError::Unreachable { reason }),
            RequestOutcome::Answered { status: 404, .. } => Ok(FetchedConfig::Nothing),
            RequestOutcome::Answered { status: 304, headers, .. } => {
                let (body, etag) = (String::new(), None);
                let answer = SignedConfig { body, nonce, signature: signature(&headers), etag };
                Ok(FetchedConfig::Unchanged { is_signed: self.has_signed(&answer) })
            }
            RequestOutcome::Answered { status: 200, whole: false, .. } => {
                Err(ManagedError::TooLarge.into())
            }
            RequestOutcome::Answered { status: 200, body, headers, .. } => {
                let (content, etag) = (Digest::of(&body), text(&headers, header::ETAG.as_str()));
                let answer = SignedConfig {
                    // What is no UTF-8 is no JSON either, and its signature does not fit any more.
                    body: String::from_utf8(body).unwrap_or_default(),
                    nonce,
                    signature: signature(&headers),
                    etag,
                };
                match self.accepts(&answer) {
                    true => Ok(FetchedConfig::Answer(answer)),
                    false if answer.signature.is_empty() => {
                        Err(FetchError::Unsigned { url: url() })
                    }
                    false => Err(FetchError::Signature { url: url(), content }),
                }
            }
            RequestOutcome::Answered { status, .. } => Err(FetchError::Status { status }),
        }
    }

    /// Asks for the managed configuration only to see how that goes.
    ///
    /// # Errors
    /// Why no answer came, in words.
    pub async fn probe(&self, within: Duration) -> Result<Probe, String> {
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let request = self.request(Method::GET, path::CONFIG).header(siem::NONCE, &nonce);
        let begun = Instant::now();
        match self.exchange(request, MAX_BYTES, within).await {
            RequestOutcome::Failed { reason, .. } => Err(reason),
            RequestOutcome::Answered { status, headers, body, .. } => {
                let took = begun.elapsed();
                let date = text(&headers, header::DATE.as_str());
                let date = date.and_then(|date| httpdate::parse_http_date(&date).ok());
                let signature = signature(&headers);
                let is_there = !signature.is_empty();
                let body = String::from_utf8(body).unwrap_or_default();
                let answer = SignedConfig { body, nonce, signature, etag: None };
                let is_signed = is_there.then(|| self.has_signed(&answer));
                Ok(Probe { status, date, is_signed, took })
            }
        }
    }

    /// Where requests go, if not through a proxy.
    #[must_use]
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        // An address of version 6 stands in brackets.
        let host = self.base.host_str()?.trim_matches(['[', ']']).to_owned();
        Some((host, self.base.port_or_known_default()?))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.set_path(&(prefix + path));
        let mut request = self
            .client
            .request(method, url)
            .bearer_auth(self.token.expose())
            .header(siem::CONFIG_VERSION, self.revision.header());
        for (name, value) in self.identity.headers() {
            request = request.header(name, value);
        }
        request
    }

    /// Sends a request and reads at most `limit` bytes of the answer, all of it `within` a time.
    async fn exchange(
        &self,
        request: RequestBuilder,
        limit: usize,
        within: Duration,
    ) -> RequestOutcome {
        let mut response = match request.timeout(within).send().await {
            Ok(response) => response,
            Err(error) => return self.failed(error, within),
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(piece)) if body.len() + piece.len() <= limit => {
                    body.extend_from_slice(&piece);
                }
                Ok(Some(_)) => {
                    return RequestOutcome::Answered { status, headers, body, whole: false };
                }
                Ok(None) => return RequestOutcome::Answered { status, headers, body, whole: true },
                Err(error) => return self.failed(error, within),
            }
        }
    }

    /// Says where the request went, by scheme, host and port: a path may be somebody's secret.
    fn failed(&self, error: reqwest::Error, within: Duration) -> RequestOutcome {
        let Failure { reason, alarm, timed_out } = error.into();
        let to = self.base.origin().ascii_serialization();
        let reason = format!("request to `{to}` failed: {reason}");
        if timed_out {
            let reason = format!("{reason}: no answer came within {}", Time(within));
            return RequestOutcome::Failed { reason, alarm, waited: Some(within) };
        }
        RequestOutcome::Failed { reason, alarm, waited: None }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn signature(headers: &HeaderMap) -> String {
    text(headers, siem::SIGNATURE).unwrap_or_default()
}
