//! Log of refused requests: who sent them, as far as they say, and why they were refused.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderValue, Uri},
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
/// Time between two searches for refusals that need not be counted any longer.
const SWEEP: Duration = Duration::from_secs(1);
/// Longest name that is logged, in characters.
const MAX_NAME: usize = 128;
/// Longest path, reason or cause that is logged, in characters.
const MAX_TEXT: usize = 200;

/// Refusal of a request, attached to its response.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    /// Type of the problem.
    pub(super) kind: &'static str,
    /// Title of the problem, the same for all refusals of a kind.
    pub(super) title: &'static str,
    pub(super) reason: String,
    /// Cause inside the receiver. Causes in the request may quote it, and are not logged.
    pub(super) cause: Option<String>,
}

/// Device key whose seal the request has, attached to the response to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SealedBy(pub(super) DeviceKey);

/// Log of refusals, which counts those that repeat.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog(Mutex<Counted>);

/// Refusals of the current period.
#[derive(Debug, Default)]
struct Counted {
    refusals: HashMap<Key, Repeats>,
    /// Time of the last search for refusals of earlier periods.
    swept: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: Option<IpAddr>,
    machine: String,
    status: u16,
    /// Empty if all refusals with this status are counted together.
    title: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Repeats {
    logged: Instant,
    /// Refusals since then.
    more: u64,
}

impl RefusalLog {
    /// Logs the refusal that is attached to a response, and removes it from there.
    pub(crate) fn log(&self, response: &mut Response, request: &Requested) {
        let Some(refused) = response.extensions_mut().remove::<Refused>() else { return };
        let device = response.extensions_mut().remove::<SealedBy>();
        let claims = request.claims();
        let key = Key {
            address: request.peer,
            machine: claims.machine.clone(),
            status: refused.status,
            title: refused.title,
        };
        let (repeats, forgotten) = self.count(key, Instant::now());
        forgotten.iter().for_each(log_forgotten);
        if let Some(repeats) = repeats {
            log(&refused, request, &claims, device, repeats);
        }
    }

    /// Counts a refusal. Returns how many like it were not logged before, if this one is to be logged,
    /// and the refusals that are forgotten with their numbers.
    fn count(&self, key: Key, now: Instant) -> (Option<u64>, Vec<(Key, u64)>) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = counted.make_room(now);
        (counted.count(key, now), forgotten)
    }
}

impl Counted {
    /// Forgets the refusals of earlier periods if there are too many. Returns those that were not
    /// logged, with their numbers.
    fn make_room(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let is_recent = |swept| now.saturating_duration_since(swept) < SWEEP;
        let mut forgotten = Vec::new();
        if self.refusals.len() < MAX_COUNTED || self.swept.is_some_and(is_recent) {
            return forgotten;
        }
        self.swept = Some(now);
        self.refusals.retain(|key, repeats| {
            let is_current = now.saturating_duration_since(repeats.logged) < PERIOD;
            if !is_current && repeats.more > 0 {
                forgotten.push((key.clone(), repeats.more));
            }
            is_current
        });
        forgotten
    }

    fn count(&mut self, key: Key, now: Instant) -> Option<u64> {
        let has_room = self.refusals.len() < MAX_COUNTED || self.refusals.contains_key(&key);
        // With more senders than can be counted, the rest share a line for each status.
        let key = if has_room { key } else { Key::of_status(key.status) };
        match self.refusals.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Repeats { logged: now, more: 0 });
                Some(0)
            }
            Entry::Occupied(mut entry) => entry.get_mut().count(now),
        }
    }
}

impl Repeats {
    fn count(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.logged) < PERIOD {
            self.more += 1;
            return None;
        }
        let more = self.more;
        *self = Self { logged: now, more: 0 };
        Some(more)
    }
}

impl Key {
    /// Key of the refusals with a status that are not counted by sender.
    fn of_status(status: u16) -> Self {
        Self { address: None, machine: String::new(), status, title: "" }
    }
}

/// Logs the requests that the router refuses.
pub(super) async fn log_refusals(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let requested = Requested::of(peer, &request);
    let mut response = next.run(request).await;
    shared.refusals.log(&mut response, &requested);
    response
}

