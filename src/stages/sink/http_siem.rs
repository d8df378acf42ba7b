//! Ships batches to a SIEM over HTTP with the protocol of `siem-protocol`.
//!
//! Each request carries a bearer token and an HMAC-SHA256 over the body as sent. A receiver that has
//! keys enrolls the device; from then on only what it signs makes the sink give up an entry.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{Acknowledged, BuildError, Context};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{
    BatchHeader, ChainPoint, Digest, Encoding, Problem, note::VerifierKey, statement::digest,
};
use siem_sinks::http::{Answer, NoAnswer};

use super::{
    Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions,
    connection::{connection_sample, secret, url, with_connection_options},
    response::{
        Acknowledgement, RequiredReceipt, accepts_each, asks_for_enrollment, conflict, interpret,
        refusal,
    },
    stored_frames::{StoredFrames, request_body},
};
use crate::{
    config::Secret,
    frame::{Codec, Encoder},
    platform::Clock,
    siem::{Belief, Connection, Enrollment, EnrollmentSettings, NotReady, Subject, receipts},
    stages::{AgentContext, StageOptions},
};
use config_text::{Size, Time};

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
## Token that enrolls the device key. Preferably set by CLAUDE_SIEM_ENROLL_TOKEN or `enroll_token_file`; `token` if omitted.
enroll_token = "..."
## File with the token that enrolls the device key, readable only by its owner (0600).
enroll_token_file = "/etc/ai-agent/enroll-token"
## Public keys of the receiver (`siem-server keys list`). Without them, the keys that it presents first are pinned.
receiver_keys = []
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
        /// Token that enrolls the device key. Preferably set by `CLAUDE_SIEM_ENROLL_TOKEN` or
        /// `enroll_token_file`; `token` if omitted.
        enroll_token: Option<Secret>,
        /// File with the token that enrolls the device key, readable only by its owner (0600).
        enroll_token_file: Option<PathBuf>,
        /// Public keys of the receiver (`siem-server keys list`). Without them, the keys that it
        /// presents first are pinned.
        #[serde(default)]
        receiver_keys: Vec<String>,
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
    /// `None` for receivers that do not implement the protocol.
    enrollment: Option<Enrollment>,
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
        let agent = AgentContext::of(context)?;
        let connection = self.connect(agent)?;
        Ok(HttpSiem {
            enrollment: self.enrollment(&connection, agent)?,
            connection,
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
            let stored = StoredFrames::of(batch);
            if let Some(stored) = stored {
                drop(stored.take_findings());
            }
            let exchanged = self.exchange(batch).await;
            if let Some(enrollment) = &mut self.enrollment {
                enrollment.finish().await;
            }
            let delivery = match exchanged {
                Ok(delivery) => delivery,
                Err(NotReady { delivery, untrusted }) => {
                    if let Some(stored) = stored {
                        stored.findings().untrusted = untrusted;
                    }
                    delivery
                }
            };
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

    /// A batch has its epoch and its numbers, with any kind of acknowledgement.
    fn repetitions_are_recognisable(&self) -> bool {
        true
    }

    fn encoding(&self) -> Encoding {
        self.encoding
    }
}

impl HttpSiem {
    /// Sends a batch and interprets the response.
    async fn exchange(&mut self, batch: &Batch) -> Result<Delivery, NotReady> {
        if let Some(enrollment) = &mut self.enrollment {
            let sink = StoredFrames::of(batch).map_or("", |stored| &stored.custody.sink);
            enrollment.prepare(sink).await?;
        }
        let header = self.sealed_header(batch)?;
        let body = request_body(&header, batch, self.encoding, &mut self.encoder);
        let body = Bytes::from(body.map_err(|error| NotReady::hold(error.to_string()))?);
        self.sent = body.len();
        let within = self.timeout.max(batch.patience.unwrap_or_default());
        let id = header.id();
        let reply = self.connection.post(&id, self.encoding, body.clone(), within).await;
        self.interpret(batch, &reply, header.seal.as_deref().map(digest), &body)
    }

    /// Returns the header line as sent: with the seal of the device and the name of this run.
    fn sealed_header(&self, batch: &Batch) -> Result<BatchHeader, NotReady> {
        let managed_hash = self.connection.managed_hash();
        let mut header = BatchHeader { managed_hash, ..batch.header.clone() };
        let Some(enrollment) = &self.enrollment else { return Ok(header) };
        header.instance = enrollment.instance();
        if let Some(point) = sealed_point(batch) {
            let stored = StoredFrames::of(batch);
            let receipt = stored.and_then(|stored| stored.custody.receipt.as_deref());
            header.seal = enrollment.seal(&header, point, receipt)?;
        }
        Ok(header)
    }

    /// Interprets the response to a batch: all of it without a pinned key of the receiver, otherwise
    /// what is signed.
    fn interpret(
        &mut self,
        batch: &Batch,
        reply: &Result<Answer, NoAnswer>,
        seal: Option<Digest>,
        sent: &[u8],
    ) -> Result<Delivery, NotReady> {
        let required = match batch.header.redelivery {
            true => RequiredReceipt::Each(&batch.header.seqs),
            false => RequiredReceipt::UpTo(batch.header.last_seq.unwrap_or_default()),
        };
        let unsigned = interpret(reply, self.acknowledgement, required, self.clock.now());
        let (Some(enrollment), Ok(answer)) = (&mut self.enrollment, reply) else {
            return Ok(unsigned);
        };
        if asks_for_enrollment(&answer.body) {
            enrollment.request();
        }
        let Some(pinned) = enrollment.pinned() else { return Ok(unsigned) };
        let header = &batch.header;
        let subject = Subject {
            receiver: pinned.receiver,
            keys: pinned.keys,
            machine: &header.machine_id,
            user: &header.user,
            epoch: &header.epoch,
            point: sealed_point(batch),
            seal,
            body: sent,
            entries: header.count,
        };
        let mut belief = Belief::of(answer.status, &answer.body, &subject);
        let accepts_each = header.redelivery && accepts_each(&answer.body, &header.seqs);
        if header.redelivery && matches!(answer.status, 200..=299) {
            let checked = receipts::check_redelivery(&answer.body, &subject);
            match (checked, held(batch)) {
                // There is no receipt about the beginning of an epoch.
                (Ok(()), None) if accepts_each => {
                    enrollment.trusted();
                    return Ok(Delivery::Acknowledged);
                }
                _ if !accepts_each => return Ok(unsigned),
                (Err(problem), _) if accepts_each && matches!(belief, Belief::Stored { .. }) => {
                    belief = Belief::Untrusted(problem);
                }
                _ => {}
            }
        }
        Ok(match belief {
            Belief::Stored { receipt } => {
                enrollment.trusted();
                if header.redelivery && !accepts_each {
                    return Ok(unsigned);
                }
                if let Some(stored) = StoredFrames::of(batch) {
                    stored.findings().receipt = Some(receipt);
                }
                Delivery::Acknowledged
            }
            Belief::Conflict => conflict(&answer.body),
            Belief::Refused { status } => {
                Delivery::Refused { status, answer: refusal(&answer.body) }
            }
            Belief::Split => Delivery::Refused { status: 413, answer: refusal(&answer.body) },
            Belief::Device(verdict) => {
                let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
                let detail = problem.and_then(|problem| problem.detail);
                return Err(NotReady::hold(enrollment.refuse(verdict, detail)));
            }
            Belief::Later => unsigned,
            Belief::Denied => denied(unsigned, answer.status),
            Belief::Untrusted(problem) => {
                return Err(enrollment.untrusted(answer.status, problem));
            }
        })
    }

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

/// Returns the point that a batch is sealed at: its end, or for a redelivery the last point of the epoch
/// that the receiver holds, or the beginning of the epoch if none is known, as of one that ended long
/// ago.
fn sealed_point(batch: &Batch) -> Option<ChainPoint> {
    let header = &batch.header;
    if header.redelivery {
        return Some(held(batch).unwrap_or(ChainPoint { seq: 0, hash: Digest::ZERO }));
    }
    Some(ChainPoint { seq: header.last_seq?, hash: header.chain?.after })
}

/// Returns the last point of the epoch of a redelivery that the receiver holds, if known.
fn held(batch: &Batch) -> Option<ChainPoint> {
    StoredFrames::of(batch)?.custody.held
}

/// Returns the result of a refusal that is not about the entries: it keeps them, whatever the status
/// of the response claims.
fn denied(unsigned: Delivery, status: u16) -> Delivery {
    match unsigned {
        Delivery::Hold { .. } | Delivery::Retry { .. } => unsigned,
        _ => Delivery::Hold {
            after: None,
            reason: format!("the receiver responded with {status}, and its verdict is another"),
        },
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
    /// Creates the trust between device and receiver; `None` for receivers that do not implement the
    /// protocol.
    fn enrollment(
        &self,
        connection: &Connection,
        context: &AgentContext,
    ) -> Result<Option<Enrollment>, BuildError> {
        let receiver_keys = self.receiver_keys()?;
        if self.acknowledgement == Acknowledgement::Status {
            if !receiver_keys.is_empty() {
                let problem = "needs `acknowledgement = \"receipt\"`: only receipts are signed";
                return Err(BuildError::invalid("receiver_keys", problem));
            }
            return Ok(None);
        }
        let (token, file) = (self.enroll_token.as_ref(), self.enroll_token_file.as_deref());
        let token = match (token, file) {
            (None, None) => None,
            _ => Some(bearer(["enroll_token", "enroll_token_file"], token, file, context)?),
        };
        Ok(Some(Enrollment::new(EnrollmentSettings {
            connection: connection.clone(),
            token,
            receiver_keys,
            organisation_keys: context.organisation_keys.clone(),
            identity: context.identity.clone(),
            device: context.device.clone(),
            states: context.trust.clone(),
            state_dir: context.state_dir.clone(),
            clock: Arc::clone(&context.clock),
            poll_interval: context.poll_interval,
            timeout: self.timeout.0,
        })))
    }

    /// Parses the receiver's keys, which all have its name.
    fn receiver_keys(&self) -> Result<Vec<VerifierKey>, BuildError> {
        let wrong = |problem: String| BuildError::invalid("receiver_keys", problem);
        let mut keys: Vec<VerifierKey> = Vec::new();
        for text in &self.receiver_keys {
            let key: VerifierKey =
                text.parse().map_err(|error| wrong(format!("contains `{text}`: {error}")))?;
            if keys.first().is_some_and(|first| first.name() != key.name()) {
                return Err(wrong("contains keys of two receivers".to_owned()));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn connect(&self, context: &AgentContext) -> Result<Connection, BuildError> {
        let base = url("endpoint", self.endpoint.as_deref().unwrap_or_default())?;
        let names = ["token", "token_file"];
        let token = bearer(names, self.token.as_ref(), self.token_file.as_deref(), context)?;
        let names = ["hmac_secret", "hmac_secret_file"];
        let file = self.hmac_secret_file.as_deref();
        let hmac_secret = secret(names, self.hmac_secret.as_ref(), file, context)?;
        // The receiver recognises repeated requests.
        let client = self.connection().client("endpoint", &base, context)?.repeating();
        let (identity, revision) = (context.identity.clone(), context.revision.clone());
        Ok(Connection::new(client, base, token, hmac_secret, identity, revision))
    }
}

/// Returns a token, which must fit into an HTTP header.
fn bearer(
    names: [&'static str; 2],
    value: Option<&Secret>,
    file: Option<&Path>,
    context: &AgentContext,
) -> Result<Secret, BuildError> {
    let token = secret(names, value, file, context)?;
    if token.expose().bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(token);
    }
    let problem = "contains characters that an HTTP header cannot contain";
    Err(BuildError::invalid(names[0], problem))
}

#[cfg(test)]
mod tests;
