//! Quotas of tokens and devices.

use std::sync::Arc;

use siem_protocol::{Encoding, names::problem as kind, statement::TrustLevel};
use siem_server::{
    FileStore, FileStoreOptions, QuotaLimits, Receiver, ServeOptions,
    trust::{Registry, RegistryOptions},
};

use crate::common::{BatchText, Server, eventually, keys, problem};

fn limits(change: impl FnOnce(&mut QuotaLimits)) -> QuotaLimits {
    let mut limits = QuotaLimits::default();
    change(&mut limits);
    limits
}

/// Starts a receiver that knows devices, over `data`.
async fn start(data: tempfile::TempDir, quotas: QuotaLimits) -> Server {
    let level = RegistryOptions::new(TrustLevel::Shared);
    let registry = Arc::new(Registry::open(&data.path().join("trust"), level).unwrap());
    let options = FileStoreOptions::default();
    let store = FileStore::open_with_registry(data.path(), options, registry.clone()).unwrap();
    let receiver =
        Receiver::new(keys(), Arc::new(store)).with_registry(registry).with_quotas(quotas);
    Server::serving(data, receiver, ServeOptions::default()).await
}

fn batch(machine: &str, epoch: &str) -> BatchText {
    let mut batch = BatchText::new(1, 2);
    batch.header.machine_id = machine.to_owned();
    batch.header.epoch = epoch.to_owned();
    batch
}

async fn status(server: &Server, batch: &BatchText) -> u16 {
    server.request(&batch.text(), Encoding::Zstd).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn new_machines_over_the_quota_get_a_time_to_return() {
    let quotas = limits(|limits| limits.machines_per_hour = 1);
    let server = start(tempfile::tempdir().unwrap(), quotas).await;
    // Machines of the store are learned first; until then none counts as new.
    let mut machine = 0;
    eventually("a machine is refused", async || {
        machine += 1;
        status(&server, &batch(&format!("m-{machine}"), &format!("e-{machine}"))).await == 429
    })
    .await;
    let refused = batch(&format!("m-{machine}"), &format!("e-{machine}"));
    let response = server.request(&refused.text(), Encoding::Zstd).send().await.unwrap();
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3600).contains(&after), "{after}");
    assert_eq!(problem(response).await.kind, kind::QUOTA);
    assert_eq!(status(&server, &batch("m-1", "e-1")).await, 200, "a known machine is not new");
    let stats = server.stats().await;
    assert!(stats.events.quota_exceeded >= 2, "{:?}", stats.events);
    // After a restart it is not new either.
    let server = start(server.end().await, quotas).await;
    for _ in 0..20 {
        assert_eq!(status(&server, &batch("m-1", "e-1")).await, 200);
    }
}

#[tokio::test]
async fn device_over_its_bytes_is_refused_alone() {
    let quotas = limits(|limits| limits.device_bytes_per_day = 1);
    let server = start(tempfile::tempdir().unwrap(), quotas).await;
    assert_eq!(status(&server, &batch("m-1", "e-1")).await, 200, "the first one is admitted");
    assert_eq!(status(&server, &batch("m-1", "e-1")).await, 429);
    assert_eq!(status(&server, &batch("m-2", "e-2")).await, 200);
}
