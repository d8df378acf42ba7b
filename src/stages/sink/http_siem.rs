//! Ships batches to a SIEM over HTTP, as the protocol of `siem-protocol` has it.
//!
//! Each request carries a Bearer token and an HMAC-SHA256 over the body as sent. TLS trusts what
//! the system trusts, and `ca_file` besides. A proxy is taken from the environment
//! (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, but for what `NO_PROXY` names) or from `proxy`.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use ai_agent_stage::{BuildError, Context};
use reqwest::{Certificate, Client, ClientBuilder, Proxy, Url, redirect};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::Encoding;

use super::{
    Batch, Delivery, DeliveryFuture, Sink, SinkOptions, SinkPlugin,
    answer::{Acknowledgement, Owed, judge},
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
## Bearer token. Better given by CLAUDE_SIEM_TOKEN or `token_file`.
token = "..."
## File with the token, readable by its owner only (0600).
token_file = "/etc/ai-agent/token"
## Secret that signs each body. Better given by CLAUDE_SIEM_HMAC_SECRET or `hmac_secret_file`.
hmac_secret = "..."
## File with the secret, readable by its owner only (0600).
hmac_secret_file = "/etc/ai-agent/hmac-secret"
## How bodies are compressed: "zstd", "gzip" or "none".
compression = "zstd"
## What acknowledges a batch: the receiver's "receipt", or for foreign receivers any 2xx "status".
acknowledgement = "receipt"
## The longest that one request may take; one entry alone gets more, step by step, up to 15 minutes.
timeout = "60s"
## Certificates (PEM) to trust besides the system's.
ca_file = "/etc/ai-agent/ca.pem"
## Client certificate (PEM), with the certificates between it and its root.
client_certificate_file = "/etc/ai-agent/client.pem"
## Key of the client certificate (PEM), readable by its owner only (0600).
client_key_file = "/etc/ai-agent/client.key"
## Proxy, http or https, in place of the one that the environment names. NO_PROXY is not asked then.
proxy = "http://proxy.example.com:3128"
## User at the proxy.
proxy_user = "..."
## Password at the proxy. Better given by `proxy_password_file`.
proxy_password = "..."
## File with the password at the proxy, readable by its owner only (0600).
proxy_password_file = "/etc/ai-agent/proxy-password"
"#,
    )
}

/// Where batches go, and how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Base URL of the receiver, http or https. Also: `CLAUDE_SIEM_ENDPOINT`.
    endpoint: Option<String>,
    /// Bearer token. Better given by `CLAUDE_SIEM_TOKEN` or `token_file`.
    token: Option<Secret>,
    /// File with the token, readable by its owner only (0600).
    token_file: Option<PathBuf>,
    /// Secret that signs each body. Better given by `CLAUDE_SIEM_HMAC_SECRET` or
    /// `hmac_secret_file`.
    hmac_secret: Option<Secret>,
    /// File with the secret, readable by its owner only (0600).
    hmac_secret_file: Option<PathBuf>,
    /// How bodies are compressed: "zstd", "gzip" or "none".
    #[serde(default)]
    compression: Compression,
    /// What acknowledges a batch: the receiver's "receipt", or for foreign receivers any 2xx
    /// "status".
    #[serde(default)]
    acknowledgement: Acknowledgement,
    /// The longest that one request may take; one entry alone gets more, step by step, up to 15
    /// minutes.
    #[serde(default = "timeout")]
    timeout: Time,
    /// Certificates (PEM) to trust besides the system's.
    ca_file: Option<PathBuf>,
    /// Client certificate (PEM), with the certificates between it and its root.
    client_certificate_file: Option<PathBuf>,
    /// Key of the client certificate (PEM), readable by its owner only (0600).
    client_key_file: Option<PathBuf>,
    /// Proxy, http or https, in place of the one that the environment names. `NO_PROXY` is not
    /// asked then.
    proxy: Option<String>,
    /// User at the proxy.
    proxy_user: Option<String>,
    /// Password at the proxy. Better given by `proxy_password_file`.
    proxy_password: Option<Secret>,
    /// File with the password at the proxy, readable by its owner only (0600).
    proxy_password_file: Option<PathBuf>,
}

