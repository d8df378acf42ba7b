//! A client whose pooled connections may be dead.
//!
//! After sleep, or a change of the network, a connection may swallow everything: a proxy in between
//! acknowledges the bytes, so that keep-alive notices nothing. A pooled connection is therefore used
//! for a short time only, and a request on one is repeated on a new one if no response starts soon.
//!
//! A receiver may also refuse a request by its head and close the connection. Its response is lost if
//! that happens while the body is written. The request is then repeated once, with a pause before the
//! body.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Client, IntoUrl, Method, Request, RequestBuilder, Response};
use tokio::time::{Instant, timeout};
use tracing::info;

use super::{ClientSettings, hesitant};

/// Time for which a connection without a request is kept for the next one.
pub(super) const MAX_IDLE: Duration = Duration::from_secs(5);
/// Time that a response on a reused connection has to start after the request was sent.
const PATIENCE: Duration = Duration::from_secs(3);
/// Slowest transmission of a request that counts as normal, in bytes per second.
const SLOWEST: u64 = 64 << 10;

/// An HTTP client that replaces its connections when one turns out to be dead.
#[derive(Clone)]
pub struct HttpClient {
    settings: Arc<ClientSettings>,
    state: Arc<Mutex<State>>,
    repeats: bool,
}

struct State {
    client: Client,
    /// Number of clients before this one.
    generation: u64,
    /// Time of the last response: its connection may be reused.
    last_response: Option<Instant>,
    /// Time from the start of a request to its response, of the last one.
    took: Duration,
}

impl HttpClient {
    pub(super) fn new(settings: ClientSettings) -> Result<Self, reqwest::Error> {
        let client = settings.build()?;
        let state = State { client, generation: 0, last_response: None, took: Duration::ZERO };
        let (settings, state) = (Arc::new(settings), Arc::new(Mutex::new(state)));
        Ok(Self { settings, state, repeats: false })
    }

    /// Also repeats requests that change the receiver: it must recognise a repetition, since the first
    /// request may have arrived. Others are repeated only if they read.
    #[must_use]
    pub fn repeating(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// Creates a request.
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        self.state().client.request(method, url)
    }

    /// Creates a GET request.
    pub fn get(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// Creates a HEAD request.
    pub fn head(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Creates a POST request.
    pub fn post(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// Sends a request that this client has created, and waits at most `within` for the end of its
    /// response. The request is sent once more if no response starts on a reused connection, or if the
    /// receiver closes the connection while the body is written.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        within: Duration,
    ) -> Result<Response, reqwest::Error> {
        let started = Instant::now();
        let (client, request) = request.timeout(within).build_split();
        let request = request?;
        let again = request.try_clone();
        let response = self.send_once(client, request, within).await;
        let (Err(error), Some(mut again)) = (&response, again) else { return response };
        let left = within.saturating_sub(started.elapsed());
        if !hesitant::is_unwritten(error) || left <= PATIENCE {
            return response;
        }
        *again.timeout_mut() = Some(left);
        hesitant::pause_before_body(&mut again, PATIENCE);
        let (started, client) = (Instant::now(), self.state().client.clone());
        self.note_response(started, client.execute(again).await)
    }

    /// Sends a request, and once more on a new connection if no response starts on a reused one.
    async fn send_once(
        &self,
        client: Client,
        mut request: Request,
        within: Duration,
    ) -> Result<Response, reqwest::Error> {
        let mut started = Instant::now();
        let (generation, patience) = {
            let state = self.state();
            (state.generation, state.patience(length(&request)))
        };
        let again = patience.filter(|patience| *patience < within && self.may_repeat(&request));
        let again = again.and_then(|patience| Some((patience, request.try_clone()?)));
        let response = match again {
            None => client.execute(request).await,
            Some((patience, mut again)) => {
                *request.timeout_mut() = Some(within);
                match timeout(patience, client.execute(request)).await {
                    Ok(response) => response,
                    Err(_) => {
                        info!(
                            code = "connection_replaced",
                            host = again.url().host_str(),
                            ?patience,
                            "no response on a reused connection: the request is sent on a new one"
                        );
                        started = Instant::now();
                        *again.timeout_mut() = Some(within.saturating_sub(patience));
                        self.replacement(generation)?.execute(again).await
                    }
                }
            }
        };
        self.note_response(started, response)
    }

    /// Records the time of the response to a request that was sent at `started`.
    fn note_response(
        &self,
        started: Instant,
        response: Result<Response, reqwest::Error>,
    ) -> Result<Response, reqwest::Error> {
        if response.is_ok() {
            let mut state = self.state();
            state.last_response = Some(Instant::now());
            state.took = started.elapsed();
        }
        response
    }

    /// Returns a client without open connections, in place of the one with this number.
    fn replacement(&self, generation: u64) -> Result<Client, reqwest::Error> {
        let mut state = self.state();
        if state.generation == generation {
            state.client = self.settings.build()?;
            state.generation += 1;
            state.last_response = None;
        }
        Ok(state.client.clone())
    }

    fn may_repeat(&self, request: &Request) -> bool {
        self.repeats || matches!(*request.method(), Method::GET | Method::HEAD)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns how long to wait for the start of a response to a request of `length` bytes; `None` if
    /// its connection is certainly new.
    fn patience(&self, length: u64) -> Option<Duration> {
        self.last_response.filter(|last| last.elapsed() < MAX_IDLE)?;
        Some(patience(length, self.took))
    }
}

/// Returns how long to wait for the start of a response. A receiver that needed `took` for the last one
/// may need it again.
fn patience(length: u64, took: Duration) -> Duration {
    (PATIENCE + Duration::from_secs(length / SLOWEST)).max(took * 2)
}

fn length(request: &Request) -> u64 {
    request.body().and_then(reqwest::Body::as_bytes).map_or(0, |bytes| bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use super::*;

    /// A server that reads requests of one line each and answers after `delay`; on connections that
    /// were open at the last call of [`swallow`](Self::swallow) it never answers.
    struct Server {
        url: String,
        /// Number of the oldest connection that is answered.
        first_answered: Arc<AtomicU64>,
        connections: Arc<AtomicU64>,
        requests: Arc<AtomicU64>,
    }

    impl Server {
        fn start(delay: Duration) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let server = Self {
                url: format!("http://{}/", listener.local_addr().unwrap()),
                first_answered: Arc::default(),
                connections: Arc::default(),
                requests: Arc::default(),
            };
            let [first, connections, requests] =
                [&server.first_answered, &server.connections, &server.requests].map(Arc::clone);
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let number = connections.fetch_add(1, Ordering::SeqCst);
                    let (first, requests) = (Arc::clone(&first), Arc::clone(&requests));
                    thread::spawn(move || {
                        while let Some(()) = read_request(&client) {
                            requests.fetch_add(1, Ordering::SeqCst);
                            thread::sleep(delay);
                            if number >= first.load(Ordering::SeqCst) {
                                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                                (&client).write_all(answer).ok();
                            }
                        }
                    });
                }
            });
            server
        }

        fn swallow(&self) {
            self.first_answered.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
        }

        async fn post(&self, client: &HttpClient) -> Result<u16, reqwest::Error> {
            let request = client.post(&self.url).body("{}");
            let response = client.send(request, Duration::from_secs(20)).await?;
            Ok(response.status().as_u16())
        }
    }

