//! Detection of a service manager that starts the agent again when it ends.

use super::{
    super::{environment::Environment, os::Os, paths::Paths},
    user_service::NAME,
};

/// Returns whether a service manager starts this process again when it ends.
///
/// On Windows the scheduled task leaves no trace in its process, so that this is assumed if the user has one:
/// it starts the agent again within minutes.
#[must_use]
pub fn restarts_process(environment: &Environment) -> bool {
    let has_task = || {
        let paths = Paths::from_environment(environment);
        paths.is_ok_and(|paths| paths.installed.definition.is_file())
    };
    let variable = |name: &str| environment.process_value(name)?.to_str().map(str::to_owned);
    restarts(Os::CURRENT, std::process::id(), &variable, &has_task)
}

fn restarts(
    os: Os,
    pid: u32,
    variable: &dyn Fn(&str) -> Option<String>,
    has_task: &dyn Fn() -> bool,
) -> bool {
    match os {
        // A shell in a service inherits its variables. Older versions of systemd do not name the process.
        Os::Linux => {
            variable("NOTIFY_SOCKET").is_some()
                && variable("SYSTEMD_EXEC_PID").is_none_or(|main| main == pid.to_string())
        }
        Os::Macos => variable("XPC_SERVICE_NAME").as_deref() == Some(NAME),
        Os::Windows => has_task(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_in_a_service_is_not_restarted() {
        let is_restarted = |os, variables: &[(&str, &str)], has_task| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            restarts(os, 7, &variable, &|| has_task)
        };
        let is = |os, variables: &[(&str, &str)]| is_restarted(os, variables, false);
        assert!(is(Os::Linux, &[("NOTIFY_SOCKET", "/s"), ("SYSTEMD_EXEC_PID", "7")]));
        assert!(is(Os::Linux, &[("NOTIFY_SOCKET", "/s")]));
        assert!(!is(Os::Linux, &[("NOTIFY_SOCKET", "/s"), ("SYSTEMD_EXEC_PID", "8")]));
        assert!(!is(Os::Linux, &[("SYSTEMD_EXEC_PID", "7")]));
        assert!(is(Os::Macos, &[("XPC_SERVICE_NAME", "ai-agent")]));
        assert!(!is(Os::Macos, &[("XPC_SERVICE_NAME", "0")]));
        assert!(!is(Os::Windows, &[]));
        assert!(is_restarted(Os::Windows, &[], true));
    }
}
