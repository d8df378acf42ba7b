//! Ships batches to a SIEM over HTTP with the protocol of `siem-protocol`.
//!
//! Each request carries a bearer token and an HMAC-SHA256 over the body as sent. TLS trusts the
//! certificates of the operating system and those of `ca_file`. The proxy comes from the environment
//! (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, except for hosts in `NO_PROXY`) or from `proxy`.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use ai_agent_stage::{BuildError, Context};
use reqwest::{Certificate, Client, Proxy, Url};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::Encoding;
use siem_sinks::http::ClientSettings;

use super::{
    Batch, Delivery, DeliveryFuture, Sink, SinkOptions, SinkPlugin,
    response::{Acknowledgement, RequiredReceipt, interpret},
    stored_frames::request_body,
};
use crate::{
    config::Secret,
    frame::{Codec, Encoder},
    platform::Clock,
    siem::Connection,
    stages::{AgentContext, StageOptions},
    text::causes,
    units::{Size, Time},
};

inventory::submit! {
    SinkPlugin::new::<Options>(
        "http-siem",
        "Ships signed batches to a SIEM over HTTP.",
        r#"
## Base URL of the receiver, http or https. Also: CLAUDE_SIEM_ENDPOINT.
endpoint = "https://siem.example.com"
## Bearer token. Preferably set by CLAUDE_SIEM_TOKEN or `token_file`.
token = "..."
## File with the token, readable only by its owner (0600).
token_file = "/etc/ai-agent/token"
## Secret that signs each body. Preferably set by CLAUDE_SIEM_HMAC_SECRET or `hmac_secret_file`.
hmac_secret = "..."
## File with the secret, readable only by its owner (0600).
hmac_secret_file = "/etc/ai-agent/hmac-secret"
## Compression of request bodies: "zstd", "gzip" or "none".
compression = "zstd"
## Response that acknowledges a batch: the receiver's "receipt", or any 2xx "status" for other receivers.
acknowledgement = "receipt"
## Maximum time of one request. A single entry gets more, step by step, up to 15 minutes.
timeout = "60s"
## Additional certificates (PEM) to trust.
ca_file = "/etc/ai-agent/ca.pem"
## Client certificate (PEM), with its intermediate certificates.
client_certificate_file = "/etc/ai-agent/client.pem"
## Key of the client certificate (PEM), readable only by its owner (0600).
client_key_file = "/etc/ai-agent/client.key"
## Proxy, http or https; overrides the environment's proxy and NO_PROXY.
proxy = "http://proxy.example.com:3128"
## User for the proxy.
proxy_user = "..."
## Password for the proxy. Preferably set by `proxy_password_file`.
proxy_password = "..."
## File with the password for the proxy, readable only by its owner (0600).
proxy_password_file = "/etc/ai-agent/proxy-password"
"#,
    )
}

/// Options of the sink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Base URL of the receiver, http or https. Also: `CLAUDE_SIEM_ENDPOINT`.
    endpoint: Option<String>,
    /// Bearer token. Preferably set by `CLAUDE_SIEM_TOKEN` or `token_file`.
    token: Option<Secret>,
    /// File with the token, readable only by its owner (0600).
    token_file: Option<PathBuf>,
    /// Secret that signs each body. Preferably set by `CLAUDE_SIEM_HMAC_SECRET` or
    /// `hmac_secret_file`.
    hmac_secret: Option<Secret>,
    /// File with the secret, readable only by its owner (0600).
    hmac_secret_file: Option<PathBuf>,
    /// Compression of request bodies: "zstd", "gzip" or "none".
    #[serde(default)]
    compression: Compression,
    /// Response that acknowledges a batch: the receiver's "receipt", or any 2xx "status" for other
    /// receivers.
    #[serde(default)]
    acknowledgement: Acknowledgement,
    /// Maximum time of one request. A single entry gets more, step by step, up to 15 minutes.
    #[serde(default = "timeout")]
    timeout: Time,
    /// Additional certificates (PEM) to trust.
    ca_file: Option<PathBuf>,
    /// Client certificate (PEM), with its intermediate certificates.
    client_certificate_file: Option<PathBuf>,
    /// Key of the client certificate (PEM), readable only by its owner (0600).
    client_key_file: Option<PathBuf>,
    /// Proxy, http or https; overrides the environment's proxy and `NO_PROXY`.
    proxy: Option<String>,
    /// User for the proxy.
    proxy_user: Option<String>,
    /// Password for the proxy. Preferably set by `proxy_password_file`.
    proxy_password: Option<Secret>,
    /// File with the password for the proxy, readable only by its owner (0600).
    proxy_password_file: Option<PathBuf>,
}

