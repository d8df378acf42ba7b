//! `ai-agent run`: reads and ships, until stopped.

use std::{mem, path::Path, sync::Arc, time::Duration};

use clap::Args;
use siem_protocol::{
    AgentEvent,
    event::{EpochReason, EpochStarted},
};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{
    Failure, control, dry_run, logging,
    progress::Bar,
    setup::{self, Surroundings},
};
use crate::{
    agent::{
        compliance_monitor::Guard,
        config_manager::Keeper,
        config_updates as live,
        file_watch::{self as files, Sights, Watched},
        restart_limit::Restarts,
        watchdog,
    },
    config::{self, LoadedConfig},
    event::Event,
    pipeline::{
        assembly,
        fault::{CatchUpError, Fault},
        ingest::{Inbox, OnProgress, Until},
        orphaned_sinks,
        outbox::{OpenOutcome, Outbox},
        reload::named_files,
        runner::{Pipeline, new_epoch},
    },
    platform::{LockRole, Signals, StateLock, service::Notify},
};

/// How long `--once` waits for a receiver that does not take anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often within an hour everything begins again after a fault: a disk that damages each store
/// is no place for one, and what fails at once each time must be seen by somebody.
const MOST_RESTARTS: usize = 5;

/// Reads session files and ships them, until stopped.
#[derive(Args)]
pub(super) struct Arguments {
    /// Catches up, delivers everything, and ends.
    #[arg(long)]
    once: bool,
    /// Reads everything from the start and shows each entry that would be shipped, as it would
    /// travel. Changes nothing, and needs no server and no secrets.
    #[arg(long, conflicts_with = "once")]
    test: bool,
    /// With `--test`: shows for each record the verdict and the stage that decided instead.
    #[arg(long, requires = "test")]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        if self.test {
            return dry_run::execute(explicit, self.json);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(Failure::failed)?;
        // Listened to before anything else: a signal at any moment is an end in order.
        let signals = {
            let _context = runtime.enter();
            Signals::listen().map_err(Failure::failed)?
        };
        let surroundings = Surroundings::look()?;
        // Looked at before they are read: what changes from here on is seen.
        let mut watched = Watched::default();
        let layers = files::look(config::files(&surroundings.inputs(explicit)));
        watched.read(Sights { layers, ..Sights::default() });
        let loaded = surroundings.load(explicit)?;
        if let Some(missing) = loaded.missing_for_delivery() {
            return Err(Failure::usage(missing));
        }
        let ended = runtime.block_on(self.run(&surroundings, explicit, loaded, watched, signals));
        // What is stuck on a blocking thread must not hold up the end.
        runtime.shutdown_background();
        ended
    }

    async fn run(
        &self,
        surroundings: &Surroundings,
        explicit: Option<&Path>,
        loaded: LoadedConfig,
        mut watched: Watched,
        mut signals: Signals,
    ) -> Result<(), Failure> {
        // A command may be at work there, which is waited for.
        let state_dir = loaded.settings.agent.state_dir.clone();
        let taken = spawn_blocking(move || StateLock::acquire(&state_dir, LockRole::Agent));
        let lock = tokio::select! {
            taken = taken => taken.map_err(Failure::failed)?.map_err(Failure::failed)?,
            () = signals.ended() => return Ok(()),
        };
        let _log = logging::to_file(&lock, loaded.settings.agent.log_format);
        let context = surroundings.context(&loaded, Some(lock.dir()), self.once);
        watched.name(files::look(named_files(&loaded.settings, &context)));
        // Built once with the local layers: what is wrong there is an error, whatever the server
        // says.
        setup::would_run(&loaded, &context)?;
        let keeper = Keeper::new(surroundings, explicit, lock.dir(), loaded, watched, context);
        let mut keeper = keeper.map_err(Failure::usage)?;
        if self.once {
            keeper.askers.close();
        }
        // Given up before the lock is, which decides about what lies in its place.
        let _serving = control::serve(lock.dir(), &keeper.desk);
        let first = tokio::select! {
            first = live::begin(&mut keeper, self.once) => first,
            () = signals.ended() => return Ok(()),
        };
        let notify = Notify::new(surroundings.environment());
        let mut guard = Guard::new(lock.dir(), &keeper.context);
        let mut left = Vec::new();
        let mut restarts = Restarts::default();
        loop {
            let pipeline = assemble(&keeper, lock.dir())?;
            keeper.is_applied();
            let events = mem::take(&mut left).into_iter().chain(keeper.take_events());
            events.for_each(|event| pipeline.inbox.report(event));
            let (state, epoch) = (lock.dir().display(), pipeline.outbox.epoch());
            info!(code = "agent_started", %state, epoch, version = env!("CARGO_PKG_VERSION"), "started");
            let ended = match self.once {
                true => once(pipeline, &keeper, &mut guard, &mut signals).await,
                false => {
                    let parts = (&mut keeper, &mut guard, &notify);
                    until_stopped(pipeline, parts, first, &mut signals).await
                }
            };
            let fault = match ended {
                Ok(()) => return Ok(()),
                Err(Ended::Failed(failure)) => return Err(failure),
                Err(Ended::Fault(fault, events)) => {
                    left = events;
                    fault
                }
            };
            let most = match (self.once, &fault) {
                (false, _) => MOST_RESTARTS,
                (true, Fault::OutboxDamaged) => 1,
                (true, Fault::Panicked(_)) => 0,
            };
            if !restarts.allow(most, keeper.context.clock.uptime()) {
                return Err(given_up(&fault, most, lock.dir()));
            }
            match &fault {
                // Opened once more, it is moved aside, and everything begins again on another: what
                // filters remember of lines that were only in there must not drop them now.
                Fault::OutboxDamaged => {
                    error!(
                        code = "outbox_damaged",
                        "the outbox is damaged: everything stopped, and begins again without it"
                    );
                }
                Fault::Panicked(_) => {
                    error!(code = "pipeline_restarting", %fault, "everything stopped, and begins again")
                }
            }
        }
    }
}

