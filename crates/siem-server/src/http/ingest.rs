//! `POST /ingest`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use hyper::http::request::Parts;
use siem_protocol::{
    BatchHeader, Digest, Encoding, Receipt,
    names::{content_type, header},
    note::{NoteSigner as _, SigningKey},
    statement::digest,
};
use tracing::debug;

use super::{
    Limits, Shared,
    intake::next_frame,
    managed_config::{BatchAnswers, names_unknown_config},
    observe::json,
    problem::Rejection,
    quota_check::QuotaCheck,
    refusal_log::SealedBy,
    run_blocking,
    statements::{self, BatchSubject},
};
use crate::{
    batch::Batch,
    decode::{DecodeError, decode, decode_start},
    memory::Reserved,
    trust::{BatchSeal, DeviceKey, EventKind, Scope},
};

/// Likely upper bound of a text's size, as a multiple of its compressed size.
const LIKELY_RATIO: usize = 16;
/// Minimum memory to reserve for a text.
const LEAST_TEXT: usize = 64 << 10;
/// Size up to which the header of a batch that is too large is searched, in bytes.
const LONGEST_HEADER: usize = 1 << 20;

pub(super) async fn ingest(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, mut body) = request.into_parts();
    match receive_batch(&shared, &parts, &mut body).await {
        Ok(receipt) => {
            shared.retries.serve(Instant::now());
            shared.metrics.count_stored(&receipt);
            json(&receipt)
        }
        Err(refusal) => {
            shared.metrics.count_refused_batch();
            // The body is read while the response is sent: a client that reads the response at once
            // need not send the rest.
            tokio::spawn(discard(body, shared.limits));
            let (device, is_load) = (refusal.device, refusal.rejection.is_load());
            let mut response = refusal.respond(&shared).await;
            if is_load {
                shared.spread(&mut response);
            }
            if let Some(device) = device {
                response.extensions_mut().insert(SealedBy(device));
            }
            response
        }
    }
}

/// Refusal of a batch, with what a signed verdict needs.
struct Refusal {
    rejection: Rejection,
    /// The batch, once its header is known.
    subject: Option<Box<BatchSubject>>,
    /// The sender should enroll.
    enroll: bool,
    /// The device that sealed the batch.
    device: Option<DeviceKey>,
}

impl<E: Into<Rejection>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { rejection: error.into(), subject: None, enroll: false, device: None }
    }
}

impl Refusal {
    async fn respond(self, shared: &Arc<Shared>) -> Response {
        let Self { rejection, subject, enroll, device: _ } = self;
        let Some(subject) = subject.filter(|_| rejection.needs_verdict()) else {
            return rejection.respond(None, enroll);
        };
        let shared = shared.clone();
        // The body is hashed, which takes milliseconds if it is large.
        let signing = tokio::task::spawn_blocking(move || {
            let verdict = statements::verdict(&shared, &rejection, &subject);
            rejection.respond(verdict, enroll)
        });
        signing.await.unwrap_or_else(|_| Rejection::Panicked.into_response())
    }
}

/// Parses a body as `POST /ingest` does, except for the signature: encoding, header line, entries,
/// chain, and whether the headers of the request contradict them. Pure, and bounded by `limits`;
/// meant for fuzzing and for the analysis of a sender's output.
///
/// # Errors
/// The status of the response.
pub fn read_body<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    body: &[u8],
    limits: &Limits,
) -> Result<Batch, u16> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| 400_u16)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| 400_u16)?;
        map.try_append(name, value).map_err(|_| 431_u16)?;
    }
    try_read_body(&map, body, limits).map_err(|rejection| rejection.status())
}

fn try_read_body(headers: &HeaderMap, body: &[u8], limits: &Limits) -> Result<Batch, Rejection> {
    check_content_type(headers)?;
    let encoding = encoding(headers)?;
    let limit = limit(encoding, limits);
    if body.len() > limit {
        return Err(Rejection::BodyTooLarge { limit });
    }
    let text = decode(body, encoding, limits.decoded)?;
    let batch = Batch::parse(text, SystemTime::UNIX_EPOCH)?;
    check_headers(headers, &batch.header)?;
    Ok(batch)
}

/// Maximum size of a body as sent.
fn limit(encoding: Encoding, limits: &Limits) -> usize {
    match encoding {
        Encoding::Identity => limits.decoded,
        Encoding::Zstd | Encoding::Gzip => limits.compressed,
    }
}

/// Reads the rest of a refused body. A client that still sends when the connection is closed gets a
/// broken pipe in place of the response.
async fn discard(mut body: Body, limits: Limits) {
    let reading = async {
        let mut length = 0;
        while let Some(Ok(frame)) = next_frame(&mut body).await {
            length += frame.data_ref().map_or(0, |data| data.len());
            if length > limits.decoded {
                return;
            }
        }
    };
    // The connection is closed for a client that takes longer.
    drop(tokio::time::timeout(limits.discard, reading).await);
}

