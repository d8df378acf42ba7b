//! Receivers: signed requests with the agent's identity, the device's key, and trust between the two.

pub mod device;
mod enrollment;
pub mod pins;
pub mod receipts;
pub mod releases;
mod revision;
mod signed_config;
mod trust_states;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use data_encoding::BASE64;
pub use device::Device;
pub use enrollment::{Enrollment, EnrollmentSettings, NotReady};
pub use pins::stored_trust;
pub use receipts::{Belief, Subject};
use reqwest::{
    Method, RequestBuilder, Url,
    header::{self, HeaderMap},
};
pub use revision::Revision;
use siem_protocol::{
    BatchId, Digest, Encoding, Identity, ManagedError,
    managed::MAX_BYTES,
    minisign::OrganisationKey,
    names::{content_type, header as siem, path},
    sign,
};
use siem_sinks::http::{self, Answer, HttpClient, NoAnswer};
pub use signed_config::{OrganisationError, SignedConfig};
pub use trust_states::{TrustEntry, TrustStates};

use crate::{config::Secret, platform::user_groups};

/// Maximum number of bytes read of a response: receipts and problem documents are short, a captive
/// portal is not.
const ANSWER_LIMIT: usize = 64 << 10;

/// Receiver and the connection to it.
#[derive(Clone)]
pub struct Connection {
    client: HttpClient,
    base: Url,
    token: Secret,
    secret: Secret,
    identity: Identity,
    /// Value of `X-Siem-Config-Version`.
    revision: Revision,
    /// True if only signed responses are accepted.
    requires_signature: bool,
    /// Keys of the organisation, one of which must have signed a managed configuration; none if that
    /// is not required.
    organisation_keys: Vec<OrganisationKey>,
    /// True once a managed configuration depended on the groups of the user.
    sends_groups: Arc<AtomicBool>,
}

/// Observed properties of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// HTTP status of its response.
    pub status: u16,
    /// Clock of the receiver, to the second.
    pub date: Option<SystemTime>,
    /// True if the response is signed with the configured secret; `None` without a signature.
    pub is_signed: Option<bool>,
    /// Duration of the request.
    pub took: Duration,
}

/// Reason why no managed configuration could be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The receiver could not be reached.
    #[error("cannot fetch the managed configuration: {reason}")]
    Unreachable {
        /// Reason.
        reason: String,
    },
    /// The receiver responded with an error.
    #[error("cannot fetch the managed configuration: the receiver responded with status {status}")]
    Status {
        /// HTTP status.
        status: u16,
    },
    /// The response has no signature.
    #[error(
        "the response from `{url}` has no signature, so it is not the receiver's: check for a \
         captive portal or a proxy in between"
    )]
    Unsigned {
        /// URL of the request.
        url: String,
    },
    /// The response is not signed with the configured secret, or not for this request.
    #[error(
        "the managed configuration from `{url}` is not signed with this agent's HMAC secret for \
         this request: check that the receiver has the same secret and sent no cached response"
    )]
    Signature {
        /// URL of the request.
        url: String,
        /// Hash of the response.
        content: Digest,
    },
    /// The managed configuration is not signed by the organisation.
    #[error("the managed configuration from `{url}` is refused: {source}")]
    Organisation {
        /// URL of the request.
        url: String,
        /// Hash of the response.
        content: Digest,
        /// Reason.
        source: OrganisationError,
    },
    /// The content is not a managed configuration.
    #[error(transparent)]
    Content(#[from] ManagedError),
}

/// Result of fetching the managed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchedConfig {
    /// The receiver manages nothing here.
    Nothing,
    /// The configuration is the one that is already known.
    Unchanged {
        /// True if the response is signed with the receiver's secret.
        is_signed: bool,
    },
    /// A configuration with a valid signature; its content is not parsed yet.
    Answer(SignedConfig),
}

impl FetchError {
    /// Returns whether a response came and was refused.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Unsigned { .. }
                | Self::Signature { .. }
                | Self::Organisation { .. }
                | Self::Content(_)
        )
    }

    /// Returns whether the error is likely temporary.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Returns a hash that identifies the refused response, so that it is logged once: that of the
    /// content, or of the message if the response is not proven to come from the receiver.
    #[must_use]
    pub fn content(&self) -> Digest {
        match self {
            Self::Signature { content, .. } | Self::Organisation { content, .. } => *content,
            other => Digest::of(other.to_string().as_bytes()),
        }
    }
}

impl Connection {
    /// Creates a connection to the receiver at `base` over `client`; `revision` is the managed
    /// configuration in force.
    #[must_use]
    pub fn new(
        client: HttpClient,
        base: Url,
        token: Secret,
        secret: Secret,
        identity: Identity,
        revision: Revision,
    ) -> Self {
        Self {
            client,
            base,
            token,
            secret,
            identity,
            revision,
            requires_signature: true,
            organisation_keys: Vec::new(),
            sends_groups: Arc::default(),
        }
    }

