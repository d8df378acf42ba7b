//! Follows the releases of the receiver while a pipeline runs, and installs them if the configuration
//! says so.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use siem_protocol::{
    AgentEvent,
    agent_event::{UpdateMode, UpdateReason, UpdateState, UpdateSummary},
    update::UpdateRelease,
};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{error, info, warn};

use super::{
    handle::AgentHandle,
    poll_schedule::{Outcome, PollSchedule},
    update_confirm,
};
use crate::{
    config::{LoadedConfig, UpdateSettings},
    pipeline::{assembly, runner::PipelineHandle},
    platform::Timestamp,
    stages::AgentContext,
    text::causes,
    update::{
        self, Decision, DownloadLock, Installation, Limits, NotReplaceable, ProgramFiles,
        StoredState, UpdateError, UpdateRecord, Updater, Wish, swap,
    },
};

/// Longest time until the first check, if one is due at the start.
const FIRST: Duration = Duration::from_secs(5);
/// Time until the next check while an update is not confirmed.
const WHILE_UNCONFIRMED: Duration = Duration::from_secs(10);

/// True once this process has replaced its program. The pipeline that began it may have been restarted
/// meanwhile, so that nothing waited for the result.
static IS_REPLACED: AtomicBool = AtomicBool::new(false);

/// Outcome of a check.
enum Next {
    /// The next one follows after this time.
    After(Duration),
    /// The program was replaced.
    Installed,
}

/// Follows the releases of the receiver while one pipeline runs.
pub(super) struct SelfUpdate {
    handle: AgentHandle,
    pipeline: PipelineHandle,
    state_dir: PathBuf,
    /// Directory of downloads.
    dir: PathBuf,
    /// Extra configuration file, which a new program is tested with.
    config: Option<PathBuf>,
    state: StoredState,
    schedule: PollSchedule,
}

impl SelfUpdate {
    /// Follows releases. Events are reported to `pipeline`.
    pub(super) fn new(
        handle: AgentHandle,
        pipeline: PipelineHandle,
        state_dir: &Path,
        config: Option<PathBuf>,
    ) -> Self {
        let dir = update::dir(state_dir);
        let state = StoredState::read(&dir);
        let (state_dir, schedule) = (state_dir.to_owned(), PollSchedule::default());
        Self { handle, pipeline, state_dir, dir, config, state, schedule }
    }

