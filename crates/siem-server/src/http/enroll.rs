//! `GET /keys` and `POST /enroll`.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, request::Parts},
    response::{IntoResponse as _, Response},
};
use siem_protocol::{Digest, EnrollAnswer, EnrollRequest, KeysAnswer, statement::Enroll};
use tracing::info;

use super::{
    Shared, observe::json, peer, problem::Rejection, run_blocking, statements::sign_verdict,
};
use crate::trust::{DeviceKey, EnrollError, Event, EventKind, Grant, Registry, Scope};

/// Maximum size of an enrollment in bytes. One with the longest host and user names has 4 KiB.
const ENROLL_BYTES: usize = 32 << 10;
/// Tokens that may enroll a device.
const SCOPES: [Scope; 2] = [Scope::Ingest, Scope::Enroll];

pub(super) async fn keys(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match list_keys(&shared, &headers).await {
        Ok(answer) => json(&answer),
        Err(rejection) => rejection.into_response(),
    }
}

async fn list_keys(shared: &Shared, headers: &HeaderMap) -> Result<KeysAnswer, Rejection> {
    shared.authorize(headers, &SCOPES).await?;
    let registry = shared.registry.clone();
    let answer = run_blocking(move || registry.and_then(|registry| registry.keys_answer())).await?;
    answer.ok_or(Rejection::Enroll(EnrollError::NoReceiverKey))
}

pub(super) async fn enroll(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match receive_enrollment(&shared, &parts, body).await {
        Ok(answer) => json(&answer),
        Err(refusal) => {
            let is_load = refusal.rejection.is_load();
            let mut response = refusal.rejection.respond(refusal.verdict, false);
            if is_load {
                shared.spread(&mut response);
            }
            response
        }
    }
}

/// A refused enrollment.
struct EnrollmentRefusal {
    rejection: Rejection,
    /// Signed by the receiver, if the device may act on it.
    verdict: Option<String>,
}

impl<E: Into<Rejection>> From<E> for EnrollmentRefusal {
    fn from(rejection: E) -> Self {
        Self { rejection: rejection.into(), verdict: None }
    }
}

async fn receive_enrollment(
    shared: &Arc<Shared>,
    parts: &Parts,
    mut body: Body,
) -> Result<EnrollAnswer, EnrollmentRefusal> {
    let grant = shared.authorize(&parts.headers, &SCOPES).await?;
    let registry = shared.registry.clone().ok_or(EnrollError::NoReceiverKey)?;
    let sender = shared.sender(parts);
    let receiving = shared.intake.receive(sender, parts, &mut body, ENROLL_BYTES);
    let (body, _memory) = receiving.await?;
    let (shared, peer) = (shared.clone(), peer(&parts.extensions));
    run_blocking(move || enroll_device(&shared, &registry, &grant, &body, peer)).await?
}

fn enroll_device(
    shared: &Shared,
    registry: &Registry,
    grant: &Grant,
    body: &[u8],
    peer: Option<IpAddr>,
) -> Result<EnrollAnswer, EnrollmentRefusal> {
    let request: EnrollRequest = serde_json::from_slice(body).map_err(Rejection::EnrollRequest)?;
    let enroll = Enroll::open_self_signed(&request.enroll)?;
    let enrolled = registry.enroll(&enroll, grant).map_err(|error| {
        let rejection = Rejection::from(error);
        let verdict = rejection
            .needs_verdict()
            .then(|| sign_verdict(shared, &rejection, &enroll.machine, None, Digest::of(body)));
        EnrollmentRefusal { rejection, verdict: verdict.flatten() }
    })?;
    let device = &enrolled.device;
    if enrolled.forked {
        let previous = enroll.previous.as_ref().map(DeviceKey::from);
        let detail = previous.map(|previous| format!("the key `{previous}` was replaced before"));
        registry.record(enrollment_event(EventKind::Clone, &enroll, peer, detail));
    }
    if let Some(besides) = enrolled.besides {
        let detail = format!("a token has confirmed it besides the key `{besides}`");
        registry.record(enrollment_event(EventKind::SecondKey, &enroll, peer, Some(detail)));
    }
    info!(key = %device.key, machine = device.machine, user = device.user, state = %device.state, "enrolled a device");
    Ok(EnrollAnswer { device: enrolled.statement, keys: enrolled.keys })
}

fn enrollment_event(
    kind: EventKind,
    enroll: &Enroll,
    peer: Option<IpAddr>,
    detail: Option<String>,
) -> Event {
    Event {
        peer,
        user: enroll.user.clone(),
        host: enroll.host.clone(),
        device: Some(DeviceKey::from(&enroll.key)),
        detail,
        ..Event::new(kind, &enroll.machine)
    }
}
