//! `GET /update/manifest.json` and `GET /update/ARTIFACT`.

use std::{
    io::{Seek as _, SeekFrom},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{RawQuery, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{
            ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
            IF_NONE_MATCH, VARY,
        },
        request::Parts,
    },
    response::{IntoResponse as _, Response},
};
use percent_encoding::percent_decode_str;
use siem_protocol::{
    Digest,
    names::{content_type, header},
    update::{ArtifactName, Platform, UpdateManifest, Version},
};

use super::{
    Shared,
    artifact_body::ArtifactBody,
    byte_range::{self, Selection},
    managed_config::{ascii, matches, nonce},
    problem::Rejection,
};
use crate::{
    trust::Scope,
    updates::{CatalogError, OpenedArtifact},
};

/// Number of artifacts that are sent at a time. Each is an open file and a buffer.
pub(super) const DOWNLOADS: usize = 48;

pub(super) async fn manifest(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    match find_manifest(&shared, query.as_deref().unwrap_or_default(), &headers).await {
        Ok(response) => response,
        Err(rejection) => rejection.into_response(),
    }
}

async fn find_manifest(
    shared: &Arc<Shared>,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response, Rejection> {
    shared.authorize(headers, &[Scope::Ingest]).await?;
    let nonce = nonce(headers)?;
    let query = ManifestQuery::parse(query)?;
    let folder = shared.releases.clone().ok_or(Rejection::NoUpdate)?;
    let reading = tokio::task::spawn_blocking(move || folder.catalog());
    let catalog = reading.await.map_err(|_| Rejection::Panicked)?.map_err(unusable)?;
    let manifest = catalog.and_then(|catalog| query.manifest(&catalog));
    let body = manifest.ok_or(Rejection::NoUpdate)?.to_json();
    let etag = format!("\"{}\"", Digest::of(&body));
    let is_known = headers.get_all(IF_NONE_MATCH).iter().any(|known| matches(known, &etag));
    let (status, body) =
        if is_known { (StatusCode::NOT_MODIFIED, Vec::new()) } else { (StatusCode::OK, body) };
    let signature = nonce.map(|nonce| shared.keys.sign_answer(nonce, &body));
    let mut response = (status, body).into_response();
    let to = response.headers_mut();
    if let Some(signature) = signature {
        to.insert(header::SIGNATURE, ascii(&signature));
    }
    to.remove(CONTENT_TYPE);
    if status == StatusCode::OK {
        to.insert(CONTENT_TYPE, HeaderValue::from_static(content_type::JSON));
    }
    add_cache_headers(to, &etag);
    Ok(response)
}

/// Parameters of a request for the manifest.
struct ManifestQuery {
    platform: Platform,
    /// Version of the agent; absent to get all releases.
    installed: Option<Version>,
}

impl ManifestQuery {
    /// Parses a query. Unknown parameters are ignored: those of later agents change nothing here.
    fn parse(query: &str) -> Result<Self, Rejection> {
        let value = |wanted: &'static str| {
            let mut values = query.split('&').filter_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name == wanted).then_some(value)
            });
            match (values.next(), values.next()) {
                (_, Some(_)) => Err(Rejection::UpdateQuery(wanted)),
                (value, None) => value
                    .map(|value| percent_decode_str(value).decode_utf8())
                    .transpose()
                    .map_err(|_| Rejection::UpdateQuery(wanted)),
            }
        };
        let (os, arch) = (value("os")?.unwrap_or_default(), value("arch")?.unwrap_or_default());
        let platform = Platform::new(&os, &arch).ok_or(Rejection::UpdateQuery("os` and `arch"))?;
        let installed = value("version")?.map(|version| version.parse()).transpose();
        let installed = installed.map_err(|_| Rejection::UpdateQuery("version"))?;
        Ok(Self { platform, installed })
    }

    fn manifest(&self, catalog: &siem_protocol::update::ReleaseCatalog) -> Option<UpdateManifest> {
        let has_platform = catalog.has_platform(&self.platform);
        has_platform.then(|| catalog.manifest(&self.platform, self.installed.as_ref()))
    }
}

pub(super) async fn artifact(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match find_artifact(&shared, &parts).await {
        Ok(response) => response,
        Err(rejection) => {
            let is_load = rejection.is_load();
            let mut response = rejection.into_response();
            if is_load {
                shared.spread(&mut response);
            }
            response
        }
    }
}

