//! A receiver with a registry of devices, and devices for it.

use std::{path::Path, sync::Arc};

use siem_protocol::{
    EnrollAnswer, EnrollRequest,
    note::{NoteSigner, SigningKey},
    statement::{Device, Enroll, Statement as _, TrustLevel},
};
use siem_server::{
    FileStore, Limits, Receiver, ServeOptions,
    trust::{DEVICE_KEY_NAME, DeviceKey, NewToken, Registry, RegistryOptions, TokenText},
};

use super::{Server, TOKEN, keys};

pub(crate) const RECEIVER: &str = "siem.example.com";

/// A receiver with a key, that runs until it is dropped.
pub(crate) struct TrustServer {
    server: Server,
    registry: Arc<Registry>,
    client: reqwest::Client,
}

impl TrustServer {
    pub(crate) async fn start(level: TrustLevel) -> Self {
        let data = tempfile::tempdir().unwrap();
        let registry =
            Registry::open(&data.path().join("trust"), RegistryOptions::new(level)).unwrap();
        registry.create_receiver_key(RECEIVER, [200; 32]).unwrap();
        let registry = Arc::new(registry);
        let store = Arc::new(FileStore::open(data.path()).unwrap());
        let receiver = Receiver::new(keys(), store)
            .with_limits(Limits::default())
            .with_registry(registry.clone())
            .with_config_file(data.path().join("config.json"));
        let server = Server::serving(data, receiver, ServeOptions::default()).await;
        Self { server, registry, client: reqwest::Client::new() }
    }

    pub(crate) fn data(&self) -> &Path {
        self.server.data.path()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    pub(crate) fn get(&self, path: &str, token: &str) -> reqwest::RequestBuilder {
        self.client.get(self.url(path)).bearer_auth(token)
    }

    /// Makes a token, and returns its text. All tokens of a test have other scopes or bounds.
    pub(crate) fn token(&self, new: NewToken) -> String {
        let mut bytes = [0; 32];
        bytes[0] = u8::try_from(self.registry.tokens().len()).unwrap();
        let text = TokenText::from_random(&bytes);
        self.registry.add_token(new, &text).unwrap();
        text.reveal().to_owned()
    }

    pub(crate) fn post_enroll(&self, token: &str, body: String) -> reqwest::RequestBuilder {
        self.client.post(self.url("/enroll")).bearer_auth(token).body(body)
    }

    /// Enrolls a device whose note is signed by its key, and returns the receiver's statement.
    pub(crate) async fn enroll(&self, token: &str, enroll: &Enroll) -> Device {
        let seed = (0..=u16::MAX).find(|seed| device(*seed).key() == &enroll.key).unwrap();
        let response = self.post_enroll(token, signed(enroll, &[seed])).send().await.unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let answer: EnrollAnswer =
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        let receiver = self.registry.receiver_key().unwrap();
        Device::open(&answer.device, std::slice::from_ref(receiver.key())).unwrap().statement
    }

    pub(crate) async fn enroll_with_fleet_token(&self, enroll: &Enroll) -> Device {
        self.enroll(TOKEN, enroll).await
    }
}

/// Key of a device.
pub(crate) fn device(seed: u16) -> SigningKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed.to_le_bytes());
    SigningKey::from_seed(DEVICE_KEY_NAME, bytes).unwrap()
}

pub(crate) fn device_key(seed: u16) -> DeviceKey {
    DeviceKey::from(device(seed).key())
}

/// Enrollment of a device of machine `m-1` and user `u`.
pub(crate) fn enrollment(seed: u16) -> Enroll {
    Enroll {
        receiver: RECEIVER.into(),
        machine: "m-1".into(),
        user: "u".into(),
        host: "laptop".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        version: "0.2.0".into(),
        key: device(seed).key().clone(),
        previous: None,
    }
}

pub(crate) fn rotation(seed: u16, previous: u16) -> Enroll {
    Enroll { previous: Some(device(previous).key().clone()), ..enrollment(seed) }
}

/// Body of an enrollment that is signed by the devices `signers`.
pub(crate) fn signed(enroll: &Enroll, signers: &[u16]) -> String {
    let keys: Vec<_> = signers.iter().map(|seed| device(*seed)).collect();
    let signers: Vec<&dyn NoteSigner> = keys.iter().map(|key| key as _).collect();
    let request = EnrollRequest {
        enroll: enroll.sign(&signers).unwrap(),
        instance: "i-1".into(),
        sent_at: "2026-11-21T20:00:02.000Z".into(),
    };
    serde_json::to_string(&request).unwrap()
}
