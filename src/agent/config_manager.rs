//! Keeps the configuration in force, and says what takes its place.

use std::{
    collections::BTreeSet,
    fs, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{AgentEvent, Digest, event::LockedKey, names::event};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{
    config_sources::Surroundings,
    file_watch::{self as files, Sights, Stamps, Watched},
    managed_config::{self as managed, Candidate},
    poll_schedule::Outcome,
    status_file::Status,
};
use crate::{
    config::{self, ConfigError, LoadedConfig},
    control::{Asker, Became, Desk},
    event::Event,
    pipeline::{
        assembly,
        config_status::{Applied, Attempted, ConfigOrigin, Refused},
        reload::{Plan, Reload, named_files},
        validate::TestScope,
    },
    siem::{Connection, FetchError, FetchedConfig, SignedConfig},
    stages::{Context, source::Waker},
    text::causes,
};

/// The configuration in force, and all that is needed to try another.
pub(crate) struct Keeper<'a> {
    surroundings: &'a Surroundings,
    explicit: Option<&'a Path>,
    /// Where the agent keeps its state, whatever a configuration says meanwhile.
    state_dir: &'a Path,
    /// What stages are built with.
    pub(crate) context: Context,
    /// The configuration in force.
    pub(crate) loaded: Arc<LoadedConfig>,
    /// What it was built from.
    plan: Plan,
    /// Its managed layer, as it came.
    answer: Option<SignedConfig>,
    /// The server that manages this agent.
    manager: Option<Connection>,
    /// How the files looked that it was read from.
    pub(crate) watched: Watched,
    /// What was tried and named files, refused or not: a change of them is worth another try.
    named: BTreeSet<PathBuf>,
    /// Contents that were refused, each said once.
    refused: BTreeSet<(ConfigOrigin, Digest)>,
    /// Whether a person asked for the last try, who wants to know what came of it.
    is_asked: bool,
    /// Whether the server did not answer the last time.
    is_away: bool,
    /// What was found out, for whoever asks.
    pub(crate) status: Status,
    /// What the agent can be asked.
    pub(crate) desk: Arc<Desk>,
    /// Who asks for a reload.
    pub(crate) askers: mpsc::Receiver<Asker>,
    /// What became of the configuration that was tried last.
    pub(crate) became: Became,
    /// What there is to report.
    events: Vec<Event>,
}

impl<'a> Keeper<'a> {
    /// Begins with the local layers alone.
    pub(crate) fn new(
        surroundings: &'a Surroundings,
        explicit: Option<&'a Path>,
        state_dir: &'a Path,
        local: LoadedConfig,
        watched: Watched,
        context: Context,
    ) -> Result<Self, ConfigError> {
        let plan = Plan::of(&local, &context);
        let manager = assembly::manager(&local, &context)?;
        let named = named_files(&local.settings, &context);
        let status = Status::begin(state_dir, &*context.clock);
        let local = Arc::new(local);
        let (desk, askers) =
            Desk::new(status.started_at, status.facts.clone(), Arc::clone(&local), context.clone());
        let mut keeper = Self {
            surroundings,
            explicit,
            state_dir,
            context,
            loaded: local,
            plan,
            answer: None,
            manager,
            watched,
            named,
            refused: BTreeSet::new(),
            is_asked: false,
            is_away: false,
            status,
            desk,
            askers,
            became: Became::Unchanged,
            events: Vec::new(),
        };
        keeper.events.extend(locked(&keeper.loaded));
        Ok(keeper)
    }

    /// Takes what there is to report.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// The server that manages this agent, and the `ETag` of what it said last.
    pub(crate) fn manager(&self) -> Option<(Connection, Option<String>)> {
        let manager = self.manager.clone()?;
        // What another secret signed has to come again: at the next start it would prove nothing.
        let answer = self.answer.as_ref().filter(|answer| manager.accepts(answer));
        let etag = answer.and_then(|answer| answer.etag.clone());
        Some((manager, etag))
    }

