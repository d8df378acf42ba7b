//! Standard input with limits on size and time: the caller may never close it.

use std::time::Duration;

/// Reads the first line of standard input without its end, or the part of it that arrived within
/// `most` bytes and `patience`.
#[must_use]
pub fn first_line(most: usize, patience: Duration) -> Vec<u8> {
    let mut line = system::read(most, patience);
    if let Some(end) = memchr::memchr(b'\n', &line) {
        line.truncate(end);
    }
    line.truncate(most);
    line
}

/// Polls the descriptor, since a process that lives for milliseconds should not start a thread.
#[cfg(unix)]
mod system {
    use std::{
        io,
        time::{Duration, Instant},
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        io::{Errno, read as read_some},
    };

    pub(super) fn read(most: usize, patience: Duration) -> Vec<u8> {
        let (input, due) = (io::stdin(), Instant::now() + patience);
        let mut bytes = Vec::new();
        let mut some = [0; 8 << 10];
        while bytes.len() < most {
            let rest = due.saturating_duration_since(Instant::now());
            let Ok(rest) = Timespec::try_from(rest) else { break };
            match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&rest)) {
                Ok(0) => break,
                Err(Errno::INTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            match read_some(&input, &mut some) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.extend_from_slice(&some[..count]);
                    if some[..count].contains(&b'\n') {
                        break;
                    }
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => break,
            }
        }
        bytes
    }
}

/// A pipe cannot be polled on Windows: a thread reads, and is abandoned if it takes too long.
#[cfg(not(unix))]
mod system {
    use std::{
        io::{self, Read as _},
        sync::mpsc::channel,
        thread,
        time::{Duration, Instant},
    };

    pub(super) fn read(most: usize, patience: Duration) -> Vec<u8> {
        let due = Instant::now() + patience;
        let (pieces, read) = channel();
        thread::spawn(move || {
            let mut some = [0; 8 << 10];
            while let Ok(count @ 1..) = io::stdin().lock().read(&mut some) {
                if pieces.send(some[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut bytes = Vec::new();
        while bytes.len() < most && !bytes.contains(&b'\n') {
            let rest = due.saturating_duration_since(Instant::now());
            match read.recv_timeout(rest) {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => break,
            }
        }
        bytes
    }
}
