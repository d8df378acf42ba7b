//! Ships batches to a SIEM over HTTP with the protocol of `siem-protocol`.
//!
//! Each request carries a bearer token and an HMAC-SHA256 over the body as sent.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ai_agent_stage::{Acknowledged, BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{BatchHeader, Encoding};

use super::{
    Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions,
    connection::{connection_sample, secret, url, with_connection_options},
    response::{Acknowledgement, RequiredReceipt, interpret},
    stored_frames::request_body,
};
use crate::{
    config::Secret,
    frame::{Codec, Encoder},
    platform::Clock,
    siem::Connection,
    stages::{AgentContext, StageOptions},
    units::{Size, Time},
};

inventory::submit! {
    Plugin::sink::<Options>(
        "http-siem",
        "Ships signed batches to a SIEM over HTTP.",
        concat!(r#"
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
"#, connection_sample!()),
    )
}

with_connection_options! {
    /// Options of the sink.
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
    }
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
            timeout: self.connection().timeout,
            clock: Arc::clone(context.clock()),
            sent: 0,
        })
    }
}

impl Sink for HttpSiem {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.sent = 0;
            let managed_hash = self.connection.managed_hash();
            let header = BatchHeader { managed_hash, ..batch.header.clone() };
            let body = match request_body(&header, batch, self.encoding, &mut self.encoder) {
                Ok(body) => body,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            self.sent = body.len();
            let within = self.timeout.max(batch.patience.unwrap_or_default());
            let id = batch.header.id();
            let reply = self.connection.post(&id, self.encoding, body, within).await;
            let required = if batch.header.redelivery {
                RequiredReceipt::Each(&batch.header.seqs)
            } else {
                RequiredReceipt::UpTo(batch.header.last_seq.unwrap_or_default())
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

    fn acknowledged(&self) -> Acknowledged {
        match self.acknowledgement {
            Acknowledgement::Receipt => Acknowledged::Verified,
            Acknowledgement::Status => Acknowledged::Received,
        }
    }

    fn encoding(&self) -> Encoding {
        self.encoding
    }
}

impl HttpSiem {
    /// Describes a batch that got no response in time, with the remedy.
    fn too_slow(&self, batch: &Batch) -> String {
        let what = match batch.header.count {
            1 => "one entry".to_owned(),
            count => format!("{count} entries"),
        };
        let size = |bytes| Size(bytes as u64);
        format!(
            " to {what} of {}, {} as sent; if the connection to the receiver is that slow, raise \
             `timeout` ({})",
            size(batch.body.raw_bytes()),
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
        let base = url("endpoint", self.endpoint.as_deref().unwrap_or_default())?;
        let names = ["token", "token_file"];
        let token = secret(names, self.token.as_ref(), self.token_file.as_deref(), context)?;
        let names = ["hmac_secret", "hmac_secret_file"];
        let file = self.hmac_secret_file.as_deref();
        let hmac_secret = secret(names, self.hmac_secret.as_ref(), file, context)?;
        if !token.expose().bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let problem = "contains characters that an HTTP header cannot contain";
            return Err(BuildError::invalid("token", problem));
        }
        let client = self.connection().client("endpoint", &base, context)?;
        let (identity, revision) = (context.identity.clone(), context.revision.clone());
        Ok(Connection::new(client, base, token, hmac_secret, identity, revision))
    }
}