    /// How the files look that decide about the configuration.
    pub(crate) fn look(&self) -> Sights {
        let inputs = self.surroundings.inputs(self.explicit);
        Sights { layers: files::look(config::files(&inputs)), named: self.look_at_named() }
    }

    /// How the files look that it names.
    pub(crate) fn look_at_named(&self) -> Stamps {
        files::look(self.named.iter().cloned())
    }

    /// Puts what the server said last over the local configuration; whether that is in force now.
    pub(crate) fn recall(&mut self) -> bool {
        let Some(manager) = &self.manager else { return false };
        let accepted = match managed::kept(self.state_dir) {
            Ok(None) => return false,
            Ok(Some(answer)) if !manager.accepts(&answer) => {
                Err(managed::KEPT_IS_FOREIGN.to_owned())
            }
            Ok(Some(answer)) => self
                .accept(Some(answer), TestScope::Managed)
                .map_err(|reason| format!("{}: {reason}", managed::KEPT_IS_WRONG)),
            Err(reason) => Err(reason),
        };
        match accepted {
            Ok(candidate) => {
                info!(
                    revision = candidate.revision,
                    "managed configuration that was kept is in force"
                );
                self.begin_with(candidate);
                true
            }
            Err(reason) => {
                // Said to the server too: whoever changes what is kept brings the local
                // configuration back.
                self.refuse(ConfigOrigin::Server, Digest::of(reason.as_bytes()), reason);
                false
            }
        }
    }

    /// Puts a configuration in force before anything runs.
    pub(crate) fn begin_with(&mut self, candidate: Candidate) {
        let applied = AgentEvent::ConfigApplied {
            hash: candidate.loaded.settings.config_hash(),
            revision: candidate.revision.clone(),
            previous_hash: None,
            previous_revision: None,
        };
        let plan = Plan::of(&candidate.loaded, &self.context);
        self.events.retain(|event| event.name != event::CONFIG_LOCKED);
        self.events.push(applied.into());
        self.events.extend(locked(&candidate.loaded));
        let Candidate { loaded, answer, revision, .. } = candidate;
        self.take(*loaded, answer, revision, plan);
    }

    /// What is in force runs.
    pub(crate) fn is_applied(&mut self) {
        let (hash, revision) = (self.loaded.settings.config_hash(), self.context.revision.get());
        let now = self.context.clock.now();
        self.status.change(|facts| {
            let is_same = facts
                .applied
                .as_ref()
                .is_some_and(|applied| applied.hash == hash && applied.revision == revision);
            if !is_same {
                facts.applied = Some(Applied { hash, revision, at: now });
            }
        });
    }

    /// What came from the server: when to ask again, and what is to be put in force, if anything.
    pub(crate) fn hear(
        &mut self,
        fetched: Result<FetchedConfig, FetchError>,
    ) -> (Outcome, Option<Candidate>) {
        let now = self.context.clock.now();
        self.became = Became::Unchanged;
        let answer = match fetched {
            Ok(FetchedConfig::Answer(answer)) => answer,
            Ok(FetchedConfig::Unchanged { is_signed }) => {
                if is_signed {
                    self.status.change(|facts| facts.signed_at = Some(now));
                }
                self.answered();
                return (Outcome::Answered, None);
            }
            // What it said before is still its word: it retracts by an empty configuration.
            Ok(FetchedConfig::Nothing) => {
                self.answered();
                return (Outcome::Answered, None);
            }
            Err(failure) if failure.is_refusal() => {
                self.tried(ConfigOrigin::Server, None);
                self.refuse(ConfigOrigin::Server, failure.content(), causes(&failure));
                return (Outcome::Answered, None);
            }
            Err(failure) => {
                let reason = causes(&failure);
                if !mem::replace(&mut self.is_away, true) {
                    warn!(
                        code = "managed_config_fetch_failed",
                        reason, "managed configuration could not be fetched"
                    );
                }
                self.became = Became::NoAnswer(reason);
                let passes = failure.is_passing();
                return (if passes { Outcome::Failed } else { Outcome::Answered }, None);
            }
        };
        self.answered();
        if self.manager.as_ref().is_some_and(|manager| manager.has_signed(&answer)) {
            self.status.change(|facts| facts.signed_at = Some(now));
        }
        if self.answer.as_ref().is_some_and(|known| known.body == answer.body) {
            self.keep(&answer);
            self.answer = Some(answer);
            self.clear(ConfigOrigin::Server);
            return (Outcome::Answered, None);
        }
        let content = Digest::of(answer.body.as_bytes());
        let accepted = self.accept(Some(answer), TestScope::Managed);
        let revision = accepted.as_ref().ok().and_then(|candidate| candidate.revision.clone());
        self.tried(ConfigOrigin::Server, revision);
        match accepted {
            Ok(candidate) => (Outcome::Answered, Some(candidate)),
            Err(reason) => {
                self.refuse(ConfigOrigin::Server, content, reason);
                (Outcome::Answered, None)
            }
        }
    }

