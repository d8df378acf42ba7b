//! `ai-agent install`: lays program, variables and service down, and starts it.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use clap::Args;
use tracing::warn;

use super::{AtHand, failed, step::Step, wait_until_ready};
use crate::{
    cli::{Failure, print},
    platform::{
        Environment, InstalledPaths, parse_service_variables, secure_file, service::Service,
    },
    text::causes,
};

/// Variables that are kept for the service besides `CLAUDE_SIEM_*`: it has to read and write where
/// the user's programs do.
const KEPT: [&str; 3] = ["CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"];
const PREFIX: &str = "CLAUDE_SIEM_";

/// Makes the agent a service of the user, and starts it; brings one that is there up to date.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Says what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// Lets it run while you are not logged in, too (systemd): all services of this user start at
    /// boot then, and go on after a logout.
    #[arg(long)]
    linger: bool,
}

impl Arguments {
    pub(crate) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let at_hand = AtHand::look(explicit)?;
        let service = &at_hand.service;
        if let Some(definition) = service.machine_definitions() {
            return Err(Failure::failed(format!(
                "an administrator has made ai-agent a service of all users already, by `{}`: \
                 `ai-agent start` starts it",
                definition.display()
            )));
        }
        if self.linger && service.enable_linger().is_none() {
            return Err(Failure::usage("`--linger` is for systemd, which this system has not"));
        }
        // What would keep it from its work keeps it from being installed, and nothing is changed.
        at_hand.would_work()?;
        if let Some(probe) = service.probe() {
            probe.run().map_err(|error| {
                Failure::failed(format!(
                    "no service manager of this user answers: log in as this user (not by `su` or \
                     `sudo`), or `loginctl enable-linger` as root: {}",
                    causes(&error)
                ))
            })?;
        }
        let standing = service.status().map_err(failed)?;
        let before = at_hand.holder()?;
        at_hand.refuse_another(standing.is_active, before)?;

        let files = files(&at_hand)?;
        let is_new = files.iter().any(|step| !step.is_done());
        let is_well = standing.enabled == "enabled" && standing.is_active == Some(true);
        if !is_new && is_well && before.is_some() {
            print(format_args!("ai-agent is installed, up to date, and runs"))?;
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
        // One that is new has another process than the one before.
        let before = before.flatten().filter(|_| is_new || !is_well);
        let pid = wait_until_ready(&at_hand.state_dir, before)?;
        print(format_args!(
            "ai-agent {} runs (PID {pid}), and starts at each login",
            env!("CARGO_PKG_VERSION")
        ))?;
        self.see_to_lingering(service)?;
        tell_of_path(service.installed())
    }

    /// Without it, a service of a user ends with the last session.
    fn see_to_lingering(&self, service: &Service) -> Result<(), Failure> {
        if self.linger {
            let Some(call) = service.enable_linger() else { return Ok(()) };
            return match call.run() {
                Ok(_) => print(format_args!("it runs while you are not logged in, too")),
                Err(error) => {
                    warn!(
                        code = "service_stops_at_logout",
                        "it runs while you are logged in only: {}",
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
                "it ends when you log out everywhere: `ai-agent install --linger` lets it go on"
            )),
        }
    }
}

/// The files of the service.
fn files(at_hand: &AtHand) -> Result<Vec<Step>, Failure> {
    let installed = at_hand.service.installed();
    let mut steps = Vec::new();
    let this = std::env::current_exe().and_then(|path| path.canonicalize()).map_err(|error| {
        Failure::failed(format!("cannot find out where this program lies: {error}"))
    })?;
    steps.push(Step::Program { from: this, to: installed.program.clone() });
    let kept = match secure_file::read(&installed.environment) {
        Ok(text) => parse_service_variables(&text),
        Err(error) if error.is_absent() => BTreeMap::new(),
        Err(error) => return Err(Failure::usage(error)),
    };
    let variables = variables(at_hand.surroundings.environment(), kept)?;
    if !variables.is_empty() {
        let names = variables.keys().cloned().collect();
        let text = text(&variables);
        steps.push(Step::Variables { path: installed.environment.clone(), names, text });
    }
    let bytes = at_hand.service.definition_file().map_err(Failure::failed)?;
    steps.push(Step::Definition { path: installed.definition.clone(), bytes });
    Ok(steps)
}

/// The variables that the service gets: those that are given now, and of the others those that it
/// had.
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
                "the environment variable `{name}` is no single line of text, which a service \
                 cannot be given"
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
        "# Written by `ai-agent install`: what the service is given. `ai-agent uninstall` \
                    takes it away.\n"
            .to_owned();
    for (name, value) in variables {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}

/// Says so where a shell does not find the program.
fn tell_of_path(installed: &InstalledPaths) -> Result<(), Failure> {
    let Some(folder) = installed.program.parent() else { return Ok(()) };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|known| known == folder) {
        return Ok(());
    }
    print(format_args!(
        "`{}` is not in your PATH: add it, or name the program by its whole path",
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

    /// Whoever upgrades from another shell must not lose the token.
    #[test]
    fn what_is_not_given_anew_stays() {
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
    fn what_a_line_cannot_hold_is_refused_without_its_value() {
        let environment = [("CLAUDE_SIEM_TOKEN", "s3cr3t\nCLAUDE_SIEM_ENDPOINT=evil")];
        let Err(Failure::Usage(error)) =
            variables(&environment.into_iter().collect(), BTreeMap::new())
        else {
            panic!("it was taken")
        };
        let error = error.to_string();
        assert!(error.contains("CLAUDE_SIEM_TOKEN") && !error.contains("s3cr3t"), "{error}");
    }
}
