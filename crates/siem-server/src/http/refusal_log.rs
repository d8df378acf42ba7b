//! Log of refused requests: who sent them, as far as they say, and why they were refused.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use percent_encoding::percent_decode_str;
use siem_protocol::names::header;
use tracing::{error, info};

use super::Shared;
use crate::trust::DeviceKey;

/// Time in which a refusal that repeats is logged once.
const PERIOD: Duration = Duration::from_secs(60);
/// Number of different refusals whose repetitions are counted.
const MAX_COUNTED: usize = 4096;
/// Longest name that is logged, in characters.
const MAX_NAME: usize = 128;

/// Refusal of a request, attached to its response.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: String,
    /// Cause inside the receiver. Causes in the request may quote it, and are not logged.
    pub(super) cause: Option<String>,
}

/// Device key whose seal the request has, attached to the response to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SealedBy(pub(super) DeviceKey);

/// Refusals of the current period.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<HashMap<Key, Repeats>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: Option<IpAddr>,
    machine: String,
    status: u16,
    reason: String,
}

#[derive(Clone, Copy, Debug)]
struct Repeats {
    logged: Instant,
    /// Refusals since then.
    more: u64,
}

impl RefusalLog {
    /// Counts a refusal. Returns how many like it were not logged before, if this one is to be logged.
    fn count(&self, key: Key, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repeats) = counted.get_mut(&key) {
            if now.saturating_duration_since(repeats.logged) < PERIOD {
                repeats.more += 1;
                return None;
            }
            let more = repeats.more;
            *repeats = Repeats { logged: now, more: 0 };
            return Some(more);
        }
        if counted.len() >= MAX_COUNTED {
            counted.retain(|_, repeats| now.saturating_duration_since(repeats.logged) < PERIOD);
        }
        // With more senders than can be counted, the rest share a line.
        let key = if counted.len() < MAX_COUNTED { key } else { key.without_sender() };
        if let Some(repeats) = counted.get_mut(&key) {
            repeats.more += 1;
            return None;
        }
        counted.insert(key, Repeats { logged: now, more: 0 });
        Some(0)
    }
}

impl Key {
    fn without_sender(self) -> Self {
        Self { address: None, machine: String::new(), ..self }
    }
}

/// Logs the requests that the router refuses.
pub(super) async fn log_refusals(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let path = request.uri().path().to_owned();
    let claims = Claims::of(request.headers());
    let mut response = next.run(request).await;
    if let Some(refused) = response.extensions_mut().remove::<Refused>() {
        let device = response.extensions_mut().remove::<SealedBy>();
        let key = Key {
            address: peer,
            machine: claims.machine.clone(),
            status: refused.status,
            reason: refused.reason.clone(),
        };
        if let Some(repeats) = shared.refusals.count(key, Instant::now()) {
            log(&refused, peer, &path, &claims, device, repeats);
        }
    }
    response
}

fn log(
    refused: &Refused,
    peer: Option<IpAddr>,
    path: &str,
    claims: &Claims,
    device: Option<SealedBy>,
    repeats: u64,
) {
    let Refused { status, reason, cause } = refused;
    let Claims { machine, host, user } = claims;
    let (peer, device) = (Optional(peer), Optional(device.map(|device| device.0)));
    if *status < 500 {
        info!(
            code = "request_refused",
            status, reason, %peer, path, machine, host, user, %device, repeats,
            "refused a request"
        );
    } else {
        error!(
            code = "request_failed",
            status, reason, cause, %peer, path, machine, host, user, %device, repeats,
            "cannot serve a request"
        );
    }
}

/// Identity that a request claims in its headers. Nothing proves it.
struct Claims {
    machine: String,
    host: String,
    user: String,
}

impl Claims {
    fn of(headers: &HeaderMap) -> Self {
        let name =
            |name| headers.get(name).map_or_else(String::new, |value| name_of(value.as_bytes()));
        Self {
            machine: name(header::MACHINE_ID),
            host: name(header::HOSTNAME),
            user: name(header::USER),
        }
    }
}

/// Decodes a name for the log: control characters are escaped, and a long one is cut.
fn name_of(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let name = percent_decode_str(&text).decode_utf8_lossy();
    name.chars().take(MAX_NAME).flat_map(char::escape_debug).collect()
}

/// A value that may be absent, as `-`.
struct Optional<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(machine: usize) -> Key {
        let machine = format!("machine-{machine}");
        Key { address: None, machine, status: 403, reason: "the signature is wrong".into() }
    }

    #[test]
    fn repeated_refusals_are_counted_and_logged_once_a_minute() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        assert_eq!(log.count(key(1), now), Some(0));
        assert_eq!(log.count(key(2), now), Some(0));
        for _ in 0..5 {
            assert_eq!(log.count(key(1), now + PERIOD / 2), None);
        }
        assert_eq!(log.count(key(1), now + PERIOD), Some(5));
        assert_eq!(log.count(key(1), now + PERIOD), None);
    }

    #[test]
    fn refusals_of_many_senders_share_a_line() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        let logged = (0..3 * MAX_COUNTED).filter(|sender| log.count(key(*sender), now).is_some());
        assert_eq!(logged.count(), MAX_COUNTED + 1);
        assert_eq!(log.0.lock().unwrap().len(), MAX_COUNTED + 1);
        assert_eq!(log.count(key(MAX_COUNTED + 5), now + PERIOD), Some(0));
    }

    #[test]
    fn names_are_decoded_and_escaped() {
        assert_eq!(name_of(b"a%20b%0a\xff"), "a b\\n\u{fffd}");
        assert_eq!(name_of(&[b'x'; 500]).len(), MAX_NAME);
    }
}