    /// Reads all layers again, since files have changed or somebody asks for it.
    pub(crate) fn read_files(&mut self, is_asked: bool) -> Option<Candidate> {
        self.is_asked = is_asked;
        self.became = Became::Unchanged;
        self.tried(ConfigOrigin::Files, self.context.revision.get());
        let accepted = self.accept(self.answer.clone(), TestScope::All);
        let accepted = accepted.and_then(|candidate| {
            self.named.extend(named_files(&candidate.loaded.settings, &self.context));
            match candidate.loaded.missing_for_delivery() {
                Some(missing) => Err(causes(&missing)),
                None => Ok(candidate),
            }
        });
        let refuse =
            |reason: String| self.refuse(ConfigOrigin::Files, self.content(&reason), reason);
        accepted.map_err(refuse).ok()
    }

    /// Puts a candidate from `from` in the place of what runs: what has to be built anew for that,
    /// or nothing when it can't be, and all is as before.
    pub(crate) fn change(
        &mut self,
        candidate: Candidate,
        from: ConfigOrigin,
        waker: &Waker,
    ) -> Option<Reload> {
        let mut context = self.context.clone();
        context.poll_interval = candidate.loaded.settings.agent.poll_interval;
        let Candidate { loaded, stages, answer, revision } = candidate;
        let plan = Plan::of(&loaded, &context);
        let before = self.context.revision.get();
        let mut events = Vec::new();
        if plan != self.plan || revision != before {
            self.became = Became::InForce;
            let applied = AgentEvent::ConfigApplied {
                hash: loaded.settings.config_hash(),
                revision: revision.clone(),
                previous_hash: Some(self.loaded.settings.config_hash()),
                previous_revision: Some(before),
            };
            events.push(applied.into());
        }
        events.extend(locked(&loaded).filter(|event| !is_known(event, &self.loaded)));
        let built = self
            .plan
            .to(&plan, &loaded, stages, &context, waker, events)
            .and_then(|reload| Ok((reload, assembly::manager(&loaded, &context)?)));
        let (reload, manager) = match built {
            Ok(built) => built,
            Err(error) => {
                let reason = causes(&error);
                let content = match (from, &answer) {
                    (ConfigOrigin::Server, Some(answer)) => Digest::of(answer.body.as_bytes()),
                    _ => self.content(&reason),
                };
                self.refuse(from, content, reason);
                return None;
            }
        };
        self.context = context;
        self.manager = manager;
        self.clear(from);
        self.take(*loaded, answer, revision, plan);
        Some(reload)
    }

    /// Puts an answer over the local layers, as they are now.
    fn accept(&self, answer: Option<SignedConfig>, tests: TestScope) -> Result<Candidate, String> {
        managed::accept(self.surroundings, self.explicit, answer, &self.context, tests)
    }

    fn take(
        &mut self,
        loaded: LoadedConfig,
        answer: Option<SignedConfig>,
        revision: Option<String>,
        plan: Plan,
    ) {
        self.warn(&loaded);
        self.named = named_files(&loaded.settings, &self.context);
        self.context.revision.set(revision);
        (self.loaded, self.plan) = (Arc::new(loaded), plan);
        self.desk.is_in_force(&self.loaded, &self.context);
        if let Some(answer) = &answer
            && self.answer.as_ref() != Some(answer)
        {
            self.keep(answer);
        }
        self.answer = answer;
    }

