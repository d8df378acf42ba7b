//! Protection of the memory of the process.

/// Prevents core files, and on Linux other processes of the user from reading the memory: both would
/// contain secrets and session content. Errors are ignored, since the agent works without it.
pub fn disable() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};

        let none = Rlimit { current: Some(0), maximum: Some(0) };
        if let Err(error) = setrlimit(Resource::Core, none) {
            tracing::debug!(%error, "could not prevent core files");
        }
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};

        // Also covers a `core_pattern` with a pipe, which ignores the limit.
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::debug!(%error, "could not prevent core dumps");
        }
    }
}
