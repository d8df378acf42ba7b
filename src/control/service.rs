//! Answers requests of clients for a running agent.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::AgentEvent;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use super::{
    compliance_status::compliance_status,
    dead_letter_requests, device_requests,
    device_status::DeviceStatus,
    error::RequestError,
    outbox_requests::{self, Respond},
    protocol::{Request, Response},
    status::{AgentStatus, HangingPath, ProcessStatus, ReadingStatus},
    store::Store,
};
use crate::{
    agent::{AgentHandle, handle::Phase},
    config::LoadedConfig,
    logging::{self, Level},
    pipeline::runner::PipelineHandle,
    platform::{Timestamp, memory},
    stages::AgentContext,
    text::causes,
};

/// Longest time that the outbox and reading may take to report their status.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that a request waits for a pipeline that is starting: `install` and `start` return
/// before it runs.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that a flush may take.
const MAX_FLUSH: Duration = Duration::from_secs(24 * 3600);

/// Answers requests of clients for a running agent.
pub(crate) struct ControlService {
    agent: AgentHandle,
}

/// Sends the lines of one response. A send fails when the client has disconnected.
type Responses = mpsc::Sender<Response>;

impl ControlService {
    /// Creates a service for the agent with this handle.
    pub(crate) fn new(agent: AgentHandle) -> Arc<Self> {
        Arc::new(Self { agent })
    }

    /// Answers one request; the last response is `Done` or `Failed`.
    pub(super) async fn answer(&self, request: Request, responses: Responses) {
        let end = match self.handle(request, &responses).await {
            Ok(()) => Response::Done,
            Err(RequestError::Invalid(error)) => Response::Failed { error, usage: true },
            Err(error) => Response::Failed { error: error.to_string(), usage: false },
        };
        drop(responses.send(end).await);
    }

