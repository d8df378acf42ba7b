//! `ai-agent uninstall`: removes what `install` installed.

use std::path::Path;

use clap::Args;

use super::{
    context::{ServiceContext, wait_until_stopped},
    purge,
    step::Step,
};
use crate::{
    cli::{failure::Failure, hooks, output::print},
    platform::service::{Service, SupervisorJob},
};

/// Stop the service and remove what `install` installed; state and configuration stay
#[derive(Args)]
pub(crate) struct Arguments {
    /// Also delete the state: entries that were not shipped are lost, and a later installation reads
    /// all session logs again
    #[arg(long)]
    purge: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    pub(crate) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = ServiceContext::new(explicit)?;
        let (service, state_dir) = (&context.service, &context.state_dir);
        let installed = service.installed();
        let parts = [&installed.definition, &installed.program, &installed.environment];
        let is_ours = parts.iter().any(|part| part.try_exists().unwrap_or(true));
        if let Some(definition) = service.machine_definitions().filter(|_| !is_ours) {
            return Err(Failure::failed(format!(
                "the service is installed for all users, by `{}`: an administrator must remove it",
                definition.display()
            )));
        }
        let has_hooks = hooks::run_program(&context.context, &installed.program);
        if !is_ours && !has_hooks {
            print(format_args!("ai-agent is not installed as a service of this user"))?;
            if !self.purge {
                return print_state(state_dir);
            }
        }
        let RemovalSteps { service: steps, program, folders } = RemovalSteps::new(service, is_ours);
        if self.dry_run {
            steps.iter().try_for_each(Step::preview)?;
            if has_hooks {
                hooks::preview_removal(&context.context)?;
            }
            program.preview()?;
            if self.purge {
                purge::preview(state_dir)?;
            }
            return Ok(());
        }
        steps.iter().try_for_each(Step::execute)?;
        // An update that is not confirmed has one.
        SupervisorJob::stop(service);
        if is_ours {
            wait_until_stopped(state_dir)?;
        }
        // A hook that runs a missing program would show an error at each prompt.
        if has_hooks {
            hooks::remove(&context.context)?;
        }
        program.execute()?;
        if self.purge {
            purge::execute(state_dir, &context.context.paths().pointer)?;
        }
        folders.iter().try_for_each(Step::execute)?;
        if is_ours || has_hooks {
            print(format_args!("ai-agent is uninstalled"))?;
        }
        print_state(state_dir)
    }
}

/// Says that the state stays, if there is any.
fn print_state(state_dir: &Path) -> Result<(), Failure> {
    if !state_dir.try_exists().unwrap_or(false) {
        return Ok(());
    }
    print(format_args!(
        "its state stays in `{}`: a later installation continues from there, and `ai-agent uninstall \
         --purge` deletes it",
        state_dir.display()
    ))
}

/// Steps that remove an installation, in this order.
struct RemovalSteps {
    /// Stop the service and remove its definition and its variables.
    service: Vec<Step>,
    program: Step,
    folders: Vec<Step>,
}

impl RemovalSteps {
    fn new(service: &Service, is_installed: bool) -> Self {
        let installed = service.installed();
        // Without an installation the service is unknown to the manager.
        let commands = |commands: Vec<_>| commands.into_iter().map(Step::ManagerCommand);
        let mut steps = Vec::new();
        if is_installed {
            steps.extend(commands(service.unregister()));
        }
        steps.push(Step::Remove(installed.definition.clone()));
        if is_installed {
            steps.extend(commands(service.clean_up()));
        }
        steps.push(Step::Remove(installed.environment.clone()));
        let folders = [&installed.environment, &installed.program];
        let folders = folders.into_iter().filter_map(|path| path.parent());
        let named = folders.filter(|folder| folder.ends_with("ai-agent"));
        Self {
            service: steps,
            program: Step::RemoveProgram(installed.program.clone()),
            folders: named.map(|folder| Step::RemoveFolder(folder.into())).collect(),
        }
    }
}
