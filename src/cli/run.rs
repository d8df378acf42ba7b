//! `ai-agent run`: arguments and process of the agent.

use std::{path::Path, sync::Arc};

use clap::Args;
use siem_protocol::agent_event::UpdateMode;
use tokio::task::spawn_blocking;
use tracing::info;

use super::{
    context::CliContext, dry_run, failure::Failure, progress_bar::ProgressBar,
    signal_task::SignalTask,
};
use crate::{
    agent::{Agent, AgentEnd, ConfigFileWatch, RunMode, sandbox, startable::Startable},
    control::{self, ControlService},
    logging,
    pipeline::ingest::OnProgress,
    platform::{LockRole, Sandbox, SandboxStatus, StateLock, own_program, service},
    update::{ProgramFiles, guard, outside},
};

/// Read session logs and ship them, until stopped
#[derive(Args)]
pub(super) struct Arguments {
    /// Deliver everything that can be read now, then exit
    #[arg(long)]
    once: bool,
    /// Read all session logs from the start, and print each entry that would be shipped. Changes
    /// nothing, and needs no server and no secrets
    #[arg(long, conflicts_with = "once")]
    test: bool,
    /// With `--test`: print the verdict on each record, and the stage that decided
    #[arg(long, requires = "test")]
    json: bool,
}

impl Arguments {
    /// Returns true if the agent is not run.
    pub(super) fn is_test(&self) -> bool {
        self.test
    }

    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        if self.test {
            return dry_run::execute(explicit, self.json);
        }
        self.start(explicit).inspect_err(|_| guard::ask_previous(explicit))
    }

    /// Runs the agent in this process until it ends.
    fn start(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        // Before anything else, so that a signal at any moment stops the agent in order.
        let signals = SignalTask::start().map_err(Failure::failed)?;
        let context = CliContext::new(explicit)?;
        let watch = ConfigFileWatch::before_reading(context.sources.layer_files());
        let startable = context.load_startable()?;
        if startable.loaded().settings.update.mode == UpdateMode::Install {
            outside::start().map_err(Failure::failed)?;
        }
        // Before the other threads are started, which inherit it.
        let sandbox = sandbox::enter(context.paths(), startable.loaded())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(Failure::failed)?;
        let restarts = service::restarts_process(context.environment());
        let ended = runtime.block_on(self.run(context, startable, watch, sandbox, &signals));
        // Its handle would keep the outbox open.
        signals.forget_agent();
        // A blocking thread that hangs must not delay the exit.
        runtime.shutdown_background();
        match ended? {
            AgentEnd::Stopped => Ok(()),
            AgentEnd::Updated if restarts => Ok(()),
            AgentEnd::Updated => run_new_program(),
        }
    }

    async fn run(
        &self,
        context: CliContext,
        startable: Startable,
        watch: ConfigFileWatch,
        sandbox: Sandbox,
        signals: &SignalTask,
    ) -> Result<AgentEnd, Failure> {
        let settings = &startable.loaded().settings.agent;
        let (state_dir, log_format) = (settings.state_dir.clone(), settings.log_format);
        let metrics = startable.loaded().settings.metrics_listen.clone();
        // Waits for a command that uses the state directory.
        let acquired = spawn_blocking(move || StateLock::acquire(&state_dir, LockRole::Agent));
        let lock = tokio::select! {
            acquired = acquired => acquired.map_err(Failure::failed)?.map_err(Failure::failed)?,
            () = signals.stopped() => return Ok(AgentEnd::Stopped),
        };
        let lock = Arc::new(lock);
        let _log = logging::to_file(&lock, log_format);
        log_sandbox(&sandbox);
        let (sources, holder, mode) = (context.sources, Arc::clone(&lock), self.mode());
        let agent = Agent::new(sources, startable, watch, holder, sandbox, mode)?;
        let handle = agent.handle();
        // Dropped before the lock is released, which guards the socket's file.
        let _server = control::serve(lock.dir(), ControlService::new(handle.clone()));
        let _metrics = control::serve_metrics(metrics, handle.clone()).await;
        signals.forward_to(handle);
        Ok(agent.run().await?)
    }

    fn mode(&self) -> RunMode {
        if !self.once {
            return RunMode::Forever;
        }
        RunMode::Once(Box::new(|| -> OnProgress {
            let bar = ProgressBar::new();
            Box::new(move |progress| bar.show(progress.read, progress.unread, progress.files))
        }))
    }
}

/// Runs the program that was installed, with the arguments of this process: no service manager starts it.
fn run_new_program() -> Result<(), Failure> {
    let files = ProgramFiles::of_current().map_err(Failure::failed)?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // The sandbox of this agent would also restrict the new one.
    let run = move || own_program::run_in_place(files.program(), &arguments);
    match outside::run(run).flatten().map_err(Failure::failed)? {
        0 => Ok(()),
        code => Err(Failure::failed(format!("the new program ended with exit code {code}"))),
    }
}

fn log_sandbox(sandbox: &Sandbox) {
    if let Some(SandboxStatus { active, abi, reason }) = sandbox.status() {
        info!(
            code = "landlock_state",
            active, abi, reason, "restriction of writes and programs: Landlock"
        );
    }
}
