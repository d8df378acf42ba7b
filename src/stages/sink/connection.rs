//! Options that all sinks over HTTP share, and the HTTP client that they describe.
//!
//! A sink declares its options inside [`with_connection_options!`], which adds the shared ones, and
//! appends [`connection_sample!`] to its sample. The macro adds fields, since `serde(flatten)`
//! neither refuses unknown options nor suggests similar names.
//!
//! TLS trusts the certificates of the operating system and those of `ca_file`. The proxy comes from
//! the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, except for hosts in `NO_PROXY`) or from
//! `proxy`. Where the machine's file locks these options, the environment does not count:
//! [`Environment::hides`](crate::platform::Environment::hides).

use std::{path::Path, time::Duration};

use ai_agent_stage::BuildError;
use reqwest::{Certificate, Proxy, Url};
use siem_sinks::{
    http::{ClientSettings, HttpClient},
    tls::{ClientIdentity, TlsSettings},
};

use crate::{
    config::Secret,
    platform::{CERTIFICATE_VARIABLES, PROXY_VARIABLES, file, system_certificates},
    stages::AgentContext,
    text::causes,
};
use config_text::Time;

/// Declares the options of a sink: the fields in the braces, and those of the connection. The struct
/// refuses unknown options, and has a method `connection` that returns [`ConnectionOptions`].
///
/// ```ignore
/// with_connection_options! {
///     /// Options of the sink.
///     struct Options {
///         /// Base URL of the receiver.
///         endpoint: String,
///     }
/// }
/// ```
macro_rules! with_connection_options {
    ($(#[$attribute:meta])* struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, ::serde::Deserialize, ::schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct $name {
            $($own)*
            /// Maximum time of one request, 100ms to 1day. A single entry gets more, step by step, up to
            /// 15 minutes.
            #[serde(default = "crate::stages::sink::connection::default_timeout")]
            timeout: config_text::Time,
            /// Additional certificates (PEM) to trust.
            ca_file: Option<::std::path::PathBuf>,
            /// Client certificate (PEM), with its intermediate certificates.
            client_certificate_file: Option<::std::path::PathBuf>,
            /// Key of the client certificate (PEM), readable only by its owner (0600).
            client_key_file: Option<::std::path::PathBuf>,
            /// Proxy, http or https; overrides the environment's proxy and `NO_PROXY`.
            proxy: Option<String>,
            /// User for the proxy.
            proxy_user: Option<String>,
            /// Password for the proxy. Preferably set by `proxy_password_file`.
            proxy_password: Option<crate::config::Secret>,
            /// File with the password for the proxy, readable only by its owner (0600).
            proxy_password_file: Option<::std::path::PathBuf>,
        }

        impl $name {
            /// Returns the options of the connection.
            fn connection(&self) -> crate::stages::sink::connection::ConnectionOptions<'_> {
                crate::stages::sink::connection::ConnectionOptions {
                    timeout: self.timeout.0,
                    ca_file: self.ca_file.as_deref(),
                    client_certificate_file: self.client_certificate_file.as_deref(),
                    client_key_file: self.client_key_file.as_deref(),
                    proxy: self.proxy.as_deref(),
                    proxy_user: self.proxy_user.as_deref(),
                    proxy_password: self.proxy_password.as_ref(),
                    proxy_password_file: self.proxy_password_file.as_deref(),
                }
            }
        }
    };
}

/// Sample of the options that [`with_connection_options!`] adds, for `concat!`.
macro_rules! connection_sample {
    () => {
        r#"## Maximum time of one request, 100ms to 1day. A single entry gets more, step by step, up to 15
## minutes.
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
"#
    };
}

pub(super) use {connection_sample, with_connection_options};

/// Default of `timeout`.
pub(super) fn default_timeout() -> Time {
    Time::seconds(60)
}

/// Shortest and longest time to wait for a receiver. Without any time nothing is ever delivered, and each
/// attempt may have delivered.
const TIMEOUT: [Time; 2] = [Time(Duration::from_millis(100)), Time::seconds(86_400)];