fn timeout() -> Time {
    Time::seconds(60)
}

/// Compression of request bodies.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Compression {
    /// Zstandard.
    #[default]
    Zstd,
    /// gzip.
    Gzip,
    /// No compression.
    None,
}

impl From<Compression> for Encoding {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Zstd => Self::Zstd,
            Compression::Gzip => Self::Gzip,
            Compression::None => Self::Identity,
        }
    }
}

/// Sends each batch as a POST request.
struct HttpSiem {
    connection: Connection,
    encoding: Encoding,
    encoder: Encoder,
    acknowledgement: Acknowledgement,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// Length of the last body.
    sent: usize,
}

impl SinkOptions for Options {
    type Sink = HttpSiem;

    fn build(self, context: &Context) -> Result<HttpSiem, BuildError> {
        Ok(HttpSiem {
            connection: self.connect(AgentContext::of(context)?)?,
            encoding: self.compression.into(),
            encoder: Encoder::new(Codec::Zstd),
            acknowledgement: self.acknowledgement,
            timeout: self.timeout.0,
            clock: Arc::clone(context.clock()),
            sent: 0,
        })
    }
}

impl Sink for HttpSiem {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.sent = 0;
            let body = match request_body(batch, self.encoding, &mut self.encoder) {
                Ok(body) => body,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            self.sent = body.len();
            let within = self.timeout.max(batch.patience().unwrap_or_default());
            let id = batch.header().id();
            let reply = self.connection.post(&id, self.encoding, body, within).await;
            let required = if batch.header().redelivery {
                RequiredReceipt::Each(&batch.header().seqs)
            } else {
                RequiredReceipt::UpTo(batch.last_seq())
            };
            let delivery = interpret(&reply, self.acknowledgement, required, self.clock.now());
            let Delivery::Slow { waited, reason } = delivery else { return delivery };
            Delivery::Slow { waited, reason: reason + &self.too_slow(batch) }
        })
    }

    fn destination(&self) -> Option<String> {
        Some(self.connection.base().to_owned())
    }

    fn sent(&self, _batch: &Batch) -> u64 {
        self.sent as u64
    }

    fn encoding(&self) -> Encoding {
        self.encoding
    }
}

impl HttpSiem {
    /// Describes a batch that got no response in time, with the remedy.
    fn too_slow(&self, batch: &Batch) -> String {
        let what = match batch.header().count {
            1 => "one entry".to_owned(),
            count => format!("{count} entries"),
        };
        let size = |bytes| Size(bytes as u64);
        format!(
            " to {what} of {}, {} as sent; if the connection to the receiver is that slow, raise \
             `timeout` ({})",
            size(batch.raw_bytes()),
            size(self.sent),
            Time(self.timeout)
        )
    }
}

/// Creates the connection to the receiver of a sink with these options.
///
/// # Errors
/// [`BuildError`] if an option is wrong.
pub(crate) fn connect(
    options: &StageOptions,
    context: &AgentContext,
) -> Result<Connection, BuildError> {
    options.parse::<Options>()?.connect(context)
}

