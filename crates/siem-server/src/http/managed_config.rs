//! `GET /config`, and what batches say about managed configurations.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY},
    },
    response::{IntoResponse as _, Response},
};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use siem_protocol::{
    BatchHeader, Digest, Identity,
    names::{content_type, header},
    statement::DeviceState,
};
use tracing::error;

use super::{Shared, problem::Rejection};
use crate::{
    batch::{Batch, MAX_NAME},
    configs::{ConfigFile, ConfigStats, DeviceFacts, FileSet, choose},
    trust::{ConfigRefusal, DeviceView, Registry, Scope, is_meant_for},
};

/// Headers that the response depends on.
const VARIES_BY: &str = "authorization, x-siem-machine-id, x-siem-user, x-siem-os";
/// The same, if an audience has groups: an agent sends those of its user only then.
const VARIES_BY_GROUPS: &str =
    "authorization, x-siem-machine-id, x-siem-user, x-siem-os, x-siem-groups";
/// Number of groups of a user that count.
const MAX_GROUPS: usize = 1000;
/// Age of the answers of devices on a page of `/stats` that is not the first one.
const STATS_AGE: Duration = Duration::from_secs(60);

pub(super) async fn config(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let mut varies_by = VARIES_BY;
    let mut response = match respond(&shared, &headers, &mut varies_by).await {
        Ok(response) => response,
        Err(Rejection::NoConfig) => no_config(&shared, &headers),
        Err(rejection) => rejection.into_response(),
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static(varies_by));
    response
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

async fn respond(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    varies_by: &mut &'static str,
) -> Result<Response, Rejection> {
    shared.authorize(headers, &[Scope::Ingest]).await?;
    let nonce = nonce(headers)?;
    let (file, uses_groups) = choose_for(shared, device(headers)?).await?;
    if uses_groups {
        *varies_by = VARIES_BY_GROUPS;
    }
    let file = file?;
    let etag = format!("\"{}\"", file.hash);
    let known = headers.get_all(IF_NONE_MATCH).iter().any(|known| matches(known, &etag));
    let (status, body) = if known {
        (StatusCode::NOT_MODIFIED, Vec::new())
    } else {
        (StatusCode::OK, file.body.clone())
    };
    let signature = nonce.map(|nonce| shared.keys.sign_answer(nonce, &body));
    let mut response = (status, body).into_response();
    let to = response.headers_mut();
    to.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    to.insert(ETAG, ascii(&etag));
    if status == StatusCode::OK {
        if let Some(minisig) = &file.minisig {
            to.insert(header::POLICY_SIGNATURE, ascii(&BASE64.encode(minisig)));
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

/// Returns what the headers of a request claim about its device.
fn device(headers: &HeaderMap) -> Result<DeviceFacts, Rejection> {
    let claim = |name: &'static str| -> Result<Option<String>, Rejection> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let value = value.to_str().map_err(|_| Rejection::Claim(name))?;
        let decoded =
            percent_decode_str(value).decode_utf8().map_err(|_| Rejection::Claim(name))?;
        if decoded.len() > MAX_NAME {
            return Err(Rejection::Claim(name));
        }
        Ok(Some(decoded.into_owned()))
    };
    Ok(DeviceFacts {
        machine: claim(header::MACHINE_ID)?.unwrap_or_default(),
        user: claim(header::USER)?.unwrap_or_default(),
        os: claim(header::OS)?,
        groups: groups(headers)?,
        in_force: None,
    })
}

/// Returns the groups of the user, if the request names them.
fn groups(headers: &HeaderMap) -> Result<Option<Vec<String>>, Rejection> {
    let Some(value) = headers.get(header::GROUPS) else { return Ok(None) };
    let wrong = || Rejection::Claim(header::GROUPS);
    let names = value.to_str().map_err(|_| wrong())?.split(',').map(str::trim);
    let decoded = names.filter(|name| !name.is_empty()).take(MAX_GROUPS).map(|name| {
        let name = percent_decode_str(name).decode_utf8().map_err(|_| wrong())?;
        if name.len() > MAX_NAME { Err(wrong()) } else { Ok(name.into_owned()) }
    });
    decoded.collect::<Result<_, _>>().map(Some)
}

/// Chooses the configuration for a device, and notes the offer before an agent can name it. Returns
/// besides whether the choice may depend on the groups of the user.
async fn choose_for(
    shared: &Arc<Shared>,
    mut device: DeviceFacts,
) -> Result<(Result<Arc<ConfigFile>, Rejection>, bool), Rejection> {
    let shared = shared.clone();
    let choosing = tokio::task::spawn_blocking(move || {
        let set = shared.configs.current();
        let uses_groups = set.uses_groups();
        device.groups = device.groups.map(|groups| set.relevant_groups(groups));
        let Some(registry) = &shared.registry else {
            return (find(&set, &device, &[]), uses_groups);
        };
        let answers = registry.device_config(&device.machine, &device.user);
        device.in_force = answers.and_then(|answers| answers.in_force).map(|it| it.hash);
        let file = find(&set, &device, &registry.halted_rollouts());
        let offered = file.and_then(|file| {
            offer(registry, &device, &file)?;
            Ok(file)
        });
        (offered, uses_groups)
    });
    choosing.await.map_err(|_| Rejection::Panicked)
}

fn find(
    set: &FileSet,
    device: &DeviceFacts,
    halted: &[Digest],
) -> Result<Arc<ConfigFile>, Rejection> {
    match choose(&set.files, device, |hash| halted.contains(hash)) {
        Some(file) => Ok(file.clone()),
        None => Err(set.fallback_problem.clone().map_or(Rejection::NoConfig, Rejection::Config)),
    }
}

fn offer(registry: &Registry, device: &DeviceFacts, file: &ConfigFile) -> Result<(), Rejection> {
    let audience = file.config.audience.clone();
    registry.offer_config(&file.hash, audience).map_err(Rejection::Registry)?;
    if device.machine.is_empty() {
        return Ok(());
    }
    registry.note_offered(device, file.hash).map_err(Rejection::Registry)
}

/// Reports whether a batch names a managed configuration that was never offered to its sender. Blocks for
/// the file system.
pub(super) fn names_unknown_config(shared: &Shared, header: &BatchHeader) -> bool {
    let (Some(hash), Some(registry)) = (header.managed_hash, &shared.registry) else {
        return false;
    };
    let identity = header.identity();
    if let Some(was_offered) = registry.offer_to(&hash, &identity) {
        return !was_offered;
    }
    // The agent may have got it before the receiver kept a list.
    let set = shared.configs.current();
    set.by_hash(&hash).is_none_or(|file| !is_meant_for(file.audience(), &identity))
}

/// Answers of a device to managed configurations, in a batch.
pub(super) struct BatchAnswers {
    identity: Identity,
    in_force: Option<Digest>,
    refusals: Vec<ConfigRefusal>,
}

impl BatchAnswers {
    /// Returns what a batch says that the receiver does not know yet. Blocks for the file system.
    pub(super) fn of(shared: &Shared, batch: &Batch) -> Option<Self> {
        let registry = shared.registry.as_ref()?;
        let (identity, in_force) = (batch.header.identity(), batch.header.managed_hash);
        let refusals = batch.config_refusals();
        let is_new = registry.has_new_answer(&identity, in_force, refusals);
        (is_new && answers_for(registry, &identity, batch)).then(|| Self {
            identity,
            in_force,
            refusals: refusals.to_vec(),
        })
    }

    /// Notes the answers of a batch that is stored, and halts a roll-out that too many devices
    /// refuse. A failure is logged: it does not make the sender repeat the batch.
    pub(super) async fn note(self, shared: &Arc<Shared>) {
        let shared = shared.clone();
        let noting = tokio::task::spawn_blocking(move || {
            let Some(registry) = &shared.registry else { return };
            let noted = registry.note_answers(&self.identity, self.in_force, &self.refusals);
            match noted {
                Ok(refused) => refused.into_iter().for_each(|hash| halt(&shared, registry, hash)),
                Err(error) => {
                    error!(code = "trust_journal_failed", %error, "cannot note an answer to a managed configuration");
                }
            }
        });
        if noting.await.is_err() {
            error!(
                code = "config_answer_failed",
                "could not process an answer to a managed configuration"
            );
        }
    }
}

/// Reports whether a batch answers for its machine and user: if a key was confirmed for them, only that
/// one does. Anyone who can enroll could otherwise say in their name what is in force or refused.
fn answers_for(registry: &Registry, identity: &Identity, batch: &Batch) -> bool {
    // Without a seal it is stored only if the receiver accepts that from them.
    let Some(seal) = batch.seal.valid() else { return true };
    let Identity { machine_id, user, .. } = identity;
    let is_theirs = |device: DeviceView| {
        device.state == DeviceState::Confirmed
            && device.machine == *machine_id
            && device.user == *user
    };
    registry.device(&seal.device).is_some_and(is_theirs)
        || !registry.confirmed_for(machine_id, user)
}

/// Returns the managed configurations with the answers of devices, for `/stats`. On a page that is not
/// the first one they may be those of an earlier page: their time grows with the number of all devices.
pub(super) async fn stats(shared: &Arc<Shared>, is_first_page: bool) -> Option<ConfigStats> {
    let counted = lock(&shared.config_stats).clone();
    if let (Some((at, found)), false) = (counted, is_first_page)
        && at.elapsed() < STATS_AGE
    {
        return found;
    }
    let (shared, shared_stats) = (shared.clone(), shared.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let set = shared.configs.current();
        let registry = shared.registry.as_ref().filter(|_| !set.is_empty())?;
        ConfigStats::of(&set, registry)
    });
    let found = reading.await.ok().flatten();
    *lock(&shared_stats.config_stats) = Some((Instant::now(), found.clone()));
    found
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Halts the roll-outs that too many devices refuse, at the start: the process before may have ended
/// between noting a refusal and this. Blocks for the file system.
pub(super) fn halt_all_exceeded(shared: &Shared) {
    let Some(registry) = shared.registry.as_deref().filter(|it| it.has_refusals()) else { return };
    let set = shared.configs.current();
    set.files.iter().for_each(|file| halt_exceeded(registry, file));
}

fn halt(shared: &Shared, registry: &Registry, hash: Digest) {
    let set = shared.configs.current();
    if let Some(file) = set.by_hash(&hash) {
        halt_exceeded(registry, file);
    }
}

fn halt_exceeded(registry: &Registry, file: &ConfigFile) {
    let Some(rollout) = &file.rollout else { return };
    match registry.halt_if_exceeded(file.hash, rollout) {
        Ok(Some(halted)) => error!(
            code = "rollout_halted",
            file = file.name,
            serial = file.config.serial,
            applied = halted.applied,
            refused = halted.refused,
            "roll-out of a managed configuration halted: too many devices refuse it"
        ),
        Ok(None) => {}
        Err(error) => {
            error!(code = "trust_journal_failed", %error, "cannot halt a roll-out");
        }
    }
}

pub(super) fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("hexadecimal digits, base64 and quotes make a header value")
}

/// Returns the nonce of the request. Only 16 bytes in hex are signed: with any other text, the
/// signature of a response could be valid for a batch.
pub(super) fn nonce(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    let Some(value) = headers.get(header::NONCE) else { return Ok(None) };
    let nonce = value.to_str().map_err(|_| Rejection::Nonce)?;
    let right = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    if right { Ok(Some(nonce)) } else { Err(Rejection::Nonce) }
}

/// Reports whether a value of `If-None-Match` names `etag`, by the weak comparison of RFC 9110.
pub(super) fn matches(value: &HeaderValue, etag: &str) -> bool {
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
