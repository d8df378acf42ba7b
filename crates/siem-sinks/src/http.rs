//! HTTP client with TLS, client certificates and a proxy, for sinks and for the agent's own protocol.

mod client;
mod failure;
mod hesitant;
mod retry_after;
mod sent_secrets;
mod streamed;

use std::{error::Error, time::Duration};

use reqwest::{Certificate, Client, ClientBuilder, Proxy, RequestBuilder, Url, header, redirect};

use siem_protocol::delivery::Rest;

pub use self::client::HttpClient;
pub(crate) use self::failure::remedy;
use self::{failure::Failure, sent_secrets::SentSecrets};
pub use self::{
    retry_after::{MAX_RETRY_AFTER, retry_after},
    streamed::{Streamed, open},
};

/// Settings of a client. Files are read and secrets are resolved by the caller.
#[derive(Clone, Default)]
pub struct ClientSettings {
    /// Value of `User-Agent`.
    pub user_agent: String,
    /// Maximum time to establish a connection.
    pub connect_timeout: Duration,
    /// Certificates of authorities to trust.
    pub authorities: Vec<Certificate>,
    /// True if the authorities of the operating system are trusted too. Reading them takes longer
    /// than the rest of a start, and some systems have none.
    pub trusts_system: bool,
    /// Client certificate with its key.
    pub identity: Option<reqwest::Identity>,
    /// Proxy; `None` for the one of the environment.
    pub proxy: Option<Proxy>,
    /// True if the proxy of the environment is not used.
    pub ignores_environment: bool,
}

impl ClientSettings {
    /// Creates a client.
    ///
    /// # Errors
    /// The library's error if TLS cannot be set up, such as without any trusted authority.
    pub fn client(self) -> Result<HttpClient, reqwest::Error> {
        HttpClient::new(self)
    }

    /// Creates a client without open connections.
    fn build(&self) -> Result<Client, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(&self.user_agent)
            .redirect(redirect::Policy::none())
            .pool_idle_timeout(client::MAX_IDLE)
            .connect_timeout(self.connect_timeout);
        if let Some(identity) = self.identity.clone() {
            builder = builder.identity(identity);
        }
        if self.ignores_environment {
            builder = builder.no_proxy();
        }
        if let Some(proxy) = self.proxy.clone() {
            builder = builder.proxy(proxy);
        }
        trust(builder, self.authorities.clone(), self.trusts_system).build()
    }
}

fn trust(builder: ClientBuilder, authorities: Vec<Certificate>, system: bool) -> ClientBuilder {
    if system { builder.tls_certs_merge(authorities) } else { builder.tls_certs_only(authorities) }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: header::HeaderMap,
    /// Body, as far as it was read, without the secrets of the request.
    pub body: Vec<u8>,
    /// True if the body is complete.
    pub is_whole: bool,
}

/// No response, or an incomplete one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// Reason, for people. Contains no secret.
    pub reason: String,
    /// True if a person must act: waiting alone will not help.
    pub needs_person: bool,
    /// Time waited for a response, if the connection was established and none came in time.
    pub waited: Option<Duration>,
}

impl From<&NoAnswer> for Rest {
    fn from(failed: &NoAnswer) -> Self {
        let NoAnswer { reason, needs_person, waited } = failed.clone();
        match waited {
            _ if needs_person => Self::Hold { after: None, reason },
            Some(waited) => Self::Slow { waited, reason },
            None => Self::Retry { after: None, reason },
        }
    }
}

/// Sends a request of `client` to `base` and reads at most `limit` bytes of the response, all of it `within` a
/// time.
///
/// # Errors
/// [`NoAnswer`] if no complete response came.
pub async fn exchange(
    client: &HttpClient,
    base: &Url,
    request: RequestBuilder,
    limit: usize,
    within: Duration,
) -> Result<Answer, NoAnswer> {
    let (answer, error) = exchange_head(client, base, request, limit, within).await?;
    match error {
        None => Ok(answer),
        Some(error) => Err(error),
    }
}

/// As [`exchange`], for a receiver whose status alone is the answer: an error while the body is read is
/// returned beside the answer.
///
/// # Errors
/// [`NoAnswer`] if no status came.
pub async fn exchange_head(
    client: &HttpClient,
    base: &Url,
    request: RequestBuilder,
    limit: usize,
    within: Duration,
) -> Result<(Answer, Option<NoAnswer>), NoAnswer> {
    let keep_all = |piece: &[u8], body: &mut Vec<u8>| {
        let fits = body.len() + piece.len() <= limit;
        if fits {
            body.extend_from_slice(piece);
        }
        fits
    };
    exchange_parts(client, base, request, within, keep_all).await
}

/// As [`exchange_head`], for a response that may be too long to be kept: `keep` appends what is needed
/// of each piece of the body, in their order. It returns false to stop, after which
/// [`Answer::is_whole`] is false.
///
/// # Errors
/// [`NoAnswer`] if no status came.
pub(crate) async fn exchange_parts(
    client: &HttpClient,
    base: &Url,
    request: RequestBuilder,
    within: Duration,
    mut keep: impl FnMut(&[u8], &mut Vec<u8>) -> bool,
) -> Result<(Answer, Option<NoAnswer>), NoAnswer> {
    let failed = |error| no_answer(base, error, within);
    let (inner, request) = request.build_split();
    let request = request.map_err(failed)?;
    let secrets = SentSecrets::of(request.headers());
    let request = RequestBuilder::from_parts(inner, request);
    let mut response = client.send(request, within).await.map_err(failed)?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut answer = Answer { status, headers, body: Vec::new(), is_whole: false };
    let error = loop {
        match response.chunk().await {
            Ok(Some(piece)) if keep(&piece, &mut answer.body) => {}
            Ok(Some(_)) => break None,
            Ok(None) => {
                answer.is_whole = true;
                break None;
            }
            Err(error) => break Some(failed(error)),
        }
    };
    secrets.remove_from(&mut answer.body);
    Ok((answer, error))
}

/// Adds scheme, host and port to the reason; the path may contain a secret.
fn no_answer(base: &Url, error: reqwest::Error, within: Duration) -> NoAnswer {
    let Failure { reason, needs_person, timed_out } = error.into();
    let to = base.origin().ascii_serialization();
    let reason = format!("request to `{to}` failed: {reason}");
    if timed_out {
        let time = humantime::format_duration(within);
        let reason = format!("{reason}: no response within {time}");
        return NoAnswer { reason, needs_person, waited: Some(within) };
    }
    NoAnswer { reason, needs_person, waited: None }
}

/// Formats an error and its causes on one line.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