impl Options {
    fn connect(&self, context: &AgentContext) -> Result<Connection, BuildError> {
        let base = url(self.endpoint.as_deref().unwrap_or_default())?;
        let token = secret(
            ["token", "token_file"],
            self.token.as_ref(),
            self.token_file.as_ref(),
            context,
        )?;
        let file = self.hmac_secret_file.as_ref();
        let hmac_secret =
            secret(["hmac_secret", "hmac_secret_file"], self.hmac_secret.as_ref(), file, context)?;
        if !token.expose().bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let problem = "contains characters that an HTTP header cannot contain".to_owned();
            return Err(BuildError::invalid("token", problem));
        }
        let identity = context.identity.clone();
        let (client, revision) = (self.client(context)?, context.revision.clone());
        Ok(Connection::new(client, base, token, hmac_secret, identity, revision))
    }

    fn client(&self, context: &AgentContext) -> Result<Client, BuildError> {
        let settings = ClientSettings {
            user_agent: format!("ai-agent/{}", context.identity.agent_version),
            connect_timeout: self.timeout.0.min(Duration::from_secs(10)),
            authorities: self.authorities(context)?,
            // Reading the certificates of the system takes longer than the rest of a start, and some
            // systems have none.
            trusts_system: self.may_use_tls(context),
            identity: self.client_certificate(context)?,
            proxy: self.proxy(context)?,
        };
        let failure = match settings.client() {
            Ok(client) => return Ok(client),
            Err(failure) => failure,
        };
        let problem = format!(
            "cannot be reached over TLS: {}: install the system's certificates \
             (`ca-certificates`), or name the receiver's authority with `ca_file`",
            causes(&failure)
        );
        Err(BuildError::invalid("endpoint", problem))
    }

    /// Returns true if the receiver, or a proxy before it, may use TLS.
    fn may_use_tls(&self, context: &AgentContext) -> bool {
        let is_plain = |url: &str| url.starts_with("http:");
        // A proxy of the environment without a scheme uses HTTP.
        let is_tls = |name| {
            let url = context.environment.get(name).and_then(|url| url.to_str());
            url.is_some_and(|url| url.starts_with("https:"))
        };
        let proxied = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
        !self.endpoint.as_deref().is_some_and(is_plain)
            || self.proxy.as_deref().is_some_and(|proxy| !is_plain(proxy))
            || proxied.into_iter().any(is_tls)
    }

    /// Reads the certificates to trust in addition to those of the system.
    fn authorities(&self, context: &AgentContext) -> Result<Vec<Certificate>, BuildError> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let invalid = |error: &dyn std::fmt::Display| invalid_file("ca_file", path, error);
        let pem = fs::read(context.paths.expand(path)).map_err(|error| invalid(&error))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(&error))?;
        if certificates.is_empty() {
            return Err(invalid(&"it contains no PEM certificate"));
        }
        Ok(certificates)
    }
}

impl Options {
    fn proxy(&self, context: &AgentContext) -> Result<Option<Proxy>, BuildError> {
        let wrong = |problem: &str| {
            let problem = problem.to_owned();
            BuildError::invalid("proxy", problem)
        };
        let file = self.proxy_password_file.as_ref();
        let has_password = self.proxy_password.is_some() || file.is_some();
        let Some(proxy) = &self.proxy else {
            if self.proxy_user.is_some() || has_password {
                return Err(wrong("is missing: `proxy_user` and the password belong to it"));
            }
            return Ok(None);
        };
        let url = Url::parse(proxy)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| wrong("is not a URL such as `http://proxy.example.com:3128`"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "contains a user or password: set `proxy_user` and `proxy_password_file`",
            ));
        }
        let proxy = Proxy::all(url).map_err(|_| wrong("cannot be used as a proxy"))?;
        let Some(user) = &self.proxy_user else {
            if has_password {
                let problem = "is missing: a password for the proxy needs a user".to_owned();
                return Err(BuildError::invalid("proxy_user", problem));
            }
            return Ok(Some(proxy));
        };
        let options = ["proxy_password", "proxy_password_file"];
        let password = secret(options, self.proxy_password.as_ref(), file, context)?;
        Ok(Some(proxy.basic_auth(user, password.expose())))
    }

    fn client_certificate(
        &self,
        context: &AgentContext,
    ) -> Result<Option<reqwest::Identity>, BuildError> {
        let (certificate, key) = match (&self.client_certificate_file, &self.client_key_file) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => {
                let problem = "is missing: a client certificate needs its key".to_owned();
                return Err(BuildError::invalid("client_key_file", problem));
            }
            (None, Some(_)) => {
                let problem = "is missing: a key needs its certificate".to_owned();
                return Err(BuildError::invalid("client_certificate_file", problem));
            }
        };
        let read = fs::read(context.paths.expand(certificate));
        let mut pem =
            read.map_err(|error| invalid_file("client_certificate_file", certificate, &error))?;
        let secret = Secret::from_file(&context.paths.expand(key))
            .map_err(|error| invalid_file("client_key_file", key, &causes(&error)))?;
        pem.push(b'\n');
        pem.extend_from_slice(secret.expose().as_bytes());
        reqwest::Identity::from_pem(&pem)
            .map(Some)
            .map_err(|error| invalid_file("client_certificate_file", certificate, &error))
    }
}

