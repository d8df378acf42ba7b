//! HTTP/1 server for a router, with limits on the cost of a connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::write_timeout::WriteTimeout;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Number of open connections; more wait in the listen queue of the system.
    pub connections: usize,
    /// Time that the headers of a request may take, and that a connection may be idle.
    pub header_timeout: Duration,
    /// Time that a response may wait for the client to read any byte of it.
    pub write_timeout: Duration,
    /// Size of a request's headers in bytes.
    pub header_bytes: usize,
    /// Time that running requests may take to finish after the shutdown started.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            connections: 8192,
            header_timeout: Duration::from_secs(60),
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
    let places = Arc::new(Semaphore::new(options.connections.max(1)));
    let (end, ending) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            next = accept(&listener, &places) => next,
        };
        match next {
            Ok((stream, peer, place)) => {
                let router = TowerToHyperService::new(router.clone());
                let service = PeerService { router, peer };
                let serving = connection(stream, service, options, ending.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
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
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(options.grace, all).await.is_err() {
        warn!(code = "shutdown_timeout", "some requests did not finish in time");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, place))
}

/// The router for one connection: each request names the address of its sender, in the extension
/// that axum's own server sets.
struct PeerService {
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
}

impl Service<Request<Incoming>> for PeerService {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.call(request)
    }
}

async fn connection(
    stream: TcpStream,
    service: PeerService,
    options: ServeOptions,
    mut ending: watch::Receiver<bool>,
) {
    let stream = WriteTimeout::new(stream, options.write_timeout);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(options.header_bytes)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = async { drop(ending.wait_for(|end| *end).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}
