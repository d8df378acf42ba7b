//! A sweep of 10,000 unchanged files.
#![allow(missing_docs, reason = "the macros generate functions without docs")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use workloads::tree;

const FILES: usize = 10_000;

fn sweep(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("there is a temporary directory");
    tree::write(folder.path(), FILES);
    let (mut tail, mut taken) = (tree::tail(folder.path()), tree::Taken::default());
    tree::read(&mut tail, &mut taken);
    let mut group = criterion.benchmark_group("sweep of unchanged files");
    group.sample_size(10);
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("10,000, after a restart", |bencher| {
        bencher.iter(|| tree::sweep_again(&mut tail, &mut taken));
    });
    group.finish();
    assert_eq!(taken.lines, 2 * FILES, "a sweep read what it had read");
}

criterion_group!(benches, sweep);
criterion_main!(benches);
