//! An HTTP server whose responses are computed by a function, with faults on demand.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::accept::Acceptor;

/// A request as received.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query without the question mark; empty if there is none.
    pub query: String,
    /// Headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body as received.
    pub raw_body: Vec<u8>,
    /// Body after the content encoding was undone.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns the value of a header; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Returns the body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Creates a response with a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// Creates a response with a JSON body.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, body.to_string()).header("Content-Type", "application/json")
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What happens to one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is processed as without a fault.
    None,
    /// This response is sent, and the request is not processed.
    Answer(Reply),
    /// The connection is closed without a response, and the request is not processed.
    Close,
    /// No response is sent, and the request is not processed.
    Hang,
    /// The request is processed, and the connection is closed without a response.
    ProcessAndClose,
    /// The request is processed, and the connection is closed in the middle of the response.
    ProcessAndTruncate,
    /// The request is processed, and no response is sent.
    ProcessAndHang,
}

/// Computes a response.
type Process = Box<dyn FnMut(&Request) -> Reply + Send>;

/// The faults of requests whose path ends with a text, in their order.
type Script = (String, VecDeque<Fault>);

/// The server. It stops when dropped, and closes its connections.
pub struct HttpServer {
    acceptor: Acceptor,
    shared: Arc<Shared>,
}

struct Shared {
    process: Mutex<Process>,
    script: Mutex<Vec<Script>>,
    requests: Mutex<Vec<Request>>,
    connections: Mutex<Vec<TcpStream>>,
}

/// Locks a mutex, even if a test has panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpServer {
    /// Starts a server on a free port of the loopback interface. `process` computes the responses.
    pub fn start(process: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), process)
    }

    /// Starts a server on an address, such as the one of a server that was dropped.
    pub fn on(
        address: SocketAddr,
        process: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            process: Mutex::new(Box::new(process)),
            script: Mutex::default(),
            requests: Mutex::default(),
            connections: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(address, move |stream| {
            lock(&serving.connections).extend(stream.try_clone());
            let serving = Arc::clone(&serving);
            move || serve(stream, &serving)
        });
        Self { acceptor, shared }
    }

    /// Adds faults for the next requests whose path ends with `path`.
    pub fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut script = lock(&self.shared.script);
        if let Some((_, known)) = script.iter_mut().find(|(known, _)| known == path) {
            known.extend(faults);
        } else {
            script.push((path.to_owned(), faults.into_iter().collect()));
        }
    }

    /// Number of faults that have not happened yet.
    pub fn faults_left(&self) -> usize {
        lock(&self.shared.script).iter().map(|(_, faults)| faults.len()).sum()
    }

    /// URL of the server, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Address of the server.
    pub fn address(&self) -> SocketAddr {
        self.acceptor.address()
    }

    /// Returns the requests so far, with any outcome.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Number of requests so far, with any outcome.
    pub fn request_count(&self) -> usize {
        lock(&self.shared.requests).len()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.acceptor.stop();
        for connection in lock(&self.shared.connections).drain(..) {
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn next_fault(&self, request: &Request) -> Fault {
        let mut script = lock(&self.script);
        let faults = script
            .iter_mut()
            .find(|(path, faults)| !faults.is_empty() && request.path.ends_with(path.as_str()));
        faults.and_then(|(_, faults)| faults.pop_front()).unwrap_or(Fault::None)
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read(&mut reader, &mut writer) {
        let fault = shared.next_fault(&request);
        lock(&shared.requests).push(request.clone());
        let process = || (lock(&shared.process))(&request);
        let is_sent = match fault {
            Fault::None => send(&mut writer, &process()),
            Fault::Answer(reply) => send(&mut writer, &reply),
            Fault::Close => false,
            Fault::Hang => hang(&mut reader),
            Fault::ProcessAndClose => {
                process();
                false
            }
            Fault::ProcessAndTruncate => {
                let text = text_of(&process());
                drop(writer.write_all(&text[..text.len() - 1]));
                false
            }
            Fault::ProcessAndHang => {
                process();
                hang(&mut reader)
            }
        };
        if !is_sent {
            break;
        }
    }
    // Another handle of the connection is kept, so that dropping this one does not close it.
    drop(writer.shutdown(Shutdown::Both));
}

/// Waits until the client closes the connection.
fn hang(reader: &mut impl BufRead) -> bool {
    drop(std::io::copy(reader, &mut std::io::sink()));
    false
}

fn send(writer: &mut TcpStream, reply: &Reply) -> bool {
    writer.write_all(&text_of(reply)).is_ok()
}

fn text_of(reply: &Reply) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} Answer\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !matches!(reply.status, 204 | 304) {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    text += "\r\n";
    [text.as_bytes(), &reply.body].concat()
}

fn read(reader: &mut impl BufRead, writer: &mut TcpStream) -> Option<Request> {
    let mut request = read_head(reader)?;
    if request.header("expect") == "100-continue" {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    request.raw_body = read_body(reader, &request)?;
    request.body = match request.header("content-encoding") {
        "gzip" => {
            let mut body = Vec::new();
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&*request.raw_body);
            decoder.read_to_end(&mut body).expect("the body is gzip");
            body
        }
        _ => request.raw_body.clone(),
    };
    Some(request)
}

/// Reads a request without its body; `None` if the connection ends before or in it.
pub fn read_head(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    // A proxy gets the whole URL.
    let target = target
        .strip_prefix("http://")
        .map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some(Request { method, path, query, headers, ..Request::default() })
}

/// Reads the body that follows a head, as received; `None` if the connection ends in it.
pub fn read_body(reader: &mut impl BufRead, request: &Request) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if request.header("transfer-encoding") != "chunked" {
        body.resize(request.header("content-length").parse().unwrap_or(0), 0);
        reader.read_exact(&mut body).ok()?;
        return Some(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let start = body.len();
        // Each chunk ends with a line break.
        body.resize(start + length + 2, 0);
        reader.read_exact(&mut body[start..]).ok()?;
        body.truncate(start + length);
        if length == 0 {
            return Some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(server: &HttpServer, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let head = "Content-Length: 2\r\nConnection: close\r\n\r\n";
        write!(stream, "POST {path}?q=1 HTTP/1.1\r\n{head}hi").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (!text.is_empty()).then_some(text)
    }

    #[test]
    fn faults_happen_once_in_their_order() {
        let server = HttpServer::start(|request| Reply::new(200, request.body.clone()));
        let busy = Fault::Answer(Reply::new(503, "busy").header("Retry-After", "1"));
        server.fail("/a", [busy, Fault::Close, Fault::ProcessAndTruncate]);
        let whole = "HTTP/1.1 200 Answer\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(get(&server, "/b").unwrap(), whole);
        assert!(get(&server, "/x/a").unwrap().starts_with("HTTP/1.1 503 Answer\r\nRetry-After: 1"));
        assert_eq!(get(&server, "/a"), None);
        assert_eq!(get(&server, "/a").unwrap(), &whole[..whole.len() - 1]);
        assert_eq!(get(&server, "/a").unwrap(), whole);
        assert_eq!((server.request_count(), server.faults_left()), (5, 0));
        assert_eq!(server.requests()[0].query, "q=1");
        let address = server.address();
        drop(server);
        let server = HttpServer::on(address, |_| Reply::new(204, ""));
        assert_eq!(get(&server, "/").unwrap(), "HTTP/1.1 204 Answer\r\n\r\n");
    }
}
