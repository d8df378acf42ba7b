//! The way to the agent that runs: what it can be asked, how it answers, and who asks.
//!
//! `wire` is what travels, `server` takes those who ask, `desk` knows the answers, `client` is the
//! other end. The pipeline offers what is asked as functions and knows nothing of all this.

mod client;
mod server;
mod service;
pub(crate) mod store;
#[path = "protocol.rs"]
pub(crate) mod wire;

use std::{io, path::Path, time::Duration};

pub(crate) use client::{Reached, reach};
pub(crate) use server::serve;
pub(crate) use service::{Asker, Became, Desk, Reloaded};
use wire::{Reply, Request};

use crate::{
    agent::config_sources::Surroundings,
    cli::{self, Failure},
    platform::{LockHolder, LockRole},
};
use store::Store;

/// Takes a line of what there is to say. When nobody listens any more it fails with
/// [`io::ErrorKind::BrokenPipe`], and there is no point in going on.
pub(crate) type Say<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

/// How long an agent may take over one line of its answer.
const LINE: Duration = Duration::from_secs(300);

/// Has the agent that runs do what `request` says, or does it as `local` says on the store of one
/// that does not.
pub(crate) fn on_store(
    explicit: Option<&Path>,
    request: &Request,
    say: Say<'_>,
    local: impl FnOnce(&Store, Say<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let surroundings = Surroundings::look()?;
    let state_dir = surroundings.state_dir(explicit);
    let done = match reach(&state_dir)? {
        Reached::Agent(client) => client.ask(request, LINE, &mut |reply| match reply {
            Reply::Line(line) => say(&line).map_err(Failure::failed),
            _ => Ok(()),
        }),
        Reached::Nobody => {
            let loaded = surroundings.load(explicit)?;
            local(&Store::open(&surroundings, loaded)?, say)
        }
        Reached::Silent { holder, why } => Err(silent(&state_dir, holder, &why)),
    };
    done.or_else(unless_gone)
}

/// Nobody listens any more: that is the end, and no failure.
pub(crate) fn unless_gone(failure: Failure) -> Result<(), Failure> {
    match &failure {
        Failure::Failed(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        _ => Err(failure),
    }
}

/// Whoever holds the state directory does not answer.
pub(crate) fn silent(state_dir: &Path, holder: LockHolder, why: &str) -> Failure {
    let state_dir = state_dir.display();
    Failure::failed(match holder.role {
        LockRole::Command => format!(
            "another command of ai-agent{holder} is at work on `{state_dir}`: wait until it has \
             ended, and try again"
        ),
        LockRole::Agent => format!(
            "`{state_dir}` is held{holder}, and nobody answers there ({why}): an agent that hangs \
             must be ended, and started again"
        ),
    })
}

/// Asks the agent that runs, which must be there; prints the lines that it answers.
pub(crate) fn ask(
    explicit: Option<&Path>,
    request: &Request,
    patience: Duration,
) -> Result<(), Failure> {
    let state_dir = Surroundings::look()?.state_dir(explicit);
    match reach(&state_dir)? {
        Reached::Agent(client) => client.ask(request, patience, &mut |reply| match reply {
            Reply::Line(line) => cli::print(format_args!("{line}")),
            _ => Ok(()),
        }),
        Reached::Nobody => Err(Failure::failed(format!(
            "ai-agent is not running: nobody holds `{}`; `ai-agent start` starts it where it is \
             installed as a service, or `ai-agent run`",
            state_dir.display()
        ))),
        Reached::Silent { holder, why } => Err(silent(&state_dir, holder, &why)),
    }
}
