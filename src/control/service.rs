//! Knows the answers: what the agent that runs can be asked.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use siem_protocol::AgentEvent;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    Say,
    store::Store,
    wire::{Reply, Request},
};
use crate::{
    cli::{
        Failure, deadletter, outbox,
        status::{self, Phase, Seen},
    },
    config::LoadedConfig,
    logging as log_level,
    pipeline::{config_status::SharedConfigStatus, runner::PipelineHandle},
    platform::Timestamp,
    stages::Context,
    text::{causes, counted},
};

/// How long the store and reading may take to say how they stand.
const LOOKS: Duration = Duration::from_secs(2);
/// How long a change of the configuration may take that was on its way before, and this one with
/// the server's answer.
const RELOADS: Duration = Duration::from_secs(60);

/// How long what is asked waits for a pipeline that begins: `install` and `start` return before it
/// runs.
const BEGINS: Duration = Duration::from_secs(10);

/// How long a flush may be waited for.
const LONGEST_FLUSH: Duration = Duration::from_secs(24 * 3600);

/// Somebody who asked for a reload, and waits for what comes of it.
pub(crate) type Asker = oneshot::Sender<Reloaded>;

/// What came of a reload.
#[derive(Clone, Debug)]
pub(crate) struct Reloaded {
    /// Of the files.
    pub(crate) files: Became,
    /// Of what the server manages; none where it manages nothing.
    pub(crate) server: Option<Became>,
}

/// What became of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// It is in force, and another than before.
    InForce,
    /// It says nothing new.
    Unchanged,
    /// It was refused: why.
    Refused(String),
    /// There was none to be had: why.
    NoAnswer(String),
}

/// What the agent is at.
enum Doing {
    /// A pipeline begins, or begins again.
    Starting,
    /// This one runs.
    Running(PipelineHandle),
    /// The last one ends.
    Stopping,
}

/// What the agent that runs can be asked, shared with those who ask.
pub(crate) struct Desk {
    started_at: Timestamp,
    facts: SharedConfigStatus,
    in_force: Mutex<(Arc<LoadedConfig>, Context)>,
    /// What there is to ask.
    doing: watch::Sender<Doing>,
    reloads: mpsc::Sender<Asker>,
}

impl Desk {
    /// A desk before there is a pipeline, and those who ask it for a reload.
    pub(crate) fn new(
        started_at: Timestamp,
        facts: SharedConfigStatus,
        loaded: Arc<LoadedConfig>,
        context: Context,
    ) -> (Arc<Self>, mpsc::Receiver<Asker>) {
        let (reloads, asked) = mpsc::channel(4);
        let (in_force, doing) =
            (Mutex::new((loaded, context)), watch::Sender::new(Doing::Starting));
        (Arc::new(Self { started_at, facts, in_force, doing, reloads }), asked)
    }

    /// This configuration is in force.
    pub(crate) fn is_in_force(&self, loaded: &Arc<LoadedConfig>, context: &Context) {
        *unpoisoned(&self.in_force) = (Arc::clone(loaded), context.clone());
    }

    /// This pipeline runs.
    pub(crate) fn runs(&self, view: PipelineHandle) {
        self.doing.send_replace(Doing::Running(view));
    }

    /// The pipeline ends, and another follows.
    pub(crate) fn begins_again(&self) {
        self.doing.send_replace(Doing::Starting);
    }

    /// The pipeline ends, and the agent with it.
    pub(crate) fn stops(&self) {
        self.doing.send_replace(Doing::Stopping);
    }

