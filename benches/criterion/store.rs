//! The outbox: a synced transaction with one group.
#![allow(missing_docs, reason = "the macros generate functions without docs")]

use ai_agent::internals::frame::Codec;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use workloads::{frames, session};

fn commit(criterion: &mut Criterion) {
    let session = session::session(2 << 20);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let mut group = criterion.benchmark_group("outbox commit");
    group.sample_size(20);
    for (name, size) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        // A group is full before 1 MiB, so the largest size makes two.
        let count = pieces
            .iter()
            .scan(0, |bytes, piece| {
                let ai_agent::internals::tail::Piece::Line { size, .. } = piece else {
                    return None;
                };
                *bytes += size;
                Some(*bytes)
            })
            .take_while(|bytes| *bytes <= size)
            .count()
            .max(1);
        let folder = tempfile::tempdir().expect("there is a temporary directory");
        let outbox = frames::outbox(folder.path());
        let made = || {
            let mut groups = Vec::new();
            let end = outbox.end();
            frames::encode(end, Codec::Plain, &origin, &pieces[..count], |made| groups.push(made));
            groups
        };
        let bytes: usize = made().iter().flat_map(|g| &g.frames).map(|f| f.body.len()).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |bencher| {
            let store = |groups: Vec<_>| {
                groups.iter().for_each(|group| outbox.commit(group).expect("it is stored"));
            };
            bencher.iter_batched(made, store, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, commit);
criterion_main!(benches);