    /// Keeps an answer for when the server is away.
    fn keep(&self, answer: &SignedConfig) {
        if managed::kept(self.state_dir).ok().flatten().as_ref() == Some(answer) {
            return;
        }
        if let Err(error) = answer.save(self.state_dir) {
            warn!(code = "managed_config_store_failed", %error, "managed configuration cannot be kept for when the server is away");
        }
    }

    /// Logs what a configuration warns of that the one before did not.
    fn warn(&self, loaded: &LoadedConfig) {
        let known = &self.loaded.warnings;
        for warning in loaded.warnings.iter().filter(|warning| !known.contains(warning)) {
            warn!(code = "config_warning", "{warning}");
        }
        let moved = &loaded.settings.agent.state_dir;
        if moved != self.state_dir && *moved != self.loaded.settings.agent.state_dir {
            warn!(
                code = "state_dir_changed",
                "`agent.state_dir` is `{}` now, which takes effect at the next start",
                moved.display()
            );
        }
    }

    /// Names what the layers' files hold and what is wrong with it, so that it is said once.
    fn content(&self, reason: &str) -> Digest {
        let mut all = reason.as_bytes().to_vec();
        for path in config::files(&self.surroundings.inputs(self.explicit)) {
            let bytes = fs::read(&path).map(|bytes| Digest::of(&bytes)).unwrap_or_default();
            all.extend_from_slice(path.as_os_str().as_encoded_bytes());
            all.extend_from_slice(bytes.as_bytes());
        }
        Digest::of(&all)
    }

    fn answered(&mut self) {
        if mem::take(&mut self.is_away) {
            info!("the server that manages the configuration answers again");
        }
    }

    fn tried(&mut self, from: ConfigOrigin, revision: Option<String>) {
        let at = self.context.clock.now();
        let attempted = Some(Attempted { from, revision, at });
        self.status.change(|facts| facts.attempted = attempted);
    }

    /// Says why a configuration is refused: once for each content.
    fn refuse(&mut self, from: ConfigOrigin, content: Digest, reason: String) {
        /// More are no accident; then they are said again.
        const MOST: usize = 1000;

        self.became = Became::Refused(reason.clone());
        if self.refused.len() >= MOST {
            self.refused.clear();
        }
        let is_new = self.refused.insert((from, content));
        if mem::take(&mut self.is_asked) || is_new {
            error!(
                code = "config_refused",
                reason,
                "{}",
                match from {
                    ConfigOrigin::Server =>
                        "managed configuration was refused, what was in force stays",
                    ConfigOrigin::Files => "configuration was refused, what was in force stays",
                }
            );
        }
        if !is_new {
            return;
        }
        self.events.push(AgentEvent::ConfigRefused { from, reason: reason.clone() }.into());
        let at = self.context.clock.now();
        self.status.change(|facts| facts.refused = Some(Refused { from, reason, at }));
    }

    /// Something better came from where one was refused.
    fn clear(&mut self, from: ConfigOrigin) {
        self.refused.retain(|(known, _)| *known != from);
        self.status.change(|facts| {
            facts.refused = facts.refused.take().filter(|refused| refused.from != from);
        });
    }
}

/// What was set in vain, to report.
fn locked(loaded: &LoadedConfig) -> impl Iterator<Item = Event> + use<> {
    let attempts: Vec<_> = loaded
        .locked_overrides
        .iter()
        .map(|attempt| LockedKey {
            key: attempt.key.clone(),
            layer: attempt.location.origin.layer().to_owned(),
        })
        .collect();
    (!attempts.is_empty()).then(|| AgentEvent::ConfigLocked { attempts }.into()).into_iter()
}

fn is_known(event: &Event, loaded: &LoadedConfig) -> bool {
    locked(loaded).any(|known| known == *event)
}
