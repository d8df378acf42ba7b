//! Configuration in force, and the checks that another must pass to replace it.

use std::{
    collections::BTreeSet,
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{
    AgentEvent, Digest,
    agent_event::{ConfigProof, LockedKey, PolicyFile},
    names::event,
};
use tracing::{error, info, warn};

use super::{
    config_sequence::{ConfigCopy, HighestSerial},
    config_sources::ConfigSources,
    file_watch::{self, ConfigFileWatch, ConfigStamps, StampReader},
    handle::{AgentHandle, Orders, ReloadOutcome},
    managed_config::{self, Admission, Candidate, Refusal, StoredError},
    policy_files::PolicyFiles,
    poll_schedule::Outcome,
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
    platform::bounded::DoesNotAnswer,
    siem::{Connection, FetchError, FetchedConfig, SignedConfig},
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
        let files = PolicyFiles::new(state_dir, sources.paths());
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

    /// Stamps of the files that determine the configuration. If files could not be read and answer by
    /// now, they count as changed.
    pub(super) fn stamps(&mut self) -> ConfigStamps {
        if self.is_read_due && self.silent_file().is_none() {
            self.is_read_due = false;
            self.watch.mark_read(ConfigStamps::default());
        }
        let files = self.sources.layer_files();
        let all: Vec<_> = files.iter().chain(&self.named).cloned().collect();
        let stamps = self.stamps.read(&self.context.calls, &all);
        let of = |path: &PathBuf| (path.clone(), stamps.get(path).copied().flatten());
        ConfigStamps {
            layers: files.iter().map(of).collect(),
            named: self.named.iter().map(of).collect(),
        }
    }

    /// Starts to watch the files that the configuration names by now.
    pub(super) fn watch_named(&mut self) {
        let stamps = self.stamps();
        self.watch.set_named(stamps.named);
    }

    /// Reads the highest serial from the outbox of the previous pipeline. Without one, the stored
    /// managed configuration does not count: an old one may have been put in its place.
    pub(super) fn read_highest_serial(&mut self) {
        if self.loaded.settings.managed_keys.is_empty() {
            return;
        }
        let outbox = Outbox::open_existing(&self.state_dir.join("outbox.redb"));
        let highest = outbox.and_then(|outbox| match outbox {
            Some(outbox) => outbox.memo(HIGHEST_SERIAL),
            None => Ok(None),
        });
        // A damaged outbox is replaced when the pipeline starts.
        self.highest = highest.unwrap_or_else(|error| {
            let reason = causes(&error);
            warn!(code = "config_serial_unknown", reason, "cannot read the serial applied last");
            None
        });
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

    /// Stores the highest serial. Without it, a later start needs the server.
    fn store_highest(&self, highest: HighestSerial) {
        let Some(outbox) = &self.outbox else { return };
        if let Err(error) = outbox.set_memo(HIGHEST_SERIAL, &highest) {
            warn!(
                code = "config_serial_store_failed",
                %error,
                "cannot store the serial of the managed configuration"
            );
        }
    }

    /// Puts the stored managed configuration in force; returns whether there was a valid one.
    pub(super) fn restore_managed(&mut self) -> bool {
        let Some(manager) = &self.manager else { return false };
        let accepted = match managed_config::stored(&self.state_dir) {
            Ok(None) => return false,
            Ok(Some(answer)) => {
                let (settings, identity) = (&self.loaded.settings, &self.context.identity);
                if settings.managed_keys.is_empty() && !manager.accepts(&answer) {
                    Err(StoredError::Refused(managed_config::STORED_IS_FOREIGN.to_owned()))
                } else {
                    managed_config::admit_stored(&answer, settings, identity, self.highest)
                        .and_then(|()| self.accept_stored(answer))
                }
            }
            Err(reason) => Err(StoredError::Refused(reason)),
        };
        match accepted {
            Ok(candidate) => {
                info!(revision = candidate.revision, "stored managed configuration is in force");
                self.start_with(candidate);
                true
            }
            Err(StoredError::Unproven(reason)) => {
                warn!(
                    code = "managed_config_unproven",
                    reason,
                    "stored managed configuration is not used until the server sends it again"
                );
                false
            }
            Err(StoredError::Refused(reason)) => {
                // Reported to the server too: a person who changes the stored copy brings the local
                // configuration back into force.
                self.refuse(ConfigOrigin::Server, Digest::of(reason.as_bytes()), reason);
                false
            }
        }
    }

    fn accept_stored(&self, answer: SignedConfig) -> Result<Candidate, StoredError> {
        self.accept(Some(answer), TestScope::Managed).map_err(|Refusal { reason, .. }| {
            StoredError::Refused(format!("{}: {reason}", managed_config::STORED_IS_INVALID))
        })
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
        let Candidate { loaded, answer, revision, managed, .. } = candidate;
        self.put_in_force(*loaded, answer, revision, managed, plan);
    }

    /// Notes that a pipeline runs with the configuration in force.
    pub(super) fn mark_applied(&mut self) {
        let (hashes, revision) = (self.loaded.hashes.clone(), self.context.revision.get());
        let now = self.context.clock.now();
        let transport = Some(self.loaded.transport());
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
        let (settings, identity) = (&self.loaded.settings, &self.context.identity);
        let is_of_organisation = !settings.managed_keys.is_empty();
        let (highest, fresh) = (self.highest, ConfigCopy::Fresh);
        let admitted = managed_config::admit(&answer, is_of_organisation, identity, highest, fresh);
        let accepted = match admitted {
            Ok(Admission::Meant) => self.accept(Some(answer), TestScope::Managed),
            Ok(Admission::NotMeant) => {
                self.note_other_audience(content);
                return None;
            }
            Err(error) => Err(Refusal::new(&error, Digest::ZERO)),
        };
        let revision = accepted.as_ref().ok().and_then(|candidate| candidate.revision.clone());
        self.mark_attempted(ConfigOrigin::Server, revision);
        accepted.map_err(|refusal| self.refuse(ConfigOrigin::Server, content, refusal.reason)).ok()
    }

    /// Logs once that a configuration is meant for others. As after a 404, what is in force stays:
    /// a roll-out to a part of the fleet must not retract what the rest has.
    fn note_other_audience(&mut self, content: Digest) {
        if self.not_meant.replace(content) != Some(content) {
            info!(
                code = "managed_config_not_meant",
                "managed configuration of the server is not meant for this device and user"
            );
        }
    }

    /// Reads all layers again, because a person ordered it.
    pub(super) fn read_files_by_order(&mut self) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        self.is_ordered = true;
        let stamps = self.stamps();
        self.watch.mark_read(stamps);
        let accepted = self.accept_in_force();
        self.evaluate_files(accepted)
    }

    /// Reads all layers again, because an inspection found changed files with these stamps.
    ///
    /// Returns `None`, and leaves the change to a later inspection, if a file changes while it is
    /// read: a file that is being written may be incomplete, and an empty one would be valid.
    pub(super) fn read_changed_files(&mut self, stamps: ConfigStamps) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        let accepted = self.accept_in_force();
        if self.stamps() != stamps {
            return None;
        }
        self.is_ordered = false;
        self.watch.mark_read(stamps);
        self.evaluate_files(accepted)
    }

    /// Completes the checks of a configuration from files, and refuses it if one has failed.
    fn evaluate_files(&mut self, accepted: Result<Candidate, Refusal>) -> Option<Candidate> {
        self.is_read_due = accepted.is_err() && self.silent_file().is_some();
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
        context.organisation_keys.clone_from(&candidate.loaded.settings.managed_keys);
        let Candidate { loaded, stages, answer, revision, managed, files } = candidate;
        // Before they are read, so that a change in between is detected.
        self.named.extend(named_files(&loaded.settings, &context));
        self.watch_named();
        let plan = Plan::of(&loaded, &context);
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
        self.put_in_force(*loaded, answer, revision, managed, plan);
        Some(reload)
    }

    /// Builds the local layers, as they are now, with an answer on top.
    fn accept(&self, answer: Option<SignedConfig>, tests: TestScope) -> Result<Candidate, Refusal> {
        self.check_files_answer().map_err(|error| Refusal::new(&error, Digest::ZERO))?;
        managed_config::accept(&self.sources, answer, &self.context, tests)
    }

    /// Checks that the files can be read without waiting for a file system for ever: this thread reads
    /// them next.
    fn check_files_answer(&self) -> Result<(), SilentFile> {
        // Otherwise each attempt would wait, and occupy a thread.
        if let Some(place) = self.silent_file() {
            let error = DoesNotAnswer { place: place.clone() }.into();
            return Err(SilentFile { place, error });
        }
        let files = self.config_files();
        let Some(first) = files.first().cloned() else { return Ok(()) };
        let read = self.context.calls.run_with(&first, move |current| {
            for file in files {
                current.set(&file);
                // Errors are reported by the thread that reads the files.
                drop(file_watch::probe(&file));
            }
            Ok(())
        });
        read.map_err(|error| {
            let place = DoesNotAnswer::of(&error).map_or(first, |silent| silent.place.clone());
            SilentFile { place, error }
        })
    }

    /// Returns a file of the configuration that is known not to answer.
    fn silent_file(&self) -> Option<PathBuf> {
        let silent = self.context.calls.silent();
        let is_silent = |file: &PathBuf| silent.iter().any(|(place, _)| file.starts_with(place));
        self.config_files().into_iter().find(is_silent)
    }

    /// Returns the files of the layers, and those that the configuration names.
    fn config_files(&self) -> Vec<PathBuf> {
        let files = self.sources.layer_files().into_iter().chain(self.named.iter().cloned());
        files.collect()
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
            Ok(()) => managed_config::admit(answer, true, identity, self.highest, fresh)
                .err()
                .map(|error| causes(&error)),
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

    /// Notes the serial of a configuration of the organisation before it is stored, and warns if the
    /// configuration is out of date.
    fn note_serial(&mut self, managed: Option<&ManagedLayer>) {
        let Some(managed) = managed else { return };
        if let Some(expires) = managed.expires.filter(|at| *at <= self.context.clock.now()) {
            warn!(
                code = "managed_config_expired",
                %expires,
                "managed configuration is out of date and stays in force: sign a new one"
            );
        }
        let Some(serial) = managed.serial.filter(|_| managed.proof == ConfigProof::Organisation)
        else {
            return;
        };
        if self.highest.is_none_or(|highest| highest.serial < serial) {
            let highest = HighestSerial { serial, content: managed.hash };
            self.highest = Some(highest);
            self.store_highest(highest);
        }
    }

    /// Stores an answer for times when the server is away.
    fn store(&mut self, answer: &SignedConfig) {
        if let Err(error) = self.files.write(PolicyFile::Managed, answer.to_file()) {
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

/// A file of the configuration cannot be read in time.
#[derive(Debug, thiserror::Error)]
#[error("`{}` {error}", place.display())]
struct SilentFile {
    place: PathBuf,
    error: io::Error,
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