async fn receive_batch(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: &mut Body,
) -> Result<Receipt, Refusal> {
    let headers = &parts.headers;
    shared.authorize(headers, &[Scope::Ingest]).await?;
    check_content_type(headers)?;
    let encoding = encoding(headers)?;
    let signature = text(headers, header::SIGNATURE).ok_or(Rejection::Signature)?.to_owned();
    let limit = limit(encoding, &shared.limits);
    let sender = shared.sender(parts);
    let (body, memory) = shared.intake.receive(sender, parts, body, limit).await?;
    shared.metrics.count_received(body.len());
    let received_at = shared.clock.now();
    let sent = ReceivedBody { body, memory, encoding, signature, received_at };
    let ReadBatch { mut batch, body, key, names_unknown_config, answers } =
        *read(shared, sent).await?;
    check_headers(headers, &batch.header)?;
    batch.peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let id = batch.header.id();
    let subject = BatchSubject::new(&batch.header, body);
    let device = batch.seal.valid().map(|seal| seal.device);
    let enroll = batch.seal.is_missing() && key.is_some();
    let unknown_config = names_unknown_config.then(|| batch.event(EventKind::ConfigUnknown));
    let redelivered = batch.header.redelivery.then(|| batch.header.seqs.clone());
    let seal = batch.header.seal.as_deref().map(digest);
    // After the signature: someone without the secret uses up no quota.
    let counted = QuotaCheck::admit(shared, sender, &batch).await?;
    let begun = Instant::now();
    let stored = match shared.storage.store(batch).await {
        Ok(stored) => {
            shared.metrics.count_store(begun);
            stored
        }
        Err(error) => {
            shared.quotas.refund(counted);
            let rejection = Rejection::from(error);
            return Err(Refusal { rejection, subject: Some(Box::new(subject)), enroll, device });
        }
    };
    if let Some(answers) = answers {
        answers.note(shared).await;
    }
    // The receipt of a batch that was stored before names the seal that it had then; that of a device
    // whose enrollment was refused names none.
    let is_of_other =
        seal.is_some() && stored.point.as_ref().is_some_and(|point| point.seal != seal);
    debug!(%id, stored.receipt.accepted, stored.receipt.duplicates, "stored a batch");
    let accepted = stored.receipt.accepted_seqs.as_deref().unwrap_or_default();
    let needs_verdict = match redelivered {
        Some(seqs) => seqs.iter().all(|seq| accepted.contains(seq)),
        None => is_of_other,
    };
    let receipt = statements::receipt(key.as_deref(), &subject, stored.point)?;
    let mut verdict = None;
    // Most batches need no file any more, and no body to be hashed.
    if unknown_config.is_some() || needs_verdict {
        let shared = shared.clone();
        let signing = run_blocking(move || {
            if let (Some(event), Some(registry)) = (unknown_config, &shared.registry) {
                registry.record(event);
            }
            // Every entry of the batch is stored.
            needs_verdict.then(|| statements::stored(&shared, &subject)).flatten()
        });
        verdict = signing.await?;
    }
    Ok(Receipt { receipt, verdict, enroll, ..stored.receipt })
}