    /// Returns once the program was replaced, so that the agent must be started again.
    pub(super) async fn run(mut self) {
        let mut pause = self.first_pause();
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.handle.update_check_ordered() => {}
            }
            match self.check().await {
                Next::After(next) => pause = next,
                Next::Installed => return,
            }
        }
    }

    /// Returns the time until the first check: the rest of the interval since the last one.
    fn first_pause(&self) -> Duration {
        let (loaded, context) = self.handle.in_force();
        let checked = self.state.checked_at.as_deref();
        let checked = checked.and_then(|at| humantime::parse_rfc3339(at).ok());
        let now = context.clock.now();
        // A clock that was set back tells nothing about the time that has passed.
        let checked = checked.map(Timestamp::from).filter(|at| *at <= now);
        let rest = checked
            .map_or(Duration::ZERO, |at| loaded.settings.update.interval.saturating_sub(now - at));
        rest.max(FIRST.mul_f64(fastrand::f64()))
    }

    async fn check(&mut self) -> Next {
        let (loaded, context) = self.handle.in_force();
        let settings = &loaded.settings.update;
        let record = match ProgramFiles::of_current() {
            Ok(files) => self.last_update(files).await,
            Err(_) => None,
        };
        let next = if record.as_ref().is_some_and(UpdateRecord::is_pending) {
            match IS_REPLACED.load(Ordering::Acquire) {
                true => Next::Installed,
                false => Next::After(WHILE_UNCONFIRMED),
            }
        } else if settings.mode == UpdateMode::Off {
            update::remove_downloads(&self.dir);
            Next::After(Duration::MAX)
        } else {
            match updater(&loaded, &context, &self.dir) {
                Ok(Some(updater)) => self.check_with(&updater, settings, record.as_ref()).await,
                // Without a receiver of our own protocol there is none to ask.
                Ok(None) => Next::After(settings.interval),
                Err(error) => {
                    let error = UpdateError::unavailable(UpdateReason::Download, error);
                    self.unavailable(&error, settings)
                }
            }
        };
        self.publish(settings.mode, record.as_ref());
        next
    }

    /// Returns the record of the last update. If its process was killed, or found the disk full, the record
    /// is corrected, and the end of the update reported.
    async fn last_update(&self, files: ProgramFiles) -> Option<UpdateRecord> {
        let record = UpdateRecord::read(&files)?;
        if !record.is_pending() || IS_REPLACED.load(Ordering::Acquire) {
            return Some(record);
        }
        let settled = files.clone();
        let record = unrestricted(move || swap::settle(&settled)).await.unwrap_or(Some(record));
        if UpdateRecord::read(&files).is_some_and(|record| !record.is_pending()) {
            update_confirm::report(&self.pipeline, self.state_dir.clone()).await;
        }
        record
    }

    async fn check_with(
        &mut self,
        updater: &Updater,
        settings: &UpdateSettings,
        record: Option<&UpdateRecord>,
    ) -> Next {
        let rolled_back = self.state.rolled_back(record);
        let checked = updater.check(Wish::Mode(settings.mode), rolled_back).await;
        let decision = match checked {
            Ok(decision) => decision,
            Err(error @ UpdateError::Unavailable { .. }) => {
                return self.unavailable(&error, settings);
            }
            Err(error) => {
                self.mark_checked();
                self.report_error(&error, updater, None);
                return self.after(Outcome::Answered, settings);
            }
        };
        self.mark_checked();
        match decision {
            Decision::Available(release) => match replaceable(settings.mode).await {
                Err((reason, detail)) => self.announce(updater, &release, reason, detail),
                Ok(files) => return self.update(updater, settings, &release, files).await,
            },
            other => self.note(&other),
        }
        self.after(Outcome::Answered, settings)
    }

    /// Notes the decision that nothing is to be installed.
    fn note(&mut self, decision: &Decision) {
        match decision {
            Decision::Current => {
                self.state.set(UpdateState::Current, None);
                update::remove_downloads(&self.dir);
            }
            Decision::Waiting(release, reason) => {
                self.state.set(UpdateState::Waiting, Some(release));
                self.state.reason = Some(*reason);
            }
            Decision::RolledBack(release) => {
                self.state.set(UpdateState::RolledBack, Some(release));
                self.state.reason = Some(UpdateReason::RolledBackBefore);
            }
            Decision::Available(release) => {
                self.state.set(UpdateState::Available, Some(release));
            }
        }
    }

    /// Reports a release that the agent does not install.
    fn announce(
        &mut self,
        updater: &Updater,
        release: &UpdateRelease,
        reason: UpdateReason,
        detail: Option<String>,
    ) {
        self.state.set(UpdateState::Available, Some(release));
        (self.state.reason, self.state.detail) = (Some(reason), detail);
        let (from, to) = (&updater.identity.agent_version, release.version.to_string());
        if self.state.is_new_report(&format!("available {to}")) {
            info!(
                code = "update_available",
                version = to,
                reason = reason.as_str(),
                "a newer release is available"
            );
            let event = AgentEvent::UpdateAvailable { from: from.clone(), to, reason };
            self.pipeline.report(event.into());
        }
    }

    /// Downloads, verifies and installs a release.
    async fn update(
        &mut self,
        updater: &Updater,
        settings: &UpdateSettings,
        release: &UpdateRelease,
        files: ProgramFiles,
    ) -> Next {
        self.state.set(UpdateState::Downloading, Some(release));
        self.publish(settings.mode, None);
        match self.try_update(updater, settings, release, files).await {
            Ok(Some(changed)) => {
                self.note(&changed);
                // The next check decides, with the configuration that is then in force.
                self.after(Outcome::Failed, settings)
            }
            Ok(None) => {
                let version = release.version.to_string();
                info!(code = "update_in_place", version, "restarting with the new release");
                self.state.set(UpdateState::Unconfirmed, Some(release));
                self.publish(settings.mode, None);
                Next::Installed
            }
            Err(error @ UpdateError::Unavailable { .. }) => {
                self.state.reason = Some(error.reason());
                self.state.detail = Some(error.detail().to_owned());
                self.unavailable(&error, settings)
            }
            Err(error) => {
                self.report_error(&error, updater, Some(release));
                self.after(Outcome::Answered, settings)
            }
        }
    }

    /// Same as [`update`](Self::update). Returns the decision that counts in the meantime, if it is another
    /// one than to install this release.
    async fn try_update(
        &mut self,
        updater: &Updater,
        settings: &UpdateSettings,
        release: &UpdateRelease,
        files: ProgramFiles,
    ) -> Result<Option<Decision>, UpdateError> {
        let downloads = DownloadLock::take(&self.dir)?;
        let Some(staged) = self.fetch(updater, settings, release, &downloads).await? else {
            return Ok(Some(Decision::Available(Box::new(release.clone()))));
        };
        if let Some(changed) = self.check_again(updater, settings, release).await? {
            return Ok(Some(changed));
        }
        let (release, config) = (release.clone(), self.config.clone());
        let (handle, at) = (self.handle.clone(), self.handle.in_force().1.clock.now());
        let install = move || {
            let installed = Installation {
                staged: &staged,
                downloads: &downloads,
                release: &release,
                files: &files,
                config: config.as_deref(),
                at,
                is_supervised: true,
            }
            .run();
            if installed.is_ok() {
                IS_REPLACED.store(true, Ordering::Release);
                handle.check_for_update();
            } else if UpdateRecord::read(&files).is_some_and(|it| it.to_sha256 == release.sha256) {
                // The caller reports the error: the next start would report it again.
                drop(swap::mark_reported(&files));
            }
            installed.map(|()| None)
        };
        unrestricted(install).await?
    }

    /// Downloads a release; `None` if `[update]` changes meanwhile, which orders another check.
    async fn fetch(
        &mut self,
        updater: &Updater,
        settings: &UpdateSettings,
        release: &UpdateRelease,
        downloads: &DownloadLock,
    ) -> Result<Option<PathBuf>, UpdateError> {
        let (handle, was_ordered) = (&self.handle, AtomicBool::new(false));
        let changed = async {
            while handle.in_force().0.settings.update == *settings {
                handle.update_check_ordered().await;
                was_ordered.store(true, Ordering::Relaxed);
            }
        };
        let fetched = tokio::select! {
            fetched = updater.fetch(downloads, release, &mut self.state) => fetched.map(Some),
            () = changed => Ok(None),
        };
        if was_ordered.load(Ordering::Relaxed) {
            // This wait has taken the order.
            handle.check_for_update();
        }
        fetched
    }

    /// Decides once more about a release that was downloaded, which may have taken long: its roll-out may
    /// have been halted because of a defect. Returns the decision if it is not to be installed now.
    async fn check_again(
        &self,
        updater: &Updater,
        settings: &UpdateSettings,
        release: &UpdateRelease,
    ) -> Result<Option<Decision>, UpdateError> {
        let decision = match self.handle.in_force().0.settings.update == *settings {
            true => updater.check(Wish::Mode(settings.mode), &[]).await?,
            // To install it or not: the next check decides.
            false => return Ok(Some(Decision::Available(Box::new(release.clone())))),
        };
        Ok(match decision {
            Decision::Available(found) if found.sha256 == release.sha256 => None,
            changed => Some(changed),
        })
    }

    /// Reports a release that was refused or cannot be installed: once, since each check finds it again.
    fn report_error(
        &mut self,
        error: &UpdateError,
        updater: &Updater,
        release: Option<&UpdateRelease>,
    ) {
        let (reason, detail) = (error.reason(), error.detail().to_owned());
        self.state.set(UpdateState::Failed, release);
        (self.state.reason, self.state.detail) = (Some(reason), Some(detail.clone()));
        let to = release.map(|release| release.version.to_string());
        let file = release.map(|release| release.sha256.to_string());
        let subject = format!("{} {to:?} {file:?}", reason.as_str());
        if !self.state.is_new_report(&subject) {
            return;
        }
        let (from, version) = (updater.identity.agent_version.clone(), to.as_deref());
        let event = match error {
            UpdateError::Refused { .. } => {
                error!(
                    code = "update_refused",
                    version,
                    reason = reason.as_str(),
                    detail,
                    "a release was refused: it is not what the organisation signed"
                );
                AgentEvent::UpdateRefused { from, to, reason, detail }
            }
            _ => {
                warn!(
                    code = "update_failed",
                    version,
                    reason = reason.as_str(),
                    detail,
                    "a release cannot be installed; this one stays in place"
                );
                AgentEvent::UpdateFailed { from, to: to.unwrap_or_default(), reason, detail }
            }
        };
        self.pipeline.report(event.into());
    }

    /// Notes a receiver that cannot be reached or does not deliver: no failure, as with data.
    fn unavailable(&mut self, error: &UpdateError, settings: &UpdateSettings) -> Next {
        let next = self.after(Outcome::Failed, settings);
        if let Next::After(pause) = next {
            let (reason, seconds) = (error.detail(), pause.as_secs());
            info!(code = "update_check_postponed", reason, seconds, "no release was fetched");
        }
        next
    }

    fn after(&mut self, outcome: Outcome, settings: &UpdateSettings) -> Next {
        Next::After(self.schedule.next(outcome, settings.interval, fastrand::f64()))
    }

    fn mark_checked(&mut self) {
        let now = self.handle.in_force().1.clock.now();
        self.state.checked_at = Some(now.to_string());
    }

    /// Shows the state in heartbeats and `status`, and stores it.
    fn publish(&self, mode: UpdateMode, record: Option<&UpdateRecord>) {
        let version = crate::version::version();
        self.handle.updates().set(update::summary(mode, &self.state, record, version));
        if mode == UpdateMode::Off {
            return;
        }
        if let Err(error) = self.state.write(&self.dir) {
            // After a restart, problems are reported once more.
            tracing::debug!(%error, "cannot write the state of updates");
        }
    }
}

