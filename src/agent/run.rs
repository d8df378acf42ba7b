//! Runs pipelines one after another, until the agent receives the order to stop, or a fault
//! recurs too often.

use std::{mem, path::Path, sync::Arc, time::Duration};

use tracing::{error, info};

use super::{
    compliance_monitor::ComplianceMonitor,
    config_manager::ConfigManager,
    config_sources::ConfigSources,
    config_updates::{self, ConfigUpdates},
    device_key,
    error::AgentError,
    file_watch::ConfigFileWatch,
    handle::{AgentHandle, Orders},
    outbox_start,
    restart_limit::RestartLimit,
    self_update::{self, SelfUpdate},
    silent_places,
    startable::Startable,
    update_confirm, watchdog,
};
use crate::{
    config::ConfigError,
    event::Event,
    pipeline::{
        assembly,
        delivery::RefusedEntries,
        fault::{CatchUpError, Fault},
        ingest::{Inbox, OnProgress, Until},
        runner::Pipeline,
    },
    platform::{Sandbox, StateLock, service::Notify, test_limits},
    stages::AgentContext,
};

/// Time without progress after which `--once` gives up.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);

/// Restarts within an hour after which the agent gives up: a disk that damages every store cannot be
/// helped by a new one, and a person must see a fault that recurs at once.
const MAX_RESTARTS: usize = 5;

/// Condition on which an agent stops.
pub(crate) enum RunMode {
    /// Until it is stopped.
    Forever,
    /// Until everything that was found is delivered. The function makes a report of progress for
    /// each pipeline.
    Once(Box<dyn Fn() -> OnProgress + Send>),
}

/// End of an agent that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AgentEnd {
    /// It was stopped, or has delivered everything.
    Stopped,
    /// It has replaced its program, which must be started.
    Updated,
}

/// An agent that holds its state directory.
pub(crate) struct Agent {
    manager: ConfigManager,
    orders: Orders,
    mode: RunMode,
    lock: Arc<StateLock>,
}

impl Agent {
    /// Creates an agent with the local layers in force, in a process that `sandbox` restricts. `watch`
    /// was made before the layers were read.
    ///
    /// # Errors
    /// [`AgentError`] when the state directory cannot be used.
    pub(crate) fn new(
        sources: ConfigSources,
        startable: Startable,
        watch: ConfigFileWatch,
        lock: Arc<StateLock>,
        sandbox: Sandbox,
        mode: RunMode,
    ) -> Result<Self, AgentError> {
        let once = matches!(mode, RunMode::Once(_));
        let loaded = startable.into_loaded();
        let context = sources.stage_context(&loaded, Some(lock.dir()), once);
        let context = AgentContext { sandbox, ..context };
        let (manager, mut orders) =
            ConfigManager::new(sources, lock.dir(), loaded, watch, context)?;
        if once {
            orders.reloads.close();
        }
        Ok(Self { manager, orders, mode, lock })
    }

    /// Returns a handle to query and stop the agent.
    pub(crate) fn handle(&self) -> AgentHandle {
        self.manager.handle.clone()
    }

