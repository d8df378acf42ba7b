//! Keys of receivers that this device relies on, in `trust.json` of the state directory.
//!
//! A receiver whose key is pinned never counts as one without a key again. That is why a file that
//! cannot be read holds delivery, and why the file is replaced atomically.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    agent_event::{ReceiverTrust, TrustState},
    note::VerifierKey,
};

use crate::platform::secure_file;

/// File in the state directory.
const FILE: &str = "trust.json";
/// Maximum size of the file, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Sinks of one process write the file one after the other.
static WRITES: Mutex<()> = Mutex::new(());

/// What is known of the receiver of one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Name of the sink.
    pub sink: String,
    /// Name of the receiver; `None` if no key of it is pinned.
    #[serde(default)]
    pub receiver: Option<String>,
    /// Keys whose statements count, the current one first.
    #[serde(default)]
    pub keys: Vec<VerifierKey>,
    /// Configured keys from which `keys` were learned; empty if they were pinned at first use.
    #[serde(default)]
    pub configured: Vec<VerifierKey>,
    /// Keys that were current before. A list that names one of them is an old one.
    #[serde(default)]
    pub retired: Vec<VerifierKey>,
    /// True after a signed verdict that the device is revoked: nothing is sent.
    #[serde(default)]
    pub is_stopped: bool,
    /// Time of the last enrollment, RFC 3339.
    #[serde(default)]
    pub asked_at: Option<String>,
    /// State of this device, as reported.
    pub trust: ReceiverTrust,
}

/// Content of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TrustFile {
    version: u32,
    receivers: Vec<Pins>,
}

impl Default for TrustFile {
    fn default() -> Self {
        Self { version: 1, receivers: Vec::new() }
    }
}

/// Error of the file. Its remedy is in the text, since a person must act.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The file cannot be read or written.
    #[error("cannot use the receivers' keys in `{path}`: {source}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file has another content.
    #[error(
        "the receivers' keys in `{path}` are damaged ({reason}): restore the file from a backup, or \
         delete it to pin the keys that the receivers present next"
    )]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Pins {
    /// Creates the pins of a receiver that is not known yet.
    #[must_use]
    pub fn new(sink: &str, endpoint: &str) -> Self {
        let trust = ReceiverTrust {
            endpoint: endpoint.to_owned(),
            state: TrustState::Shared,
            level: None,
            receiver: None,
            receiver_keys: Vec::new(),
            device_key: None,
            problem: None,
        };
        Self {
            sink: sink.to_owned(),
            receiver: None,
            keys: Vec::new(),
            configured: Vec::new(),
            retired: Vec::new(),
            is_stopped: false,
            asked_at: None,
            trust,
        }
    }

    /// Applies the configured keys, which override what was pinned. Keys that were learned from the
    /// same configured keys stay.
    #[must_use]
    pub fn with_configured(mut self, configured: &[VerifierKey]) -> Self {
        if let Some(first) = configured.first()
            && self.configured != configured
        {
            self.receiver = Some(first.name().to_owned());
            self.keys = configured.to_vec();
            self.retired.clear();
            self.trust.device_key = None;
            self.is_stopped = false;
        }
        self.configured = configured.to_vec();
        self.publish_keys();
        self
    }

    /// Replaces the pinned keys by those of a list that was verified. After a recovery by the
    /// organisation, keys that were retired may return.
    pub fn replace_keys(&mut self, receiver: &str, keys: Vec<VerifierKey>, is_recovery: bool) {
        if is_recovery {
            self.retired.clear();
        } else if let Some(current) = self.keys.first()
            && !keys.contains(current)
        {
            self.retired.push(current.clone());
        }
        self.receiver = Some(receiver.to_owned());
        self.keys = keys;
        self.publish_keys();
    }

    fn publish_keys(&mut self) {
        self.trust.receiver.clone_from(&self.receiver);
        self.trust.receiver_keys = self.keys.iter().map(ToString::to_string).collect();
    }

    /// Reads the pins of a sink's receiver; `None` if it is not known.
    ///
    /// # Errors
    /// [`PinsError`]: the caller holds delivery.
    pub fn load(state_dir: &Path, sink: &str, endpoint: &str) -> Result<Option<Self>, PinsError> {
        let mut receivers = read(state_dir)?.receivers.into_iter();
        Ok(receivers.find(|pins| pins.is_of(sink, endpoint)))
    }

    /// Stores the pins, so that a power cut cannot undo that.
    ///
    /// # Errors
    /// [`PinsError`]: the file is unchanged.
    pub fn save(&self, state_dir: &Path) -> Result<(), PinsError> {
        let _order = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = read(state_dir)?;
        file.receivers.retain(|pins| !pins.is_of(&self.sink, &self.trust.endpoint));
        file.receivers.push(self.clone());
        let path = state_dir.join(FILE);
        let json = serde_json::to_vec(&file).map_err(io::Error::other);
        let written = json.and_then(|json| secure_file::replace(&path, &json));
        written.map_err(|source| PinsError::Io { path, source })
    }

    fn is_of(&self, sink: &str, endpoint: &str) -> bool {
        self.sink == sink && self.trust.endpoint == endpoint
    }
}