fn url(text: &str) -> Result<Url, BuildError> {
    let wrong = |problem: String| BuildError::invalid("endpoint", problem);
    let expected = "expected a URL such as `https://siem.example.com`";
    let url =
        Url::parse(text).map_err(|error| wrong(format!("is not a URL ({error}), {expected}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("does not start with http:// or https://, {expected}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "contains a user or password: set the token with `token_file`".to_owned(),
        ));
    }
    Ok(url)
}

fn secret(
    [option, file_option]: [&'static str; 2],
    given: Option<&Secret>,
    file: Option<&PathBuf>,
    context: &AgentContext,
) -> Result<Secret, BuildError> {
    match (given, file) {
        (Some(secret), _) => Ok(secret.clone()),
        (None, Some(path)) => Secret::from_file(&context.paths.expand(path)).map_err(|error| {
            let problem = format!("cannot be used: {}", causes(&error));
            BuildError::Invalid { option: file_option, problem }
        }),
        (None, None) => Err(BuildError::Invalid { option, problem: "is missing".to_owned() }),
    }
}

fn invalid_file(
    option: &'static str,
    path: &std::path::Path,
    error: &dyn std::fmt::Display,
) -> BuildError {
    BuildError::Invalid { option, problem: format!("`{}` cannot be used: {error}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_endpoint_is_refused() {
        for (text, word) in [
            ("", "is not a URL"),
            ("siem.example.com", "is not a URL"),
            ("ftp://siem.example.com", "does not start with"),
            ("https://", "is not a URL"),
            ("https://u:p@siem.example.com", "contains a user"),
        ] {
            let error = url(text).unwrap_err().to_string();
            assert!(error.starts_with("`endpoint` ") && error.contains(word), "{text}: {error}");
            assert!(!error.contains("u:p"));
        }
        assert!(url("http://127.0.0.1:8080/prefix/").is_ok());
    }

    #[test]
    fn plain_http_needs_no_certificates() {
        let given = |endpoint: &str, proxy: &str, variable: &[(&str, &str)]| {
            let text = format!("endpoint = \"{endpoint}\"\n{proxy}");
            let options = StageOptions::from_toml(&text).unwrap().parse::<Options>().unwrap();
            let environment = variable.iter().copied().collect();
            options.may_use_tls(&AgentContext { environment, ..crate::test_context::context() })
        };
        let (plain, tls) = ("http://siem.test", "https://siem.test");
        assert!(!given(plain, "", &[("http_proxy", "proxy:3128")]));
        assert!(!given(plain, "proxy = \"http://proxy:3128\"", &[]));
        assert!(given(tls, "", &[]));
        assert!(given(plain, "proxy = \"https://proxy:3128\"", &[]));
        assert!(given(plain, "", &[("ALL_PROXY", "https://proxy:3128")]));
    }

    #[test]
    fn invalid_proxy_options_are_refused() {
        let context = crate::test_context::context();
        for (text, word) in [
            ("proxy = \"proxy.example.com:3128\"", "`proxy` is not a URL such as"),
            ("proxy = \"socks5://proxy.example.com\"", "`proxy` is not a URL such as"),
            ("proxy = \"http://u:p455@proxy.example.com\"", "`proxy` contains a user or password"),
            ("proxy_user = \"u\"", "`proxy` is missing"),
            ("proxy = \"http://p\"\nproxy_password = \"p455\"", "`proxy_user` is missing"),
            ("proxy = \"http://p\"\nproxy_user = \"u\"", "`proxy_password` is missing"),
        ] {
            let options = StageOptions::from_toml(text).unwrap().parse::<Options>().unwrap();
            let error = options.proxy(&context).err().unwrap().to_string();
            assert!(error.contains(word) && !error.contains("p455"), "{text}: {error}");
        }
    }
}