fn timeout() -> Time {
    Time::seconds(60)
}

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Compression {
    /// Zstandard.
    #[default]
    Zstd,
    /// gzip.
    Gzip,
    /// Not at all.
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

/// Posts each batch.
struct HttpSiem {
    connection: Connection,
    encoding: Encoding,
    encoder: Encoder,
    acknowledgement: Acknowledgement,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// The length of the last body.
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
            let owed = if batch.header().redelivery {
                Owed::Each(&batch.header().seqs)
            } else {
                Owed::UpTo(batch.last_seq())
            };
            let delivery = judge(&reply, self.acknowledgement, owed, self.clock.now());
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
    /// What no answer came to, and what a person can do where that goes on.
    fn too_slow(&self, batch: &Batch) -> String {
        let what = match batch.header().count {
            1 => "one entry".to_owned(),
            count => format!("{count} entries"),
        };
        let size = |bytes| Size(bytes as u64);
        format!(
            " to {what} of {}, {} as sent; if the way to the receiver is that slow, raise \
             `timeout` ({})",
            size(batch.raw_bytes()),
            size(self.sent),
            Time(self.timeout)
        )
    }
}

/// The way to the receiver that a sink of this type is configured for.
///
/// # Errors
/// [`BuildError`] when an option is wrong.
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
            let problem = "holds characters that no HTTP header can carry".to_owned();
            return Err(BuildError::Invalid { option: "token", problem });
        }
        let identity = context.identity.clone();
        let (client, revision) = (self.client(context)?, context.revision.clone());
        Ok(Connection::new(client, base, token, hmac_secret, identity, revision))
    }

    fn client(&self, context: &AgentContext) -> Result<Client, BuildError> {
        let authorities = self.authorities(context)?;
        let builder = self.builder(context)?;
        // Reading all that the system trusts takes longer than the rest of a start, and some systems
        // have nothing to read.
        let built = if self.may_speak_tls(context) {
            builder.tls_certs_merge(authorities).build()
        } else {
            builder.tls_certs_only(authorities).build()
        };
        let failure = match built {
            Ok(client) => return Ok(client),
            Err(failure) => failure,
        };
        let problem = format!(
            "cannot be reached over TLS: {}: install the system's certificates \
             (`ca-certificates`), or name the receiver's authority with `ca_file`",
            causes(&failure)
        );
        Err(BuildError::Invalid { option: "endpoint", problem })
    }

    /// Whether the receiver, or a proxy before it, may have to show a certificate.
    fn may_speak_tls(&self, context: &AgentContext) -> bool {
        let is_plain = |url: &str| url.starts_with("http:");
        // Without a scheme, a proxy of the environment speaks HTTP.
        let is_tls = |name| {
            let url = context.environment.get(name).and_then(|url| url.to_str());
            url.is_some_and(|url| url.starts_with("https:"))
        };
        let proxied = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
        !self.endpoint.as_deref().is_some_and(is_plain)
            || self.proxy.as_deref().is_some_and(|proxy| !is_plain(proxy))
            || proxied.into_iter().any(is_tls)
    }

    /// A client, but for whom it trusts.
    fn builder(&self, context: &AgentContext) -> Result<ClientBuilder, BuildError> {
        let mut builder = Client::builder()
            .user_agent(format!("ai-agent/{}", context.identity.agent_version))
            .redirect(redirect::Policy::none())
            .connect_timeout(self.timeout.0.min(Duration::from_secs(10)));
        if let Some(identity) = self.client_certificate(context)? {
            builder = builder.identity(identity);
        }
        if let Some(proxy) = self.proxy(context)? {
            builder = builder.proxy(proxy);
        }
        Ok(builder)
    }

    /// The authorities to trust besides the system's.
    fn authorities(&self, context: &AgentContext) -> Result<Vec<Certificate>, BuildError> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let invalid = |error: &dyn std::fmt::Display| invalid_file("ca_file", path, error);
        let pem = fs::read(context.paths.expand(path)).map_err(|error| invalid(&error))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(&error))?;
        if certificates.is_empty() {
            return Err(invalid(&"no PEM certificate is in it"));
        }
        Ok(certificates)
    }
}