/// Returns the states that a stopped agent stored in its state directory; none if they cannot be
/// read.
#[must_use]
pub fn stored_trust(state_dir: &Path) -> Vec<ReceiverTrust> {
    let receivers = read(state_dir).unwrap_or_default().receivers;
    receivers.into_iter().map(|pins| pins.trust).collect()
}

fn read(state_dir: &Path) -> Result<TrustFile, PinsError> {
    let path = state_dir.join(FILE);
    let damaged = |path, reason| PinsError::Damaged { path, reason };
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TrustFile::default()),
        Err(source) => return Err(PinsError::Io { path, source }),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(damaged(path, "it is too large".to_owned()));
        }
        Ok(_) => {}
    }
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(PinsError::Io { path, source }),
    };
    match serde_json::from_slice::<TrustFile>(&bytes) {
        Ok(file) if file.version == 1 => Ok(file),
        Ok(file) => Err(damaged(path, format!("version {} is unknown", file.version))),
        Err(error) => Err(damaged(path, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::note::{NoteSigner as _, SigningKey};

    use super::*;

    fn key(seed: u8) -> VerifierKey {
        SigningKey::from_seed("siem.test", [seed; 32]).unwrap().key().clone()
    }

    #[test]
    fn pins_are_kept_by_sink_and_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let load = |sink, endpoint| Pins::load(dir.path(), sink, endpoint).unwrap();
        assert_eq!(load("siem", "https://a/"), None);
        let mut first = Pins::new("siem", "https://a/");
        first.replace_keys("siem.test", vec![key(1)], false);
        first.save(dir.path()).unwrap();
        let second = Pins::new("other", "https://a/");
        second.save(dir.path()).unwrap();
        first.replace_keys("siem.test", vec![key(1), key(2)], false);
        first.save(dir.path()).unwrap();
        assert_eq!(load("siem", "https://a/"), Some(first.clone()));
        assert_eq!(load("other", "https://a/"), Some(second.clone()));
        assert_eq!(load("siem", "https://b/"), None);
        assert_eq!(stored_trust(dir.path()), [second.trust, first.trust]);
    }

    #[test]
    fn damaged_file_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["", "{", "{\"version\":2,\"receivers\":[]}"] {
            fs::write(dir.path().join(FILE), content).unwrap();
            Pins::load(dir.path(), "siem", "https://a/").unwrap_err();
            Pins::new("siem", "https://a/").save(dir.path()).unwrap_err();
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), content);
            assert_eq!(stored_trust(dir.path()), []);
        }
    }

    #[test]
    fn configured_keys_override_pinned_ones() {
        let mut pins = Pins::new("siem", "https://a/").with_configured(&[]);
        assert_eq!(pins.keys, []);
        pins.replace_keys("siem.test", vec![key(1)], false);
        let mut pins = pins.with_configured(&[key(2)]);
        assert_eq!(
            (&*pins.keys, &*pins.trust.receiver_keys),
            (&[key(2)][..], &[key(2).to_string()][..])
        );
        // Learned from the configured key.
        pins.replace_keys("siem.test", vec![key(3)], false);
        let pins = pins.with_configured(&[key(2)]);
        assert_eq!(pins.keys, [key(3)]);
        assert_eq!(pins.with_configured(&[key(4)]).keys, [key(4)]);
    }

    #[test]
    fn removed_configuration_keeps_the_pinned_keys() {
        let pins = Pins::new("siem", "https://a/").with_configured(&[key(1)]);
        assert_eq!(pins.with_configured(&[]).keys, [key(1)]);
    }

    #[cfg(unix)]
    #[test]
    fn pins_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        Pins::new("siem", "https://a/").save(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
