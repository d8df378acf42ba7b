//! Takes those who ask. Nobody who hangs, floods or goes away hurts anybody else.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    service::Desk,
    wire::{self, LONGEST_REQUEST, Misunderstood, Reply, Request},
};
use crate::{
    platform::control::{self, EndpointGuard, Listener, Stream},
    text::causes,
};

/// So many are answered at once; others wait.
const MOST: usize = 16;
/// How long one may take to say what is asked.
const ASKS: Duration = Duration::from_secs(5);
/// How long one may take to hear a line.
const HEARS: Duration = Duration::from_secs(30);
/// How long one may take to go, once all is said.
const GOES: Duration = Duration::from_secs(1);
/// How long nobody is taken after the system has refused to.
const REST: Duration = Duration::from_secs(1);

/// Takes those who ask as long as it is there.
pub(crate) struct Serving {
    task: AbortHandle,
    _endpoint: EndpointGuard,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to take those who ask, for whoever holds the lock of `state_dir`. Without that the agent
/// does all else.
pub(crate) fn serve(state_dir: &Path, desk: &Arc<Desk>) -> Option<Serving> {
    match control::bind(state_dir) {
        Ok((listener, endpoint)) => {
            let task = tokio::spawn(take(listener, Arc::clone(desk))).abort_handle();
            Some(Serving { task, _endpoint: endpoint })
        }
        Err(error) => {
            warn!(code = "control_unavailable",
                %error,
                state_dir = %state_dir.display(),
                "nobody can ask the agent: `status` and its like do not work until the next start"
            );
            None
        }
    }
}

async fn take(mut listener: Listener, desk: Arc<Desk>) {
    let mut asking = JoinSet::new();
    loop {
        while asking.len() >= MOST {
            asking.join_next().await;
        }
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok(stream) => {
                    asking.spawn(attend(stream, Arc::clone(&desk)));
                }
                Err(error) => {
                    debug!(%error, "nobody could be taken who wants to ask");
                    sleep(REST).await;
                }
            },
            Some(_) = asking.join_next() => {}
        }
    }
}

/// Answers one.
async fn attend(stream: Box<dyn Stream>, desk: Arc<Desk>) {
    let (mut read, mut write) = tokio::io::split(stream);
    let Ok(asked) = timeout(ASKS, listen(&mut read)).await else { return };
    let (say, mut said) = mpsc::channel(1);
    let answer = async {
        match asked {
            Ok(Some(request)) => desk.answer(request, say).await,
            Ok(None) => {}
            Err(wrong) => {
                let failed = Reply::Failed { error: causes(&wrong), usage: true };
                drop(say.send(failed).await);
            }
        }
    };
    let tell = async {
        while let Some(reply) = said.recv().await {
            let told = timeout(HEARS, write.write_all(&reply.write())).await;
            if !matches!(told, Ok(Ok(()))) {
                break;
            }
        }
        // Nothing more is taken: what is still being said ends there.
        drop(said);
        drop(timeout(HEARS, write.flush()).await);
    };
    let all = async { tokio::join!(answer, tell) };
    tokio::select! {
        _ = all => {}
        () = gone(&mut read) => return,
    }
    // Whoever closes a pipe before all is read from it may take that away.
    drop(timeout(GOES, gone(&mut read)).await);
}

/// What is asked; none when nobody asks anything.
async fn listen(read: &mut (impl AsyncRead + Unpin)) -> Result<Option<Request>, Misunderstood> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let Ok(length @ 1..) = read.read(&mut piece).await else { return Ok(None) };
        line.extend_from_slice(&piece[..length]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return wire::read(&line[..end]).map(Some);
        }
        if line.len() > LONGEST_REQUEST {
            return Err(Misunderstood::TooLong);
        }
    }
}

/// Waits until the other end is gone, or floods. What is left unread when a connection is dropped
/// would take the answer away with it.
async fn gone(read: &mut (impl AsyncRead + Unpin)) {
    let (mut piece, mut unasked) = ([0; 512], 0);
    while let Ok(length @ 1..) = read.read(&mut piece).await {
        unasked += length;
        if unasked > LONGEST_REQUEST {
            return;
        }
    }
}
