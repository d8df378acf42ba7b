//! Configuration in force, and the checks that another must pass to replace it.

use std::{
    collections::BTreeSet,
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{AgentEvent, Digest, agent_event::LockedKey, names::event};
use tracing::{error, info, warn};

use super::{
    config_sources::ConfigSources,
    file_watch::{self, ConfigFileWatch, ConfigStamps, Stamps},
    handle::{AgentHandle, Orders, ReloadOutcome},
    managed_config::{self, Candidate, Refusal},
    poll_schedule::Outcome,
    status_file::StatusFile,
};
use crate::{
    config::{ConfigError, LoadedConfig},
    event::Event,
    pipeline::{
        assembly,
        config_status::{Applied, Attempted, ConfigOrigin, Refused},
        reload::{Plan, Reload, named_files},
        validate::TestScope,
    },
    siem::{Connection, FetchError, FetchedConfig, SignedConfig},
    stages::{AgentContext, source::Waker},
    text::causes,
};

/// The configuration in force, and everything that is needed to try another.
pub(super) struct ConfigManager {
    sources: ConfigSources,
    /// State directory of this process; a change of the setting takes effect at the next start.
    state_dir: PathBuf,
    /// Context to build stages with.
    pub(super) context: AgentContext,
    /// The configuration in force.
    pub(super) loaded: Arc<LoadedConfig>,
    /// Stages and settings that it was built from.
    plan: Plan,
    /// Its managed layer, as received.
    answer: Option<SignedConfig>,
    /// The server that manages this agent.
    manager: Option<Connection>,
    /// Files that it was read from.
    pub(super) watch: ConfigFileWatch,
    /// Files that it, and any configuration tried since, names; a change of one causes another try.
    named: BTreeSet<PathBuf>,
    /// Contents that were refused; each is logged once.
    refused: BTreeSet<(ConfigOrigin, Digest)>,
    /// True if a person requested the last attempt: its refusal is logged again, even if it repeats.
    is_ordered: bool,
    /// True if the last request to the server failed.
    is_server_away: bool,
    pub(super) status: StatusFile,
    pub(super) handle: AgentHandle,
    /// Outcome of the configuration that was tried last.
    pub(super) outcome: ReloadOutcome,
    /// Events to report.
    events: Vec<Event>,
}

impl ConfigManager {
    /// Creates a manager with the local layers in force.
    ///
    /// # Errors
    /// The sink that names the server is wrong.
    pub(super) fn new(
        sources: ConfigSources,
        state_dir: &Path,
        local: LoadedConfig,
        mut watch: ConfigFileWatch,
        context: AgentContext,
    ) -> Result<(Self, Orders), ConfigError> {
        let plan = Plan::of(&local, &context);
        let manager = assembly::manager(&local, &context)?;
        let named = named_files(&local.settings, &context);
        watch.set_named(file_watch::stamps(named.clone()));
        let status = StatusFile::new(state_dir, &*context.clock);
        let local = Arc::new(local);
        let (handle, orders) = AgentHandle::new(
            status.started_at,
            status.config.clone(),
            Arc::clone(&local),
            context.clone(),
        );
        let manager = Self {
            sources,
            state_dir: state_dir.to_owned(),
            context,
            events: config_locked(&local).collect(),
            loaded: local,
            plan,
            answer: None,
            manager,
            watch,
            named,
            refused: BTreeSet::new(),
            is_ordered: false,
            is_server_away: false,
            status,
            handle,
            outcome: ReloadOutcome::Unchanged,
        };
        Ok((manager, orders))
    }

    /// Removes and returns the events to report.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// Returns the server that manages this agent, and the `ETag` of its last response.
    pub(super) fn manager(&self) -> Option<(Connection, Option<String>)> {
        let manager = self.manager.clone()?;
        // An answer signed with another secret is fetched again: at the next start it would prove
        // nothing.
        let answer = self.answer.as_ref().filter(|answer| manager.accepts(answer));
        let etag = answer.and_then(|answer| answer.etag.clone());
        Some((manager, etag))
    }

    /// Stamps of the files that determine the configuration.
    pub(super) fn stamps(&self) -> ConfigStamps {
        let layers = file_watch::stamps(self.sources.layer_files());
        ConfigStamps { layers, named: self.named_stamps() }
    }

    fn named_stamps(&self) -> Stamps {
        file_watch::stamps(self.named.iter().cloned())
    }

    /// Starts to watch the files that the configuration names by now.
    pub(super) fn watch_named(&mut self) {
        let stamps = self.named_stamps();
        self.watch.set_named(stamps);
    }

    /// Puts the stored managed configuration in force; returns whether there was a valid one.
    pub(super) fn restore_managed(&mut self) -> bool {
        let Some(manager) = &self.manager else { return false };
        let accepted = match managed_config::stored(&self.state_dir) {
            Ok(None) => return false,
            Ok(Some(answer)) if !manager.accepts(&answer) => {
                Err(managed_config::STORED_IS_FOREIGN.to_owned())
            }
            Ok(Some(answer)) => self.accept(Some(answer), TestScope::Managed).map_err(|refusal| {
                format!("{}: {}", managed_config::STORED_IS_INVALID, refusal.reason)
            }),
            Err(reason) => Err(reason),
        };
        match accepted {
            Ok(candidate) => {
                info!(revision = candidate.revision, "stored managed configuration is in force");
                self.start_with(candidate);
                true
            }
            Err(reason) => {
                // Reported to the server too: a person who changes the stored copy brings the local
                // configuration back into force.
                self.refuse(ConfigOrigin::Server, Digest::of(reason.as_bytes()), reason);
                false
            }
        }
    }

    /// Puts a configuration in force before a pipeline runs.
    pub(super) fn start_with(&mut self, candidate: Candidate) {
        let applied = AgentEvent::ConfigApplied {
            hash: candidate.loaded.settings.config_hash(),
            revision: candidate.revision.clone(),
            previous_hash: None,
            previous_revision: None,
        };
        let plan = Plan::of(&candidate.loaded, &self.context);
        self.events.retain(|event| event.name != event::CONFIG_LOCKED);
        self.events.push(applied.into());
        self.events.extend(config_locked(&candidate.loaded));
        let Candidate { loaded, answer, revision, .. } = candidate;
        self.put_in_force(*loaded, answer, revision, plan);
    }

    /// Notes that a pipeline runs with the configuration in force.
    pub(super) fn mark_applied(&mut self) {
        let (hash, revision) = (self.loaded.settings.config_hash(), self.context.revision.get());
        let now = self.context.clock.now();
        let transport = Some(self.loaded.transport());
        self.status.change(|status| {
            status.transport = transport;
            let is_same = status
                .applied
                .as_ref()
                .is_some_and(|applied| applied.hash == hash && applied.revision == revision);
            if !is_same {
                status.applied = Some(Applied { hash, revision, at: now });
            }
        });
    }

    /// Evaluates an answer of the server: the outcome for the schedule, and the configuration to put
    /// in force, if any.
    pub(super) fn evaluate(
        &mut self,
        fetched: Result<FetchedConfig, FetchError>,
    ) -> (Outcome, Option<Candidate>) {
        let now = self.context.clock.now();
        self.outcome = ReloadOutcome::Unchanged;
        let answer = match fetched {
            Ok(FetchedConfig::Answer(answer)) => answer,
            Ok(FetchedConfig::Unchanged { is_signed }) => {
                if is_signed {
                    self.status.change(|status| status.signed_at = Some(now));
                }
                self.mark_server_reached();
                return (Outcome::Answered, None);
            }
            // The answer before stays in force: a server retracts it with an empty configuration.
            Ok(FetchedConfig::Nothing) => {
                self.mark_server_reached();
                return (Outcome::Answered, None);
            }
            Err(failure) if failure.is_refusal() => {
                self.mark_attempted(ConfigOrigin::Server, None);
                self.refuse(ConfigOrigin::Server, failure.content(), causes(&failure));
                return (Outcome::Answered, None);
            }
            Err(failure) => {
                let reason = causes(&failure);
                if !mem::replace(&mut self.is_server_away, true) {
                    warn!(
                        code = "managed_config_fetch_failed",
                        reason, "managed configuration could not be fetched"
                    );
                }
                self.outcome = ReloadOutcome::Unavailable(reason);
                let passes = failure.is_passing();
                return (if passes { Outcome::Failed } else { Outcome::Answered }, None);
            }
        };
        self.mark_server_reached();
        (Outcome::Answered, self.evaluate_answer(answer))
    }

    /// Evaluates a managed configuration: the configuration to put in force, if it is new and valid.
    fn evaluate_answer(&mut self, answer: SignedConfig) -> Option<Candidate> {
        let now = self.context.clock.now();
        if self.manager.as_ref().is_some_and(|manager| manager.has_signed(&answer)) {
            self.status.change(|status| status.signed_at = Some(now));
        }
        if self.answer.as_ref().is_some_and(|known| known.body == answer.body) {
            self.store(&answer);
            self.answer = Some(answer);
            self.clear_refusal(ConfigOrigin::Server);
            return None;
        }
        let content = Digest::of(answer.body.as_bytes());
        let accepted = self.accept(Some(answer), TestScope::Managed);
        let revision = accepted.as_ref().ok().and_then(|candidate| candidate.revision.clone());
        self.mark_attempted(ConfigOrigin::Server, revision);
        accepted.map_err(|refusal| self.refuse(ConfigOrigin::Server, content, refusal.reason)).ok()
    }

    /// Reads all layers again, because a person ordered it.
    pub(super) fn read_files_by_order(&mut self) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        self.is_ordered = true;
        self.watch.mark_read(self.stamps());
        let accepted = self.accept(self.answer.clone(), TestScope::All);
        self.evaluate_files(accepted)
    }

    /// Reads all layers again, because an inspection found changed files with these stamps.
    ///
    /// Returns `None`, and leaves the change to a later inspection, if a file changes while it is
    /// read: a file that is being written may be incomplete, and an empty one would be valid.
    pub(super) fn read_changed_files(&mut self, stamps: ConfigStamps) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        let accepted = self.accept(self.answer.clone(), TestScope::All);
        if self.stamps() != stamps {
            return None;
        }
        self.is_ordered = false;
        self.watch.mark_read(stamps);
        self.evaluate_files(accepted)
    }

    /// Completes the checks of a configuration from files, and refuses it if one has failed.
    fn evaluate_files(&mut self, accepted: Result<Candidate, Refusal>) -> Option<Candidate> {
        self.mark_attempted(ConfigOrigin::Files, self.context.revision.get());
        let accepted = accepted.and_then(|candidate| {
            self.named.extend(named_files(&candidate.loaded.settings, &self.context));
            match candidate.loaded.missing_for_delivery() {
                Some(missing) => Err(Refusal::new(&missing, candidate.files)),
                None => Ok(candidate),
            }
        });
        accepted
            .map_err(|refusal| self.refuse(ConfigOrigin::Files, refusal.content(), refusal.reason))
            .ok()
    }

    /// Puts a candidate in force: returns the parts of the pipeline that have to be replaced, or
    /// `None` when they cannot be built, and everything stays as it is.
    pub(super) fn replace(
        &mut self,
        candidate: Candidate,
        from: ConfigOrigin,
        waker: &Waker,
    ) -> Option<Reload> {
        let mut context = self.context.clone();
        context.poll_interval = candidate.loaded.settings.agent.poll_interval;
        let Candidate { loaded, stages, answer, revision, files } = candidate;
        // Before they are read, so that a change in between is detected.
        self.named.extend(named_files(&loaded.settings, &context));
        self.watch_named();
        let plan = Plan::of(&loaded, &context);
        let before = self.context.revision.get();
        let mut events = Vec::new();
        if plan != self.plan || revision != before {
            self.outcome = ReloadOutcome::Applied;
            let applied = AgentEvent::ConfigApplied {
                hash: loaded.settings.config_hash(),
                revision: revision.clone(),
                previous_hash: Some(self.loaded.settings.config_hash()),
                previous_revision: Some(before),
            };
            events.push(applied.into());
        }
        events.extend(config_locked(&loaded).filter(|event| !is_known(event, &self.loaded)));
        let built = self
            .plan
            .to(&plan, &loaded, stages, &context, waker, events)
            .and_then(|reload| Ok((reload, assembly::manager(&loaded, &context)?)));
        let (reload, manager) = match built {
            Ok(built) => built,
            Err(error) => {
                let refusal = Refusal::new(&error, files);
                let content = match (from, &answer) {
                    (ConfigOrigin::Server, Some(answer)) => Digest::of(answer.body.as_bytes()),
                    _ => refusal.content(),
                };
                self.refuse(from, content, refusal.reason);
                return None;
            }
        };
        self.context = context;
        self.manager = manager;
        self.clear_refusal(from);
        self.put_in_force(*loaded, answer, revision, plan);
        Some(reload)
    }

    /// Builds the local layers, as they are now, with an answer on top.
    fn accept(&self, answer: Option<SignedConfig>, tests: TestScope) -> Result<Candidate, Refusal> {
        managed_config::accept(&self.sources, answer, &self.context, tests)
    }

    fn put_in_force(
        &mut self,
        loaded: LoadedConfig,
        answer: Option<SignedConfig>,
        revision: Option<String>,
        plan: Plan,
    ) {
        self.log_new_warnings(&loaded);
        self.named = named_files(&loaded.settings, &self.context);
        self.context.revision.set(revision);
        (self.loaded, self.plan) = (Arc::new(loaded), plan);
        self.handle.set_in_force(&self.loaded, &self.context);
        if let Some(answer) = &answer
            && self.answer.as_ref() != Some(answer)
        {
            self.store(answer);
        }
        self.answer = answer;
    }

    /// Stores an answer for times when the server is away.
    fn store(&self, answer: &SignedConfig) {
        if managed_config::stored(&self.state_dir).ok().flatten().as_ref() == Some(answer) {
            return;
        }
        if let Err(error) = answer.save(&self.state_dir) {
            warn!(
                code = "managed_config_store_failed",
                %error,
                "cannot store the managed configuration for times when the server is away"
            );
        }
    }

    /// Logs warnings of a configuration that the one before did not have.
    fn log_new_warnings(&self, loaded: &LoadedConfig) {
        let known = &self.loaded.warnings;
        for warning in loaded.warnings.iter().filter(|warning| !known.contains(warning)) {
            warn!(code = "config_warning", "{warning}");
        }
        let moved = &loaded.settings.agent.state_dir;
        if *moved != self.state_dir && *moved != self.loaded.settings.agent.state_dir {
            warn!(
                code = "state_dir_changed",
                "`agent.state_dir` is `{}` now, which takes effect at the next start",
                moved.display()
            );
        }
    }

    fn mark_server_reached(&mut self) {
        if mem::take(&mut self.is_server_away) {
            info!("server of the managed configuration answers again");
        }
    }

    fn mark_attempted(&mut self, from: ConfigOrigin, revision: Option<String>) {
        let at = self.context.clock.now();
        let attempted = Some(Attempted { from, revision, at });
        self.status.change(|status| status.attempted = attempted);
    }

    /// Logs and reports a refused configuration: once for each content.
    fn refuse(&mut self, from: ConfigOrigin, content: Digest, reason: String) {
        /// Limit of the memory; beyond it, a refusal is logged again.
        const MAX_KNOWN: usize = 1000;

        self.outcome = ReloadOutcome::Refused(reason.clone());
        if self.refused.len() >= MAX_KNOWN {
            self.refused.clear();
        }
        let is_new = self.refused.insert((from, content));
        if mem::take(&mut self.is_ordered) || is_new {
            error!(
                code = "config_refused",
                reason,
                "{}",
                match from {
                    ConfigOrigin::Server =>
                        "managed configuration was refused; the previous one stays in force",
                    ConfigOrigin::Files =>
                        "configuration was refused; the previous one stays in force",
                }
            );
        }
        if !is_new {
            return;
        }
        self.events.push(AgentEvent::ConfigRefused { from, reason: reason.clone() }.into());
        let at = self.context.clock.now();
        self.status.change(|status| status.refused = Some(Refused { from, reason, at }));
    }

    /// Forgets a refusal, since a valid configuration came from the same origin.
    fn clear_refusal(&mut self, from: ConfigOrigin) {
        self.refused.retain(|(known, _)| *known != from);
        self.status.change(|status| {
            status.refused = status.refused.take().filter(|refused| refused.from != from);
        });
    }
}

/// Event about keys that a layer may not set.
fn config_locked(loaded: &LoadedConfig) -> impl Iterator<Item = Event> + use<> {
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
    config_locked(loaded).any(|known| known == *event)
}

#[cfg(test)]
mod tests;
