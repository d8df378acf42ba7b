//! The way to a receiver: requests with the agent's identity, signed.

mod failure;
mod signed;

use std::time::Duration;

use failure::Failure;
use percent_encoding::{CONTROLS, utf8_percent_encode};
use reqwest::{
    Client, Method, RequestBuilder, Url,
    header::{self, HeaderMap},
};
use siem_protocol::{
    BatchId, Encoding, Identity, ManagedError,
    managed::MAX_BYTES,
    names::{content_type, header as siem, path},
    sign,
};
pub use signed::SignedAnswer;

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
    revision: String,
}

/// What came back for a request.
#[derive(Clone, Debug)]
pub enum Reply {
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
    /// The answer is not signed, or not with the secret that is configured here.
    #[error("the managed configuration is not signed with the HMAC secret that this agent has")]
    Signature,
    /// What came can't be a managed configuration.
    #[error(transparent)]
    Content(#[from] ManagedError),
}

impl FetchError {
    /// Whether an answer came and was refused, rather than none.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Signature | Self::Content(_))
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
        revision: Option<&str>,
    ) -> Self {
        // A header carries printable ASCII only.
        let revision = utf8_percent_encode(revision.unwrap_or("0"), CONTROLS).to_string();
        Self { client, base, token, secret, identity, revision }
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
    ) -> Reply {
        let request = self
            .request(Method::POST, path::INGEST)
            .header(header::CONTENT_TYPE, content_type::NDJSON)
            .header(header::CONTENT_ENCODING, encoding.as_str())
            .header(siem::BATCH_ID, id.to_string())
            .header(siem::SIGNATURE, sign(self.secret.expose().as_bytes(), &body))
            .body(body);
        self.exchange(request, ANSWER_LIMIT, within).await
    }

    /// Whether the receiver's secret signed an answer.
    #[must_use]
    pub fn vouches_for(&self, answer: &SignedAnswer) -> bool {
        answer.is_signed_with(&self.secret)
    }

    /// Fetches the managed configuration; `None` when the receiver has none. Its signature is right,
    /// its content is still to be read.
    ///
    /// # Errors
    /// [`FetchError`]: the caller keeps what is in force.
    pub async fn managed_config(
        &self,
        timeout: Duration,
    ) -> Result<Option<SignedAnswer>, FetchError> {
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let request = self.request(Method::GET, path::CONFIG).header(siem::NONCE, &nonce);
        match self.exchange(request, MAX_BYTES, timeout).await {
            Reply::Failed { reason, .. } => Err(FetchError::Unreachable { reason }),
            Reply::Answered { status: 404, .. } => Ok(None),
            Reply::Answered { status: 200, whole: false, .. } => Err(ManagedError::TooLarge.into()),
            Reply::Answered { status: 200, body, headers, .. } => {
                let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
                let answer = SignedAnswer {
                    // What is no UTF-8 is no JSON either, and its signature does not fit any more.
                    body: String::from_utf8(body).unwrap_or_default(),
                    nonce,
                    signature: text(siem::SIGNATURE).unwrap_or_default().to_owned(),
                    etag: text(header::ETAG.as_str()).map(str::to_owned),
                };
                self.vouches_for(&answer).then_some(Some(answer)).ok_or(FetchError::Signature)
            }
            Reply::Answered { status, .. } => Err(FetchError::Status { status }),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.set_path(&(prefix + path));
        let mut request = self
            .client
            .request(method, url)
            .bearer_auth(self.token.expose())
            .header(siem::CONFIG_VERSION, &self.revision);
        for (name, value) in self.identity.headers() {
            request = request.header(name, value);
        }
        request
    }

    /// Sends a request and reads at most `limit` bytes of the answer, all of it `within` a time.
    async fn exchange(&self, request: RequestBuilder, limit: usize, within: Duration) -> Reply {
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
                Ok(Some(_)) => return Reply::Answered { status, headers, body, whole: false },
                Ok(None) => return Reply::Answered { status, headers, body, whole: true },
                Err(error) => return self.failed(error, within),
            }
        }
    }

    /// Says where the request went, by scheme, host and port: a path may be somebody's secret.
    fn failed(&self, error: reqwest::Error, within: Duration) -> Reply {
        let Failure { reason, alarm, timed_out } = error.into();
        let to = self.base.origin().ascii_serialization();
        let reason = format!("request to `{to}` failed: {reason}");
        if timed_out {
            let reason = format!("{reason}: no answer came within {}", Time(within));
            return Reply::Failed { reason, alarm, waited: Some(within) };
        }
        Reply::Failed { reason, alarm, waited: None }
    }
}
