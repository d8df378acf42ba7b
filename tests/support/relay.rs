//! A connection between agent and receiver that can be interrupted at a point of a request.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
};

/// Progress of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The agent has sent it, and the receiver has not got it.
    Sent,
    /// The receiver has stored it, and the agent has no response.
    StoredEntry,
    /// The agent has the response, and may be about to store it.
    Answered,
    /// The agent gets a receipt, as from a receiver that lies. The batch is never forwarded, and the
    /// connection continues.
    FalseReceipt,
}

/// A relay to a receiver.
pub(crate) struct Relay {
    address: String,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    /// The point at which the next batch stops, and where to report it.
    armed: Mutex<Option<(Point, SyncSender<()>)>>,
}

/// A request or a response.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) head: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl Relay {
    /// Starts a relay to the receiver at `to`.
    pub(crate) fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let control = Arc::new(Control::default());
        let (to, shared) = (to.trim_start_matches("http://").to_owned(), Arc::clone(&control));
        thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                let (to, control) = (to.clone(), Arc::clone(&shared));
                thread::spawn(move || carry(agent, &to, &control));
            }
        });
        Self { address, control }
    }

    /// Endpoint for the agent.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the next batch at `point`, and reports when it is there.
    pub(crate) fn hold(&self, point: Point) -> Receiver<()> {
        let (reached, at_point) = mpsc::sync_channel(1);
        *self.control.armed() = Some((point, reached));
        at_point
    }

    /// Forwards everything again.
    pub(crate) fn release(&self) {
        *self.control.armed() = None;
    }
}

impl Control {
    fn armed(&self) -> std::sync::MutexGuard<'_, Option<(Point, SyncSender<()>)>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether the batch stops at this point.
    fn is_held(&self, point: Point) -> bool {
        let mut armed = self.armed();
        if armed.as_ref().is_none_or(|(at, _)| *at != point) {
            return false;
        }
        let (_, reached) = armed.take().unwrap();
        reached.send(()).is_ok()
    }
}

/// Forwards requests and responses until one side closes, or a batch is stopped.
fn carry(agent: TcpStream, to: &str, control: &Control) -> Option<()> {
    let mut from_agent = BufReader::new(agent.try_clone().ok()?);
    let mut agent = agent;
    let mut receiver: Option<BufReader<TcpStream>> = None;
    loop {
        let request = Message::read(&mut from_agent)?;
        let is_batch = request.head.starts_with(b"POST /ingest");
        if is_batch && control.is_held(Point::Sent) {
            return None;
        }
        if is_batch && control.is_held(Point::FalseReceipt) {
            agent.write_all(false_receipt(&request).as_bytes()).ok()?;
            continue;
        }
        if receiver.is_none() {
            receiver = Some(BufReader::new(TcpStream::connect(to).ok()?));
        }
        let receiver = receiver.as_mut()?;
        receiver.get_mut().write_all(&request.head).ok()?;
        receiver.get_mut().write_all(&request.body).ok()?;
        let answer = Message::read(receiver)?;
        if is_batch && control.is_held(Point::StoredEntry) {
            return None;
        }
        agent.write_all(&[answer.head, answer.body].concat()).ok()?;
        if is_batch && control.is_held(Point::Answered) {
            return None;
        }
    }
}

/// A receipt for a batch that was never stored.
fn false_receipt(request: &Message) -> String {
    let head = String::from_utf8_lossy(&request.head).to_lowercase();
    let id = head.lines().find_map(|line| line.strip_prefix("x-siem-batch-id: ")).unwrap();
    let last = id.rsplit('-').next().unwrap();
    let body = format!("{{\"last_seq\":{last},\"accepted\":1,\"duplicates\":0}}");
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

impl Message {
    pub(super) fn read(from: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut head = Vec::new();
        let mut length = 0;
        loop {
            let begin = head.len();
            if from.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&head[begin..]).to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        Some(Self { head, body })
    }
}
