//! Files that the agent writes and programs that it starts; the process is restricted to them.

use std::path::PathBuf;

use metrics_endpoint::MetricsAddress;

use super::error::AgentError;
use crate::{
    config::LoadedConfig,
    pipeline::assembly,
    platform::{Paths, Sandbox, StateLock, control, secure_file},
};

/// Creates the directories that the agent writes to, and restricts this thread and all that it starts
/// to them. Must be called before the process has other threads.
///
/// # Errors
/// [`AgentError`] if the state directory cannot be used, or the options of a sink are wrong.
pub(crate) fn enter(paths: &Paths, loaded: &LoadedConfig) -> Result<Sandbox, AgentError> {
    let state_dir = &loaded.settings.agent.state_dir;
    StateLock::prepare_dir(state_dir)?;
    let mut dirs = vec![state_dir.clone()];
    if let Some(pointer) = paths.pointer.parent() {
        // The pointer is written later, and a failure is reported then.
        drop(secure_file::create_dir(pointer));
        dirs.push(pointer.to_owned());
    }
    // The same holds for the socket.
    dirs.extend(control::prepare_dir(state_dir).ok().flatten());
    if let Some(MetricsAddress::Unix(socket)) = &loaded.settings.metrics_listen {
        dirs.extend(socket.parent().map(ToOwned::to_owned));
    }
    let files = assembly::sink_files(loaded)?;
    // New programs are tested and started outside of the restriction.
    let programs: Vec<PathBuf> = std::env::current_exe().into_iter().collect();
    Ok(Sandbox::apply(&dirs, &files, &programs))
}
