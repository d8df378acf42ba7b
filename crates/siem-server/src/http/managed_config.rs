//! `GET /config`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse as _, Response},
};
use data_encoding::BASE64;
use siem_protocol::{
    BatchHeader, Digest, ManagedConfig,
    managed::{Audience, MAX_BYTES},
    names::{content_type, header},
};

use super::{Shared, problem::Rejection};
use crate::{
    regular_file::read_regular_file,
    trust::{Scope, is_meant_for},
};

/// Maximum size of a signature: an HTTP header must not become longer than clients accept.
const MAX_MINISIG_BYTES: usize = 4 << 10;

pub(super) async fn config(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match respond(&shared, &headers).await {
        Ok(response) => response,
        Err(Rejection::NoConfig) => no_config(&shared, &headers),
        Err(rejection) => rejection.into_response(),
    }
}

/// Returns the response that there is no configuration, which is signed like one: it proves to the
/// sender that its token is accepted, and that both have the same secret.
fn no_config(shared: &Shared, headers: &HeaderMap) -> Response {
    let body = Rejection::NoConfig.body(None, false);
    let mut response = Rejection::NoConfig.into_response();
    if let Ok(Some(nonce)) = nonce(headers) {
        let signature = shared.keys.sign_answer(nonce, &body);
        response.headers_mut().insert(header::SIGNATURE, ascii(&signature));
    }
    response
}

async fn respond(shared: &Arc<Shared>, headers: &HeaderMap) -> Result<Response, Rejection> {
    shared.authorize(headers, &[Scope::Ingest])?;
    let nonce = nonce(headers)?;
    let file = shared.config_file.clone().ok_or(Rejection::NoConfig)?;
    let reading = tokio::task::spawn_blocking(move || read(&file));
    let ServedConfig { body, minisig, audience } =
        reading.await.map_err(|_| Rejection::Panicked)??;
    let hash = Digest::of(&body);
    offer(shared, hash, audience).await?;
    let etag = format!("\"{hash}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().any(|known| matches(known, &etag));
    let (status, body) =
        if known { (StatusCode::NOT_MODIFIED, Vec::new()) } else { (StatusCode::OK, body) };
    let signature = nonce.map(|nonce| shared.keys.sign_answer(nonce, &body));
    let mut response = (status, body).into_response();
    let to = response.headers_mut();
    to.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    to.insert(ETAG, ascii(&etag));
    if status == StatusCode::OK {
        if let Some(minisig) = minisig {
            to.insert(header::POLICY_SIGNATURE, ascii(&BASE64.encode(&minisig)));
        }
        to.insert(CONTENT_TYPE, HeaderValue::from_static(content_type::JSON));
    } else {
        to.remove(CONTENT_TYPE);
    }
    if let Some(signature) = signature {
        to.insert(header::SIGNATURE, ascii(&signature));
    }
    Ok(response)
}

/// Notes that a configuration is offered, before an agent can name it.
async fn offer(
    shared: &Arc<Shared>,
    hash: Digest,
    audience: Option<Audience>,
) -> Result<(), Rejection> {
    let Some(registry) = shared.registry.clone().filter(|it| !it.was_offered(&hash)) else {
        return Ok(());
    };
    let noting = tokio::task::spawn_blocking(move || registry.offer_config(&hash, audience));
    noting.await.map_err(|_| Rejection::Panicked)?.map_err(Rejection::Registry)
}

/// Reports whether a batch names a managed configuration that was never offered to its sender.
pub(super) async fn names_unknown_config(shared: &Arc<Shared>, header: &BatchHeader) -> bool {
    let (Some(hash), Some(registry)) = (header.managed_hash, &shared.registry) else {
        return false;
    };
    let identity = header.identity();
    if registry.was_offered(&hash) {
        return !registry.was_offered_to(&hash, &identity);
    }
    // The agent may have got it before the receiver kept a list.
    let Some(file) = shared.config_file.clone() else { return true };
    let reading = tokio::task::spawn_blocking(move || read(&file));
    let Some(served) = reading.await.ok().and_then(Result::ok) else { return true };
    Digest::of(&served.body) != hash || !is_meant_for(served.audience.as_ref(), &identity)
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("hexadecimal digits, base64 and quotes make a header value")
}

/// Returns the nonce of the request. Only 16 bytes in hex are signed: with any other text, the
/// signature of a response could be valid for a batch.
fn nonce(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    let Some(value) = headers.get(header::NONCE) else { return Ok(None) };
    let nonce = value.to_str().map_err(|_| Rejection::Nonce)?;
    let right = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    if right { Ok(Some(nonce)) } else { Err(Rejection::Nonce) }
}

/// Managed configuration, as it is served.
struct ServedConfig {
    body: Vec<u8>,
    /// The organisation's signature of the body, from the file beside it. Only agents have the key
    /// that verifies it.
    minisig: Option<Vec<u8>>,
    /// Devices that it is meant for; all without it.
    audience: Option<Audience>,
}

/// Reads the file and checks that agents will accept it.
fn read(path: &Path) -> Result<ServedConfig, Rejection> {
    let body = read_file(path)?.ok_or(Rejection::NoConfig)?;
    let config = ManagedConfig::parse(&body).map_err(Rejection::Config)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".minisig");
    let minisig = read_file(&PathBuf::from(beside))?;
    if minisig.as_ref().is_some_and(|minisig| minisig.len() > MAX_MINISIG_BYTES) {
        let error = io::Error::other("the file beside it is too long for a signature of minisign");
        return Err(Rejection::ConfigFile(error));
    }
    Ok(ServedConfig { body, minisig, audience: config.audience })
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Rejection> {
    match read_regular_file(path, MAX_BYTES as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Rejection::ConfigFile(error)),
    }
}

/// Reports whether a value of `If-None-Match` names `etag`, by the weak comparison of RFC 9110.
fn matches(value: &HeaderValue, etag: &str) -> bool {
    let value = value.to_str().unwrap_or_default();
    value
        .split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_compared_as_a_list_and_weakly() {
        let etag = "\"abc\"";
        for known in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert!(matches(&HeaderValue::from_static(known), etag), "{known}");
        }
        for other in ["", "abc", "\"abcd\"", "\"x\",\"y\""] {
            assert!(!matches(&HeaderValue::from_static(other), etag), "{other}");
        }
    }
}