/// Why a pipeline ended that was not asked to.
enum Ended {
    /// Another is to begin, with the events that were not stored.
    Fault(Fault, Vec<Event>),
    /// The command has failed.
    Failed(Failure),
}

fn given_up(fault: &Fault, restarts: usize, state_dir: &Path) -> Failure {
    let state_dir = state_dir.display();
    let advice = match fault {
        Fault::OutboxDamaged => format!("is the disk of `{state_dir}` failing?"),
        Fault::Panicked(_) => "what is not acknowledged is kept".to_owned(),
    };
    Failure::failed(match restarts {
        0 => format!("{fault}: {advice}"),
        1 => format!("{fault}, again after everything began anew: {advice}"),
        _ => format!(
            "{fault}, again after everything began anew {restarts} times within an hour: {advice}"
        ),
    })
}

fn assemble(keeper: &Keeper<'_>, state_dir: &Path) -> Result<Pipeline, Failure> {
    let Keeper { loaded, context, .. } = keeper;
    let inbox = Arc::new(Inbox::default());
    let sources = assembly::sources(loaded, context, &inbox.waker()).map_err(Failure::usage)?;
    let stages = assembly::stages(loaded, context).map_err(Failure::usage)?;
    let sinks = assembly::sinks(loaded, context).map_err(Failure::usage)?;
    let seats = assembly::seats(loaded, &sinks);
    let (identity, clock) = (context.identity.clone(), Arc::clone(&context.clock));
    let path = state_dir.join("outbox.redb");
    let opened = Outbox::open_or_recover(&path, &seats, new_epoch, clock.now());
    let (outbox, found) = opened.map_err(|error| match error.is_disk_full() {
        true => Failure::failed(format!(
            "{}: make room on its disk, or name another directory with `state_dir` under `[agent]`",
            crate::text::causes(&error)
        )),
        false => Failure::failed(error),
    })?;
    tell(&found, &outbox.epoch(), &inbox);
    orphaned_sinks::report(&outbox, |event| inbox.report(event));
    let config_status = keeper.status.facts.clone();
    Ok(Pipeline { sources, stages, sinks, outbox, inbox, config_status, identity, clock })
}