    async fn handle(&self, request: Request, responses: &Responses) -> Result<(), RequestError> {
        let response = match request {
            Request::Status => Response::Status(Box::new(self.status().await)),
            Request::Flush { within_ms } => self.flush(Duration::from_millis(within_ms)).await?,
            Request::Canary { within_ms } => self.canary(Duration::from_millis(within_ms)).await?,
            Request::Config => Response::Config(self.agent.in_force().0.shown_values()),
            Request::Reload => self.reload().await?,
            Request::LogLevel { level } => log_level(level)?,
            Request::Outbox(request) => {
                let handle = move |store: &Store, respond: Respond<'_>| {
                    outbox_requests::handle(store, &request, respond)
                };
                return self.on_store(responses, handle).await;
            }
            Request::Deadletter(request) => {
                let handle = move |store: &Store, respond: Respond<'_>| {
                    dead_letter_requests::handle(store, &request, respond)
                };
                return self.on_store(responses, handle).await;
            }
            Request::Device(request) => {
                let handle = move |store: &Store, respond: Respond<'_>| {
                    device_requests::handle(store, &request, respond)
                };
                return self.on_store(responses, handle).await;
            }
        };
        drop(responses.send(response).await);
        Ok(())
    }

    async fn status(&self) -> AgentStatus {
        let (loaded, context) = self.agent.in_force();
        let now = context.clock.now();
        let mut status = AgentStatus {
            agent: self.process_status(&loaded, &context, now),
            config: Some(self.agent.config_report(now)),
            device: DeviceStatus::of_agent(&context.device, &context.trust),
            update: Some(self.agent.updates().get()),
            hanging: HangingPath::all(&context.calls),
            ..AgentStatus::default()
        };
        let compliance = spawn_blocking(move || {
            let AgentContext { calls, paths, environment, sessions, state_dir, .. } = &context;
            let client_dirs = sessions.client_dirs();
            let state_dir = state_dir.as_ref()?;
            Some(compliance_status(state_dir, calls, paths, environment, &client_dirs))
        });
        let compliance = timeout(STATUS_TIMEOUT, compliance).await;
        status.compliance = compliance.ok().and_then(Result::ok).flatten();
        match self.agent.pipeline() {
            Ok(pipeline) => add_pipeline(&mut status, &pipeline, &loaded, now).await,
            Err(phase) => status.agent.phase = phase,
        }
        status.assign_trust();
        status
    }

    fn process_status(
        &self,
        loaded: &LoadedConfig,
        context: &AgentContext,
        now: Timestamp,
    ) -> ProcessStatus {
        let started_at = self.agent.started_at();
        ProcessStatus {
            pid: std::process::id(),
            version: crate::version::version().to_owned(),
            started_at: Some(started_at.to_string()),
            uptime_seconds: Some((now - started_at).as_secs()),
            memory_bytes: memory::resident(),
            log_level: logging::filter().ok(),
            phase: Phase::Starting,
            landlock: context.sandbox.status(),
            flush_interval_seconds: loaded.settings.shipping.flush_interval.as_secs(),
        }
    }

    async fn flush(&self, within: Duration) -> Result<Response, RequestError> {
        let begun = Instant::now();
        let pipeline = self.running_pipeline(within).await?;
        let left = within.saturating_sub(begun.elapsed());
        let flushed = pipeline.flush(left.min(MAX_FLUSH)).await;
        let entries = flushed.map_err(|error| {
            RequestError::failed(format!("not everything is delivered yet: {}", causes(&error)))
        })?;
        Ok(Response::Flushed { entries })
    }

    async fn canary(&self, within: Duration) -> Result<Response, RequestError> {
        let begun = Instant::now();
        let pipeline = self.running_pipeline(within).await?;
        let id = uuid::Uuid::new_v4().to_string();
        pipeline.report(AgentEvent::Canary { id: id.clone() }.into());
        // The first job runs before the event is taken up, the second once it is stored.
        let stored = timeout(within, async {
            pipeline.run_between_groups(|_| ()).await?;
            pipeline.run_between_groups(|_| ()).await
        });
        let late = || RequestError::failed("the event is not stored yet: see `ai-agent status`");
        stored.await.map_err(|_| late())?.map_err(|_| late())?;
        let left = within.saturating_sub(begun.elapsed());
        pipeline.flush(left).await.map_err(RequestError::because)?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Response::CanaryAcknowledged { id, took_ms })
    }

    async fn reload(&self) -> Result<Response, RequestError> {
        if let Err(phase @ Phase::Stopping) = self.agent.pipeline() {
            return Err(not_running(phase));
        }
        self.agent.reload().await.map(Response::Reloaded).map_err(RequestError::because)
    }

    /// Handles a request on the outbox, away from the network thread.
    async fn on_store(
        &self,
        responses: &Responses,
        handle: impl FnOnce(&Store, Respond<'_>) -> Result<(), RequestError> + Send + 'static,
    ) -> Result<(), RequestError> {
        let pipeline = self.running_pipeline(START_TIMEOUT).await?;
        let (loaded, context) = self.agent.in_force();
        let store = Store::of_agent(pipeline, loaded, context);
        let responses = responses.clone();
        let handled = spawn_blocking(move || {
            let mut respond = |response: Response| {
                let sent = responses.blocking_send(response);
                sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            };
            handle(&store, &mut respond)
        });
        handled.await.unwrap_or_else(|_| {
            Err(RequestError::failed("the request failed inside the agent: see its log"))
        })
    }

    /// Returns the running pipeline, or one that starts in time.
    async fn running_pipeline(&self, patience: Duration) -> Result<PipelineHandle, RequestError> {
        let pipeline = self.agent.running_pipeline(patience.min(START_TIMEOUT)).await;
        pipeline.map_err(not_running)
    }
}

fn log_level(level: Option<Level>) -> Result<Response, RequestError> {
    let filter = match level {
        Some(level) => logging::set_level(level),
        None => logging::filter(),
    };
    filter.map(|filter| Response::LogFilter { filter }).map_err(RequestError::Failed)
}

async fn add_pipeline(
    status: &mut AgentStatus,
    pipeline: &PipelineHandle,
    loaded: &LoadedConfig,
    now: Timestamp,
) {
    status.agent.phase = Phase::Running;
    // Before the outbox, so that it has the entries that a sink cannot deliver.
    let sinks = pipeline.sinks();
    let outbox = Arc::clone(pipeline.outbox());
    let stats = timeout(STATUS_TIMEOUT, spawn_blocking(move || outbox.stats()));
    let (stats, reading) = tokio::join!(stats, pipeline.ingest_status(STATUS_TIMEOUT));
    match stats {
        Ok(Ok(Ok(stats))) => status.set_outbox(stats, loaded, now),
        Ok(Ok(Err(error))) => status.outbox_error = Some(causes(&error)),
        Ok(Err(_)) | Err(_) => {
            let seconds = STATUS_TIMEOUT.as_secs();
            status.outbox_error = Some(format!("the outbox did not respond within {seconds} s"));
        }
    }
    status.add_progress(&sinks, now);
    status.reading = Some(match reading {
        Ok(reading) => ReadingStatus::new(&reading, now),
        Err(failure) => ReadingStatus::silent(failure.silent),
    });
}

fn not_running(phase: Phase) -> RequestError {
    RequestError::failed(match phase {
        Phase::Stopping => "the agent is shutting down: try again after the next start",
        Phase::Starting | Phase::Running => {
            "the agent is starting or restarting: try again in a few seconds"
        }
    })
}