    fn read_request(client: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client);
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        (line == "\r\n").then_some(())?;
        reader.read_exact(&mut [0; 2]).ok()
    }

    fn client() -> HttpClient {
        let connect_timeout = Duration::from_secs(5);
        ClientSettings { connect_timeout, ..ClientSettings::default() }.client().unwrap()
    }

    #[test]
    fn patience_grows_with_the_request_and_the_last_response() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(1000, seconds(0)), seconds(3));
        assert_eq!(patience(1 << 20, seconds(0)), seconds(19));
        assert_eq!(patience(1000, seconds(10)), seconds(20));
    }

    /// The next batch waited for the whole timeout, a minute.
    #[tokio::test]
    async fn request_on_a_dead_connection_is_repeated_on_a_new_one() {
        let server = Server::start(Duration::ZERO);
        let client = client().repeating();
        assert_eq!(server.post(&client).await.unwrap(), 200);
        server.swallow();
        let started = Instant::now();
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert_eq!(server.connections.load(Ordering::SeqCst), 2, "the new one is used further");
        assert_eq!(server.requests.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn slow_receiver_gets_each_request_at_most_twice() {
        let server = Server::start(Duration::from_secs(4));
        let client = client().repeating();
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert_eq!(server.requests.load(Ordering::SeqCst), 2, "it is known to be slow");
        client.state().took = Duration::ZERO;
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert_eq!(server.requests.load(Ordering::SeqCst), 4, "the repetition is waited for");
    }

    /// A collector on the same machine refused a request that was too large, and the same one was sent
    /// a hundred times, since its response was lost each time.
    #[tokio::test]
    async fn refusal_by_the_head_is_read_although_the_body_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let head = BufReader::new(&client).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";
                (&client).write_all(answer).ok();
            }
        });
        let client = client();
        for _ in 0..10 {
            let request = client.post(&url).body(vec![b'x'; 20 << 20]);
            let response = client.send(request, Duration::from_secs(60)).await;
            assert_eq!(response.unwrap().status(), 413);
        }
    }

    #[tokio::test]
    async fn request_that_may_not_be_repeated_waits() {
        let server = Server::start(Duration::from_secs(4));
        let client = client();
        assert_eq!(server.post(&client).await.unwrap(), 200);
        client.state().took = Duration::ZERO;
        assert_eq!(server.post(&client).await.unwrap(), 200);
        assert_eq!(server.requests.load(Ordering::SeqCst), 2);
    }
}