async fn find_artifact(shared: &Arc<Shared>, parts: &Parts) -> Result<Response, Rejection> {
    shared.authorize(&parts.headers, &[Scope::Ingest]).await?;
    let name = artifact_name(parts).ok_or(Rejection::NoArtifact)?;
    let folder = shared.releases.clone().ok_or(Rejection::NoArtifact)?;
    let is_get = parts.method == Method::GET;
    // Before the file is opened: thousands may wait after a roll-out, and each would hold an open file.
    let turn = match is_get {
        true => {
            let turn = shared.downloads.take(shared.sender(parts), 1).await;
            Some(turn.ok_or(Rejection::Overloaded)?)
        }
        false => None,
    };
    let opening = tokio::task::spawn_blocking(move || folder.open(&name));
    let opened = opening.await.map_err(|_| Rejection::Panicked)?.map_err(unusable)?;
    let OpenedArtifact { file, size, sha256 } = opened.ok_or(Rejection::NoArtifact)?;

    let etag = format!("\"{sha256}\"");
    let is_known = parts.headers.get_all(IF_NONE_MATCH).iter().any(|it| matches(it, &etag));
    if is_known {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        add_cache_headers(response.headers_mut(), &etag);
        return Ok(response);
    }
    // `Range` has a meaning for GET only.
    let selection = match is_get {
        true => byte_range::select(&parts.headers, &etag, size),
        false => Selection::Whole,
    };
    let (status, part) = match selection {
        Selection::Whole => (StatusCode::OK, 0..size),
        Selection::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Selection::Beyond => return Ok(beyond(size)),
    };
    let length = part.end - part.start;
    let body = match turn {
        Some(turn) => {
            let mut file = file;
            file.seek(SeekFrom::Start(part.start)).map_err(|_| Rejection::Panicked)?;
            Body::new(ArtifactBody::new(file, length, turn))
        }
        None => Body::empty(),
    };
    let mut response = (status, body).into_response();
    let to = response.headers_mut();
    to.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    to.insert(CONTENT_LENGTH, HeaderValue::from(length));
    to.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        to.insert(CONTENT_RANGE, ascii(&format!("bytes {}-{}/{size}", part.start, part.end - 1)));
    }
    add_cache_headers(to, &etag);
    Ok(response)
}

fn unusable(error: CatalogError) -> Rejection {
    Rejection::Updates(Box::new(error))
}

/// Returns the name in the path of a request, which is the last part of it.
fn artifact_name(parts: &Parts) -> Option<ArtifactName> {
    let (_, name) = parts.uri.path().rsplit_once('/')?;
    percent_decode_str(name).decode_utf8().ok()?.parse().ok()
}

/// Returns the response to a range beyond the end, which names the size.
fn beyond(size: u64) -> Response {
    let mut response = Rejection::Range.into_response();
    response.headers_mut().insert(CONTENT_RANGE, ascii(&format!("bytes */{size}")));
    response
}

fn add_cache_headers(headers: &mut HeaderMap, etag: &str) {
    headers.insert(ETAG, ascii(etag));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("authorization"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Option<(String, Option<String>)> {
        let query = ManifestQuery::parse(query).ok()?;
        Some((query.platform.to_string(), query.installed.map(|version| version.to_string())))
    }

    #[test]
    fn query_names_a_platform_and_maybe_a_version() {
        let linux = "linux x86_64".to_owned();
        let version = Some("0.3.0-rc.1".to_owned());
        assert_eq!(parse("os=linux&arch=x86_64"), Some((linux.clone(), None)));
        let query = "later=1&arch=x86%5F64&version=0.3.0-rc.1&os=linux";
        assert_eq!(parse(query), Some((linux, version)));
    }

    #[test]
    fn wrong_query_is_refused() {
        for query in [
            "",
            "os=linux",
            "os=linux&arch=",
            "os=Linux&arch=x86_64",
            "os=linux&arch=..%2f..",
            "os=linux&arch=x86_64&os=linux",
            "os=linux&arch=x86_64&version=1",
            "os=linux&arch=x86_64&version=%ff",
            "os=linux&arch=x86_64&version=",
        ] {
            assert_eq!(parse(query), None, "{query}");
        }
    }
}
