//! `ai-agent install`: installs the program, its variables and the service, and starts it.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use clap::Args;
use tracing::warn;

use super::{
    context::{ServiceContext, wait_until_running},
    step::Step,
};
use crate::{
    cli::{failure::Failure, output::print},
    platform::{
        Environment, InstalledPaths, parse_service_variables, secure_file, service::Service,
    },
    text::causes,
};

/// Variables that the service gets besides `CLAUDE_SIEM_*`, so that it uses the same directories as the
/// user's programs.
const KEPT: [&str; 3] = ["CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"];
const PREFIX: &str = "CLAUDE_SIEM_";

/// Install the agent as a service of the user and start it, or update an installed one
#[derive(Args)]
pub(crate) struct Arguments {
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also run while you are not logged in (systemd): all services of this user then start at boot
    /// and continue after logout
    #[arg(long)]
    linger: bool,
}

impl Arguments {
    pub(crate) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = ServiceContext::new(explicit)?;
        let service = &context.service;
        self.check(&context)?;
        let status = context.status()?;
        let before = context.running_agent()?;
        context.refuse_other_agent(status.is_active, before)?;

        let files = files(&context)?;
        let is_new = files.iter().any(|step| !step.is_done());
        let is_healthy = status.enabled == "enabled" && status.is_active == Some(true);
        if !is_new && is_healthy && before.is_some() {
            print(format_args!("ai-agent is installed, up to date and running"))?;
        } else {
            let calls =
                service.register().into_iter().chain(service.launch()).map(Step::ManagerCommand);
            for step in files.into_iter().chain(calls) {
                if self.dry_run { step.preview()? } else { step.execute()? }
            }
        }
        if self.dry_run {
            if self.linger {
                service
                    .enable_linger()
                    .map_or(Ok(()), |call| Step::ManagerCommand(call).preview())?;
            }
            return Ok(());
        }
        // After a change, the service runs in another process.
        let before = before.flatten().filter(|_| is_new || !is_healthy);
        let pid = wait_until_running(&context.state_dir, before)?;
        print(format_args!(
            "ai-agent {} is running (PID {pid}), and starts at each login",
            crate::version::version()
        ))?;
        self.set_linger(service)?;
        print_path_hint(service.installed())
    }

    /// Checks that the service can be installed and would start, before anything is changed.
    fn check(&self, context: &ServiceContext) -> Result<(), Failure> {
        let service = &context.service;
        if let Some(definition) = service.machine_definitions() {
            return Err(Failure::failed(format!(
                "ai-agent is already installed as a service of all users, by `{}`: start it with \
                 `ai-agent start`",
                definition.display()
            )));
        }
        if self.linger && service.enable_linger().is_none() {
            return Err(Failure::usage(
                "`--linger` needs systemd, which this system does not have",
            ));
        }
        context.check_startable()?;
        context.probe()
    }

    /// Lets the service run without a login. Otherwise it stops at the last logout.
    fn set_linger(&self, service: &Service) -> Result<(), Failure> {
        if self.linger {
            let Some(call) = service.enable_linger() else { return Ok(()) };
            return match call.run() {
                Ok(_) => print(format_args!("it also runs while you are not logged in")),
                Err(error) => {
                    warn!(
                        code = "service_stops_at_logout",
                        "it runs only while you are logged in: {}",
                        causes(&error)
                    );
                    Ok(())
                }
            };
        }
        let user = whoami::username().unwrap_or_default();
        let lingers = service.query_linger(&user).map(|ask| ask.run());
        match lingers {
            None => Ok(()),
            Some(Ok(answer)) if answer.trim() == "yes" => Ok(()),
            Some(_) => print(format_args!(
                "it stops at your last logout: `ai-agent install --linger` lets it continue"
            )),
        }
    }
}

