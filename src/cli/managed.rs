//! The configuration in force: the local one, with what the server manages on top.

use std::{path::Path, time::Duration};

use serde_json::json;
use siem_protocol::names::event;
use tracing::{error, info, warn};

use super::{Failure, setup::Surroundings};
use crate::{
    config::{ConfigError, Loaded, Managed},
    event::Event,
    pipeline::{assembly, candidate},
    siem::{Connection, SignedAnswer},
    stages::Context,
    text::causes,
};

/// How long the first answer of the server is waited for, before any line is judged.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// What is in force.
pub(super) struct InForce {
    /// The configuration.
    pub(super) loaded: Loaded,
    /// The revision of its managed layer; none without one.
    pub(super) revision: Option<String>,
    /// What there is to report about it.
    pub(super) events: Vec<Event>,
}

/// Puts what the server says over the local configuration, or what it said last where it says
/// nothing or something wrong. What is wrong is reported and changes nothing.
pub(super) async fn in_force(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    local: Loaded,
    context: &Context,
) -> Result<InForce, ConfigError> {
    let mut events = Vec::new();
    let accepted = match assembly::manager(&local, context)? {
        None => None,
        Some(manager) => {
            let state_dir = &local.settings.agent.state_dir;
            let fetched = fetch(&manager, state_dir, &mut events, |answer| {
                accept(surroundings, explicit, answer, context)
            });
            fetched.await
        }
    };
    let (loaded, revision) = match accepted {
        Some(Accepted { loaded, revision }) => {
            let applied = json!({ "revision": revision });
            events.push(Event::info(event::CONFIG_APPLIED, applied));
            // A signed configuration without a name is in force all the same.
            (*loaded, revision.or_else(|| Some("unnamed".to_owned())))
        }
        None => (local, None),
    };
    let attempts = loaded.locked_out.iter();
    let attempts: Vec<_> = attempts
        .map(|attempt| json!({ "key": attempt.key, "layer": attempt.place.origin.layer() }))
        .collect();
    if !attempts.is_empty() {
        events.push(Event::warning(event::CONFIG_LOCKED, json!({ "attempts": attempts })));
    }
    Ok(InForce { loaded, revision, events })
}

/// The configuration with a managed layer that nothing is wrong with.
struct Accepted {
    loaded: Box<Loaded>,
    revision: Option<String>,
}

/// Asks the server; what is refused or does not come leaves what it said last.
async fn fetch(
    manager: &Connection,
    state_dir: &Path,
    events: &mut Vec<Event>,
    accept: impl Fn(&SignedAnswer) -> Result<Accepted, String>,
) -> Option<Accepted> {
    let mut refuse = |reason: &str| {
        error!(reason, "managed configuration was refused, what was in force stays");
        let data = json!({ "reason": reason });
        events.push(Event::warning(event::CONFIG_REFUSED, data));
    };
    match manager.managed_config(FIRST_ANSWER).await {
        Ok(Some(answer)) => match accept(&answer) {
            Ok(accepted) => {
                info!(revision = accepted.revision, "managed configuration was applied");
                if let Err(error) = answer.keep(state_dir) {
                    warn!(%error, "managed configuration cannot be kept for when the server is away");
                }
                return Some(accepted);
            }
            Err(reason) => refuse(&reason),
        },
        // What it said before is still its word: it retracts by an empty configuration.
        Ok(None) => {}
        Err(failure) if failure.is_refusal() => refuse(&causes(&failure)),
        Err(failure) => {
            warn!(reason = causes(&failure), "managed configuration could not be fetched");
        }
    }
    let answer = kept(state_dir).filter(|answer| is_signed(manager, answer))?;
    let accepted = accept(&answer).inspect_err(|reason| warn!(reason, "{KEPT_IS_WRONG}")).ok()?;
    info!(revision = accepted.revision, "managed configuration that was kept is in force");
    Some(accepted)
}

const KEPT_IS_WRONG: &str = "managed configuration that was kept has no effect";

/// Reads the configuration in force without asking the server: with what it said last. Logs the
/// warnings.
pub(super) fn last_in_force(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
) -> Result<Loaded, Failure> {
    let local = surroundings.load_managed(explicit, None).map_err(Failure::usage)?;
    let loaded = last_accepted(surroundings, explicit, &local).map_or(local, |it| *it.loaded);
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    Ok(loaded)
}

fn last_accepted(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    local: &Loaded,
) -> Option<Accepted> {
    let answer = kept(&local.settings.agent.state_dir)?;
    let context = surroundings.context(local, None, true);
    match assembly::manager(local, &context) {
        Ok(Some(manager)) if is_signed(&manager, &answer) => {}
        Ok(_) => return None,
        Err(_) => warn!(
            "managed configuration that was kept is not verified: that takes the token and the \
             HMAC secret"
        ),
    }
    let accepted = accept(surroundings, explicit, &answer, &context);
    accepted.inspect_err(|reason| warn!(reason, "{KEPT_IS_WRONG}")).ok()
}

/// Puts an answer over the local layers; or says why it is refused whole.
fn accept(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    answer: &SignedAnswer,
    context: &Context,
) -> Result<Accepted, String> {
    let managed = Managed::read(answer.body.as_bytes(), answer.etag.as_deref());
    let managed = managed.map_err(|error| causes(&error))?;
    let loaded = surroundings.load_managed(explicit, Some(&managed));
    let loaded = loaded.map_err(|error| causes(&error))?;
    candidate::accept(&loaded, context).map_err(|refusal| causes(&refusal))?;
    for warning in &managed.warnings {
        warn!("{warning}");
    }
    Ok(Accepted { loaded: Box::new(loaded), revision: managed.revision })
}

fn kept(state_dir: &Path) -> Option<SignedAnswer> {
    SignedAnswer::kept(state_dir).unwrap_or_else(|error| {
        warn!(%error, "managed configuration that was kept cannot be read");
        None
    })
}

fn is_signed(manager: &Connection, answer: &SignedAnswer) -> bool {
    let is_signed = manager.vouches_for(answer);
    if !is_signed {
        warn!("managed configuration that was kept has a wrong signature");
    }
    is_signed
}