/// Reports what was found where the outbox should be.
fn tell(found: &OpenOutcome, epoch: &str, inbox: &Inbox) {
    let (previous_epoch, reason) = match found {
        OpenOutcome::Intact => return,
        OpenOutcome::Created { previous_epoch: None } => (&None, EpochReason::First),
        OpenOutcome::Created { previous_epoch } => {
            warn!(
                code = "outbox_missing",
                previous_epoch,
                "the outbox that was here is gone: a new one begins, and files are read again from \
                 where the receiver had acknowledged them"
            );
            (previous_epoch, EpochReason::OutboxMissing)
        }
        OpenOutcome::Replaced { moved_to, reason, previous_epoch, dead_letters } => {
            let moved_to = moved_to.display().to_string();
            error!(
                code = "outbox_quarantined",
                reason,
                moved_to,
                dead_letters_kept = dead_letters.kept,
                dead_letters_lost = dead_letters.lost,
                "outbox was damaged and moved aside, a new one begins: files are read again from \
                 where the receiver had acknowledged them; what was moved aside may be deleted \
                 when nobody wants to look into it"
            );
            let quarantined = AgentEvent::OutboxQuarantined {
                reason: reason.clone(),
                moved_to,
                dead_letters_kept: dead_letters.kept,
                dead_letters_lost: dead_letters.lost,
            };
            inbox.report(quarantined.into());
            (previous_epoch, EpochReason::Quarantine)
        }
    };
    let started = EpochStarted {
        epoch: epoch.to_owned(),
        previous_epoch: previous_epoch.clone(),
        reason,
        entries: None,
        previous_last_seq: None,
        previous_totals: None,
    };
    inbox.report(AgentEvent::EpochStarted(Box::new(started)).into());
}

/// Reads and delivers until a signal comes.
async fn until_stopped(
    pipeline: Pipeline,
    (keeper, guard, notify): (&mut Keeper<'_>, &mut Guard, &Notify),
    first: Duration,
    signals: &mut Signals,
) -> Result<(), Ended> {
    let mut running = pipeline.start(&keeper.loaded.settings, Until::Stopped, Box::new(|_| ()));
    keeper.desk.runs(running.view());
    // Reading has begun: what is left for hooks is synced, and no record is to wait for that.
    guard.look(&keeper.loaded.settings).into_iter().for_each(|event| running.report(event));
    notify.ready();
    let failed = running.failed();
    let pulse = running.pulse();
    let fault = tokio::select! {
        () = live::follow(&mut running, keeper, guard, first, signals) => None,
        fault = failed => Some(fault),
        never = watchdog::feed(notify, pulse) => match never {},
    };
    match &fault {
        None => {
            keeper.desk.stops();
            notify.stopping();
            info!("stopping");
        }
        Some(fault) => {
            keeper.desk.begins_again();
            error!(code = "pipeline_failed", %fault, "everything stops");
        }
    }
    let left = running.stop().await;
    fault.map_or(Ok(()), |fault| Err(Ended::Fault(fault, left)))
}

/// Reads everything once, delivers it, and ends.
async fn once(
    pipeline: Pipeline,
    keeper: &Keeper<'_>,
    guard: &mut Guard,
    signals: &mut Signals,
) -> Result<(), Ended> {
    // Before anything is read, or the end could come before these events.
    guard.look(&keeper.loaded.settings).into_iter().for_each(|event| pipeline.inbox.report(event));
    let bar = Bar::new();
    let report: OnProgress =
        Box::new(move |progress| bar.show(progress.read, progress.unread, progress.files));
    let mut running = pipeline.start(&keeper.loaded.settings, Until::CaughtUp, report);
    keeper.desk.runs(running.view());
    let done = tokio::select! {
        done = running.catch_up(PATIENCE) => Some(done),
        () = signals.ended() => None,
    };
    keeper.desk.stops();
    let left = running.stop().await;
    let failed = |failure| Err(Ended::Failed(failure));
    match done {
        Some(Ok(delivered)) => {
            info!(code = "all_delivered", delivered, "everything is delivered");
            Ok(())
        }
        Some(Err(CatchUpError::Fault(fault))) => Err(Ended::Fault(fault, left)),
        Some(Err(unfinished)) => failed(Failure::failed(unfinished)),
        None => failed(Failure::failed("interrupted: what was read stays in the outbox")),
    }
}
