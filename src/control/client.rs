//! Client of the control protocol.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    runtime::Runtime,
    time::{sleep, timeout},
};

use super::{
    dead_letter_requests, device_requests,
    device_status::DeviceStatus,
    error::RequestError,
    outbox_requests::{self, Respond},
    protocol::{self, DeviceRequest, MAX_RESPONSE, Request, Response},
    store::Store,
};
use crate::{
    agent::{ConfigSources, config_sources},
    platform::{
        LockHolder, LockRole, StateLock,
        control::{self, Stream},
    },
    text::causes,
};

/// Time that an agent that holds its state directory has to open its control socket.
const START_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Longest time that an agent may take for one line of a response about its outbox.
const STORE_TIMEOUT: Duration = Duration::from_secs(300);

/// Result of an attempt to connect to the agent of a state directory.
pub(crate) enum Connection {
    /// Connected.
    Agent(Client),
    /// No process holds the state directory.
    Stopped,
    /// A process holds the state directory and does not accept connections.
    Unresponsive {
        holder: LockHolder,
        /// The system's error.
        error: String,
    },
}

/// A connection to the running agent, for one request.
pub(crate) struct Client {
    runtime: Runtime,
    stream: Box<dyn Stream>,
}

/// Connects to the agent that runs on `state_dir`.
///
/// # Errors
/// [`RequestError`] when the lock cannot be checked.
pub(crate) fn connect(state_dir: &Path) -> Result<Connection, RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(RequestError::because)?;
    let mut waited = Duration::ZERO;
    loop {
        let error = match runtime.block_on(control::connect(state_dir)) {
            Ok(stream) => return Ok(Connection::Agent(Client { runtime, stream })),
            Err(error) => error,
        };
        let Some(holder) = StateLock::current_holder(state_dir).map_err(RequestError::because)?
        else {
            return Ok(Connection::Stopped);
        };
        if waited >= START_TIMEOUT {
            return Ok(Connection::Unresponsive { holder, error: error.to_string() });
        }
        runtime.block_on(async { sleep(RETRY_INTERVAL).await });
        waited += RETRY_INTERVAL;
    }
}

impl Client {
    /// Sends a request and passes each response to `respond`, without the last one. No line may
    /// take longer than `patience`.
    ///
    /// # Errors
    /// [`RequestError`] when the agent refuses the request, or the connection fails.
    pub(crate) fn send(
        self,
        request: &Request,
        patience: Duration,
        respond: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> Result<(), RequestError> {
        let Self { runtime, mut stream } = self;
        runtime.block_on(async {
            let line = protocol::encode(request);
            let written = timeout(patience, stream.write_all(&line)).await;
            written.map_err(|_| timed_out(patience))?.map_err(disconnected)?;
            let mut lines = BufReader::new(stream);
            loop {
                match receive(&mut lines, patience).await? {
                    Response::Done => return Ok(()),
                    Response::Failed { error, usage: true } => {
                        return Err(RequestError::Invalid(error));
                    }
                    Response::Failed { error, usage: false } => {
                        return Err(RequestError::Failed(error));
                    }
                    response => respond(response)?,
                }
            }
        })
    }
}

async fn receive(
    lines: &mut BufReader<Box<dyn Stream>>,
    patience: Duration,
) -> Result<Response, RequestError> {
    let mut line = Vec::new();
    let mut bounded = lines.take(MAX_RESPONSE);
    let read = timeout(patience, bounded.read_until(b'\n', &mut line)).await;
    let length = read.map_err(|_| timed_out(patience))?.map_err(disconnected)?;
    if length == 0 || !line.ends_with(b"\n") {
        return Err(disconnected(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&line).map_err(|error| {
        RequestError::failed(format!(
            "cannot understand the response of the agent, which has another version: restart it \
             after an upgrade ({error})"
        ))
    })
}

fn timed_out(patience: Duration) -> RequestError {
    let seconds = patience.as_secs();
    RequestError::failed(format!("the agent did not respond within {seconds} s: see its log"))
}

fn disconnected(error: io::Error) -> RequestError {
    RequestError::failed(format!("the agent closed the connection before it responded: {error}"))
}

/// Handles a request about the outbox, dead letters or the device's key: by the running agent, or in this process
/// when no agent is running.
///
/// # Errors
/// [`RequestError`].
pub(crate) fn execute(
    sources: &ConfigSources,
    request: &Request,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    let state_dir = state_dir(sources)?;
    match connect(&state_dir)? {
        Connection::Agent(client) => client.send(request, STORE_TIMEOUT, respond),
        Connection::Unresponsive { holder, error } => Err(unresponsive(&state_dir, holder, &error)),
        Connection::Stopped if *request == Request::Device(DeviceRequest::Show) => {
            Ok(respond(Response::Device(Box::new(DeviceStatus::stored(&state_dir))))?)
        }
        Connection::Stopped => {
            let loaded = sources.load().map_err(|error| RequestError::invalid(causes(&error)))?;
            config_sources::log_warnings(&loaded);
            let store = Store::open(sources, loaded)?;
            match request {
                Request::Outbox(request) => outbox_requests::handle(&store, request, respond),
                Request::Deadletter(request) => {
                    dead_letter_requests::handle(&store, request, respond)
                }
                Request::Device(request) => device_requests::handle(&store, request, respond),
                _ => Err(not_running(&state_dir)),
            }
        }
    }
}

/// Sends a request that only a running agent can handle.
///
/// # Errors
/// [`RequestError`].
pub(crate) fn send_to_agent(
    sources: &ConfigSources,
    request: &Request,
    patience: Duration,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    let state_dir = state_dir(sources)?;
    match connect(&state_dir)? {
        Connection::Agent(client) => client.send(request, patience, respond),
        Connection::Stopped => Err(not_running(&state_dir)),
        Connection::Unresponsive { holder, error } => Err(unresponsive(&state_dir, holder, &error)),
    }
}

fn state_dir(sources: &ConfigSources) -> Result<PathBuf, RequestError> {
    let loaded = sources.load_if_valid();
    let loaded = loaded.map_err(|error| RequestError::invalid(causes(&error)))?;
    Ok(sources.state_dir_of(loaded.as_ref()))
}

fn not_running(state_dir: &Path) -> RequestError {
    RequestError::failed(format!(
        "ai-agent is not running: no process holds `{}`; start it with `ai-agent start` if it is \
         installed as a service, or with `ai-agent run`",
        state_dir.display()
    ))
}

fn unresponsive(state_dir: &Path, holder: LockHolder, error: &str) -> RequestError {
    let state_dir = state_dir.display();
    RequestError::failed(match holder.role {
        LockRole::Command => format!(
            "another ai-agent command{holder} is using `{state_dir}`: wait until it has finished, \
             and try again"
        ),
        LockRole::Agent => format!(
            "an agent{holder} holds `{state_dir}` and does not accept connections ({error}): if it \
             hangs, stop it and start it again"
        ),
    })
}
