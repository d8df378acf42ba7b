//! What changes the configuration of a pipeline that runs: the server, a hang-up, files.

use std::{future::pending, mem, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{
    compliance_monitor::Guard,
    config_manager::Keeper,
    file_watch::{LOOK, LOOK_AGAIN, Look},
    poll_schedule::Polls,
};
use crate::{
    control::{Asker, Became, Reloaded},
    pipeline::{config_status::ConfigOrigin, runner::Running},
    platform::{Signal, Signals},
    siem::{FetchError, FetchedConfig},
};

/// How long the first answer of the server is waited for, before any line is judged.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long a later one may take.
const ANSWER: Duration = Duration::from_secs(30);

type Asking = Pin<Box<dyn Future<Output = Result<FetchedConfig, FetchError>> + Send>>;

/// Puts in force what the server manages, before any line is judged: what it said last counts at
/// once, and without that its first answer is waited for. How long until it is to be asked again.
///
/// Who reads once asks first whatever is known: there is no later for it.
pub(crate) async fn begin(keeper: &mut Keeper<'_>, once: bool) -> Duration {
    if !once && keeper.recall() {
        return Duration::ZERO;
    }
    let Some(asking) = ask(keeper, FIRST_ANSWER) else { return Duration::MAX };
    let (outcome, candidate) = keeper.hear(asking.await);
    match candidate {
        Some(candidate) => {
            info!(revision = candidate.revision, "managed configuration was applied");
            keeper.begin_with(candidate);
        }
        None if once => {
            keeper.recall();
        }
        None => {}
    }
    Polls::default().next(outcome, keeper.loaded.settings.agent.poll_interval, fastrand::f64())
}

fn ask(keeper: &Keeper<'_>, patience: Duration) -> Option<Asking> {
    let (manager, etag) = keeper.manager()?;
    Some(Box::pin(async move { manager.managed_config(etag.as_deref(), patience).await }))
}

/// Follows the configuration until the agent is asked to end.
pub(crate) async fn follow(
    running: &mut Running,
    keeper: &mut Keeper<'_>,
    guard: &mut Guard,
    first: Duration,
    signals: &mut Signals,
) {
    let waker = running.waker();
    keeper.watched.name(keeper.look_at_named());
    let mut polls = Polls::default();
    let mut poll = Instant::now().checked_add(first);
    let mut asking: Option<Asking> = None;
    let mut look = Instant::now() + LOOK;
    // Those who asked for a reload and wait for the server's part of it.
    let mut waiting: Vec<(Asker, Became)> = Vec::new();
    loop {
        let mut asker = None;
        let (from, candidate) = tokio::select! {
            Some(asked) = keeper.askers.recv() => {
                info!(code = "reload_by_command", "the configuration is read again, as somebody asks for");
                asker = Some(asked);
                (asking, poll) = (None, Some(Instant::now()));
                keeper.watched.read(keeper.look());
                (ConfigOrigin::Files, keeper.read_files(true))
            }
            signal = signals.next() => match signal {
                Signal::End => return,
                Signal::HangUp => {
                    info!(code = "reload_by_signal", "the configuration is read again, as a hang-up asks for");
                    (asking, poll) = (None, Some(Instant::now()));
                    keeper.watched.read(keeper.look());
                    (ConfigOrigin::Files, keeper.read_files(true))
                }
            },
            () = sleep_until(look) => {
                let seen = keeper.watched.look(keeper.look());
                let next = if seen == Look::Changing { LOOK_AGAIN } else { LOOK };
                look = Instant::now() + next;
                let found = guard.look(&keeper.loaded.settings);
                found.into_iter().for_each(|event| running.report(event));
                if seen != Look::Changed {
                    continue;
                }
                info!(code = "config_files_changed", "files of the configuration have changed");
                keeper.watched.read(keeper.look());
                // A token that was mended may be what the server waits for.
                (asking, poll) = (None, Some(Instant::now()));
                (ConfigOrigin::Files, keeper.read_files(false))
            }
            () = at(poll), if asking.is_none() => {
                asking = ask(keeper, ANSWER);
                if asking.is_none() {
                    poll = None;
                    tell(&mut waiting, None);
                }
                continue;
            }
            fetched = answer(&mut asking) => {
                asking = None;
                let (outcome, candidate) = keeper.hear(fetched);
                let interval = keeper.loaded.settings.agent.poll_interval;
                poll = Instant::now().checked_add(polls.next(outcome, interval, fastrand::f64()));
                (ConfigOrigin::Server, candidate)
            }
        };
        let reload = candidate.and_then(|candidate| keeper.change(candidate, from, &waker));
        keeper.take_events().into_iter().for_each(|event| running.report(event));
        keeper.watched.name(keeper.look_at_named());
        if let Some(reload) = reload {
            tokio::select! {
                () = running.reload(reload) => {}
                () = signals.ended() => return,
            }
            keeper.is_applied();
            let found = guard.look(&keeper.loaded.settings);
            found.into_iter().for_each(|event| running.report(event));
            let revision = keeper.context.revision.get();
            let hash = keeper.loaded.settings.config_hash().to_string();
            info!(code = "config_applied", revision, hash, "the configuration is in force");
        }
        waiting.extend(asker.map(|asker| (asker, keeper.became.clone())));
        if from == ConfigOrigin::Server {
            tell(&mut waiting, Some(&keeper.became));
        }
    }
}

/// Tells those who asked for a reload what came of it.
fn tell(waiting: &mut Vec<(Asker, Became)>, server: Option<&Became>) {
    for (asker, files) in mem::take(waiting) {
        // Whoever no longer waits does not want to know.
        asker.send(Reloaded { files, server: server.cloned() }).ok();
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

async fn answer(asking: &mut Option<Asking>) -> Result<FetchedConfig, FetchError> {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}
