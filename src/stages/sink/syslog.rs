//! Ships records to a syslog server.
//!
//! RFC 5424 messages over TLS (RFC 5425) or plain TCP, framed by octet counting. The protocol has no
//! acknowledgements: an entry counts as delivered when it has left a window of the last 1 MiB and 30
//! seconds, and TCP has acknowledged its bytes. The other entries are sent again after a disconnect.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::{
    event::TimeOf,
    syslog::{MIN_EVENT_BYTES, Settings, Syslog, TcpSystem, WindowSize},
};
use tokio::net::TcpStream;

use super::{
    Plugin, SinkOptions,
    connection::{ConnectionOptions, check_timeout, default_timeout},
    siem::Adapter,
};
use crate::{
    platform::{tcp, test_limits},
    stages::AgentContext,
    text::causes,
};
use config_text::{Size, Time};

inventory::submit! {
    Plugin::sink::<Options>(
        "syslog",
        "Ships records as RFC 5424 messages over TLS or TCP.",
        r#"
## Host and port of the server; the default port is 6514 with TLS, and 601 without.
address = "syslog.example.com:6514"
## "tls", or "tcp" without encryption.
transport = "tls"
## Facility of the messages, such as "audit", "user" or "local0".
facility = "audit"
## Maximum size of a message; larger entries are sent in parts. Servers truncate longer messages.
max_event_bytes = "8 kB"
## Time of a message: of the "record", or when it was "read".
time = "record"
## Maximum time to connect, of one write, and until TCP acknowledges it.
timeout = "60s"
## Additional certificates (PEM) to trust.
ca_file = "/etc/ai-agent/ca.pem"
## Client certificate (PEM), with its intermediate certificates.
client_certificate_file = "/etc/ai-agent/client.pem"
## Key of the client certificate (PEM), readable only by its owner (0600).
client_key_file = "/etc/ai-agent/client.key"
"#,
    )
}

/// Options of the sink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Host and port of the server; the default port is 6514 with TLS, and 601 without.
    address: String,
    /// "tls", or "tcp" without encryption.
    #[serde(default)]
    transport: Transport,
    /// Facility of the messages, such as "audit", "user" or "local0".
    #[serde(default)]
    facility: Facility,
    /// Maximum size of a message; larger entries are sent in parts. Servers truncate longer messages.
    #[serde(default = "max_event_bytes")]
    max_event_bytes: Size,
    /// Time of a message: of the "record", or when it was "read".
    #[serde(default)]
    time: TimeOf,
    /// Maximum time to connect, of one write, and until TCP acknowledges it.
    #[serde(default = "default_timeout")]
    timeout: Time,
    /// Additional certificates (PEM) to trust.
    ca_file: Option<PathBuf>,
    /// Client certificate (PEM), with its intermediate certificates.
    client_certificate_file: Option<PathBuf>,
    /// Key of the client certificate (PEM), readable only by its owner (0600).
    client_key_file: Option<PathBuf>,
}

/// RFC 5425 asks receivers to accept 8192 bytes, but rsyslog truncates after 8096 by default.
fn max_event_bytes() -> Size {
    Size(8_000)
}

/// Protocol below syslog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Transport {
    /// TLS (RFC 5425).
    #[default]
    Tls,
    /// Plain TCP (RFC 6587).
    Tcp,
}

impl Transport {
    fn default_port(self) -> u16 {
        match self {
            Self::Tls => 6514,
            Self::Tcp => 601,
        }
    }
}

/// Facility of RFC 5424.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Facility {
    /// 1
    User = 1,
    /// 3
    Daemon = 3,
    /// 4
    Auth = 4,
    /// 10
    Authpriv = 10,
    /// 13
    #[default]
    Audit = 13,
    /// 16
    Local0 = 16,
    /// 17
    Local1 = 17,
    /// 18
    Local2 = 18,
    /// 19
    Local3 = 19,
    /// 20
    Local4 = 20,
    /// 21
    Local5 = 21,
    /// 22
    Local6 = 22,
    /// 23
    Local7 = 23,
}

impl SinkOptions for Options {
    type Sink = Adapter<Syslog>;

    fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
        let (host, port) = address(&self.address, self.transport.default_port())?;
        check_timeout("timeout", self.timeout)?;
        let least = Size(MIN_EVENT_BYTES as u64);
        if self.max_event_bytes.0 < least.0 {
            let problem = format!("is below {least}: the fields would not fit");
            return Err(BuildError::invalid("max_event_bytes", problem));
        }
        let tls = match self.transport {
            Transport::Tls => Some(self.tls(AgentContext::of(context)?)?),
            Transport::Tcp => None,
        };
        Ok(Adapter::new(Syslog::new(Settings {
            host,
            port,
            tls,
            facility: self.facility as u8,
            max_event_bytes: usize::try_from(self.max_event_bytes.0).unwrap_or(usize::MAX),
            time: self.time,
            timeout: self.timeout.0,
            window: window(),
            system: Arc::new(System),
        })))
    }
}

fn window() -> WindowSize {
    let WindowSize { bytes, time } = WindowSize::default();
    WindowSize { bytes, time: test_limits::limit("AI_AGENT_TEST_SYSLOG_WINDOW_MS", time) }
}

/// The operating system.
struct System;

impl TcpSystem for System {
    fn limit_unacknowledged(&self, stream: &TcpStream, limit: Duration) -> io::Result<()> {
        tcp::limit_unacknowledged(stream, limit)
    }

    fn unacknowledged(&self, stream: &TcpStream) -> Option<u64> {
        tcp::unacknowledged(stream)
    }
}

impl Options {
    fn tls(&self, context: &AgentContext) -> Result<Arc<rustls::ClientConfig>, BuildError> {
        let connection = ConnectionOptions {
            timeout: self.timeout.0,
            ca_file: self.ca_file.as_deref(),
            client_certificate_file: self.client_certificate_file.as_deref(),
            client_key_file: self.client_key_file.as_deref(),
            proxy: None,
            proxy_user: None,
            proxy_password: None,
            proxy_password_file: None,
        };
        let config = connection.tls(context)?.client_config();
        config.map(Arc::new).map_err(|error| {
            let problem = format!("cannot be reached over TLS: {}", causes(&*error));
            BuildError::invalid("address", problem)
        })
    }
}

/// Splits `text` into host and port. IPv6 addresses with a port are in brackets.
fn address(text: &str, default_port: u16) -> Result<(String, u16), BuildError> {
    let wrong = || {
        BuildError::invalid("address", "is not a host and port such as `syslog.example.com:6514`")
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| wrong())?)
        }
        _ => (text, default_port),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_host = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests;