/// A body as sent.
pub(super) struct ReceivedBody {
    pub(super) body: Vec<u8>,
    memory: Reserved,
    encoding: Encoding,
    signature: String,
    received_at: SystemTime,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // A value that is not text contradicts any expected value.
    headers.get(name).map(|value| std::str::from_utf8(value.as_bytes()).unwrap_or("\0"))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Rejection> {
    let Some(value) = text(headers, CONTENT_TYPE.as_str()) else { return Ok(()) };
    let kind = value.split(';').next().unwrap_or_default().trim();
    let right = kind.eq_ignore_ascii_case(content_type::NDJSON);
    if right { Ok(()) } else { Err(Rejection::ContentType) }
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Rejection> {
    if headers.get_all(CONTENT_ENCODING).iter().count() > 1 {
        return Err(Rejection::Encoding);
    }
    let value = text(headers, CONTENT_ENCODING.as_str()).unwrap_or("identity");
    value.parse().map_err(|_| Rejection::Encoding)
}

fn check_headers(headers: &HeaderMap, batch: &BatchHeader) -> Result<(), Rejection> {
    if let Some(name) = batch.identity().contradicted_by(|name| text(headers, name)) {
        return Err(Rejection::Contradiction(name));
    }
    match text(headers, header::BATCH_ID) {
        Some(id) if id != batch.id().to_string() => Err(Rejection::Contradiction(header::BATCH_ID)),
        _ => Ok(()),
    }
}

/// Verifies, decodes and parses a body outside the threads that serve requests.
async fn read(shared: &Arc<Shared>, sent: ReceivedBody) -> Result<Box<ReadBatch>, Refusal> {
    if sent.encoding == Encoding::Identity {
        return run_step_blocking(shared, sent, DecodeStep::Parse).await?.into_batch();
    }
    let most = shared.limits.decoded;
    let likely = sent.body.len().saturating_mul(LIKELY_RATIO).max(LEAST_TEXT).min(most);
    let memory = shared.texts.reserve(likely).await.ok_or(Rejection::Overloaded)?;
    match run_step_blocking(
        shared,
        sent,
        DecodeStep::Decode { memory, limit: likely, verified: false },
    )
    .await?
    {
        StepOutput::Batch(batch) => Ok(batch),
        StepOutput::Larger(sent) => {
            // The memory of the first attempt is released at this point, so that waiting for more
            // cannot deadlock.
            let memory = shared.texts.reserve(most).await.ok_or(Rejection::Overloaded)?;
            let step = DecodeStep::Decode { memory, limit: most, verified: true };
            run_step_blocking(shared, sent, step).await?.into_batch()
        }
    }
}

/// Next step for a body.
enum DecodeStep {
    /// The body is not compressed.
    Parse,
    /// The body is decoded to at most `limit` bytes, for which memory is reserved.
    Decode { memory: Reserved, limit: usize, verified: bool },
}

/// Result of a step.
enum StepOutput {
    Batch(Box<ReadBatch>),
    /// The text is larger than the reserved memory.
    Larger(ReceivedBody),
}

impl StepOutput {
    fn into_batch(self) -> Result<Box<ReadBatch>, Refusal> {
        match self {
            Self::Batch(batch) => Ok(batch),
            Self::Larger(_) => Err(Rejection::Overloaded.into()),
        }
    }
}

/// A batch that was read, with what files of the receiver say about its sender.
struct ReadBatch {
    batch: Batch,
    body: SentBody,
    /// Key with which the receiver signs.
    key: Option<Arc<SigningKey>>,
    names_unknown_config: bool,
    answers: Option<BatchAnswers>,
}

/// Body of a batch, as far as a verdict about it needs it.
pub(super) enum SentBody {
    /// No verdict is signed.
    Dropped,
    /// Its hash.
    Hashed(Digest),
    /// The body itself, to be hashed if there is a verdict.
    Kept(Box<ReceivedBody>),
}

async fn run_step_blocking(
    shared: &Arc<Shared>,
    sent: ReceivedBody,
    step: DecodeStep,
) -> Result<StepOutput, Refusal> {
    let core = shared.cores.clone().acquire_owned().await.map_err(|_| Rejection::Overloaded)?;
    let shared = shared.clone();
    let working = tokio::task::spawn_blocking(move || {
        // The step continues after the client has closed the connection.
        let _core = core;
        run_step(&shared, sent, step)
    });
    working.await.map_err(|_| Rejection::Panicked)?
}

fn run_step(shared: &Shared, sent: ReceivedBody, step: DecodeStep) -> Result<StepOutput, Refusal> {
    let verified = matches!(step, DecodeStep::Decode { verified: true, .. });
    if !verified && !shared.keys.verify(&sent.body, &sent.signature) {
        return Err(Rejection::Signature.into());
    }
    let received_at = sent.received_at;
    let key = shared.signing_key();
    let (text, mut memory, body) = match step {
        DecodeStep::Parse => {
            // The text becomes the batch, so that it is hashed now.
            let body = match key.is_some() {
                true => SentBody::Hashed(Digest::of(&sent.body)),
                false => SentBody::Dropped,
            };
            (sent.body, sent.memory, body)
        }
        DecodeStep::Decode { memory, limit, .. } => {
            match decode(&sent.body, sent.encoding, limit) {
                Ok(text) => (text, memory, keep(key.is_some(), sent)),
                Err(DecodeError::TooLarge { .. }) if limit < shared.limits.decoded => {
                    return Ok(StepOutput::Larger(sent));
                }
                Err(error) => return Err(refuse_decoded(key.is_some(), sent, error)),
            }
        }
    };
    let mut batch = match Batch::parse_or_header(text, received_at) {
        Ok(batch) => batch,
        Err((error, header)) => {
            let subject = header.map(|header| Box::new(BatchSubject::new(&header, body)));
            return Err(Refusal { rejection: error.into(), subject, enroll: false, device: None });
        }
    };
    if let Some(registry) = &shared.registry {
        let name = || key.as_ref().map(|key| key.key().name().to_owned());
        batch.seal = BatchSeal::verify_for(&batch, registry, name);
    }
    memory.shrink_to(batch.size());
    Ok(StepOutput::Batch(Box::new(ReadBatch {
        key,
        names_unknown_config: names_unknown_config(shared, &batch.header),
        answers: BatchAnswers::of(shared, &batch),
        batch: batch.with_memory(memory),
        body,
    })))
}

/// Keeps a compressed body until the batch is stored, if a verdict may need it.
fn keep(signs: bool, sent: ReceivedBody) -> SentBody {
    if signs { SentBody::Kept(Box::new(sent)) } else { SentBody::Dropped }
}

/// Refuses a body that cannot be decoded. The start of one that is too large may still have a header.
fn refuse_decoded(signs: bool, sent: ReceivedBody, error: DecodeError) -> Refusal {
    let too_large = matches!(error, DecodeError::TooLarge { .. });
    let header = (too_large && signs)
        .then(|| decode_start(&sent.body, sent.encoding, LONGEST_HEADER))
        .and_then(|start| Batch::header_of(&start));
    let subject = header.map(|header| Box::new(BatchSubject::new(&header, keep(signs, sent))));
    Refusal { rejection: error.into(), subject, enroll: false, device: None }
}
