//! Releases of the agent at a receiver: the list of them, and their files.

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use siem_protocol::{
    names::{header as siem, path},
    update::{ArtifactName, MAX_MANIFEST_BYTES, ManifestError, UpdateManifest},
    verify_answer,
};
use siem_sinks::http::{self, Answer, NoAnswer, Streamed};

use super::{Connection, signature};

/// Reason why the releases of a receiver are not known.
#[derive(Debug, thiserror::Error)]
pub enum ReleasesError {
    /// The receiver could not be reached.
    #[error("cannot fetch the list of releases: {reason}")]
    Unreachable {
        /// Reason.
        reason: String,
    },
    /// The receiver responded with an error.
    #[error("cannot fetch the list of releases: the receiver responded with status {status}")]
    Status {
        /// HTTP status.
        status: u16,
    },
    /// The response is no list of releases, and not signed by the receiver.
    #[error(
        "the response to the request for releases is not the receiver's: check for a captive portal or a \
         proxy in between"
    )]
    Foreign(#[source] ManifestError),
    /// The response of the receiver is no list of releases.
    #[error("the list of releases cannot be used")]
    Manifest(#[source] ManifestError),
}

/// Position from which the rest of a file is requested.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    /// Number of bytes that are present.
    pub offset: u64,
    /// `ETag` of the file that they are from.
    pub etag: &'a str,
}

impl Connection {
    /// Fetches the releases for the platform of this agent that are newer than `version`, or all; `None`
    /// if the receiver has none.
    ///
    /// # Errors
    /// [`ReleasesError`].
    pub async fn releases(
        &self,
        version: Option<&str>,
        within: Duration,
    ) -> Result<Option<UpdateManifest>, ReleasesError> {
        let mut url = self.url(path::UPDATE_MANIFEST);
        url.query_pairs_mut()
            .append_pair("os", &self.identity.os)
            .append_pair("arch", &self.identity.arch)
            .extend_pairs(version.map(|version| ("version", version)));
        let nonce = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes());
        let request = self.request_to(&self.token, Method::GET, url).header(siem::NONCE, &nonce);
        match self.exchange(request, MAX_MANIFEST_BYTES + 1, within).await {
            Err(NoAnswer { reason, .. }) => Err(ReleasesError::Unreachable { reason }),
            Ok(Answer { status: 404, .. }) => Ok(None),
            Ok(Answer { status: 200, body, headers, .. }) => {
                let is_signed = || {
                    let (secret, signature) = (self.secret.expose(), signature(&headers));
                    verify_answer(secret.as_bytes(), &nonce, &body, &signature)
                };
                match UpdateManifest::parse(&body) {
                    Ok(manifest) => Ok(Some(manifest)),
                    // A list needs no signature, since it proves nothing: a cache may have sent it.
                    Err(error) if self.requires_signature && !is_signed() => {
                        Err(ReleasesError::Foreign(error))
                    }
                    Err(error) => Err(ReleasesError::Manifest(error)),
                }
            }
            Ok(Answer { status, .. }) => Err(ReleasesError::Status { status }),
        }
    }

    /// Requests the file of a release, or the rest of it. The whole response must arrive `within` a
    /// time.
    ///
    /// # Errors
    /// [`NoAnswer`] if no status came.
    pub async fn release_file(
        &self,
        name: &ArtifactName,
        resume: Option<Resume<'_>>,
        within: Duration,
    ) -> Result<Streamed, NoAnswer> {
        let url = self.url(&format!("{}/{name}", path::UPDATE));
        let mut request = self.request_to(&self.token, Method::GET, url);
        if let Some(Resume { offset, etag }) = resume {
            request = request
                .header(header::RANGE, format!("bytes={offset}-"))
                .header(header::IF_RANGE, etag);
        }
        http::open(&self.client, &self.base, request, within).await
    }
}

/// Returns the strong `ETag` of a response, which alone allows to resume it.
#[must_use]
pub fn strong_etag(response: &Streamed) -> Option<String> {
    let etag = response.headers().get(header::ETAG)?.to_str().ok()?;
    (etag.len() <= 200 && etag.starts_with('"')).then(|| etag.to_owned())
}

/// Returns the offset at which the body of a response starts, if it is the rest of a file of `size`
/// bytes; 0 for a whole file.
///
/// # Errors
/// The status of a response that is neither.
pub fn start_of_body(response: &Streamed, size: u64) -> Result<u64, u16> {
    match response.status() {
        status if status == StatusCode::OK => Ok(0),
        status if status == StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(header::CONTENT_RANGE);
            let range = range.and_then(|value| value.to_str().ok());
            range.and_then(|range| content_start(range, size)).ok_or(status)
        }
        status => Err(status),
    }
}

/// Parses a `Content-Range` that ends with the last of `size` bytes.
fn content_start(range: &str, size: u64) -> Option<u64> {
    let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (total.parse() == Ok(size) && first <= last && last.checked_add(1)? == size).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_the_file_resumes_it() {
        assert_eq!(content_start("bytes 10-99/100", 100), Some(10));
        for range in [
            "bytes 10-98/100",
            "bytes 10-99/*",
            "bytes 10-99/101",
            "bytes 99-10/100",
            "bytes */100",
            "10-99/100",
            "bytes 10-18446744073709551615/100",
        ] {
            assert_eq!(content_start(range, 100), None, "{range}");
        }
    }
}
