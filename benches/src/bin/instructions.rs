//! `instructions WORKLOAD ROUNDS`: fixed work on one thread, counted by callgrind.
//!
//! The cost of a round is the difference between runs with more and fewer rounds, so that starting the
//! program and generating its input do not count.
#![allow(clippy::unwrap_used, reason = "a workload that fails ends there")]

use std::{env, hint::black_box};

use ai_agent::internals::{frame::Codec, pipeline::outbox::fuzzing};
use workloads::{frames, records, session, tree};

/// Bytes of the session.
const SESSION: usize = 2 << 20;
/// Files in the tree.
const FILES: usize = 500;

fn main() {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().unwrap();
    let rounds = arguments.next().unwrap().parse().unwrap();
    match name.as_str() {
        "activity" => activity(rounds),
        "filter" => filter(rounds),
        "frame" => frame(rounds),
        "sweep" => sweep(rounds),
        other => panic!("no workload `{other}`"),
    }
}

/// Scans a session of 2 MiB and passes it to the enricher `activity`.
fn activity(rounds: usize) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut enricher = records::activity();
    for _ in 0..rounds {
        black_box(records::enrich_all(&mut *enricher, &origin, &pieces));
    }
}

/// Scans a session of 2 MiB and runs it through all six filters.
fn filter(rounds: usize) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    for _ in 0..rounds {
        let mut filters = records::filter_chain(&records::FILTERS);
        black_box(records::check_all(&mut filters, &origin, &pieces));
    }
}

/// Encodes it into chained frames without compression, encodes these into values and reads them back.
fn frame(rounds: usize) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    for _ in 0..rounds {
        frames::encode(frames::beginning(), Codec::Plain, &origin, &pieces, |group| {
            let value = fuzzing::encode_block(&group.frames);
            for frame in fuzzing::decode_block(&value).unwrap() {
                black_box(frame.decode().unwrap());
            }
        });
    }
}

/// Restores the rows of 500 unchanged files and sweeps over them.
fn sweep(rounds: usize) {
    let folder = tempfile::Builder::new().prefix("sweep-").tempdir().unwrap();
    tree::write(folder.path(), FILES);
    let (mut tail, mut taken) = (tree::tail(folder.path()), tree::Taken::default());
    tree::read(&mut tail, &mut taken);
    for _ in 0..rounds {
        tree::sweep_again(&mut tail, &mut taken);
    }
    assert_eq!(taken.lines, 2 * FILES);
}
