use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::task::spawn_blocking;

use super::*;
use crate::MetricsAddress;

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Counting(AtomicUsize);

impl Render for Counting {
    fn render(&self) -> Rendering<'_> {
        let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(async move { format!("renderings {number}\n") })
    }
}

async fn started(limits: Limits) -> (MetricsServer, SocketAddr, Arc<Counting>) {
    let listener = MetricsListener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let MetricsAddress::Loopback(address) = listener.address().unwrap() else { unreachable!() };
    let counting = Arc::<Counting>::default();
    (serve(listener, counting.clone(), limits), address, counting)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends a request, and returns the response.
async fn answer(address: SocketAddr, request: &str) -> String {
    let request = request.to_owned();
    let asking = spawn_blocking(move || {
        let mut stream = connect(address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    });
    asking.await.unwrap()
}

async fn metrics(address: SocketAddr) -> String {
    answer(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn metrics_are_served_at_their_path_only() {
    let (_server, address, _) = started(Limits::default()).await;
    let found = metrics(address).await;
    assert_eq!(
        found,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: 13\r\nConnection: close\r\n\r\nrenderings 1\n"
    );
    let head = answer(address, "HEAD /metrics?x=1 HTTP/1.0\r\n\r\n").await;
    assert!(head.contains("Content-Length: 13\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("GET /metricsx HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("GET /metrics HTTP/2.0\r\n\r\n", "505"),
        ("GET /metrics\r\n\r\n", "400"),
        ("\r\n\r\n", "400"),
    ] {
        let response = answer(address, request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {response}");
    }
}

/// A website whose name has the address of this machine could read the metrics in a browser.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn names_of_other_hosts_are_refused() {
    let (_server, address, _) = started(Limits::default()).await;
    let status = async |headers: &str| {
        let response = answer(address, &format!("GET /metrics HTTP/1.1\r\n{headers}\r\n")).await;
        response.split(' ').nth(1).unwrap().to_owned()
    };
    for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "[::1]:9464", "[::1]"] {
        assert_eq!(status(&format!("Host: {host}\r\n")).await, "200", "{host:?}");
    }
    for host in
        ["example.com", "example.com:9464", "localhost.example.com", "127.0.0.1.example.com", ""]
    {
        assert_eq!(status(&format!("Accept: */*\r\nhost:{host}\r\n")).await, "421", "{host:?}");
    }
    assert_eq!(status("Host: localhost\r\nHost: example.com\r\n").await, "421");
    assert_eq!(status("").await, "200");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn any_host_is_accepted_on_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let listener = MetricsListener::bind(&MetricsAddress::Unix(path.clone())).await.unwrap();
    let _server = serve(listener, Arc::<Counting>::default(), Limits::default());
    let asking = spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    });
    assert!(asking.await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_requests_cost_one_rendering() {
    let limits = Limits { reuse: Duration::from_secs(3600), ..Limits::default() };
    let (_server, address, counting) = started(limits).await;
    for _ in 0..20 {
        assert!(metrics(address).await.ends_with("renderings 1\n"));
    }
    assert_eq!(counting.0.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_clients_do_not_keep_others_out() {
    let limits = Limits { patience: Duration::from_secs(3600), ..Limits::default() };
    let (_server, address, _) = started(limits).await;
    let silent: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = connect(address);
            // Some send a part of a request.
            stream.write_all(b"GET /metr").unwrap();
            stream
        })
        .collect();
    assert!(metrics(address).await.starts_with("HTTP/1.1 200 "));
    // All but the last are closed.
    let closed = spawn_blocking(move || {
        let is_closed = |mut stream: &TcpStream| !matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        silent[..silent.len() - limits.connections]
            .iter()
            .filter(|stream| is_closed(stream))
            .count()
    });
    assert_eq!(closed.await.unwrap(), 100 - limits.connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slow_client_is_disconnected() {
    let limits = Limits { patience: Duration::from_millis(50), ..Limits::default() };
    let (_server, address, counting) = started(limits).await;
    let closed = spawn_blocking(move || connect(address).read(&mut [0]));
    assert_eq!(closed.await.unwrap().unwrap(), 0);
    assert_eq!(counting.0.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn endless_headers_are_refused() {
    let (_server, address, _) = started(Limits::default()).await;
    let header = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(9 << 10));
    assert!(answer(address, &header).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn server_ends_when_it_is_dropped() {
    let (server, address, _) = started(Limits::default()).await;
    assert!(metrics(address).await.starts_with("HTTP/1.1 200 "));
    drop(server);
    let start = Instant::now();
    while TcpStream::connect(address).is_ok() {
        assert!(start.elapsed() < DEADLINE, "the port is still open");
        tokio::task::yield_now().await;
    }
}
