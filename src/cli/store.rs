//! The outbox of an agent that does not run, for commands.

use std::{fs, io};

use super::{Failure, setup::Surroundings};
use crate::{
    config::Loaded,
    pipeline::outbox::Outbox,
    platform::{LockError, StateLock},
    stages::Context,
};

/// The store of an agent that does not run. None runs as long as this is there.
pub(super) struct Store {
    pub(super) outbox: Outbox,
    pub(super) loaded: Loaded,
    pub(super) context: Context,
    _lock: StateLock,
}

impl Store {
    /// Opens it; `what` is what can be done when the agent is stopped.
    pub(super) fn open(
        surroundings: &Surroundings,
        loaded: Loaded,
        what: &str,
    ) -> Result<Self, Failure> {
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
        let lock = StateLock::acquire(state_dir).map_err(|error| match error {
            LockError::Held { .. } => {
                Failure::failed(format!("{error}; {what} when it is stopped"))
            }
            error => Failure::failed(error),
        })?;
        // Whatever is configured for this command, no sink of the agent's loses its place.
        let opened = Outbox::open_if_begun(&path).map_err(Failure::failed)?;
        let outbox = opened.ok_or(none)?;
        let context = surroundings.context(&loaded, Some(lock.dir()), true);
        Ok(Self { outbox, loaded, context, _lock: lock })
    }
}