/// Request, as far as its refusal is logged. Most are not refused: it shares their bytes, and decodes nothing.
pub(crate) struct Requested {
    peer: Option<IpAddr>,
    uri: Uri,
    names: [Option<HeaderValue>; 3],
}

impl Requested {
    /// Reads a request from `peer`.
    pub(crate) fn of<B>(peer: Option<IpAddr>, request: &Request<B>) -> Self {
        let names = [header::MACHINE_ID, header::HOSTNAME, header::USER];
        let names = names.map(|name| request.headers().get(name).cloned());
        Self { peer, uri: request.uri().clone(), names }
    }

    fn claims(&self) -> Claims {
        let [machine, host, user] = self.names.each_ref().map(|value| {
            value.as_ref().map_or_else(String::new, |value| name_of(value.as_bytes()))
        });
        Claims { machine, host, user }
    }
}

fn log(
    refused: &Refused,
    request: &Requested,
    claims: &Claims,
    device: Option<SealedBy>,
    repeats: u64,
) {
    let Refused { status, reason, cause, .. } = refused;
    let (Requested { peer, uri, .. }, Claims { machine, host, user }) = (request, claims);
    let path = cut(uri.path());
    let (peer, device) = (Optional(*peer), Optional(device.map(|device| device.0)));
    let (reason, cause) = (cut(reason), cause.as_deref().map(cut));
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

/// Logs the number of refusals that were not logged, and are no longer counted.
fn log_forgotten((key, repeats): &(Key, u64)) {
    let Key { address, machine, status, title } = key;
    let peer = Optional(*address);
    info!(
        code = "request_refused",
        status, reason = title, %peer, machine, repeats,
        "refused requests that were not logged"
    );
}

/// Returns the start of a text.
fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Identity that a request claims in its headers. Nothing proves it.
struct Claims {
    machine: String,
    host: String,
    user: String,
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
        Key { address: None, machine, status: 403, title: "wrong signature" }
    }

    #[test]
    fn repeated_refusals_are_counted_and_logged_once_a_minute() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        let count = |machine, now| log.count(key(machine), now).0;
        assert_eq!(count(1, now), Some(0));
        assert_eq!(count(2, now), Some(0));
        for _ in 0..5 {
            assert_eq!(count(1, now + PERIOD / 2), None);
        }
        assert_eq!(count(1, now + PERIOD), Some(5));
        assert_eq!(count(1, now + PERIOD), None);
    }

    #[test]
    fn refusals_of_many_senders_share_a_line() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        let count = |machine, now| log.count(key(machine), now).0;
        let logged = (0..3 * MAX_COUNTED).filter(|sender| count(*sender, now).is_some());
        assert_eq!(logged.count(), MAX_COUNTED + 1);
        assert_eq!(log.0.lock().unwrap().refusals.len(), MAX_COUNTED + 1);
        let title = "not authorized";
        let others = (0..10).filter(|sender| {
            log.count(Key { title, ..key(MAX_COUNTED + sender) }, now).0.is_some()
        });
        assert_eq!(others.count(), 0, "one line for the status");
        let (logged, forgotten) = log.count(key(MAX_COUNTED + 5), now + PERIOD);
        assert_eq!(logged, Some(0));
        let rest = 2 * MAX_COUNTED as u64 + 9;
        assert_eq!(forgotten, [(Key::of_status(403), rest)]);
    }

    #[test]
    fn refusals_are_forgotten_at_most_once_a_second() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        for sender in 0..MAX_COUNTED {
            log.count(key(sender), now);
        }
        log.count(key(MAX_COUNTED), now + PERIOD - SWEEP / 2);
        let len = || log.0.lock().unwrap().refusals.len();
        log.count(key(MAX_COUNTED), now + PERIOD);
        assert_eq!(len(), MAX_COUNTED + 1);
        log.count(key(MAX_COUNTED), now + PERIOD + SWEEP / 2);
        assert_eq!(len(), 2, "the shared line and the sender");
    }

    #[test]
    fn names_are_decoded_and_escaped() {
        assert_eq!(name_of(b"a%20b%0a\xff"), "a b\\n\u{fffd}");
        assert_eq!(name_of(&[b'x'; 500]).len(), MAX_NAME);
        assert_eq!(cut(&"x".repeat(500)).len(), MAX_TEXT);
    }
}
