//! The outbox as requests use it: that of a stopped agent, which is opened here, or that of the
//! running agent in this process.

use std::{fs, io, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use super::error::RequestError;
use crate::{
    agent::ConfigSources,
    config::{LoadedConfig, ShippingSettings},
    event::Event,
    frame::Codec,
    pipeline::{
        assembly,
        group::Group,
        group_builder::GroupBuilder,
        outbox::{Outbox, OutboxError},
        runner::PipelineHandle,
    },
    platform::{LockRole, StateLock},
    siem::device::DeviceUnavailable,
    stages::AgentContext,
    text::causes,
};

/// Longest time to wait until reading pauses between two groups.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);

/// An outbox, with the configuration in force.
pub(crate) struct Store {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) loaded: Arc<LoadedConfig>,
    pub(crate) context: AgentContext,
    owner: Owner,
}

/// Process that owns the outbox.
enum Owner {
    /// This command: no agent can start while the lock is held.
    Command(#[expect(dead_code, reason = "held until the command ends")] StateLock),
    /// The agent in this process.
    Agent(PipelineHandle),
}

impl Store {
    /// Opens the outbox of a stopped agent.
    ///
    /// # Errors
    /// [`RequestError`] when there is none, when another process holds it, or it is damaged.
    pub(crate) fn open(
        sources: &ConfigSources,
        loaded: LoadedConfig,
    ) -> Result<Self, RequestError> {
        let state_dir = &loaded.settings.agent.state_dir;
        let path = state_dir.join("outbox.redb");
        let missing = || {
            RequestError::failed(format!(
                "there is no outbox yet in `{}`: the agent has not run with this state directory, \
                 or its outbox was deleted",
                state_dir.display()
            ))
        };
        // Checked first: to lock a directory creates it, and to open an outbox creates one.
        match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() == 0 => return Err(missing()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(RequestError::because(error)),
        }
        let lock =
            StateLock::acquire(state_dir, LockRole::Command).map_err(RequestError::because)?;
        // Opened without sinks: independent of the configuration of this command, every sink keeps its
        // position.
        let opened = Outbox::open_existing(&path).map_err(RequestError::because)?;
        let outbox = Arc::new(opened.ok_or_else(missing)?);
        let context = sources.stage_context(&loaded, Some(lock.dir()), true);
        load_device_key(&context);
        Ok(Self { outbox, loaded: Arc::new(loaded), context, owner: Owner::Command(lock) })
    }

    /// Returns the outbox of the running agent in this process.
    pub(super) fn of_agent(
        pipeline: PipelineHandle,
        loaded: Arc<LoadedConfig>,
        context: AgentContext,
    ) -> Self {
        let outbox = Arc::clone(pipeline.outbox());
        Self { outbox, loaded, context, owner: Owner::Agent(pipeline) }
    }

    /// Returns the running pipeline; `None` if the agent is stopped.
    pub(super) fn pipeline(&self) -> Option<&PipelineHandle> {
        match &self.owner {
            Owner::Agent(pipeline) => Some(pipeline),
            Owner::Command(_) => None,
        }
    }

    /// Runs `change` on the outbox with a group that contains only `event`, while nothing else is
    /// being stored.
    ///
    /// # Errors
    /// [`RequestError`] when the change fails, or reading does not pause in time.
    pub(super) fn change_with_event(
        &self,
        event: Event,
        change: impl FnOnce(&Outbox, &Group) -> Result<(), OutboxError> + Send + 'static,
    ) -> Result<(), RequestError> {
        let (config, now) = (self.loaded.settings.config_hash(), self.context.clock.now());
        // Where an agent would refuse the stages, the event is stored without additions.
        let mut enrichers = match assembly::stages(&self.loaded, &self.context) {
            Ok(stages) => stages.enrichers,
            Err(_) => Vec::new(),
        };
        let job = move |outbox: &Outbox| {
            let mut builder =
                GroupBuilder::new(outbox.end(), config, ShippingSettings::default(), Codec::Zstd);
            builder.add_event(&event, &mut enrichers, now);
            change(outbox, &builder.finish(now))
        };
        let Some(pipeline) = self.pipeline() else {
            return job(&self.outbox).map_err(RequestError::because);
        };
        match self.wait(timeout(PAUSE_TIMEOUT, pipeline.run_between_groups(job)))? {
            Ok(Ok(changed)) => changed.map_err(RequestError::because),
            Ok(Err(_)) => Err(RequestError::failed("the agent is shutting down")),
            Err(_) => Err(RequestError::failed(format!(
                "nothing was changed yet: reading did not pause within {} s; see `ai-agent status`, \
                 and check later whether it was done",
                PAUSE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Blocks until `future` is ready.
    ///
    /// # Errors
    /// [`RequestError`] when no runtime can be started.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T, RequestError> {
        match &self.owner {
            Owner::Agent(_) => Ok(Handle::current().block_on(future)),
            Owner::Command(_) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                Ok(runtime.map_err(RequestError::because)?.block_on(future))
            }
        }
    }
}

/// Loads the device key for dead letters that the command sends again. A command makes no key: that
/// starts an epoch.
fn load_device_key(context: &AgentContext) {
    let Some(file) = context.device.file() else { return };
    let now = context.clock.now();
    let keys = file.load().map_err(|error| DeviceUnavailable::permanent(causes(&error), now));
    context.device.set(keys);
}
