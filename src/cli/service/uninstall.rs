//! `ai-agent uninstall`: takes away what `install` laid down.

use std::path::Path;

use clap::Args;

use super::{AtHand, purge, step::Step, wait_until_gone};
use crate::cli::{Failure, hooks, print};

/// Stops the service and takes away what `install` laid down; state and configuration stay.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Deletes the state too: what was not shipped is lost, and a later installation reads all
    /// session files again.
    #[arg(long)]
    purge: bool,
    /// Says what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    pub(crate) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let at_hand = AtHand::look(explicit)?;
        let (service, state_dir) = (&at_hand.service, &at_hand.state_dir);
        let installed = service.installed();
        let parts = [&installed.definition, &installed.program, &installed.environment];
        let is_ours = parts.iter().any(|part| part.try_exists().unwrap_or(true));
        if let Some(definition) = service.machine_definitions().filter(|_| !is_ours) {
            return Err(Failure::failed(format!(
                "the service is the machine's, by `{}`: an administrator takes it away",
                definition.display()
            )));
        }
        // Nothing is known to the manager where nothing was ever laid down.
        let stop = if is_ours { service.unregister() } else { Vec::new() };
        let mut steps: Vec<Step> = stop.into_iter().map(Step::ManagerCommand).collect();
        steps.push(Step::Remove(installed.definition.clone()));
        if is_ours {
            steps.extend(service.clean_up().into_iter().map(Step::ManagerCommand));
        }
        steps.push(Step::Remove(installed.environment.clone()));
        let program = Step::RemoveProgram(installed.program.clone());
        let folders = [&installed.environment, &installed.program];
        let folders = folders.into_iter().filter_map(|path| path.parent());
        let named = folders.filter(|folder| folder.ends_with("ai-agent"));
        let folders: Vec<Step> = named.map(|folder| Step::RemoveFolder(folder.into())).collect();

        if self.dry_run {
            steps.iter().try_for_each(Step::preview)?;
            hooks::forget(&at_hand.surroundings, &installed.program, true)?;
            program.preview()?;
            if self.purge {
                purge::preview(state_dir)?;
            }
            return Ok(());
        }
        steps.iter().try_for_each(Step::execute)?;
        if is_ours {
            wait_until_gone(state_dir)?;
        }
        // A hook that names a program that is gone complains at each prompt.
        hooks::forget(&at_hand.surroundings, &installed.program, false)?;
        program.execute()?;
        if self.purge {
            purge::execute(state_dir, &at_hand.surroundings.paths().pointer)?;
        }
        folders.iter().try_for_each(Step::execute)?;
        if self.purge || !state_dir.try_exists().unwrap_or(false) {
            return print(format_args!("ai-agent is uninstalled"));
        }
        print(format_args!(
            "ai-agent is uninstalled; its state stays in `{}`: a later installation goes on from \
             there, `ai-agent uninstall --purge` deletes it",
            state_dir.display()
        ))
    }
}