    /// Answers one question.
    pub(crate) async fn answer(&self, request: Request, say: mpsc::Sender<Reply>) {
        let done = match request {
            Request::Status => {
                let seen = Box::new(self.look().await);
                drop(say.send(Reply::Status(seen)).await);
                Ok(())
            }
            Request::Flush { within_ms } => {
                self.flush(Duration::from_millis(within_ms), &say).await
            }
            Request::Canary { within_ms } => {
                self.canary(Duration::from_millis(within_ms), &say).await
            }
            Request::Reload => self.reload(&say).await,
            Request::LogLevel { level } => match log_level::change(level) {
                Ok(now) => {
                    let line = match level {
                        Some(_) => format!("the agent logs `{now}` until it ends"),
                        None => now,
                    };
                    drop(say.send(Reply::Line(line)).await);
                    Ok(())
                }
                Err(error) => Err(failed(error)),
            },
            Request::Outbox(action) => {
                self.on_store(&say, move |store, say| outbox::act(store, &action, say)).await
            }
            Request::Deadletter(action) => {
                self.on_store(&say, move |store, say| deadletter::act(store, &action, say)).await
            }
        };
        let end = match done {
            Ok(()) => Reply::Done,
            Err(failed) => failed,
        };
        drop(say.send(end).await);
    }

    /// How things stand.
    async fn look(&self) -> Seen {
        let (loaded, context) = unpoisoned(&self.in_force).clone();
        let now = context.clock.now();
        let agent = status::Agent::new(self.started_at, now);
        let mut seen = Seen::new(agent, &loaded, &self.facts.now());
        let whom = spawn_blocking(move || {
            let Context { paths, environment, sessions, state_dir, .. } = &context;
            let client_dirs = sessions.client_dirs();
            let state_dir = state_dir.as_ref()?;
            Some(status::compliance(state_dir, paths, environment, &client_dirs))
        });
        seen.compliance = timeout(LOOKS, whom).await.ok().and_then(Result::ok).flatten();
        let view = match self.view() {
            Ok(view) => view,
            Err(phase) => {
                seen.agent.phase = phase;
                return seen;
            }
        };
        seen.agent.phase = Phase::Running;
        let outbox = Arc::clone(view.outbox());
        let looked = timeout(LOOKS, spawn_blocking(move || outbox.stats()));
        let (waiting, reading) = tokio::join!(looked, view.reading(LOOKS));
        match waiting {
            Ok(Ok(Ok(waiting))) => seen.take_outbox(waiting, &loaded, now),
            Ok(Ok(Err(error))) => seen.outbox_error = Some(causes(&error)),
            Ok(Err(_)) | Err(_) => {
                seen.outbox_error =
                    Some(format!("the outbox has not answered for {} s", LOOKS.as_secs()));
            }
        }
        seen.take_progress(&view.sinks(), now);
        seen.reading = Some(match reading {
            Ok(reading) => status::Reading::new(&reading, now),
            Err(failure) => status::Reading::silent(failure.silent),
        });
        seen
    }

    async fn flush(&self, patience: Duration, say: &mpsc::Sender<Reply>) -> Result<(), Reply> {
        let begun = Instant::now();
        let view = self.ready(patience).await?;
        let left = patience.saturating_sub(begun.elapsed());
        let flushed = view.flush(left.min(LONGEST_FLUSH)).await.map_err(|error| {
            failed(format!("not everything is delivered yet: {}", causes(&error)))
        })?;
        let line = match flushed {
            0 => "nothing waited: everything is acknowledged".to_owned(),
            count => {
                format!("{} delivered and acknowledged", counted(count, "entry is", "entries are"))
            }
        };
        drop(say.send(Reply::Line(line)).await);
        Ok(())
    }

    async fn canary(&self, patience: Duration, say: &mpsc::Sender<Reply>) -> Result<(), Reply> {
        let begun = Instant::now();
        let view = self.ready(patience).await?;
        let id = uuid::Uuid::new_v4().to_string();
        view.report(AgentEvent::Canary { id: id.clone() }.into());
        // The first is done before the event is taken up, the second once it is stored.
        let stored = timeout(patience, async {
            view.run_between_groups(|_| ()).await?;
            view.run_between_groups(|_| ()).await
        });
        let late = || failed("it is not stored yet: see `ai-agent status`");
        stored.await.map_err(|_| late())?.map_err(|_| late())?;
        let left = patience.saturating_sub(begun.elapsed());
        view.flush(left).await.map_err(|error| failed(causes(&error)))?;
        let took = begun.elapsed().as_millis();
        let line = format!("the event {id} was acknowledged after {took} ms");
        drop(say.send(Reply::Line(line)).await);
        Ok(())
    }