    /// Runs the agent until it is stopped, and stops it in order.
    ///
    /// # Errors
    /// [`AgentError`] when it cannot start, gives up after faults, or with [`RunMode::Once`] cannot
    /// deliver everything.
    pub(crate) async fn run(self) -> Result<AgentEnd, AgentError> {
        let Self { mut manager, mut orders, mode, lock } = self;
        let once = matches!(mode, RunMode::Once(_));
        let first_request = tokio::select! {
            first = config_updates::start(&mut manager, once) => first,
            () = orders.stop.given() => return Ok(AgentEnd::Stopped),
        };
        let updates = self_update::summary_at_start(&manager.loaded.settings.update, lock.dir());
        manager.handle.updates().set(updates);
        let notify = Notify::new(&manager.context.environment);
        let mut monitor = ComplianceMonitor::new(lock.dir(), &manager.context);
        let mut unstored = Vec::new();
        let mut restarts = RestartLimit::default();
        let mut refused = RefusedEntries::default();
        loop {
            let pipeline = assemble(&manager, lock.dir())?;
            manager.mark_applied();
            let tampered = manager.attach(&pipeline.outbox);
            let events = mem::take(&mut unstored).into_iter().chain(manager.take_events());
            let events = events.chain(tampered);
            events.for_each(|event| pipeline.inbox.report(event));
            let (state, epoch) = (lock.dir().display(), pipeline.outbox.epoch());
            let version = crate::version::version();
            info!(code = "agent_started", %state, epoch, version, "started");
            let ended = match &mode {
                RunMode::Once(report) => {
                    let parts = (&mut manager, &mut monitor);
                    let ended = catch_up(pipeline, report(), parts, &mut orders, &mut refused);
                    ended.await.map(|()| AgentEnd::Stopped)
                }
                RunMode::Forever => {
                    let parts = (&mut manager, &mut monitor, &notify, lock.dir());
                    run_until_stopped(pipeline, parts, first_request, &mut orders).await
                }
            };
            let fault = match ended {
                Ok(end) if refused == RefusedEntries::default() => return Ok(end),
                Ok(_) => return Err(AgentError::Refused(refused)),
                Err(Ended::Failed(failure)) => return Err(failure),
                // Another start, and another wait for deliveries, could take longer than a stop may.
                Err(Ended::DeviceKey(events) | Ended::Fault(_, events))
                    if !once && events.is_empty() && orders.stop.is_given() =>
                {
                    return Ok(AgentEnd::Stopped);
                }
                Err(Ended::DeviceKey(events)) => {
                    unstored = events;
                    continue;
                }
                Err(Ended::Fault(fault, events)) => {
                    unstored = events;
                    fault
                }
            };
            let max = match (once, &fault) {
                (false, _) => MAX_RESTARTS,
                (true, Fault::OutboxDamaged) => 1,
                (true, Fault::Panicked(_)) => 0,
            };
            if !restarts.allow(max, manager.context.clock.uptime()) {
                let state_dir = lock.dir().to_owned();
                return Err(AgentError::GaveUp { fault, restarts: max, state_dir });
            }
            log_restart(&fault);
        }
    }
}

/// Reason why a pipeline ended early.
enum Ended {
    /// A fault; the pipeline is restarted with the events that were not stored.
    Fault(Fault, Vec<Event>),
    /// The device gets another key, with which the pipeline is started again.
    DeviceKey(Vec<Event>),
    /// The agent has failed.
    Failed(AgentError),
}

fn log_restart(fault: &Fault) {
    match fault {
        // The damaged outbox is moved aside when it is opened again. Filters start with an empty
        // memory, since entries that they remember may have been in that outbox only.
        Fault::OutboxDamaged => error!(
            code = "outbox_damaged",
            "the outbox is damaged: restarting the pipeline with a new outbox"
        ),
        Fault::Panicked(_) => {
            error!(code = "pipeline_restarting", %fault, "restarting the pipeline")
        }
    }
}

fn assemble(manager: &ConfigManager, state_dir: &Path) -> Result<Pipeline, AgentError> {
    let ConfigManager { loaded, context, .. } = manager;
    let inbox = Arc::new(Inbox::default());
    silent_places::report(&context.calls, &inbox);
    // A secret file that does not answer must not keep the agent from stopping.
    let built = context.calls.scope(|| {
        let sources = assembly::sources(loaded, context, &inbox.waker())?;
        let stages = assembly::stages(loaded, context)?;
        Ok::<_, ConfigError>((sources, stages, assembly::sinks(loaded, context)?))
    });
    let (sources, stages, sinks) = built?;
    let registrations = assembly::sink_registrations(loaded, &sinks);
    let outbox = outbox_start::open(state_dir, &registrations, &*context.clock, &inbox)?;
    let outbox = Arc::new(outbox);
    device_key::prepare(&context.device, &outbox, &*context.clock)?;
    outbox.unreported_events().into_iter().for_each(|event| inbox.report(event));
    let (identity, clock) = (context.identity.clone(), Arc::clone(&context.clock));
    let config_status = manager.status.config.clone();
    let (device, states) = (context.device.clone(), context.trust.clone());
    let trust = Box::new(move || device.trust_summary(&states));
    let updates = manager.handle.updates().clone();
    let update = Box::new(move || updates.get());
    Ok(Pipeline {
        sources,
        stages,
        sinks,
        outbox,
        inbox,
        config_status,
        trust,
        update,
        identity,
        clock,
    })
}

