//! Accepts control connections. A slow, flooding or vanished client cannot affect the others.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    protocol::{self, DecodeError, MAX_REQUEST, Request, Response},
    service::ControlService,
};
use crate::{
    platform::control::{self, EndpointGuard, Listener, Stream},
    text::causes,
};

/// Connections that are served at once. Another one takes the place of the longest idle one, or else of
/// the one that has waited longest for a delivery, and waits if there is neither.
const MAX_CONNECTIONS: usize = 16;
/// Longest time that a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a client may do nothing without being idle.
const SHORT: Duration = Duration::from_secs(1);
/// Longest time that a client may take to read one line.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a client may take to close the connection after the response.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after the system has refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A running server, which ends when this is dropped.
pub(crate) struct Server {
    task: AbortHandle,
    _endpoint: EndpointGuard,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to accept connections for the process that holds the lock of `state_dir`. On an error it
/// logs a warning, and the agent works without a control socket.
pub(crate) fn serve(state_dir: &Path, service: Arc<ControlService>) -> Option<Server> {
    match control::bind(state_dir) {
        Ok((listener, endpoint)) => {
            let task = tokio::spawn(accept(listener, service)).abort_handle();
            Some(Server { task, _endpoint: endpoint })
        }
        Err(error) => {
            warn!(
                code = "control_unavailable",
                %error,
                state_dir = %state_dir.display(),
                "control socket unavailable: `status`, `flush` and `reload` will not work until \
                 restart"
            );
            None
        }
    }
}

async fn accept(mut listener: Listener, service: Arc<ControlService>) {
    let mut connections = Connections::default();
    loop {
        connections.make_room().await;
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => connections.serve(stream, Arc::clone(&service)),
                Err(error) => {
                    debug!(%error, "cannot accept a control connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            () = connections.ended() => {}
        }
    }
}

/// The connections that are served.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, (AbortHandle, CurrentWork)>,
}

impl Connections {
    fn serve(&mut self, stream: Box<dyn Stream>, service: Arc<ControlService>) {
        let work = CurrentWork::new();
        let task = self.tasks.spawn(serve_connection(stream, service, work.clone()));
        self.open.insert(task.id(), (task, work));
    }

    /// Waits until one more connection can be served: at once if a client is idle.
    async fn make_room(&mut self) {
        while self.open.len() >= MAX_CONNECTIONS {
            let free = self.open.values().filter_map(|(task, work)| Some((work.rank()?, task)));
            if let Some((_, task)) = free.min_by_key(|(rank, _)| *rank) {
                debug!("dropped a control connection for another one");
                task.abort();
            }
            self.ended().await;
        }
    }

    /// Waits until a connection has ended; for ever if there is none.
    async fn ended(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => std::future::pending().await,
        };
        self.open.remove(&id);
    }
}

/// Work of a connection.
#[derive(Clone, Copy)]
enum Work {
    /// Waiting for the client.
    Idle,
    /// Waiting for a delivery, for as long as the client likes.
    Delivery,
    /// Working for the client.
    Busy,
}

/// Work of a connection, and since when.
#[derive(Clone)]
struct CurrentWork(Arc<Mutex<(Work, Instant)>>);

impl CurrentWork {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((Work::Idle, Instant::now()))))
    }

    fn set(&self, work: Work) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (work, Instant::now());
    }

    /// Returns the order in which connections are dropped; `None` for one that is not. A client that
    /// has just connected comes last: its request is on its way.
    fn rank(&self) -> Option<(u8, Instant)> {
        let (work, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let class = match work {
            Work::Idle if since.elapsed() >= SHORT => 0,
            Work::Delivery => 1,
            Work::Idle => 2,
            Work::Busy => return None,
        };
        Some((class, since))
    }
}

async fn serve_connection(
    stream: Box<dyn Stream>,
    service: Arc<ControlService>,
    current: CurrentWork,
) {
    let (mut read, mut write) = tokio::io::split(stream);
    let Ok(request) = timeout(REQUEST_TIMEOUT, read_request(&mut read)).await else { return };
    let work = match &request {
        Ok(Some(Request::Flush { .. } | Request::Canary { .. })) => Work::Delivery,
        _ => Work::Busy,
    };
    current.set(work);
    let (responses, mut queue) = mpsc::channel(1);
    let answer = async {
        match request {
            Ok(Some(request)) => service.answer(request, responses).await,
            Ok(None) => {}
            Err(error) => {
                let failed = Response::Failed { error: causes(&error), usage: true };
                drop(responses.send(failed).await);
            }
        }
    };
    let send = async {
        while let Some(response) = queue.recv().await {
            current.set(Work::Idle);
            let written = timeout(WRITE_TIMEOUT, write.write_all(&response.encode())).await;
            if !matches!(written, Ok(Ok(()))) {
                break;
            }
            current.set(work);
        }
        // Closes the queue, so that a response that is still being made ends there.
        drop(queue);
        drop(timeout(WRITE_TIMEOUT, write.flush()).await);
    };
    let both = async { tokio::join!(answer, send) };
    tokio::select! {
        _ = both => {}
        () = closed(&mut read) => return,
    }
    current.set(Work::Idle);
    // On Windows, closing a pipe discards data that the client has not read yet.
    drop(timeout(CLOSE_TIMEOUT, closed(&mut read)).await);
}

/// Reads the request; `None` when the client closes the connection first.
async fn read_request(read: &mut (impl AsyncRead + Unpin)) -> Result<Option<Request>, DecodeError> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let Ok(length @ 1..) = read.read(&mut buffer).await else { return Ok(None) };
        line.extend_from_slice(&buffer[..length]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return protocol::decode(&line[..end]).map(Some);
        }
        if line.len() > MAX_REQUEST {
            return Err(DecodeError::TooLong);
        }
    }
}

/// Returns once the client has closed the connection, or floods it. Data that is unread when a
/// connection is dropped would discard the response too.
async fn closed(read: &mut (impl AsyncRead + Unpin)) {
    let (mut buffer, mut received) = ([0; 512], 0);
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        received += length;
        if received > MAX_REQUEST {
            return;
        }
    }
}
