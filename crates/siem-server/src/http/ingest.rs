//! `POST /ingest`.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::SystemTime};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use hyper::{
    body::{Body as _, Frame},
    http::request::Parts,
};
use siem_protocol::{
    BatchHeader, Encoding, Receipt,
    names::{content_type, header},
};
use tracing::debug;

use super::{Limits, Shared, observe::json, problem::Rejection};
use crate::{
    batch::Batch,
    decode::{DecodeError, decode},
    memory::Reserved,
    trust::Scope,
};

/// Likely upper bound of a text's size, as a multiple of its compressed size.
const LIKELY_RATIO: usize = 16;
/// Minimum memory to reserve for a text.
const LEAST_TEXT: usize = 64 << 10;

pub(super) async fn ingest(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, mut body) = request.into_parts();
    match receive_batch(&shared, &parts, &mut body).await {
        Ok(receipt) => json(&receipt),
        Err(rejection) => {
            // The body is read while the response is sent: a client that reads the response at once
            // need not send the rest.
            tokio::spawn(discard(body, shared.limits));
            rejection.into_response()
        }
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
        while let Some(Ok(frame)) = next(&mut body).await {
            length += frame.data_ref().map_or(0, |data| data.len());
            if length > limits.decoded {
                return;
            }
        }
    };
    // The connection is closed for a client that takes longer.
    drop(tokio::time::timeout(limits.discard, reading).await);
}

async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

async fn receive_batch(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: &mut Body,
) -> Result<Receipt, Rejection> {
    let headers = &parts.headers;
    shared.authorize(headers, &[Scope::Ingest])?;
    check_content_type(headers)?;
    let encoding = encoding(headers)?;
    let signature = text(headers, header::SIGNATURE).ok_or(Rejection::Signature)?.to_owned();
    let limit = limit(encoding, &shared.limits);
    let (body, memory) = receive(shared, headers, body, limit).await?;
    let received_at = shared.clock.now();
    let batch =
        read(shared, ReceivedBody { body, memory, encoding, signature, received_at }).await?;
    check_headers(headers, &batch.header)?;
    let id = batch.header.id();
    let receipt = shared.storage.store(batch).await?;
    debug!(%id, receipt.accepted, receipt.duplicates, "stored a batch");
    Ok(receipt)
}

/// A body as sent.
struct ReceivedBody {
    body: Vec<u8>,
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

/// Reads the body after reserving memory for it.
async fn receive(
    shared: &Shared,
    headers: &HeaderMap,
    body: &mut Body,
    limit: usize,
) -> Result<(Vec<u8>, Reserved), Rejection> {
    let length = text(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
    if length.is_some_and(|length: usize| length > limit) {
        return Err(Rejection::BodyTooLarge { limit });
    }
    // A body of unknown length may have the maximum length.
    let expected = length.unwrap_or(limit);
    let mut memory = shared.bodies.reserve(expected).await.ok_or(Rejection::Overloaded)?;
    let reading = collect(body, length.unwrap_or_default(), limit);
    let reading = tokio::time::timeout(shared.limits.body_timeout, reading);
    let body = reading.await.map_err(|_| Rejection::Slow)??;
    memory.shrink_to(body.len());
    Ok((body, memory))
}

pub(super) async fn collect(
    body: &mut Body,
    length: usize,
    limit: usize,
) -> Result<Vec<u8>, Rejection> {
    let mut bytes = Vec::with_capacity(length);
    while let Some(frame) = next(body).await {
        let Ok(data) = frame.map_err(Rejection::Body)?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(Rejection::BodyTooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Verifies, decodes and parses a body outside the threads that serve requests.
async fn read(shared: &Arc<Shared>, sent: ReceivedBody) -> Result<Batch, Rejection> {
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
        StepOutput::Batch(batch) => Ok(*batch),
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
    Batch(Box<Batch>),
    /// The text is larger than the reserved memory.
    Larger(ReceivedBody),
}

impl StepOutput {
    fn into_batch(self) -> Result<Batch, Rejection> {
        match self {
            Self::Batch(batch) => Ok(*batch),
            Self::Larger(_) => Err(Rejection::Overloaded),
        }
    }
}

async fn run_step_blocking(
    shared: &Arc<Shared>,
    sent: ReceivedBody,
    step: DecodeStep,
) -> Result<StepOutput, Rejection> {
    let _core = shared.cores.acquire().await.map_err(|_| Rejection::Overloaded)?;
    let shared = shared.clone();
    let working = tokio::task::spawn_blocking(move || run_step(&shared, sent, step));
    working.await.map_err(|_| Rejection::Panicked)?
}

fn run_step(
    shared: &Shared,
    sent: ReceivedBody,
    step: DecodeStep,
) -> Result<StepOutput, Rejection> {
    let verified = matches!(step, DecodeStep::Decode { verified: true, .. });
    if !verified && !shared.keys.verify(&sent.body, &sent.signature) {
        return Err(Rejection::Signature);
    }
    let (text, mut memory) = match step {
        DecodeStep::Parse => (sent.body, sent.memory),
        DecodeStep::Decode { memory, limit, .. } => {
            match decode(&sent.body, sent.encoding, limit) {
                Ok(text) => (text, memory),
                Err(DecodeError::TooLarge { .. }) if limit < shared.limits.decoded => {
                    return Ok(StepOutput::Larger(sent));
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let batch = Batch::parse(text, sent.received_at)?;
    memory.shrink_to(batch.size());
    Ok(StepOutput::Batch(Box::new(batch.with_memory(memory))))
}