/// Returns the state of updates at the start of an agent.
pub(crate) fn summary_at_start(settings: &UpdateSettings, state_dir: &Path) -> UpdateSummary {
    let files = ProgramFiles::of_current().ok();
    let record = files.as_ref().and_then(swap::look);
    let state = StoredState::read(&update::dir(state_dir));
    update::summary(settings.mode, &state, record.as_ref(), crate::version::version())
}

/// Returns an updater that uses the receiver which manages this agent; `None` without one.
///
/// # Errors
/// The connection cannot be made.
fn updater(
    loaded: &LoadedConfig,
    context: &AgentContext,
    dir: &Path,
) -> Result<Option<Updater>, String> {
    let manager = context.calls.scope(|| assembly::manager(loaded, context));
    let connection = manager.map_err(|error| causes(&error))?;
    Ok(connection.map(|connection| Updater {
        connection,
        keys: loaded.settings.update.keys.clone(),
        identity: context.identity.clone(),
        dir: dir.to_owned(),
        program_dir: update::program_dir(),
        limits: Limits::default(),
    }))
}

/// Returns the files of the program, if the agent installs releases.
///
/// # Errors
/// The reason why it does not.
async fn replaceable(mode: UpdateMode) -> Result<ProgramFiles, (UpdateReason, Option<String>)> {
    if mode != UpdateMode::Install {
        return Err((UpdateReason::Notify, None));
    }
    let read_only = |detail: String| (UpdateReason::ReadOnly, Some(detail));
    let files = ProgramFiles::of_current().map_err(|error| read_only(error.to_string()))?;
    let checked = files.clone();
    let check = unrestricted(move || checked.check_replaceable()).await;
    match check.map_err(|error| read_only(error.to_string()))? {
        Ok(()) => Ok(files),
        Err(error @ (NotReplaceable::MachineWide { .. } | NotReplaceable::OpenToAll { .. })) => {
            Err((UpdateReason::MachineWide, Some(causes(&error))))
        }
        Err(error) => Err(read_only(causes(&error))),
    }
}

/// Runs a job that blocks, and that writes beside the program, which the sandbox of the agent forbids.
async fn unrestricted<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpdateError> {
    let failed = |error: String| UpdateError::failed(UpdateReason::Install, error);
    let done = spawn_blocking(|| update::outside::run(job)).await;
    done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}
