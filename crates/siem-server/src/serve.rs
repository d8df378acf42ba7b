//! HTTP/1 server for a router, with limits on the cost of a connection.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo, response::Response};
use hyper::{HeaderMap, Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{
    connections::{Connection, Connections},
    http::{RefusalLog, Requested, headers_too_large},
    write_timeout::WriteTimeout,
};

/// Size of hyper's buffer beyond that of the headers, in bytes: for the request line, and for headers that
/// are somewhat too large, whose sender gets a response that says so. hyper accepts no smaller buffer.
const EXTRA_BUFFER: usize = 8192;
/// Time in which an evicted connection may finish a response.
const FAREWELL: Duration = Duration::from_secs(1);

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Number of open connections. One more ends the connection that is idle longest; if all have
    /// requests, it waits in the listen queue of the system. Must leave open files for the store:
    /// [`raise_open_files`](crate::raise_open_files) returns how many connections do.
    pub connections: usize,
    /// Time that the headers of a request may take, and that a connection may be idle.
    pub header_timeout: Duration,
    /// Time that a response may wait for the client to read any byte of it.
    pub write_timeout: Duration,
    /// Size of a request's headers in bytes: names and values. A request with more is answered with
    /// status 431.
    pub header_bytes: usize,
    /// Time that running requests may take to finish after the shutdown started.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            connections: 8192,
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            header_bytes: 64 << 10,
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves `router` until `shutdown` completes, then lets running requests finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Connections::new(options.connections);
    let refusals = Arc::<RefusalLog>::default();
    let (end, ending) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            next = accept(&listener) => next,
        };
        match next {
            Ok((stream, peer)) => {
                // Not in the selection above: an ended task would drop the stream.
                tokio::select! {
                    () = &mut shutdown => break,
                    () = connections.make_room() => {}
                }
                let router = TowerToHyperService::new(router.clone());
                let connection = Arc::new(connections.open());
                let (header_bytes, refusals) = (options.header_bytes, refusals.clone());
                let service = PeerService { router, peer, header_bytes, connection, refusals };
                tasks.spawn(connection_task(stream, service, options, ending.clone()));
            }
            Err(error) => {
                // Most likely the process has no file descriptors left: some connection will end.
                warn!(code = "accept_failed", %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    end.send_replace(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(options.grace, all).await.is_err() {
        warn!(code = "shutdown_timeout", "some requests did not finish in time");
    }
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer))
}

/// The router for one connection: each request names the address of its sender, in the extension
/// that axum's own server sets.
struct PeerService {
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
    header_bytes: usize,
    connection: Arc<Connection>,
    /// Log of the refusals that a receiver in the router does not log itself.
    refusals: Arc<RefusalLog>,
}

type RouterService = TowerToHyperService<Router>;
type Responding<F> = Pin<Box<dyn Future<Output = F> + Send>>;

impl Service<Request<Incoming>> for PeerService {
    type Response = Response;
    type Error = <RouterService as Service<Request<Incoming>>>::Error;
    type Future = Responding<Result<Self::Response, Self::Error>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let busy = self.connection.begin_request();
        let requested = Requested::of(Some(self.peer.ip()), &request);
        if header_bytes(request.headers()) > self.header_bytes {
            let mut response = headers_too_large();
            self.refusals.log(&mut response, &requested);
            return Box::pin(async move { Ok(response) });
        }
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let (responding, refusals) = (self.router.call(request), self.refusals.clone());
        Box::pin(async move {
            let response = responding.await.map(|mut response| {
                refusals.log(&mut response, &requested);
                response
            });
            drop(busy);
            response
        })
    }
}

/// Size of the headers as a client writes them, with the separators.
fn header_bytes(headers: &HeaderMap) -> usize {
    let size = |name: &hyper::header::HeaderName, value: &hyper::header::HeaderValue| {
        name.as_str().len() + value.len() + b": \r\n".len()
    };
    headers.iter().map(|(name, value)| size(name, value)).sum()
}

async fn connection_task(
    stream: TcpStream,
    service: PeerService,
    options: ServeOptions,
    mut ending: watch::Receiver<bool>,
) {
    let stream = WriteTimeout::new(stream, options.write_timeout);
    let place = service.connection.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(options.header_bytes.saturating_add(EXTRA_BUFFER))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = place.evicted() => {
            if !place.was_used() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            let Some(served) = finish(connection, &place).await else { return };
            served
        }
        () = async { drop(ending.wait_for(|end| *end).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

/// Waits for an evicted connection to end; returns `None` if it does not end in time. A request that began
/// in spite of the eviction is served.
async fn finish<F: Future>(mut connection: Pin<&mut F>, place: &Connection) -> Option<F::Output> {
    loop {
        match tokio::time::timeout(FAREWELL, connection.as_mut()).await {
            Ok(served) => return Some(served),
            Err(_) if place.is_idle() => return None,
            Err(_) => {}
        }
    }
}