/// Steps that install the files of the service.
fn files(context: &ServiceContext) -> Result<Vec<Step>, Failure> {
    let installed = context.service.installed();
    let mut steps = Vec::new();
    let this = std::env::current_exe().and_then(|path| path.canonicalize()).map_err(|error| {
        Failure::failed(format!("cannot determine the path of this program: {error}"))
    })?;
    steps.push(Step::Program { from: this, to: installed.program.clone() });
    let kept = match secure_file::read(&installed.environment) {
        Ok(text) => parse_service_variables(&text),
        Err(error) if error.is_absent() => BTreeMap::new(),
        Err(error) => return Err(Failure::usage(error)),
    };
    let variables = variables(context.context.environment(), kept)?;
    if !variables.is_empty() {
        let names = variables.keys().cloned().collect();
        let text = text(&variables);
        steps.push(Step::Variables { path: installed.environment.clone(), names, text });
    }
    let bytes = context.service.definition_file().map_err(Failure::failed)?;
    steps.push(Step::Definition { path: installed.definition.clone(), bytes });
    Ok(steps)
}

/// Variables of the service: those of this process, and for the others those that it had before.
fn variables(
    environment: &Environment,
    mut kept: BTreeMap<String, OsString>,
) -> Result<BTreeMap<String, String>, Failure> {
    let names: Vec<String> = environment.names().map(str::to_owned).collect();
    let names =
        names.into_iter().filter(|name| name.starts_with(PREFIX) || KEPT.contains(&&**name));
    for name in names {
        if let Some(value) = environment.process_value(&name) {
            kept.insert(name, value.to_owned());
        }
    }
    let mut variables = BTreeMap::new();
    for (name, value) in kept {
        let text = value.to_str().map(str::trim).filter(|text| !text.contains(char::is_control));
        let Some(text) = text else {
            return Err(Failure::usage(format!(
                "the environment variable `{name}` is not a single line of text, so a service cannot \
                 have it"
            )));
        };
        if !text.is_empty() {
            variables.insert(name, text.to_owned());
        }
    }
    Ok(variables)
}

fn text(variables: &BTreeMap<String, String>) -> String {
    let mut text =
        "# Written by `ai-agent install`: variables of the service. Removed by `ai-agent \
                    uninstall`.\n"
            .to_owned();
    for (name, value) in variables {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}

/// Prints a hint if a shell does not find the program.
fn print_path_hint(installed: &InstalledPaths) -> Result<(), Failure> {
    let Some(folder) = installed.program.parent() else { return Ok(()) };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|known| known == folder) {
        return Ok(());
    }
    print(format_args!(
        "`{}` is not in your PATH: add it, or use the full path of the program",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(environment: &[(&str, &str)], file: &str) -> String {
        let environment = environment.iter().copied().collect();
        text(&variables(&environment, parse_service_variables(file)).unwrap())
    }

    /// An upgrade from another shell must not lose the token.
    #[test]
    fn variables_that_are_not_set_keep_their_value() {
        let before = kept(&[("CLAUDE_SIEM_TOKEN", "one=1 #"), ("CLAUDE_SIEM_ENDPOINT", "e")], "");
        assert!(
            before.ends_with("\nCLAUDE_SIEM_ENDPOINT=e\nCLAUDE_SIEM_TOKEN=one=1 #\n"),
            "{before}"
        );
        assert_eq!(kept(&[("PATH", "/bin")], &before), before);
        let after = kept(&[("CLAUDE_SIEM_TOKEN", "two"), ("XDG_STATE_HOME", "/s")], &before);
        let expected = "\nCLAUDE_SIEM_ENDPOINT=e\nCLAUDE_SIEM_TOKEN=two\nXDG_STATE_HOME=/s\n";
        assert!(after.ends_with(expected), "{after}");
    }

    #[test]
    fn a_value_with_line_breaks_is_refused_and_not_shown() {
        let environment = [("CLAUDE_SIEM_TOKEN", "s3cr3t\nCLAUDE_SIEM_ENDPOINT=evil")];
        let Err(Failure::Usage(error)) =
            variables(&environment.into_iter().collect(), BTreeMap::new())
        else {
            panic!("it was accepted")
        };
        let error = error.to_string();
        assert!(error.contains("CLAUDE_SIEM_TOKEN") && !error.contains("s3cr3t"), "{error}");
    }
}