    /// Returns the receiver's base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        self.base.as_str()
    }

    /// Sends the body of a batch and waits for the response, at most `within`.
    pub async fn post(
        &self,
        id: &BatchId,
        encoding: Encoding,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        let request = self
            .request(Method::POST, path::INGEST)
            .header(header::CONTENT_TYPE, content_type::NDJSON)
            .header(header::CONTENT_ENCODING, encoding.as_str())
            .header(siem::BATCH_ID, id.to_string())
            .header(siem::SIGNATURE, sign(self.secret.expose().as_bytes(), &body))
            .body(body);
        self.exchange(request, ANSWER_LIMIT, within).await
    }

    /// Returns the SHA-256 of the managed configuration in force; `None` without one.
    #[must_use]
    pub fn managed_hash(&self) -> Option<Digest> {
        self.revision.managed_hash()
    }

    /// Requests the receiver's keys.
    pub(crate) async fn keys(&self, within: Duration) -> Result<Answer, NoAnswer> {
        self.exchange(self.request(Method::GET, path::KEYS), ANSWER_LIMIT, within).await
    }

    /// Sends an enrollment, with `token` in place of the connection's own if there is one.
    pub(crate) async fn enroll(
        &self,
        body: Vec<u8>,
        token: Option<&Secret>,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        let request = self
            .request_with(token.unwrap_or(&self.token), Method::POST, path::ENROLL)
            .header(header::CONTENT_TYPE, content_type::JSON)
            .header(siem::SIGNATURE, sign(self.secret.expose().as_bytes(), &body))
            .body(body);
        self.exchange(request, ANSWER_LIMIT, within).await
    }

    /// Accepts responses without signature.
    #[must_use]
    pub fn without_signatures(self) -> Self {
        Self { requires_signature: false, ..self }
    }

    /// Requires a signature by one of `keys` of every managed configuration.
    #[must_use]
    pub fn with_organisation_keys(self, organisation_keys: Vec<OrganisationKey>) -> Self {
        Self { organisation_keys, ..self }
    }

    /// Returns whether a response is signed with the receiver's secret.
    #[must_use]
    pub fn has_signed(&self, answer: &SignedConfig) -> bool {
        answer.is_signed_with(&self.secret)
    }

    /// Returns whether a copy of a response is accepted: if the organisation has signed it; without
    /// keys of the organisation, if the receiver has.
    #[must_use]
    pub fn accepts(&self, answer: &SignedConfig) -> bool {
        match self.organisation_keys.as_slice() {
            [] => self.accepts_receiver(answer),
            keys => answer.verify_organisation(keys).is_ok(),
        }
    }

    /// Returns whether a response is signed with the receiver's secret, or needs no such signature.
    fn accepts_receiver(&self, answer: &SignedConfig) -> bool {
        !self.requires_signature || self.has_signed(answer)
    }

    /// Fetches the managed configuration, unless its `ETag` is `known`.
    ///
    /// # Errors
    /// [`FetchError`]: the caller keeps the configuration in force.
    pub async fn managed_config(
        &self,
        known: Option<&str>,
        timeout: Duration,
    ) -> Result<FetchedConfig, FetchError> {
        let (mut nonce, mut answer) = self.request_config(known, timeout).await;
        let varies = answer.as_ref().is_ok_and(|answer| varies_by_groups(&answer.headers));
        if varies && !self.sends_groups.swap(true, Ordering::Relaxed) {
            (nonce, answer) = self.request_config(known, timeout).await;
        }
        let url = || self.base.origin().ascii_serialization();
        match answer {
            Err(NoAnswer { reason, .. }) => Err(FetchError::Unreachable { reason }),
            Ok(Answer { status: 404, .. }) => Ok(FetchedConfig::Nothing),
            Ok(Answer { status: 304, headers, .. }) => {
                let (body, etag) = (String::new(), None);
                let signature = signature(&headers);
                let answer = SignedConfig { body, nonce, signature, etag, minisig: None };
                Ok(FetchedConfig::Unchanged { is_signed: self.has_signed(&answer) })
            }
            Ok(Answer { status: 200, is_whole: false, .. }) => Err(ManagedError::TooLarge.into()),
            Ok(Answer { status: 200, body, headers, .. }) => {
                let (content, etag) = (Digest::of(&body), text(&headers, header::ETAG.as_str()));
                let answer = SignedConfig {
                    // A body that is not UTF-8 is not JSON either, and its signature no longer
                    // matches.
                    body: String::from_utf8(body).unwrap_or_default(),
                    nonce,
                    signature: signature(&headers),
                    etag,
                    minisig: minisig(&headers),
                };
                match self.accepts_receiver(&answer) {
                    true => self.check_organisation(answer, content),
                    false if answer.signature.is_empty() => {
                        Err(FetchError::Unsigned { url: url() })
                    }
                    false => Err(FetchError::Signature { url: url(), content }),
                }
            }
            Ok(Answer { status, .. }) => Err(FetchError::Status { status }),
        }
    }

    /// Requests the managed configuration. Returns the nonce of the request too.
    async fn request_config(
        &self,
        known: Option<&str>,
        timeout: Duration,
    ) -> (String, Result<Answer, NoAnswer>) {
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let mut request = self.request(Method::GET, path::CONFIG).header(siem::NONCE, &nonce);
        if let Some(etag) = known {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if self.sends_groups.load(Ordering::Relaxed) {
            match groups_within(timeout).await {
                Ok(groups) => {
                    request = request.header(siem::GROUPS, Identity::groups_header(&groups));
                }
                // Without them the receiver would choose as for a user who is in none. That
                // configuration would replace the one in force, and its serial could exclude that.
                Err(reason) => {
                    let reason = format!("the groups of the user are not known: {reason}");
                    return (nonce, Err(NoAnswer { reason, needs_person: false, waited: None }));
                }
            }
        }
        let answer = self.exchange(request, MAX_BYTES, timeout).await;
        (nonce, answer)
    }

    /// Checks that a fresh answer is one of the organisation, if there are keys for that.
    fn check_organisation(
        &self,
        answer: SignedConfig,
        content: Digest,
    ) -> Result<FetchedConfig, FetchError> {
        if !self.organisation_keys.is_empty()
            && let Err(source) = answer.verify_organisation(&self.organisation_keys)
        {
            let url = self.base.origin().ascii_serialization();
            return Err(FetchError::Organisation { url, content, source });
        }
        Ok(FetchedConfig::Answer(answer))
    }

    /// Requests the managed configuration to test the connection.
    ///
    /// # Errors
    /// Reason why no response came.
    pub async fn probe(&self, within: Duration) -> Result<Probe, String> {
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let request = self.request(Method::GET, path::CONFIG).header(siem::NONCE, &nonce);
        let begun = Instant::now();
        match self.exchange(request, MAX_BYTES, within).await {
            Err(NoAnswer { reason, .. }) => Err(reason),
            Ok(Answer { status, headers, body, .. }) => {
                let took = begun.elapsed();
                let date = text(&headers, header::DATE.as_str());
                let date = date.and_then(|date| httpdate::parse_http_date(&date).ok());
                let signature = signature(&headers);
                let is_there = !signature.is_empty();
                let body = String::from_utf8(body).unwrap_or_default();
                let answer = SignedConfig { body, nonce, signature, etag: None, minisig: None };
                let is_signed = is_there.then(|| self.has_signed(&answer));
                Ok(Probe { status, date, is_signed, took })
            }
        }
    }

    /// Returns host and port of the receiver.
    #[must_use]
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        // IPv6 addresses are enclosed in brackets.
        let host = self.base.host_str()?.trim_matches(['[', ']']).to_owned();
        Some((host, self.base.port_or_known_default()?))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_with(&self.token, method, path)
    }

    fn request_with(&self, token: &Secret, method: Method, path: &str) -> RequestBuilder {
        self.request_to(token, method, self.url(path))
    }

    /// Returns the URL of a path below the endpoint.
    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.set_path(&(prefix + path));
        url
    }

    fn request_to(&self, token: &Secret, method: Method, url: Url) -> RequestBuilder {
        let mut request = self
            .client
            .request(method, url)
            .bearer_auth(token.expose())
            .header(siem::CONFIG_VERSION, self.revision.header());
        for (name, value) in self.identity.headers() {
            request = request.header(name, value);
        }
        request
    }

    /// Sends a request and reads at most `limit` bytes of the response, all of it `within` a time.
    async fn exchange(
        &self,
        request: RequestBuilder,
        limit: usize,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        http::exchange(&self.client, &self.base, request, limit, within).await
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Returns the groups of the user, which may need a directory service.
async fn groups_within(limit: Duration) -> Result<Vec<String>, String> {
    let groups = tokio::task::spawn_blocking(user_groups);
    match tokio::time::timeout(limit, groups).await {
        Ok(Ok(groups)) => groups.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reports whether a response depends on the groups of the user.
fn varies_by_groups(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok());
    let mut names = values.flat_map(|value| value.split(',')).map(str::trim);
    names.any(|name| name.eq_ignore_ascii_case(siem::GROUPS))
}

/// Returns the text of the organisation's signature. One that is not base64 is as good as a wrong one.
fn minisig(headers: &HeaderMap) -> Option<String> {
    let base64 = text(headers, siem::POLICY_SIGNATURE)?;
    let bytes = BASE64.decode(base64.trim().as_bytes()).unwrap_or_default();
    Some(String::from_utf8(bytes).unwrap_or_default())
}

fn signature(headers: &HeaderMap) -> String {
    text(headers, siem::SIGNATURE).unwrap_or_default()
}
