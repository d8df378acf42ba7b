//! Configuration in force, and the checks that another must pass to replace it.

mod file_part;
mod server_part;

use std::{
    collections::BTreeSet,
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{AgentEvent, Digest, agent_event::LockedKey, names::event};
use tracing::{error, warn};

use super::{
    config_sequence::{ConfigCopy, HighestSerial},
    config_sources::ConfigSources,
    file_watch::{self, ConfigFileWatch, StampReader},
    handle::{AgentHandle, Orders, ReloadOutcome},
    managed_config::{self, AdmissionError, Candidate, Refusal},
    policy_files::PolicyFiles,
    status_file::StatusFile,
};
use crate::{
    config::{ConfigError, LoadedConfig},
    event::Event,
    pipeline::{
        assembly,
        config_status::{Applied, Attempted, ConfigOrigin, ManagedLayer, Refused},
        outbox::Outbox,
        reload::{Plan, Reload, named_files},
        validate::TestScope,
    },
    siem::{Connection, SignedConfig},
    stages::{AgentContext, source::Waker},
    text::causes,
};

/// Name of the memo in the outbox with the highest serial that was applied.
const HIGHEST_SERIAL: &str = "config-serial";

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
    /// Hash, serial and expiry of that layer.
    managed: Option<ManagedLayer>,
    /// Highest serial that was ever applied, as far as it is known.
    highest: Option<HighestSerial>,
    /// The outbox, which remembers that serial, once a pipeline runs.
    outbox: Option<Arc<Outbox>>,
    /// Content that was last found to be meant for others; it is logged once.
    not_meant: Option<Digest>,
    /// Files for hooks and for the next start.
    pub(super) files: PolicyFiles,
    /// The server that manages this agent.
    manager: Option<Connection>,
    /// Files that it was read from.
    pub(super) watch: ConfigFileWatch,
    /// Files that it, and any configuration tried since, names; a change of one causes another try.
    named: BTreeSet<PathBuf>,
    stamps: StampReader,
    /// True if the last attempt failed since a file did not answer: all files are read again once it
    /// does.
    is_read_due: bool,
    /// Contents that were refused; each is logged once.
    refused: BTreeSet<(ConfigOrigin, Digest)>,
    /// True if a person requested the last attempt: its refusal is logged again, even if it repeats.
    is_ordered: bool,
    /// True if the last request to the server failed.
    is_server_away: bool,
    /// True if the groups of the user were not known when they last counted.
    are_groups_unknown: bool,
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
        let files = PolicyFiles::new(state_dir, sources.paths(), &context.sandbox);
        let manager = Self {
            sources,
            state_dir: state_dir.to_owned(),
            context,
            events: config_locked(&local).collect(),
            loaded: local,
            plan,
            answer: None,
            managed: None,
            highest: None,
            outbox: None,
            not_meant: None,
            files,
            manager,
            watch,
            named,
            stamps: StampReader::default(),
            is_read_due: false,
            refused: BTreeSet::new(),
            is_ordered: false,
            is_server_away: false,
            are_groups_unknown: false,
            status,
            handle,
            outcome: ReloadOutcome::Unchanged,
        };
        Ok((manager, orders))
    }

    /// Extra configuration file of this process, if there is one.
    pub(super) fn explicit_config(&self) -> Option<PathBuf> {
        self.sources.explicit().map(ToOwned::to_owned)
    }

    /// Removes and returns the events to report.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// Uses the outbox of a pipeline that is about to run. Returns the events to report.
    pub(super) fn attach(&mut self, outbox: &Arc<Outbox>) -> Vec<Event> {
        self.outbox = Some(Arc::clone(outbox));
        let stored: Option<HighestSerial> = outbox.memo(HIGHEST_SERIAL).ok().flatten();
        let is_lower =
            |highest: &HighestSerial| stored.is_none_or(|stored| stored.serial < highest.serial);
        match self.highest.filter(is_lower) {
            Some(highest) => self.store_highest(highest),
            // It may have been unreadable at the start.
            None => self.highest = stored,
        }
        self.files.attach(outbox)
    }

    /// Puts a configuration in force before a pipeline runs.
    pub(super) fn start_with(&mut self, candidate: Candidate) {
        let applied = AgentEvent::ConfigApplied {
            hash: candidate.loaded.settings.config_hash(),
            revision: candidate.revision.clone(),
            previous_hash: None,
            previous_revision: None,
        };
        let plan = self.bounded(|| Plan::of(&candidate.loaded, &self.context));
        self.events.retain(|event| event.name != event::CONFIG_LOCKED);
        self.events.push(applied.into());
        self.events.extend(config_locked(&candidate.loaded));
        let Candidate { loaded, answer, revision, managed, .. } = candidate;
        self.put_in_force(*loaded, answer, revision, managed, plan);
    }

    /// Notes that a pipeline runs with the configuration in force.
    pub(super) fn mark_applied(&mut self) {
        let (hashes, revision) = (self.loaded.hashes.clone(), self.context.revision.get());
        let now = self.context.clock.now();
        let transport = Some(self.bounded(|| self.loaded.transport()));
        let managed = self.managed.clone();
        self.status.change(|status| {
            status.transport = transport;
            status.managed = managed;
            let is_same = |applied: &&mut Applied| {
                applied.hashes.whole == hashes.whole && applied.revision == revision
            };
            match status.applied.as_mut().filter(is_same) {
                // A value may have moved to another layer.
                Some(applied) => applied.hashes = hashes,
                None => status.applied = Some(Applied { hashes, revision, at: now }),
            }
        });
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
        context.organisation_keys.clone_from(&candidate.loaded.settings.managed_keys);
        let Candidate { loaded, stages, answer, revision, managed, files } = candidate;
        // Before they are read, so that a change in between is detected.
        self.named.extend(named_files(&loaded.settings, &context));
        self.watch_named();
        let plan = self.bounded(|| Plan::of(&loaded, &context));
        let before = self.context.revision.get();
        let mut events = Vec::new();
        let serial = |managed: &Option<ManagedLayer>| managed.as_ref().and_then(|it| it.serial);
        if plan != self.plan || revision != before || serial(&managed) != serial(&self.managed) {
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
        let built = self.bounded(|| {
            let reload = self.plan.to(&plan, &loaded, stages, &context, waker, events)?;
            Ok((reload, assembly::manager(&loaded, &context)?))
        });
        let (reload, manager) = match built {
            Ok(built) => built,
            Err(error) => {
                let error: ConfigError = error;
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
        self.put_in_force(*loaded, answer, revision, managed, plan);
        Some(reload)
    }

    /// Builds the local layers, as they are now, with an answer on top.
    fn accept(&self, answer: Option<SignedConfig>, tests: TestScope) -> Result<Candidate, Refusal> {
        self.bounded(|| managed_config::accept(&self.sources, answer, &self.context, tests))
    }

    /// Runs `action`, which reads files of the configuration: those that do not answer in time cannot
    /// be read.
    fn bounded<T>(&self, action: impl FnOnce() -> T) -> T {
        self.context.calls.scope(action)
    }

    /// Builds the local layers, as they are now, with the managed configuration in force on top. If
    /// the machine's file has keys by now that did not sign it, it no longer counts.
    fn accept_in_force(&self) -> Result<Candidate, Refusal> {
        let accepted = self.accept(self.answer.clone(), TestScope::All)?;
        let (settings, identity) = (&accepted.loaded.settings, &self.context.identity);
        let keys = &settings.managed_keys;
        let Some(answer) = self.answer.as_ref().filter(|_| !keys.is_empty()) else {
            return Ok(accepted);
        };
        let fresh = ConfigCopy::Fresh;
        let reason = match answer.verify_organisation(keys) {
            Ok(()) => {
                let admit = || managed_config::admit(answer, true, identity, self.highest, fresh);
                match self.bounded(admit) {
                    // It was admitted before, and the directory service does not answer now.
                    Ok(_) | Err(AdmissionError::Groups(_)) => None,
                    Err(error) => Some(causes(&error)),
                }
            }
            Err(error) => Some(causes(&error)),
        };
        let Some(reason) = reason else { return Ok(accepted) };
        warn!(
            code = "managed_config_unproven",
            reason, "managed configuration is not used until the server sends it again"
        );
        self.accept(None, TestScope::All)
    }

    fn put_in_force(
        &mut self,
        loaded: LoadedConfig,
        answer: Option<SignedConfig>,
        revision: Option<String>,
        managed: Option<ManagedLayer>,
        plan: Plan,
    ) {
        self.log_new_warnings(&loaded);
        self.named = named_files(&loaded.settings, &self.context);
        self.context.revision.set(revision, managed.as_ref().map(|managed| managed.hash));
        self.note_serial(managed.as_ref());
        self.managed = managed;
        (self.loaded, self.plan) = (Arc::new(loaded), plan);
        self.handle.set_in_force(&self.loaded, &self.context);
        if let Some(answer) = &answer
            && self.answer.as_ref() != Some(answer)
        {
            self.store(answer);
        }
        self.answer = answer;
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
        self.is_read_due |= from == ConfigOrigin::Files && self.silent_file().is_some();
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
        let hash = (from == ConfigOrigin::Server).then_some(content);
        self.events.push(AgentEvent::ConfigRefused { from, reason: reason.clone(), hash }.into());
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
