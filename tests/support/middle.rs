//! An attacker between agent and receiver: reads everything, and answers in the receiver's place.

use std::{
    io::{BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde_json::Value;

use super::relay::Message;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl ToString) -> Self {
        Self { status, body: body.to_string() }
    }

    /// Member of the body, which is JSON.
    pub(crate) fn member(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.body).unwrap_or_default()[name].take()
    }
}

/// A request of the agent, and the receiver's response, if it was forwarded.
#[derive(Clone)]
pub(crate) struct Exchange {
    /// Method and path.
    pub(crate) target: String,
    /// Request as sent.
    pub(crate) request: Vec<u8>,
    /// Body of the request.
    pub(crate) body: Vec<u8>,
    pub(crate) reply: Option<Reply>,
}

/// Reaction to a request: a response in the receiver's place, or `None` to forward it.
type Rule = Box<dyn FnMut(&Exchange) -> Option<Reply> + Send>;

/// Writes anything to a connection, which is closed when it returns.
pub(crate) type Takeover = Arc<dyn Fn(TcpStream) + Send + Sync>;

/// The attacker.
pub(crate) struct Middle {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    to: String,
    rule: Option<Rule>,
    seen: Vec<Exchange>,
    /// Function that takes over connections: at a request whose target starts with this text, or
    /// before any request if there is none.
    takeover: Option<(Option<&'static str>, Takeover)>,
    /// Number of responses in the receiver's place.
    forged: usize,
}

impl State {
    /// Returns the function that takes over a connection with this request, or with none yet.
    fn takeover(&mut self, target: Option<&str>) -> Option<Takeover> {
        let (wanted, takeover) = self.takeover.as_ref()?;
        let is_meant = match (wanted, target) {
            (Some(wanted), Some(target)) => target.starts_with(wanted),
            (Some(_), None) => false,
            (None, None) => true,
            // A connection from before is closed, so that the next request needs another one.
            (None, Some(_)) => return Some(Arc::new(drop)),
        };
        self.forged += usize::from(is_meant);
        is_meant.then(|| Arc::clone(takeover))
    }
}

impl Middle {
    /// Forwards everything to the receiver at `to`, until a rule is set.
    pub(crate) fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let to = to.trim_start_matches("http://").to_owned();
        let state = Arc::new(Mutex::new(State { to, ..State::default() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || carry(agent, &state));
            }
        });
        Self { address, state }
    }

    /// Endpoint for the agent.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Forwards to another receiver from now on.
    pub(crate) fn redirect(&self, to: &str) {
        self.state().to = to.trim_start_matches("http://").to_owned();
    }

    /// Answers batches by `rule` from now on.
    pub(crate) fn forge(&self, mut rule: impl FnMut(&Exchange) -> Reply + Send + 'static) {
        self.rule(move |exchange| {
            exchange.target.starts_with("POST /ingest").then(|| rule(exchange))
        });
    }

    /// Answers requests by `rule` from now on.
    pub(crate) fn rule(&self, rule: impl FnMut(&Exchange) -> Option<Reply> + Send + 'static) {
        let mut state = self.state();
        state.rule = Some(Box::new(rule));
        state.forged = 0;
    }

    /// Takes over connections from now on: at a request whose target starts with `target`, or
    /// before any request.
    pub(crate) fn take_over(&self, target: Option<&'static str>, takeover: Takeover) {
        let mut state = self.state();
        state.takeover = Some((target, takeover));
        state.forged = 0;
    }

    /// Forwards everything again.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        (state.rule, state.takeover) = (None, None);
    }

    /// Number of responses in the receiver's place since the last rule or takeover
    /// was set.
    pub(crate) fn forged(&self) -> usize {
        self.state().forged
    }

    /// Requests to a path that were forwarded, with their responses.
    pub(crate) fn exchanges(&self, path: &str) -> Vec<Exchange> {
        let state = self.state();
        let seen = state.seen.iter().filter(|it| it.target.ends_with(path) && it.reply.is_some());
        seen.cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries requests and responses until one side closes.
fn carry(agent: TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut from_agent = BufReader::new(agent.try_clone().ok()?);
    let mut agent = agent;
    let takeover = state.lock().unwrap().takeover(None);
    if let Some(takeover) = takeover {
        takeover(agent);
        return None;
    }
    loop {
        let request = Message::read(&mut from_agent)?;
        let head = String::from_utf8_lossy(&request.head).into_owned();
        let target = head.split(" HTTP/").next()?.to_owned();
        let takeover = state.lock().unwrap().takeover(Some(&target));
        if let Some(takeover) = takeover {
            takeover(agent);
            return None;
        }
        let mut exchange = Exchange {
            target,
            request: [&*request.head, &*request.body].concat(),
            body: request.body.clone(),
            reply: None,
        };
        let forged = {
            let mut state = state.lock().unwrap();
            let forged = state.rule.as_mut().and_then(|rule| rule(&exchange));
            state.forged += usize::from(forged.is_some());
            forged
        };
        let answer = match forged {
            Some(Reply { status, body }) => {
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\n\r\n"
                );
                [head.into_bytes(), body.into_bytes()].concat()
            }
            None => {
                let to = state.lock().unwrap().to.clone();
                let answer = forward(&to, &exchange.request)?;
                exchange.reply = Some(reply(&answer)?);
                state.lock().unwrap().seen.push(exchange);
                [answer.head, answer.body].concat()
            }
        };
        agent.write_all(&answer).ok()?;
    }
}

/// Sends a request, as bytes, and returns the response.
pub(crate) fn send(to: &str, request: &[u8]) -> Reply {
    let answer = forward(to.trim_start_matches("http://"), request).expect("the receiver answers");
    reply(&answer).expect("the response has a status")
}

fn forward(to: &str, request: &[u8]) -> Option<Message> {
    let mut receiver = TcpStream::connect(to).ok()?;
    receiver.write_all(request).ok()?;
    Message::read(&mut BufReader::new(receiver))
}

fn reply(answer: &Message) -> Option<Reply> {
    let head = String::from_utf8_lossy(&answer.head);
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, body: String::from_utf8_lossy(&answer.body).into_owned() })
}