impl Options {
    fn proxy(&self, context: &AgentContext) -> Result<Option<Proxy>, BuildError> {
        let wrong = |problem: &str| {
            let problem = problem.to_owned();
            BuildError::Invalid { option: "proxy", problem }
        };
        let file = self.proxy_password_file.as_ref();
        let has_password = self.proxy_password.is_some() || file.is_some();
        let Some(proxy) = &self.proxy else {
            if self.proxy_user.is_some() || has_password {
                return Err(wrong("is missing: user and password are for the proxy that it names"));
            }
            return Ok(None);
        };
        let url = Url::parse(proxy)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| wrong("is no URL such as `http://proxy.example.com:3128`"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "holds a user or password, they go into `proxy_user` and `proxy_password_file`",
            ));
        }
        let proxy = Proxy::all(url).map_err(|_| wrong("cannot be used as a proxy"))?;
        let Some(user) = &self.proxy_user else {
            if has_password {
                let problem = "is missing: a password at the proxy is a user's".to_owned();
                return Err(BuildError::Invalid { option: "proxy_user", problem });
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
                return Err(BuildError::Invalid { option: "client_key_file", problem });
            }
            (None, Some(_)) => {
                let problem = "is missing: a key needs its certificate".to_owned();
                return Err(BuildError::Invalid { option: "client_certificate_file", problem });
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
    let wrong = |problem: String| BuildError::Invalid { option: "endpoint", problem };
    let expected = "expected a URL such as `https://siem.example.com`";
    let url =
        Url::parse(text).map_err(|error| wrong(format!("is no URL ({error}), {expected}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("does not begin with http:// or https://, {expected}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user or password, the token goes into `token_file`".to_owned()));
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
    fn an_endpoint_that_cannot_work_is_refused() {
        for (text, word) in [
            ("", "is no URL"),
            ("siem.example.com", "is no URL"),
            ("ftp://siem.example.com", "does not begin with"),
            ("https://", "is no URL"),
            ("https://u:p@siem.example.com", "holds a user"),
        ] {
            let error = url(text).unwrap_err().to_string();
            assert!(error.starts_with("`endpoint` ") && error.contains(word), "{text}: {error}");
            assert!(!error.contains("u:p"));
        }
        assert!(url("http://127.0.0.1:8080/prefix/").is_ok());
    }

    #[test]
    fn plain_http_all_the_way_asks_for_no_certificate() {
        let given = |endpoint: &str, proxy: &str, variable: &[(&str, &str)]| {
            let text = format!("endpoint = \"{endpoint}\"\n{proxy}");
            let options = StageOptions::from_toml(&text).unwrap().parse::<Options>().unwrap();
            let environment = variable.iter().copied().collect();
            options.may_speak_tls(&AgentContext { environment, ..crate::testing::context() })
        };
        let (plain, tls) = ("http://siem.test", "https://siem.test");
        assert!(!given(plain, "", &[("http_proxy", "proxy:3128")]));
        assert!(!given(plain, "proxy = \"http://proxy:3128\"", &[]));
        assert!(given(tls, "", &[]));
        assert!(given(plain, "proxy = \"https://proxy:3128\"", &[]));
        assert!(given(plain, "", &[("ALL_PROXY", "https://proxy:3128")]));
    }

    #[test]
    fn what_cannot_work_with_a_proxy_is_refused() {
        let context = crate::testing::context();
        for (text, word) in [
            ("proxy = \"proxy.example.com:3128\"", "`proxy` is no URL such as"),
            ("proxy = \"socks5://proxy.example.com\"", "`proxy` is no URL such as"),
            ("proxy = \"http://u:p455@proxy.example.com\"", "`proxy` holds a user or password"),
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
