//! HTTP/1 server for a router, with limits on the cost of a connection.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo, response::Response};
use hyper::{HeaderMap, Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};
use tracing::{debug, warn};

use crate::{
    connections::{Connection, Connections},
    http::{RefusalLog, Requested, count_headers_too_large, headers_too_large},
    metrics::Metrics,
    proxies::TrustedProxies,
    tls::ServerTls,
    write_timeout::WriteTimeout,
};

/// Size of hyper's buffer beyond that of the headers, in bytes: for the request line, and for headers that
/// are somewhat too large, whose sender gets a response that says so. hyper accepts no smaller buffer.
const EXTRA_BUFFER: usize = 8192;
/// Time in which an evicted connection may finish a response.
const FAREWELL: Duration = Duration::from_secs(1);

/// Connections that wait until they are accepted; Linux takes `net.core.somaxconn` if that is lower.
const BACKLOG: u32 = 4096;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Number of open connections. One more ends an idle connection of the network with most; if all have
    /// requests, it waits in the listen queue of the system. Must leave open files for the store:
    /// [`raise_open_files`](crate::raise_open_files) returns how many connections do.
    pub connections: usize,
    /// Time that a TLS handshake and the headers of the first request may take together, that the headers
    /// of another request may take, and that a connection may be idle.
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

/// Protection of connections, and who is on their other end.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Certificates; `None` without TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// Proxies before the receiver. Without TLS, connections are accepted only from them and from this
    /// machine.
    pub proxies: Option<Arc<TrustedProxies>>,
    /// Metrics that show the connections.
    pub metrics: Option<Arc<Metrics>>,
}

impl Transport {
    fn admit(&self, peer: SocketAddr) -> bool {
        let proxies = self.proxies.as_ref().filter(|_| self.tls.is_none());
        let is_admitted = proxies.is_none_or(|proxies| proxies.admit(peer.ip()));
        if !is_admitted {
            warn!(
                code = "peer_refused",
                peer = %peer.ip(),
                "refused a connection without TLS that does not come from a trusted proxy"
            );
        }
        is_admitted
    }

    /// Returns the address of the client that sent a request.
    fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        match &self.proxies {
            // The port of a client behind a proxy is not known.
            Some(proxies) => match proxies.client(peer.ip(), headers) {
                client if client == peer.ip() => peer,
                client => SocketAddr::new(client, 0),
            },
            None => peer,
        }
    }
}

/// Listens on an address. The system keeps as many connections as it may until they are accepted: one that finds
/// no place is tried again by its client after 1, 3, 7, 15 and 31 s.
///
/// # Errors
/// If the address cannot be used.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As for every listener: without it the address of a receiver that ended is in use for a while.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` without TLS until `shutdown` completes, then lets running requests finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) {
    serve_with(listener, router, options, Transport::default(), shutdown).await;
}

/// Serves `router` until `shutdown` completes, then lets running requests finish.
pub async fn serve_with(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    transport: Transport,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Connections::new(options.connections);
    if let Some(metrics) = &transport.metrics {
        metrics.set_connections(&connections);
    }
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
            Ok((_, peer)) if !transport.admit(peer) => {}
            Ok((stream, peer)) => {
                // Not in the selection above: an ended task would drop the stream.
                tokio::select! {
                    () = &mut shutdown => break,
                    () = connections.make_room() => {}
                }
                let router = TowerToHyperService::new(router.clone());
                let connection = Arc::new(connections.open(peer.ip()));
                let (header_bytes, refusals) = (options.header_bytes, refusals.clone());
                let transport = transport.clone();
                let service =
                    PeerService { router, peer, transport, header_bytes, connection, refusals };
                tasks.spawn(connection_task(stream, service, options, ending.clone()));
            }
            // The client ended the connection.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
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
    // Fails on some systems if the client has ended the connection already.
    drop(stream.set_nodelay(true));
    Ok((stream, peer))
}

/// The router for one connection: each request names the address of its client, in the extension
/// that axum's own server sets.
struct PeerService {
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
    transport: Transport,
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
        let client = self.transport.client(self.peer, request.headers());
        let requested = Requested::of(Some(client.ip()), &request);
        if header_bytes(request.headers()) > self.header_bytes {
            self.transport.metrics.as_deref().inspect(|metrics| count_headers_too_large(metrics));
            let mut response = headers_too_large();
            self.refusals.log(&mut response, &requested);
            return Box::pin(async move { Ok(response) });
        }
        request.extensions_mut().insert(ConnectInfo(client));
        request.extensions_mut().insert(self.connection.occupancy());
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
    let Some(tls) = service.transport.tls.clone() else {
        return serve_connection(stream, service, options, None, ending).await;
    };
    let deadline = Instant::now() + options.header_timeout;
    let accepted = tokio::select! {
        accepted = tokio::time::timeout_at(deadline, tls.acceptor().accept(stream)) => accepted,
        () = service.connection.evicted() => return,
        () = has_ended(&mut ending) => return,
    };
    match accepted {
        Ok(Ok(stream)) => serve_connection(stream, service, options, Some(deadline), ending).await,
        // A load balancer connects and closes or resets the connection to see that the port is open.
        Ok(Err(error)) if is_end(error.kind()) => {
            debug!(%error, "a connection ended during the TLS handshake");
        }
        Ok(Err(error)) => {
            let peer = service.peer.ip();
            warn!(code = "tls_handshake_failed", %peer, %error, "a TLS handshake failed");
        }
        Err(_) => debug!("a TLS handshake took too long"),
    }
}

/// Reports whether an error means that the client has closed or reset the connection.
fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

async fn has_ended(ending: &mut watch::Receiver<bool>) {
    drop(ending.wait_for(|end| *end).await);
}

/// Serves the requests of a connection, the first of which must have arrived at `deadline`.
async fn serve_connection<S>(
    stream: S,
    service: PeerService,
    options: ServeOptions,
    deadline: Option<Instant>,
    mut ending: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = service.connection.clone();
    let metrics = service.transport.metrics.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(options.header_bytes.saturating_add(EXTRA_BUFFER))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = is_late(deadline, &place) => return,
        () = place.evicted() => {
            if !place.was_used() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            let Some(served) = finish(connection, &place).await else { return };
            served
        }
        () = has_ended(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // hyper answers by itself to headers that do not fit in its buffer.
        let metrics = metrics.filter(|_| error.is_parse_too_large());
        metrics.inspect(|metrics| count_headers_too_large(metrics));
        debug!(%error, "a connection ended early");
    }
}

/// Completes at `deadline` if no request has begun by then.
async fn is_late(deadline: Option<Instant>, place: &Connection) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
        if !place.was_used() {
            return;
        }
    }
    std::future::pending().await
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

#[cfg(test)]
mod tests {
    use std::{fs, net};

    use super::*;

    /// With the 128 places of the standard library, a sender got no place beside many clients that
    /// reconnect, and tried again after 1, 3, 7, 15 and 31 s.
    #[tokio::test]
    async fn many_connections_wait_until_they_are_accepted() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let limit = fs::read_to_string("/proc/sys/net/core/somaxconn");
        let limit = limit.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(100);
        let connect = || net::TcpStream::connect_timeout(&address, Duration::from_secs(1));
        let waiting: Result<Vec<_>, _> = (0..limit.min(300)).map(|_| connect()).collect();
        assert_eq!(waiting.unwrap().len(), limit.min(300));
    }
}
