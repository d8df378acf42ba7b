//! `ai-agent doctor`: goes through what can be wrong on a machine, and says what to do.

mod agent;
mod machine;
mod receiver;

use std::path::Path;

use clap::Args;

use super::{Failure, managed, print, setup::Surroundings};
use crate::{config::LoadedConfig, pipeline::assembly, stages::Context, text::causes};

/// Goes through everything that can be wrong on this machine, and says of each: well, or what to do.
#[derive(Args)]
pub(super) struct Arguments {
    /// Lets the agent that runs send a marked event, and waits for its acknowledgement.
    #[arg(long)]
    canary: bool,
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    about: &'static str,
    state: State,
    /// A sentence: what is, and what to do where something is.
    says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well,
    /// Worth knowing, and no reason to worry.
    Note,
    Wrong,
}

impl Finding {
    fn well(about: &'static str, says: impl Into<String>) -> Self {
        Self { about, state: State::Well, says: says.into() }
    }

    fn note(about: &'static str, says: impl Into<String>) -> Self {
        Self { about, state: State::Note, says: says.into() }
    }

    fn wrong(about: &'static str, says: impl Into<String>) -> Self {
        Self { about, state: State::Wrong, says: says.into() }
    }
}

/// What the checks look at.
struct Patient {
    loaded: LoadedConfig,
    context: Context,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let surroundings = Surroundings::look()?;
        let loaded = match managed::last_in_force(&surroundings, explicit) {
            Ok(loaded) => loaded,
            // Nothing else can be looked at without one.
            Err(failure) => return Err(failure.into_failed()),
        };
        let mut wrong = 0;
        let mut tell = |finding: Finding| {
            wrong += usize::from(finding.state == State::Wrong);
            let state = match finding.state {
                State::Well => "well ",
                State::Note => "note ",
                State::Wrong => "WRONG",
            };
            let says = finding.says.replace('\n', "\n                      ");
            print(format_args!("{state}  {:<13}  {says}", finding.about))
        };
        let state_dir = loaded.settings.agent.state_dir.clone();
        let context = surroundings.context(&loaded, Some(&state_dir), true);
        let patient = Patient { loaded, context };
        let configuration = configuration(&patient);
        let all = configuration.into_iter().chain(machine::look(&patient));
        let all = all.chain(receiver::look(&patient));
        for finding in all.chain(agent::look(&surroundings, explicit)) {
            tell(finding)?;
        }
        if self.canary {
            tell(agent::canary(&state_dir))?;
        }
        match wrong {
            0 => Ok(()),
            1 => Err(Failure::failed("one thing is wrong: see WRONG above")),
            many => Err(Failure::failed(format!("{many} things are wrong: see WRONG above"))),
        }
    }
}

/// What is wrong with the configuration.
fn configuration(patient: &Patient) -> Vec<Finding> {
    const ABOUT: &str = "configuration";

    let Patient { loaded, context } = patient;
    let wrong = assembly::check(loaded, context);
    if wrong.is_empty() {
        let revision = loaded.settings.config_hash();
        return vec![Finding::well(ABOUT, format!("nothing is wrong with it ({revision})"))];
    }
    wrong.iter().map(|error| Finding::wrong(ABOUT, causes(error))).collect()
}