/// Reads and delivers until the agent receives the order to stop.
async fn run_until_stopped(
    pipeline: Pipeline,
    (manager, monitor, notify, state_dir): (
        &mut ConfigManager,
        &mut ComplianceMonitor,
        &Notify,
        &Path,
    ),
    first_request: Duration,
    orders: &mut Orders,
) -> Result<AgentEnd, Ended> {
    let loaded = Arc::clone(&manager.loaded);
    let settings = &loaded.settings;
    let mut running = pipeline.start(settings, Until::Stopped, Box::new(|_| ()));
    manager.handle.set_running(running.handle());
    // After reading has started: the policy file is synced, and no record should wait for that.
    let events = monitor.check(settings, &mut manager.files);
    events.into_iter().for_each(|event| running.report(event));
    notify.ready();
    let failed = running.failed();
    let (pulse, progress) = (running.liveness_probe(), running.liveness_probe());
    let (handle, pipeline) = (manager.handle.clone(), running.handle());
    let state_dir = state_dir.to_owned();
    let (device, clock) = (manager.context.device.clone(), Arc::clone(&manager.context.clock));
    let config = manager.explicit_config();
    let releases = SelfUpdate::new(handle.clone(), running.handle(), &state_dir, config);
    let updates = ConfigUpdates::new(&mut running, manager, monitor, orders, first_request);
    let end = tokio::select! {
        () = updates.run() => End::Stopped,
        fault = failed => End::Fault(fault),
        () = device_key::restart_wanted(&device, &*clock) => End::DeviceKey,
        () = releases.run() => End::Updated,
        never = watchdog::feed(notify, pulse) => match never {},
        never = update_confirm::follow(progress, &pipeline, &state_dir) => match never {},
    };
    match &end {
        End::Stopped | End::Updated => {
            handle.set_stopping();
            notify.stopping();
            info!("stopping");
        }
        End::Fault(fault) => {
            handle.set_starting();
            error!(code = "pipeline_failed", %fault, "stopping the pipeline");
        }
        End::DeviceKey => {
            handle.set_starting();
            info!(code = "device_key_changing", "restarting the pipeline with another device key");
        }
    }
    let unstored = running.stop().await;
    match end {
        End::Stopped => Ok(AgentEnd::Stopped),
        End::Updated => Ok(AgentEnd::Updated),
        End::Fault(fault) => Err(Ended::Fault(fault, unstored)),
        End::DeviceKey => Err(Ended::DeviceKey(unstored)),
    }
}

/// Reason why a running pipeline is stopped.
enum End {
    Stopped,
    Updated,
    Fault(Fault),
    DeviceKey,
}

/// Reads everything once, delivers it, and stops. Adds the entries that receivers refused to `refused`.
async fn catch_up(
    pipeline: Pipeline,
    report: OnProgress,
    (manager, monitor): (&mut ConfigManager, &mut ComplianceMonitor),
    orders: &mut Orders,
    refused: &mut RefusedEntries,
) -> Result<(), Ended> {
    let loaded = Arc::clone(&manager.loaded);
    let settings = &loaded.settings;
    // Before reading starts, which may end before these events are taken up.
    let events = monitor.check(settings, &mut manager.files);
    events.into_iter().for_each(|event| pipeline.inbox.report(event));
    let mut running = pipeline.start(settings, Until::CaughtUp, report);
    manager.handle.set_running(running.handle());
    let refusals = running.refusals();
    let patience = test_limits::limit("AI_AGENT_TEST_CATCH_UP_MS", CATCH_UP_PATIENCE);
    let done = tokio::select! {
        done = running.catch_up(patience) => Some(done),
        () = orders.stop.given() => None,
        () = device_key::restart_wanted(&manager.context.device, &*manager.context.clock) => {
            manager.handle.set_starting();
            let unstored = running.stop().await;
            *refused += refusals();
            return Err(Ended::DeviceKey(unstored));
        }
    };
    manager.handle.set_stopping();
    let unstored = running.stop().await;
    // Entries may be refused until the sinks have ended.
    *refused += refusals();
    if !matches!(done, None | Some(Err(CatchUpError::Fault(_)))) {
        update_confirm::confirm_at_end().await;
    }
    match done {
        Some(Ok(delivered)) => {
            info!(code = "all_delivered", delivered, "everything is delivered");
            Ok(())
        }
        Some(Err(CatchUpError::Fault(fault))) => Err(Ended::Fault(fault, unstored)),
        Some(Err(error)) => Err(Ended::Failed(AgentError::CatchUp(error))),
        None => Err(Ended::Failed(AgentError::Interrupted)),
    }
}
