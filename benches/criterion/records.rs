//! The scanner, each filter, and the encoding of frames, per byte of a session.
#![allow(missing_docs, reason = "the macros generate functions without docs")]

use std::hint::black_box;

use ai_agent::internals::{frame::Codec, stages::Record, tail::Piece};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use workloads::{frames, records, session};

const SESSION: usize = 4 << 20;

fn scan(criterion: &mut Criterion) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Bytes(session.len() as u64));
    group.bench_function("top-level members", |bencher| {
        bencher.iter(|| {
            for piece in &pieces {
                let Piece::Line { offset, bytes, .. } = *piece else { continue };
                black_box(Record::new(&origin, offset, bytes).is_object());
            }
        });
    });
    group.finish();
}

/// Each filter, with the scan that it needs.
fn filters(criterion: &mut Criterion) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut group = criterion.benchmark_group("filter");
    group.throughput(Throughput::Bytes(session.len() as u64));
    for name in records::FILTERS {
        group.bench_function(name, |bencher| {
            let filters = || records::filter_chain(&[name]);
            let run = |mut filters| records::check_all(&mut filters, &origin, &pieces);
            bencher.iter_batched(filters, run, criterion::BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// The enricher `activity`, with the scan that it needs.
fn activity(criterion: &mut Criterion) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut group = criterion.benchmark_group("enricher");
    group.throughput(Throughput::Bytes(session.len() as u64));
    group.bench_function("activity", |bencher| {
        let mut enricher = records::activity();
        bencher.iter(|| records::enrich_all(&mut *enricher, &origin, &pieces));
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut group = criterion.benchmark_group("frame encode");
    group.throughput(Throughput::Bytes(session.len() as u64));
    for (name, codec) in [("none", Codec::Plain), ("zstd", Codec::Zstd)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                frames::encode(frames::beginning(), codec, &origin, &pieces, |made| {
                    black_box(made);
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, scan, filters, activity, encode);
criterion_main!(benches);
