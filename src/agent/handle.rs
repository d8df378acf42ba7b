//! Handle to a running agent, for control connections, signals and tests.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use siem_protocol::agent_event::ConfigSummary;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use super::status_file::ConfigReport;
use crate::{
    config::LoadedConfig,
    pipeline::{config_status::SharedConfigStatus, runner::PipelineHandle},
    platform::Timestamp,
    stages::AgentContext,
    update::SharedUpdateSummary,
};

/// Longest time that a reload may take: another one may be in progress, and the server's answer is
/// part of it.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Phase of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// A pipeline is being started or restarted.
    #[default]
    Starting,
    /// A pipeline reads and delivers.
    Running,
    /// The agent is shutting down; it stores and delivers as much as it can.
    Stopping,
}

/// Outcome of reading one part of the configuration again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReloadOutcome {
    /// It differs from the one before, and is in force.
    Applied,
    /// It is the same as before.
    Unchanged,
    /// It was refused, for this reason; the one before stays in force.
    Refused(String),
    /// It could not be fetched, for this reason.
    Unavailable(String),
}

/// Outcome of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReloadReport {
    /// Outcome of the files.
    pub(crate) files: ReloadOutcome,
    /// Outcome of the managed configuration; `None` when no server manages this agent.
    pub(crate) server: Option<ReloadOutcome>,
}

/// Receives the outcome of a reload.
pub(super) type ReloadReply = oneshot::Sender<ReloadReport>;

/// Error of [`AgentHandle::reload`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The agent no longer reloads its configuration.
    #[error("cannot reload: the agent runs with `--once` or is shutting down")]
    Closed,
    /// The change waits for the store.
    #[error(
        "the reload has not finished within {} s: it waits for the outbox, see `ai-agent status`",
        RELOAD_TIMEOUT.as_secs()
    )]
    Timeout,
}

/// Order to read the configuration again.
pub(super) enum ReloadOrder {
    /// By a client, which waits for the outcome.
    Client(ReloadReply),
    /// By SIGHUP.
    HangUp,
}

/// Handle to a running agent.
#[derive(Clone)]
pub(crate) struct AgentHandle(Arc<Shared>);

struct Shared {
    started_at: Timestamp,
    config: SharedConfigStatus,
    in_force: Mutex<(Arc<LoadedConfig>, AgentContext)>,
    state: watch::Sender<State>,
    reloads: mpsc::Sender<ReloadOrder>,
    stop: watch::Sender<bool>,
    updates: SharedUpdateSummary,
    /// Wakes the task that follows releases.
    update_check: Notify,
}

enum State {
    Starting,
    Running(PipelineHandle),
    Stopping,
}

/// The agent's ends of the channels of its handle.
pub(super) struct Orders {
    pub(super) reloads: mpsc::Receiver<ReloadOrder>,
    pub(super) stop: StopOrder,
}

/// Waits for the order to stop.
pub(super) struct StopOrder(watch::Receiver<bool>);

impl StopOrder {
    /// Returns once the order was given.
    pub(super) async fn given(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending().await
        }
    }

    /// Reports whether the order was given.
    pub(super) fn is_given(&self) -> bool {
        *self.0.borrow()
    }
}

impl AgentHandle {
    pub(super) fn new(
        started_at: Timestamp,
        config: SharedConfigStatus,
        loaded: Arc<LoadedConfig>,
        context: AgentContext,
    ) -> (Self, Orders) {
        let (reloads, reload_orders) = mpsc::channel(4);
        let (stop, stopped) = watch::channel(false);
        let (in_force, state) =
            (Mutex::new((loaded, context)), watch::Sender::new(State::Starting));
        let (updates, update_check) = (SharedUpdateSummary::default(), Notify::new());
        let shared =
            Shared { started_at, config, in_force, state, reloads, stop, updates, update_check };
        (Self(Arc::new(shared)), Orders { reloads: reload_orders, stop: StopOrder(stopped) })
    }

    /// Orders the agent to stop in order.
    pub(crate) fn stop(&self) {
        self.0.stop.send_replace(true);
        unpoisoned(&self.0.in_force).1.calls.stop_waiting();
    }

    /// Returns the time when the agent was started.
    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// Configurations in force, tried and refused last.
    pub(crate) fn config_report(&self, now: Timestamp) -> ConfigReport {
        ConfigReport::new(&self.0.config, now)
    }

    /// Configurations in force, tried and refused last, as in heartbeats.
    pub(crate) fn config_summary(&self, now: Timestamp) -> ConfigSummary {
        self.0.config.for_heartbeat(now)
    }

    /// Returns the configuration in force, and the context that its stages were built with.
    pub(crate) fn in_force(&self) -> (Arc<LoadedConfig>, AgentContext) {
        unpoisoned(&self.0.in_force).clone()
    }

    /// Returns the running pipeline, or the phase if none is running.
    pub(crate) fn pipeline(&self) -> Result<PipelineHandle, Phase> {
        match &*self.0.state.borrow() {
            State::Starting => Err(Phase::Starting),
            State::Running(pipeline) => Ok(pipeline.clone()),
            State::Stopping => Err(Phase::Stopping),
        }
    }

    /// Returns the running pipeline, or one that starts within `patience`.
    pub(crate) async fn running_pipeline(
        &self,
        patience: Duration,
    ) -> Result<PipelineHandle, Phase> {
        let mut state = self.0.state.subscribe();
        let started = state.wait_for(|state| !matches!(state, State::Starting));
        // Also after a timeout, the state at this moment decides.
        drop(timeout(patience, started).await);
        self.pipeline()
    }

    /// Reads the configuration again, the server's part included, and waits for the outcome.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub(crate) async fn reload(&self) -> Result<ReloadReport, ReloadError> {
        let (reply, report) = oneshot::channel();
        let reloaded = timeout(RELOAD_TIMEOUT, async {
            self.0.reloads.send(ReloadOrder::Client(reply)).await.ok()?;
            report.await.ok()
        });
        reloaded.await.map_err(|_| ReloadError::Timeout)?.ok_or(ReloadError::Closed)
    }

    /// Reads the configuration again without waiting for the outcome, as SIGHUP does.
    pub(crate) fn hang_up(&self) {
        // With four orders in the queue, one more changes nothing.
        drop(self.0.reloads.try_send(ReloadOrder::HangUp));
    }

    /// State of updates.
    pub(crate) fn updates(&self) -> &SharedUpdateSummary {
        &self.0.updates
    }

    /// Orders a check for a newer release.
    pub(super) fn check_for_update(&self) {
        self.0.update_check.notify_one();
    }

    /// Returns once a check for a newer release was ordered.
    pub(super) async fn update_check_ordered(&self) {
        self.0.update_check.notified().await;
    }

    pub(super) fn set_in_force(&self, loaded: &Arc<LoadedConfig>, context: &AgentContext) {
        let mut in_force = unpoisoned(&self.0.in_force);
        if in_force.0.settings.update != loaded.settings.update {
            self.check_for_update();
        }
        *in_force = (Arc::clone(loaded), context.clone());
    }

    pub(super) fn set_starting(&self) {
        self.0.state.send_replace(State::Starting);
    }

    pub(super) fn set_running(&self, pipeline: PipelineHandle) {
        self.0.state.send_replace(State::Running(pipeline));
    }

    pub(super) fn set_stopping(&self) {
        self.0.state.send_replace(State::Stopping);
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
