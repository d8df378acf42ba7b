//! A receiver on loopback, and a sender for it.
#![cfg_attr(not(unix), allow(dead_code, reason = "some tests need Unix"))]

#[path = "../../src/testing.rs"]
mod testing;
pub(crate) mod trust;

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use siem_protocol::{
    Encoding, EnrollRequest, Problem, Receipt,
    names::header,
    note::NoteSigner as _,
    sign,
    statement::{Confirmation, TrustLevel},
};
use siem_server::{
    FileStore, FileStoreOptions, Keys, Limits, Receiver, Secret, ServeOptions, Storage, serve,
    stats::Stats,
    trust::{DeviceKey, Registry, RegistryOptions},
};
pub(crate) use testing::{BatchText, Outbox, RECEIVER, TestDevice, VECTOR, chain, identity, line};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

pub(crate) const TOKEN: &str = "the token of the fleet";
pub(crate) const SECRET: &str = "correct horse battery staple";

/// A receiver that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) data: tempfile::TempDir,
    /// What the receiver knows about devices, if it has a key.
    registry: Option<Arc<Registry>>,
    client: reqwest::Client,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub(crate) fn keys() -> Keys {
    Keys::new(Secret::new(TOKEN).unwrap(), Secret::new(SECRET).unwrap())
        .with_second_token(Secret::new("second token").unwrap())
        .with_second_secret(Secret::new("second secret").unwrap())
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Arc::new(FileStore::open(data.path()).unwrap());
        Self::over(data, store, limits, ServeOptions::default()).await
    }

    pub(crate) async fn over(
        data: tempfile::TempDir,
        storage: Arc<dyn Storage>,
        limits: Limits,
        options: ServeOptions,
    ) -> Self {
        Self::of(data, storage, None, limits, options).await
    }

    /// A receiver of this level with a key.
    pub(crate) async fn with_devices(level: TrustLevel, limits: Limits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let registry = Registry::open(&data.path().join("trust"), RegistryOptions::new(level));
        let registry = Arc::new(registry.unwrap());
        registry.create_receiver_key(RECEIVER, [9; 32]).unwrap();
        let options = FileStoreOptions::default();
        let store = FileStore::open_with_registry(data.path(), options, registry.clone()).unwrap();
        Self::of(data, Arc::new(store), Some(registry), limits, ServeOptions::default()).await
    }

    async fn of(
        data: tempfile::TempDir,
        storage: Arc<dyn Storage>,
        registry: Option<Arc<Registry>>,
        limits: Limits,
        options: ServeOptions,
    ) -> Self {
        let mut receiver = Receiver::new(keys(), storage)
            .with_limits(limits)
            .with_config_file(data.path().join("config.json"));
        if let Some(registry) = &registry {
            receiver = receiver.with_registry(registry.clone());
        }
        Self::serving(data, receiver, options).await.with_registry(registry)
    }

    fn with_registry(mut self, registry: Option<Arc<Registry>>) -> Self {
        self.registry = registry;
        self
    }

    pub(crate) async fn serving(
        data: tempfile::TempDir,
        receiver: Receiver,
        options: ServeOptions,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ending) = oneshot::channel::<()>();
        let ending = async { drop(ending.await) };
        let task = tokio::spawn(serve(listener, receiver.router(), options, ending));
        let client = reqwest::Client::new();
        Self { address, data, registry: None, client, end: Some(end), task }
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    /// Enrolls a device.
    pub(crate) async fn enroll(&self, device: &TestDevice) -> DeviceKey {
        let request = EnrollRequest {
            enroll: device.enrollment(&identity(), None),
            instance: "i-1".into(),
            sent_at: "2026-11-21T20:00:02.000Z".into(),
        };
        let request = self
            .client
            .post(self.url("/enroll"))
            .bearer_auth(TOKEN)
            .body(serde_json::to_vec(&request).unwrap());
        assert_eq!(request.send().await.unwrap().status(), 200);
        DeviceKey::from(device.key.key())
    }

    /// Enrolls a device, which an operator confirms.
    pub(crate) async fn confirm(&self, device: &TestDevice) -> DeviceKey {
        let key = self.enroll(device).await;
        self.registry().confirm(&key, Confirmation::Operator).unwrap();
        key
    }

    /// Stops the receiver and returns its data directory.
    pub(crate) async fn end(mut self) -> tempfile::TempDir {
        drop(self.end.take());
        self.task.await.unwrap();
        // The last task with the store may end after the receiver; then the store writes its files.
        if let Ok(lock) = std::fs::File::open(self.data.path().join("lock")) {
            eventually("the store is closed", async || lock.try_lock_shared().is_ok()).await;
        }
        self.data
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A correctly signed request with `text` as its body.
    pub(crate) fn request(&self, text: &str, encoding: Encoding) -> reqwest::RequestBuilder {
        let body = encoded(text.as_bytes(), encoding);
        let signature = sign(SECRET.as_bytes(), &body);
        self.signed(body, encoding.as_str(), &signature)
    }

    /// A request with this body and any signature.
    pub(crate) fn signed(
        &self,
        body: Vec<u8>,
        encoding: &str,
        signature: &str,
    ) -> reqwest::RequestBuilder {
        self.client
            .post(self.url("/ingest"))
            .bearer_auth(TOKEN)
            .header("content-type", "application/x-ndjson")
            .header("content-encoding", encoding)
            .header(header::SIGNATURE, signature)
            .body(body)
    }

    pub(crate) async fn take(&self, text: &BatchText) -> Receipt {
        let response = self.request(&text.text(), Encoding::Zstd).send().await.unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    /// Asks for the managed configuration.
    pub(crate) async fn config(&self) -> reqwest::Response {
        self.client.get(self.url("/config")).bearer_auth(TOKEN).send().await.unwrap()
    }

    pub(crate) async fn stats(&self) -> Stats {
        let request = self.client.get(self.url("/stats")).bearer_auth(TOKEN);
        let body = request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

/// Returns the problem in a response, and its status.
pub(crate) async fn problem(response: reqwest::Response) -> Problem {
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").cloned();
    assert_eq!(kind.unwrap(), "application/problem+json");
    let problem: Problem = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(problem.status, status);
    problem
}

pub(crate) fn encoded(text: &[u8], encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Identity => text.to_vec(),
        Encoding::Zstd => zstd::encode_all(text, 1).unwrap(),
        Encoding::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// Returns the files with an extension below a directory.
pub(crate) fn files(root: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Polls a condition until it holds, and fails after 30 s.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
