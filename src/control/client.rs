//! The one who asks.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    runtime::Runtime,
    time::{sleep, timeout},
};

use super::wire::{self, LONGEST_REPLY, Reply, Request};
use crate::{
    cli::Failure,
    platform::{
        LockHolder, StateLock,
        control::{self, Stream},
    },
};

/// For how long an agent that holds its state directory may not listen yet.
const STARTS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// Who was found on a state directory.
pub(crate) enum Reached {
    /// An agent that can be asked.
    Agent(Client),
    /// Nobody.
    Nobody,
    /// Somebody holds it and does not listen.
    Silent {
        /// Who.
        holder: LockHolder,
        /// What the system says.
        why: String,
    },
}

/// A connection to the agent that runs, for one question.
pub(crate) struct Client {
    runtime: Runtime,
    stream: Box<dyn Stream>,
}

/// Looks for the agent that runs on `state_dir`.
pub(crate) fn reach(state_dir: &Path) -> Result<Reached, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let reached = runtime.block_on(async {
        let mut waited = Duration::ZERO;
        loop {
            let failure = match control::connect(state_dir).await {
                Ok(stream) => return Ok(Ok(stream)),
                Err(failure) => failure,
            };
            let Some(holder) = StateLock::current_holder(state_dir).map_err(Failure::failed)?
            else {
                return Ok(Err(None));
            };
            if waited >= STARTS {
                return Ok(Err(Some((holder, failure.to_string()))));
            }
            sleep(LOOK).await;
            waited += LOOK;
        }
    })?;
    Ok(match reached {
        Ok(stream) => Reached::Agent(Client { runtime, stream }),
        Err(None) => Reached::Nobody,
        Err(Some((holder, why))) => Reached::Silent { holder, why },
    })
}

impl Client {
    /// Asks, and hears every line of the answer. None may take longer than `patience`.
    pub(crate) fn ask(
        self,
        request: &Request,
        patience: Duration,
        hear: &mut dyn FnMut(Reply) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Self { runtime, mut stream } = self;
        let gone = |error: io::Error| {
            Failure::failed(format!("the agent has gone before it had answered: {error}"))
        };
        let late = |_| {
            Failure::failed(format!(
                "the agent has not answered for {} s: its log says what it is at",
                patience.as_secs()
            ))
        };
        runtime.block_on(async {
            timeout(patience, stream.write_all(&wire::write(request)))
                .await
                .map_err(late)?
                .map_err(gone)?;
            let mut lines = BufReader::new(stream);
            loop {
                let mut line = Vec::new();
                let mut bounded = (&mut lines).take(LONGEST_REPLY);
                let read = timeout(patience, bounded.read_until(b'\n', &mut line)).await;
                if read.map_err(late)?.map_err(gone)? == 0 || !line.ends_with(b"\n") {
                    return Err(gone(io::ErrorKind::UnexpectedEof.into()));
                }
                let reply = serde_json::from_slice(&line).map_err(|error| {
                    Failure::failed(format!(
                        "the agent's answer is not understood, it is of another version: restart it \
                         after an upgrade ({error})"
                    ))
                })?;
                match reply {
                    Reply::Done => return Ok(()),
                    Reply::Failed { error, usage: true } => return Err(Failure::usage(error)),
                    Reply::Failed { error, usage: false } => return Err(Failure::failed(error)),
                    reply => hear(reply)?,
                }
            }
        })
    }
}
