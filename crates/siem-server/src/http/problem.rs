//! Rejections as RFC 9457 problem details.

use std::{error::Error as _, sync::Arc, time::Duration};

use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use siem_protocol::{
    Problem,
    names::{content_type, problem},
    note::SignError,
    statement::StatementError,
};

use super::{refusal_log::Refused, stats_query::StatsQueryError};
use crate::{
    batch::BatchError,
    configs::FileProblem,
    decode::DecodeError,
    quotas::QuotaExceeded,
    store::StoreError,
    trust::{EnrollError, EnrollRefusal, RegistryError, policy::Denial},
    updates::CatalogError,
};

/// Problems that say something about the device: it believes them only with a signature.
const DEVICE_PROBLEMS: [&str; 5] = [
    problem::DEVICE_REVOKED,
    problem::DEVICE_CLONED,
    problem::NOT_ENROLLED,
    problem::EPOCH_OWNED,
    problem::IMPERSONATION,
];

/// Reason why a request is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error("no such path")]
    Route,
    #[error("the bearer token is missing or wrong")]
    Token,
    #[error("the bearer token does not permit this request")]
    Scope,
    #[error("the bearer token is bound to another machine")]
    OtherMachine,
    #[error("the signature is missing or wrong")]
    Signature,
    #[error("the content encoding is not zstd, gzip or identity")]
    Encoding,
    #[error("the content type is not {}", content_type::NDJSON)]
    ContentType,
    #[error("the body has more than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the headers are larger than permitted")]
    HeadersTooLarge,
    #[error("cannot read the body")]
    Body(#[source] axum::Error),
    #[error("the body took too long to arrive")]
    Slow,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("the header `{0}` contradicts the batch's header line")]
    Contradiction(&'static str),
    #[error("the nonce is not 32 hexadecimal digits")]
    Nonce,
    #[error(transparent)]
    StatsQuery(#[from] StatsQueryError),
    #[error("neither a turn nor memory became available in time")]
    Overloaded,
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the enrollment is malformed")]
    EnrollRequest(#[source] serde_json::Error),
    #[error("the enrollment is not valid")]
    EnrollNote(#[from] StatementError),
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error("there is no managed configuration")]
    NoConfig,
    #[error("the header `{0}` is not percent-encoded text of up to 256 bytes")]
    Claim(&'static str),
    #[error("the managed configuration cannot be served: {}", .0.text())]
    Config(Arc<FileProblem>),
    #[error("there is no update for this platform")]
    NoUpdate,
    #[error("there is no artifact of this name")]
    NoArtifact,
    #[error("the parameter `{0}` is missing, repeated, or has no valid value")]
    UpdateQuery(&'static str),
    #[error("the range is beyond the end of the artifact")]
    Range,
    #[error("updates cannot be served")]
    Updates(#[source] Box<CatalogError>),
    #[error("cannot sign the receipt")]
    Sign(#[source] SignError),
    #[error("cannot note which managed configuration is offered")]
    Registry(#[source] RegistryError),
    #[error("the request could not be processed")]
    Panicked,
}

impl Rejection {
    /// Returns the status, the problem's type, and the title.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::Route => (S::NOT_FOUND, problem::NOT_FOUND, "not found"),
            Self::Token => (S::UNAUTHORIZED, problem::TOKEN, "not authorized"),
            Self::Scope | Self::OtherMachine | Self::Enroll(EnrollError::OtherMachine) => {
                (S::FORBIDDEN, problem::SCOPE, "not permitted")
            }
            Self::Enroll(EnrollError::Token(_)) => {
                (S::UNAUTHORIZED, problem::TOKEN, "not authorized")
            }
            Self::Enroll(EnrollError::NoReceiverKey) => {
                (S::NOT_FOUND, problem::NOT_FOUND, "not found")
            }
            Self::Enroll(EnrollError::Refused(EnrollRefusal::Revoked)) => {
                (S::FORBIDDEN, problem::DEVICE_REVOKED, "device key revoked")
            }
            Self::Enroll(EnrollError::Refused(
                EnrollRefusal::TooMany | EnrollRefusal::TooOften,
            )) => (S::TOO_MANY_REQUESTS, problem::UNAVAILABLE, "too many device keys"),
            Self::Enroll(EnrollError::Journal(_) | EnrollError::Sign(_)) => {
                (S::SERVICE_UNAVAILABLE, problem::UNAVAILABLE, "not available now")
            }
            Self::Signature => (S::FORBIDDEN, problem::SIGNATURE, "wrong signature"),
            Self::Encoding | Self::ContentType => {
                (S::UNSUPPORTED_MEDIA_TYPE, problem::ENCODING, "unsupported encoding")
            }
            Self::BodyTooLarge { .. }
            | Self::Decode(DecodeError::TooLarge { .. })
            | Self::Batch(BatchError::TooMany) => {
                (S::PAYLOAD_TOO_LARGE, problem::TOO_LARGE, "batch too large")
            }
            Self::HeadersTooLarge => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, problem::TOO_LARGE, "headers too large")
            }
            Self::Slow => (S::REQUEST_TIMEOUT, problem::SLOW, "request too slow"),
            Self::Batch(BatchError::Entry { .. }) => {
                (S::UNPROCESSABLE_ENTITY, problem::ENTRY, "entry refused")
            }
            Self::Body(_)
            | Self::Decode(_)
            | Self::Batch(_)
            | Self::Contradiction(_)
            | Self::EnrollRequest(_)
            | Self::EnrollNote(_)
            | Self::Enroll(_)
            | Self::StatsQuery(_)
            | Self::Claim(_)
            | Self::UpdateQuery(_)
            | Self::Nonce => (S::BAD_REQUEST, problem::MALFORMED, "malformed request"),
            Self::Store(StoreError::Conflict { .. }) => {
                (S::CONFLICT, problem::CONFLICT, "does not continue what is held")
            }
            Self::Store(StoreError::Denied(denial)) => denied(*denial),
            Self::Store(StoreError::Full(_)) => {
                (S::INSUFFICIENT_STORAGE, problem::FULL, "no space")
            }
            Self::Quota(_) => (S::TOO_MANY_REQUESTS, problem::QUOTA, "over quota"),
            Self::Overloaded | Self::Store(_) => {
                (S::SERVICE_UNAVAILABLE, problem::UNAVAILABLE, "not available now")
            }
            Self::NoConfig => (S::NOT_FOUND, problem::NO_CONFIG, "no managed configuration"),
            Self::Config(_) => {
                (S::INTERNAL_SERVER_ERROR, problem::CONFIG, "managed configuration refused")
            }
            Self::NoUpdate | Self::NoArtifact => (S::NOT_FOUND, problem::NO_UPDATE, "no update"),
            Self::Range => (S::RANGE_NOT_SATISFIABLE, problem::MALFORMED, "range beyond the end"),
            Self::Sign(_) | Self::Registry(_) | Self::Updates(_) | Self::Panicked => {
                (S::INTERNAL_SERVER_ERROR, problem::INTERNAL, "internal error")
            }
        }
    }

    /// Type of the problem.
    pub(super) fn problem_type(&self) -> &'static str {
        self.kind().1
    }

    /// Status of the response.
    pub(super) fn status(&self) -> u16 {
        self.kind().0.as_u16()
    }

    /// Reports whether the receiver has too much to do.
    pub(super) fn is_load(&self) -> bool {
        matches!(self, Self::Overloaded | Self::Store(StoreError::Busy { .. }))
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded => Some(Duration::from_secs(2)),
            Self::Quota(exceeded) => Some(exceeded.retry_after),
            Self::Store(StoreError::Busy { retry_after }) => Some(*retry_after),
            Self::Store(StoreError::Unavailable(_) | StoreError::Closed)
            | Self::Enroll(EnrollError::Journal(_) | EnrollError::Sign(_)) => {
                Some(Duration::from_secs(5))
            }
            Self::Enroll(EnrollError::Refused(
                EnrollRefusal::TooMany | EnrollRefusal::TooOften,
            )) => Some(Duration::from_secs(3600)),
            _ => None,
        }
    }

    /// Reports whether the sender gives something up after this rejection, or learns something about
    /// its device, which it believes only if the verdict is signed.
    pub(super) fn needs_verdict(&self) -> bool {
        let (status, kind, _) = self.kind();
        matches!(status, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY)
            || status == StatusCode::PAYLOAD_TOO_LARGE
            || DEVICE_PROBLEMS.contains(&kind)
    }

    /// Returns the body of the response, unsigned.
    pub(super) fn problem(&self) -> Problem {
        let (status, kind, title) = self.kind();
        let expected_seq = match self {
            Self::Store(StoreError::Conflict { expected_seq }) => Some(*expected_seq),
            _ => None,
        };
        Problem {
            kind: kind.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: Some(self.detail()),
            expected_seq,
            verdict: None,
            enroll: false,
        }
    }

    /// Returns the message, with its cause if that concerns the sender's own text.
    fn detail(&self) -> String {
        let cause = match self {
            Self::Batch(error) => error.source(),
            Self::Decode(error) => error.source(),
            Self::EnrollRequest(error) => Some(error as &dyn std::error::Error),
            Self::EnrollNote(error) => Some(error as &dyn std::error::Error),
            _ => None,
        };
        cause.map_or_else(|| self.to_string(), |cause| format!("{self}: {cause}"))
    }

    /// Returns what is logged; `None` for an agent that asks for a configuration or an update that is not
    /// there.
    fn refused(&self) -> Option<Refused> {
        if matches!(self, Self::NoConfig | Self::NoUpdate) {
            return None;
        }
        let cause = match self {
            Self::Store(error) => error.source().map(ToString::to_string),
            Self::Enroll(error) => error.source().map(ToString::to_string),
            Self::Updates(error) => Some(crate::error_text::causes(&**error)),
            _ => None,
        };
        let (status, kind, title) = self.kind();
        Some(Refused { status: status.as_u16(), kind, title, reason: self.to_string(), cause })
    }
}

/// Returns status, type and title of a denial.
fn denied(denial: Denial) -> (StatusCode, &'static str, &'static str) {
    let (kind, title) = match denial {
        Denial::Seal => (problem::SEAL, "wrong seal"),
        Denial::EpochOwned => (problem::EPOCH_OWNED, "epoch of another device"),
        Denial::Impersonation => (problem::IMPERSONATION, "device key needed"),
        Denial::NotEnrolled => (problem::NOT_ENROLLED, "device not enrolled"),
        Denial::DeviceRevoked => (problem::DEVICE_REVOKED, "device key revoked"),
        Denial::DeviceCloned => (problem::DEVICE_CLONED, "device key in use twice"),
        Denial::Renumber => {
            return (StatusCode::CONFLICT, problem::CONFLICT, "does not continue what is held");
        }
    };
    (StatusCode::FORBIDDEN, kind, title)
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        self.respond(None, false)
    }
}

impl Rejection {
    /// Returns the body of the response, with a signed verdict if there is one.
    pub(super) fn body(&self, verdict: Option<String>, enroll: bool) -> Vec<u8> {
        let problem = Problem { verdict, enroll, ..self.problem() };
        serde_json::to_vec(&problem).expect("names and numbers can be written as JSON")
    }

    /// Builds the response, with a signed verdict if there is one. `enroll` tells the sender to
    /// enroll its device key.
    pub(super) fn respond(self, verdict: Option<String>, enroll: bool) -> Response {
        let body = self.body(verdict, enroll);
        let mut response = (self.kind().0, body).into_response();
        if let Some(refused) = self.refused() {
            response.extensions_mut().insert(refused);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type::PROBLEM));
        match self {
            Self::Token | Self::Enroll(EnrollError::Token(_)) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Encoding => {
                let accepted = HeaderValue::from_static("zstd, gzip, identity");
                headers.insert(ACCEPT_ENCODING, accepted);
            }
            _ => {}
        }
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}
