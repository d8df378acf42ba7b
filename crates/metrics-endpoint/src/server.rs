//! Answers `GET /metrics`. A slow, flooding or vanished client affects the others little.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Mutex,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    CONTENT_TYPE,
    bind::{MetricsListener, SocketFile, Stream},
};

/// Path of the metrics.
const PATH: &str = "/metrics";
/// Pause after the system has refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Bounds on what clients can cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are served at once. Another one ends the oldest.
    pub connections: usize,
    /// Size of a request in bytes.
    pub request_bytes: usize,
    /// Time in which a client must send its request, and read the response, each.
    pub patience: Duration,
    /// Age up to which a text is sent again, so that many requests cost one rendering in this time.
    pub reuse: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8,
            request_bytes: 8 << 10,
            patience: Duration::from_secs(5),
            reuse: Duration::from_secs(1),
        }
    }
}

/// Future of a text.
pub type Rendering<'a> = Pin<Box<dyn Future<Output = String> + Send + 'a>>;

/// Renders the metrics.
pub trait Render: Send + Sync + 'static {
    /// Returns the metrics in the text format.
    fn render(&self) -> Rendering<'_>;
}

/// A running server, which ends when this is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    task: AbortHandle,
    file: SocketFile,
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
        // The task is dropped later, and not at all if the process ends before.
        self.file.delete();
    }
}

/// Starts to serve metrics. Nothing runs while no client is connected.
#[must_use]
pub fn serve(listener: MetricsListener, render: Arc<dyn Render>, limits: Limits) -> MetricsServer {
    let hosts = if listener.is_tcp() { Hosts::Local } else { Hosts::Any };
    let service = Arc::new(Service { render, limits, hosts, last: Mutex::default() });
    let file = listener.file();
    MetricsServer { task: tokio::spawn(accept(listener, service)).abort_handle(), file }
}

async fn accept(listener: MetricsListener, service: Arc<Service>) {
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    open.retain(|task| !task.is_finished());
                    if open.len() >= service.limits.connections
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    open.push_back(tasks.spawn(connection_task(stream, service.clone())));
                }
                Err(error) => {
                    debug!(%error, "cannot accept a connection for metrics");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Values of the header `Host` that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hosts {
    /// Each one.
    Any,
    /// `localhost` and literal addresses. A website can give its own name the address of this machine,
    /// and read the response in the browser of a user.
    Local,
}

struct Service {
    render: Arc<dyn Render>,
    limits: Limits,
    hosts: Hosts,
    /// The last text, and the time at which it was rendered.
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Service {
    /// Returns the metrics. Requests at the same time wait for one rendering.
    async fn text(&self) -> Arc<str> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < self.limits.reuse
        {
            return text.clone();
        }
        let text: Arc<str> = self.render.render().await.into();
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

async fn connection_task(mut stream: Box<dyn Stream>, service: Arc<Service>) {
    let Limits { request_bytes, patience, .. } = service.limits;
    let reading = read_request(&mut *stream, request_bytes, service.hosts);
    let Ok(request) = timeout(patience, reading).await else { return };
    let response = match request {
        Request::Closed => return,
        Request::Metrics { with_body } => {
            let text = service.text().await;
            response("200 OK", CONTENT_TYPE, &text, with_body)
        }
        Request::Refused(status) => response(status, "text/plain", &format!("{status}\n"), true),
    };
    let sent = timeout(patience, async {
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        // Data that is unread when a connection is closed would discard the response.
        let mut rest = [0; 512];
        for _ in 0..request_bytes / rest.len() {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    });
    drop(sent.await);
}

/// A request, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// The client has closed the connection.
    Closed,
    /// The metrics, or for `HEAD` their headers only.
    Metrics { with_body: bool },
    /// Anything else, with the status of the response.
    Refused(&'static str),
}

/// Reads the headers of a request. One with a body is answered, and its body is not read.
async fn read_request(stream: &mut (impl Stream + ?Sized), limit: usize, hosts: Hosts) -> Request {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let Ok(length @ 1..) = stream.read(&mut buffer).await else { return Request::Closed };
        // The end may have begun in the bytes before.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&buffer[..length]);
        if head[from..].windows(4).any(|end| end == b"\r\n\r\n") {
            return parse(&head, hosts);
        }
        if head.len() > limit {
            return Request::Refused("431 Request Header Fields Too Large");
        }
    }
}

fn parse(head: &[u8], hosts: Hosts) -> Request {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Request::Refused("400 Bad Request") };
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = parts[..] else { return Request::Refused("400 Bad Request") };
    if !version.starts_with("HTTP/1.") {
        return Request::Refused("505 HTTP Version Not Supported");
    }
    if hosts == Hosts::Local && !are_hosts_local(head) {
        return Request::Refused("421 Misdirected Request");
    }
    if target.split('?').next() != Some(PATH) {
        return Request::Refused("404 Not Found");
    }
    match method {
        "GET" => Request::Metrics { with_body: true },
        "HEAD" => Request::Metrics { with_body: false },
        _ => Request::Refused("405 Method Not Allowed"),
    }
}

/// Returns whether each header `Host` is local. Programs may send none.
fn are_hosts_local(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').skip(1).all(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default();
        if !name.trim_ascii().eq_ignore_ascii_case(b"host") {
            return true;
        }
        let value = parts.next().unwrap_or_default().trim_ascii();
        std::str::from_utf8(value).is_ok_and(is_local)
    })
}

/// Returns whether a host, with or without a port, is `localhost` or a literal address.
fn is_local(host: &str) -> bool {
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let has_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return has_port && address.parse::<Ipv6Addr>().is_ok();
    }
    let name = match host.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn response(status: &str, kind: &str, body: &str, with_body: bool) -> String {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests;