    async fn reload(&self, say: &mpsc::Sender<Reply>) -> Result<(), Reply> {
        if let Err(phase @ Phase::Stopping) = self.view() {
            return Err(not_ready(phase));
        }
        let (answer, answered) = oneshot::channel();
        let late = || {
            failed(
                "the agent is not done with it: a change of the configuration waits for the store, \
                 see `ai-agent status`",
            )
        };
        let asked = timeout(RELOADS, async {
            self.reloads.send(answer).await.ok()?;
            answered.await.ok()
        });
        let reloaded = asked.await.map_err(|_| late())?;
        let Reloaded { files, server } = reloaded.ok_or_else(|| {
            failed("the agent changes nothing any more: it runs only once, or is at its end")
        })?;
        let mut wrong = Vec::new();
        for (whose, became) in [("the files", Some(files)), ("the server", server)] {
            let line = match became {
                Some(Became::InForce) => format!("what is new from {whose} is in force"),
                Some(Became::Unchanged) => format!("nothing is new from {whose}"),
                Some(Became::NoAnswer(why)) => format!("nothing came from {whose}: {why}"),
                Some(Became::Refused(why)) => {
                    wrong.push(format!(
                        "what came from {whose} was refused, what was in force stays: {why}"
                    ));
                    continue;
                }
                None => format!("nothing is managed by {whose}"),
            };
            drop(say.send(Reply::Line(line)).await);
        }
        if wrong.is_empty() { Ok(()) } else { Err(failed(wrong.join("; "))) }
    }

    /// Does something with the store, away from the network's thread.
    async fn on_store(
        &self,
        say: &mpsc::Sender<Reply>,
        act: impl FnOnce(&Store, Say<'_>) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Reply> {
        let view = self.ready(BEGINS).await?;
        let (loaded, context) = unpoisoned(&self.in_force).clone();
        let store = Store::of_running(view, loaded, context);
        let say = say.clone();
        let done = spawn_blocking(move || {
            let mut tell = |line: &str| {
                let told = say.blocking_send(Reply::Line(line.to_owned()));
                told.map_err(|_| io::ErrorKind::BrokenPipe.into())
            };
            act(&store, &mut tell).map_err(|failure| match failure {
                Failure::Usage(error) => Reply::Failed { error: causes(&*error), usage: true },
                Failure::Failed(error) => failed(causes(&*error)),
            })
        });
        done.await.unwrap_or_else(|_| Err(failed("a part of the agent failed, its log says where")))
    }

    /// The pipeline that runs; what the agent is at when none does.
    fn view(&self) -> Result<PipelineHandle, Phase> {
        match &*self.doing.borrow() {
            Doing::Starting => Err(Phase::Starting),
            Doing::Running(view) => Ok(view.clone()),
            Doing::Stopping => Err(Phase::Stopping),
        }
    }

    /// The pipeline that runs, or will in a moment.
    async fn ready(&self, patience: Duration) -> Result<PipelineHandle, Reply> {
        let mut doing = self.doing.subscribe();
        let has_begun = doing.wait_for(|doing| !matches!(doing, Doing::Starting));
        // What it is at now decides, also when it took too long.
        drop(timeout(patience.min(BEGINS), has_begun).await);
        self.view().map_err(not_ready)
    }
}

fn failed(error: impl Into<String>) -> Reply {
    Reply::Failed { error: error.into(), usage: false }
}

fn not_ready(phase: Phase) -> Reply {
    failed(match phase {
        Phase::Stopping => {
            "the agent is stopping: ask again once it has ended, or once the next one runs"
        }
        Phase::Starting | Phase::Running => {
            "the agent has not begun yet, or begins again just now: ask again in some seconds"
        }
    })
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