/// Checks the value of an option that limits the time to wait for a receiver.
///
/// # Errors
/// [`BuildError`] if it is too short or too long.
pub(super) fn check_timeout(option: &'static str, timeout: Time) -> Result<(), BuildError> {
    let [shortest, longest] = TIMEOUT;
    if timeout < shortest || timeout > longest {
        let problem = format!("is {timeout}, must be from {shortest} to {longest}");
        return Err(BuildError::invalid(option, problem));
    }
    Ok(())
}

/// Options of a connection, as configured.
#[derive(Clone, Copy)]
pub(super) struct ConnectionOptions<'a> {
    pub(super) timeout: Duration,
    pub(super) ca_file: Option<&'a Path>,
    pub(super) client_certificate_file: Option<&'a Path>,
    pub(super) client_key_file: Option<&'a Path>,
    pub(super) proxy: Option<&'a str>,
    pub(super) proxy_user: Option<&'a str>,
    pub(super) proxy_password: Option<&'a Secret>,
    pub(super) proxy_password_file: Option<&'a Path>,
}

impl ConnectionOptions<'_> {
    /// Creates an HTTP client for the URL `to`, which is the value of `option`. Reads the files that
    /// the options name.
    ///
    /// # Errors
    /// [`BuildError`] if an option is wrong, or a file cannot be used.
    pub(super) fn client(
        &self,
        option: &'static str,
        to: &Url,
        context: &AgentContext,
    ) -> Result<HttpClient, BuildError> {
        let unusable = |error: reqwest::Error| BuildError::invalid(option, causes(&error));
        check_timeout("timeout", Time(self.timeout))?;
        let client = self.client_certificate(context)?;
        let (authorities, trusts_system) = self.trust(self.may_use_tls(to, context), context)?;
        let settings = ClientSettings {
            user_agent: format!("ai-agent/{}", context.identity.agent_version),
            connect_timeout: self.timeout.min(Duration::from_secs(10)),
            authorities: certificates(&authorities).map_err(unusable)?,
            trusts_system,
            identity: client.as_ref().map(identity).transpose().map_err(unusable)?,
            proxy: self.proxy(context)?,
            ignores_environment: context.environment.hides(&PROXY_VARIABLES),
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
        Err(BuildError::invalid(option, problem))
    }

    /// Returns true if the receiver, or a proxy before it, may use TLS.
    fn may_use_tls(&self, to: &Url, context: &AgentContext) -> bool {
        // A proxy of the environment without a scheme uses HTTP.
        let is_tls = |name| {
            let url = context.environment.get(name).and_then(|url| url.to_str());
            url.is_some_and(|url| url.starts_with("https:"))
        };
        let proxied = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
        to.scheme() != "http"
            || self.proxy.is_some_and(|proxy| !proxy.starts_with("http:"))
            || proxied.into_iter().any(is_tls)
    }

    /// Reads the certificates to trust, and the client's own, for a protocol other than HTTP.
    ///
    /// # Errors
    /// [`BuildError`] if an option is wrong, or a file cannot be used.
    pub(super) fn tls(&self, context: &AgentContext) -> Result<TlsSettings, BuildError> {
        let (authorities, trusts_system) = self.trust(true, context)?;
        Ok(TlsSettings { authorities, trusts_system, identity: self.client_certificate(context)? })
    }

    /// Returns the certificates to trust, and whether the library adds those of the system. It reads
    /// them from where the environment says, so they are read here if the environment does not count.
    fn trust(
        &self,
        trusts_system: bool,
        context: &AgentContext,
    ) -> Result<(Vec<u8>, bool), BuildError> {
        let own = self.authorities(context)?;
        if !trusts_system || !context.environment.hides(&CERTIFICATE_VARIABLES) {
            return Ok((own, trusts_system));
        }
        let of_system = system_certificates().map_err(|error| {
            let problem =
                format!("is locked, and the system's certificates cannot be read: {error}");
            BuildError::invalid("ca_file", problem)
        })?;
        Ok(match of_system {
            Some(of_system) => ([own.as_slice(), b"\n", of_system.as_slice()].concat(), false),
            None => (own, true),
        })
    }

    /// Reads the certificates to trust in addition to those of the system; checks that they are PEM.
    fn authorities(&self, context: &AgentContext) -> Result<Vec<u8>, BuildError> {
        let Some(path) = self.ca_file else { return Ok(Vec::new()) };
        let invalid = |error: &dyn std::fmt::Display| invalid_file("ca_file", path, error);
        let path = &context.paths.expand(path);
        let pem =
            file::read_bounded(path, file::MAX_WRITTEN_BY_HAND).map_err(|error| invalid(&error))?;
        if certificates(&pem).map_err(|error| invalid(&error))?.is_empty() {
            return Err(invalid(&"it contains no PEM certificate"));
        }
        Ok(pem)
    }

    /// Reads the client certificate and its key; checks that they belong together.
    fn client_certificate(
        &self,
        context: &AgentContext,
    ) -> Result<Option<ClientIdentity>, BuildError> {
        let (certificate, key) = match (self.client_certificate_file, self.client_key_file) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => {
                let problem = "is missing: a client certificate needs its key";
                return Err(BuildError::invalid("client_key_file", problem));
            }
            (None, Some(_)) => {
                let problem = "is missing: a key needs its certificate";
                return Err(BuildError::invalid("client_certificate_file", problem));
            }
        };
        let path = &context.paths.expand(certificate);
        let read = file::read_bounded(path, file::MAX_WRITTEN_BY_HAND);
        let pem =
            read.map_err(|error| invalid_file("client_certificate_file", certificate, &error))?;
        let secret = Secret::from_file(&context.paths.expand(key))
            .map_err(|error| invalid_file("client_key_file", key, &causes(&error)))?;
        let client = ClientIdentity { certificate: pem, key: secret.expose().as_bytes().to_vec() };
        identity(&client)
            .map_err(|error| invalid_file("client_certificate_file", certificate, &error))?;
        Ok(Some(client))
    }

    fn proxy(&self, context: &AgentContext) -> Result<Option<Proxy>, BuildError> {
        let wrong = |problem: &str| BuildError::invalid("proxy", problem);
        let has_password = self.proxy_password.is_some() || self.proxy_password_file.is_some();
        let Some(proxy) = self.proxy else {
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
        let Some(user) = self.proxy_user else {
            if has_password {
                let problem = "is missing: a password for the proxy needs a user";
                return Err(BuildError::invalid("proxy_user", problem));
            }
            return Ok(Some(proxy));
        };
        let options = ["proxy_password", "proxy_password_file"];
        let password = secret(options, self.proxy_password, self.proxy_password_file, context)?;
        Ok(Some(proxy.basic_auth(user, password.expose())))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, reqwest::Error> {
    if pem.is_empty() { Ok(Vec::new()) } else { Certificate::from_pem_bundle(pem) }
}

fn identity(client: &ClientIdentity) -> Result<reqwest::Identity, reqwest::Error> {
    let ClientIdentity { certificate, key } = client;
    reqwest::Identity::from_pem(&[certificate, b"\n".as_slice(), key].concat())
}

/// Parses the URL of a receiver, which is the value of `option`.
///
/// # Errors
/// [`BuildError`] if it is not an http or https URL, or contains a user or password.
pub(super) fn url(option: &'static str, text: &str) -> Result<Url, BuildError> {
    let wrong = |problem: String| BuildError::invalid(option, problem);
    let expected = "expected a URL such as `https://siem.example.com`";
    let url =
        Url::parse(text).map_err(|error| wrong(format!("is not a URL ({error}), {expected}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("does not start with http:// or https://, {expected}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let problem = "contains a user or password: set secrets with options of their own, such as \
                       `token_file`";
        return Err(wrong(problem.to_owned()));
    }
    Ok(url)
}

/// Returns a secret that is configured by value or by file; the value has precedence. The
/// configuration keeps only the one that is set in the later layer, and sets the file if the secret
/// is a credential of systemd.
///
/// # Errors
/// [`BuildError`] if neither is set, or the file cannot be used.
pub(super) fn secret(
    [option, file_option]: [&'static str; 2],
    value: Option<&Secret>,
    file: Option<&Path>,
    context: &AgentContext,
) -> Result<Secret, BuildError> {
    match (value, file) {
        (Some(secret), _) => Ok(secret.clone()),
        (None, Some(path)) => Secret::from_file(&context.paths.expand(path)).map_err(|error| {
            BuildError::invalid(file_option, format!("cannot be used: {}", causes(&error)))
        }),
        (None, None) => Err(BuildError::invalid(option, "is missing")),
    }
}

fn invalid_file(option: &'static str, path: &Path, error: &dyn std::fmt::Display) -> BuildError {
    BuildError::invalid(option, format!("`{}` cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::StageOptions;

    use super::*;

    with_connection_options! {
        /// Options of a sink with one option of its own.
        struct Options {
            /// Base URL.
            endpoint: Option<String>,
        }
    }

    fn options(text: &str) -> Options {
        text.parse::<StageOptions>().unwrap().parse::<Options>().unwrap()
    }

    #[test]
    fn sample_has_the_shared_options_and_no_other() {
        let options = options(connection_sample!());
        assert_eq!(options.timeout.0, default_timeout().0);
        let schema = schemars::schema_for!(Options).to_value();
        let sample: toml::Table = connection_sample!().parse().unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let shared: Vec<_> = properties.keys().filter(|name| *name != "endpoint").collect();
        assert_eq!(sample.keys().collect::<Vec<_>>(), shared);
        assert!(options.endpoint.is_none());
    }

    #[test]
    fn unknown_option_is_refused_with_all_known_names() {
        let error = "ca_fil = \"x\"".parse::<StageOptions>().unwrap().parse::<Options>();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`endpoint`") && error.contains("`ca_file`"), "{error}");
    }

    #[test]
    fn invalid_endpoint_is_refused() {
        for (text, word) in [
            ("", "is not a URL"),
            ("siem.example.com", "is not a URL"),
            ("ftp://siem.example.com", "does not start with"),
            ("https://", "is not a URL"),
            ("https://u:p@siem.example.com", "contains a user"),
        ] {
            let error = url("endpoint", text).unwrap_err().to_string();
            assert!(error.starts_with("`endpoint` ") && error.contains(word), "{text}: {error}");
            assert!(!error.contains("u:p"));
        }
        assert!(url("endpoint", "http://127.0.0.1:8080/prefix/").is_ok());
    }

    #[test]
    fn plain_http_needs_no_certificates() {
        let given = |endpoint: &str, proxy: &str, variable: &[(&str, &str)]| {
            let environment = variable.iter().copied().collect();
            let context = AgentContext { environment, ..crate::test_context::context() };
            options(proxy).connection().may_use_tls(&endpoint.parse().unwrap(), &context)
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
            let error = options(text).connection().proxy(&context).err().unwrap().to_string();
            assert!(error.contains(word) && !error.contains("p455"), "{text}: {error}");
        }
    }

    #[test]
    fn secret_comes_from_the_value_or_the_file() {
        let context = crate::test_context::context();
        let names = ["token", "token_file"];
        let value = Secret::new("of-the-value").unwrap();
        let found = secret(names, Some(&value), Some(Path::new("/no/such/file")), &context);
        assert_eq!(found.unwrap(), value);
        let error = secret(names, None, Some(Path::new("/no/such/file")), &context).unwrap_err();
        assert!(error.to_string().starts_with("`token_file` cannot be used: "), "{error}");
        let error = secret(names, None, None, &context).unwrap_err();
        assert_eq!(error.to_string(), "`token` is missing");
    }
}
