//! The outbox as commands have it: of an agent that does not run, or of this process when it is one
//! that does and was asked.

use std::{fs, io, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use crate::{
    agent::config_sources::Surroundings,
    cli::Failure,
    config::{LoadedConfig, ShippingSettings},
    event::Event,
    frame::Codec,
    pipeline::{
        group::Group,
        group_builder::GroupBuilder,
        outbox::{Outbox, OutboxError},
        runner::PipelineHandle,
    },
    platform::{LockRole, StateLock},
    stages::Context,
};

/// How long reading may take to come to rest.
const RESTS: Duration = Duration::from_secs(30);

/// An outbox that a command works on.
pub(crate) struct Store {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) loaded: Arc<LoadedConfig>,
    pub(crate) context: Context,
    held: Held,
}

/// By whom.
enum Held {
    /// By this command: no agent runs as long as this is there.
    Command(#[expect(dead_code, reason = "it is held")] StateLock),
    /// By the agent that this process is.
    Agent(PipelineHandle),
}

impl Store {
    /// Opens that of an agent that does not run.
    pub(crate) fn open(surroundings: &Surroundings, loaded: LoadedConfig) -> Result<Self, Failure> {
        let state_dir = &loaded.settings.agent.state_dir;
        let path = state_dir.join("outbox.redb");
        let none = Failure::failed(format!(
            "there is no outbox yet in `{}`: the agent has not run on this state directory, or its \
             outbox was deleted",
            state_dir.display()
        ));
        // To lock it makes the directory, and to open one makes one.
        match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() == 0 => return Err(none),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none),
            Err(error) => return Err(Failure::failed(error)),
        }
        let lock = StateLock::acquire(state_dir, LockRole::Command).map_err(Failure::failed)?;
        // Whatever is configured for this command, no sink of the agent's loses its place.
        let opened = Outbox::open_existing(&path).map_err(Failure::failed)?;
        let outbox = Arc::new(opened.ok_or(none)?);
        let context = surroundings.context(&loaded, Some(lock.dir()), true);
        Ok(Self { outbox, loaded: Arc::new(loaded), context, held: Held::Command(lock) })
    }

    /// That of the agent that this process is.
    pub(crate) fn of_running(
        view: PipelineHandle,
        loaded: Arc<LoadedConfig>,
        context: Context,
    ) -> Self {
        let outbox = Arc::clone(view.outbox());
        Self { outbox, loaded, context, held: Held::Agent(view) }
    }

    /// Changes the outbox together with a group that has nothing but `event` in it: as `change` does
    /// with that group, while nothing else is on its way there.
    pub(crate) fn report_with(
        &self,
        event: Event,
        change: impl FnOnce(&Outbox, &Group) -> Result<(), OutboxError> + Send + 'static,
    ) -> Result<(), Failure> {
        let (config, now) = (self.loaded.settings.config_hash(), self.context.clock.now());
        let job = move |outbox: &Outbox| {
            let mut builder =
                GroupBuilder::new(outbox.end(), config, ShippingSettings::default(), Codec::Zstd);
            builder.add_event(&event, now);
            change(outbox, &builder.finish(now))
        };
        let changed = match &self.held {
            Held::Command(_) => job(&self.outbox),
            Held::Agent(view) => {
                let done = Handle::current().block_on(timeout(RESTS, view.run_between_groups(job)));
                match done {
                    Ok(Ok(changed)) => changed,
                    Ok(Err(_)) => return Err(Failure::failed("the agent is at its end")),
                    Err(_) => {
                        return Err(Failure::failed(format!(
                            "reading has not come to rest for {} s, so nothing is changed yet: see \
                             `ai-agent status`, and look whether it was done later",
                            RESTS.as_secs()
                        )));
                    }
                }
            }
        };
        changed.map_err(Failure::failed)
    }

    /// The running pipeline, in the agent's own process.
    pub(crate) fn running(&self) -> Option<&PipelineHandle> {
        match &self.held {
            Held::Agent(view) => Some(view),
            Held::Command(_) => None,
        }
    }

    /// Waits for something that is sent.
    pub(crate) fn wait<T>(&self, sent: impl Future<Output = T>) -> Result<T, Failure> {
        match &self.held {
            Held::Agent(_) => Ok(Handle::current().block_on(sent)),
            Held::Command(_) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                Ok(runtime.map_err(Failure::failed)?.block_on(sent))
            }
        }
    }
}
