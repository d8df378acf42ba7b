//! Keys of receivers that this device relies on, in `trust.json` of the state directory.
//!
//! A receiver whose key is pinned never counts as one without a key again. That is why a file that
//! cannot be read holds delivery, and why the file is replaced atomically.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    agent_event::{ReceiverTrust, TrustState},
    note::VerifierKey,
};

use crate::platform::{file, secure_file};

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
    /// Keys that were replaced. A list that names one of them is an old one, and none of them vouches
    /// for a list.
    #[serde(default)]
    pub retired: Vec<VerifierKey>,
    /// True after a signed verdict that the device is revoked: nothing is sent.
    #[serde(default)]
    pub is_stopped: bool,
    /// State in the last statement about the device, to which a valid response returns.
    #[serde(default)]
    pub enrolled_state: Option<TrustState>,
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
            enrolled_state: None,
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
            let before = std::mem::replace(&mut self.keys, configured.to_vec());
            let is_current_kept = before.first().is_none_or(|current| configured.contains(current));
            // A current key that stays vouches for the one that it has announced.
            let dropped =
                before.into_iter().filter(|key| !is_current_kept || self.configured.contains(key));
            self.retire(dropped.collect());
            self.retired.retain(|key| !configured.contains(key));
            self.receiver = Some(first.name().to_owned());
            self.trust.device_key = None;
            self.is_stopped = false;
        }
        self.configured = configured.to_vec();
        self.publish_keys();
        self
    }

    /// Replaces the pinned keys by those of a list that was verified.
    ///
    /// A recovery by the organisation retires every earlier key that the list does not name,
    /// configured ones included. Only if its current key is pinned already, as in a recorded recovery
    /// that is sent again, does an announced key stay valid.
    pub fn replace_keys(&mut self, receiver: &str, keys: Vec<VerifierKey>, is_recovery: bool) {
        let is_pinned = keys.first().is_some_and(|current| self.keys.contains(current));
        let before = std::mem::replace(&mut self.keys, keys);
        let current = before.first().cloned();
        if is_recovery {
            let configured = self.configured.iter().filter(|key| !before.contains(key)).cloned();
            self.retire(configured.collect());
        }
        if is_recovery && !is_pinned {
            self.retire(before);
        } else {
            self.retire(current.into_iter().collect());
        }
        self.receiver = Some(receiver.to_owned());
        self.publish_keys();
    }

    /// Notes that keys were replaced, except for those in force.
    fn retire(&mut self, keys: Vec<VerifierKey>) {
        for key in keys {
            if !self.keys.contains(&key) && !self.retired.contains(&key) {
                self.retired.push(key);
            }
        }
    }

    /// Returns the keys that vouch for a list of keys: those in force and the configured ones, except
    /// for those that were replaced.
    #[must_use]
    pub fn vouching(&self) -> Vec<VerifierKey> {
        let configured = self.configured.iter().filter(|key| !self.keys.contains(key));
        let all = self.keys.iter().chain(configured);
        all.filter(|key| !self.retired.contains(key)).cloned().collect()
    }

    /// Returns true if a power cut must not lose what these pins know and `stored` does not.
    #[must_use]
    pub fn binds_more_than(&self, stored: &Self) -> bool {
        let bound = |pins: &Self| {
            let Self { keys, retired, configured, is_stopped, trust, .. } = pins.clone();
            // After a rotation the receiver refuses the key before once this one has sealed.
            (keys, retired, configured, is_stopped, trust.device_key)
        };
        bound(self) != bound(stored)
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
        let found = receivers.find(|pins| pins.is_of(sink, endpoint));
        Ok(found.map(|mut pins| {
            endpoint.clone_into(&mut pins.trust.endpoint);
            pins
        }))
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
        // Requests are the same with and without a slash at the end of the endpoint.
        let without_slash = |url: &str| url.trim_end_matches('/').to_owned();
        self.sink == sink && without_slash(&self.trust.endpoint) == without_slash(endpoint)
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
    let damaged = |reason: String| PinsError::Damaged { path: path.clone(), reason };
    let failed = |source| PinsError::Io { path: path.clone(), source };
    let file = match file::open_regular(&path) {
        Ok(Some((file, _))) => file,
        Ok(None) => return Err(damaged("it is no regular file".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TrustFile::default()),
        Err(error) => return Err(failed(error)),
    };
    if !secure_file::has_trusted_owner(&file).map_err(failed)? {
        return Err(damaged("it belongs to another user".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(damaged("it is too large".to_owned()));
    }
    match serde_json::from_slice::<TrustFile>(&bytes) {
        Ok(file) if file.version == 1 => Ok(file),
        Ok(file) => Err(damaged(format!("version {} is unknown", file.version))),
        Err(error) => Err(damaged(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    /// An agent that pinned the key at one of them trusted anyone at the other.
    #[test]
    fn endpoint_with_and_without_a_slash_has_one_pin() {
        let dir = tempfile::tempdir().unwrap();
        let mut pins = Pins::new("siem", "https://a/path");
        pins.replace_keys("siem.test", vec![key(1)], false);
        pins.save(dir.path()).unwrap();
        let load = |endpoint| Pins::load(dir.path(), "siem", endpoint).unwrap();
        let found = load("https://a/path/").unwrap();
        assert_eq!((&found.keys, &*found.trust.endpoint), (&pins.keys, "https://a/path/"));
        found.save(dir.path()).unwrap();
        assert_eq!(stored_trust(dir.path()), [found.trust]);
        assert_eq!(load("https://a/"), None);
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

    /// The key after it had counted as replaced, and every list that named it as an old one: an agent
    /// held its entries for ever after the administrator had removed a key that was replaced.
    #[test]
    fn announced_key_counts_when_an_old_one_is_unconfigured() {
        let pinned = |keys: &[u8]| {
            let mut pins = Pins::new("siem", "https://a/");
            pins.replace_keys("siem.test", keys.iter().copied().map(key).collect(), false);
            pins
        };
        assert_eq!(pinned(&[1, 2]).with_configured(&[key(1)]).retired, []);
        let mut pins = pinned(&[1, 2]).with_configured(&[key(1), key(2)]);
        pins.replace_keys("siem.test", vec![key(2), key(3)], false);
        assert_eq!(pins.with_configured(&[key(2)]).retired, [key(1)]);
        // The administrator took it out, or no longer trusts the key that announced it.
        let pins = pinned(&[1]).with_configured(&[key(1), key(2)]);
        assert_eq!(pins.with_configured(&[key(1)]).retired, [key(2)]);
        assert_eq!(pinned(&[1, 2]).with_configured(&[key(4)]).retired, [key(1), key(2)]);
    }

    #[test]
    fn recovery_retires_pinned_and_configured_keys() {
        let mut pins = Pins::new("siem", "https://a/").with_configured(&[key(1)]);
        pins.replace_keys("siem.test", vec![key(2), key(3)], false);
        assert_eq!(pins.vouching(), [key(2), key(3)], "the configured key was replaced");
        pins.replace_keys("siem.test", vec![key(4)], true);
        assert_eq!(pins.vouching(), [key(4)]);
        let pins = pins.with_configured(&[key(1)]);
        assert_eq!((pins.vouching(), pins.retired.len()), (vec![key(4)], 3));
        // Another configuration is the administrator's decision.
        assert_eq!(pins.with_configured(&[key(1), key(5)]).vouching(), [key(1), key(5)]);
    }

    #[test]
    fn repeated_recovery_keeps_the_announced_key_valid() {
        let mut pins = Pins::new("siem", "https://a/");
        pins.replace_keys("siem.test", vec![key(1), key(2)], false);
        pins.replace_keys("siem.test", vec![key(1)], true);
        assert_eq!(pins.retired, []);
        pins.replace_keys("siem.test", vec![key(2)], false);
        assert_eq!(pins.retired, [key(1)]);
    }

    #[test]
    fn keys_and_stops_must_be_stored_but_states_need_not() {
        let mut pins = Pins::new("siem", "https://a/");
        let stored = pins.clone();
        pins.trust.state = TrustState::Confirmed;
        assert!(!pins.binds_more_than(&stored));
        pins.is_stopped = true;
        assert!(pins.binds_more_than(&stored));
        pins.is_stopped = false;
        pins.trust.device_key = Some("key".to_owned());
        assert!(pins.binds_more_than(&stored));
        pins.trust.device_key = None;
        pins.replace_keys("siem.test", vec![key(1)], false);
        assert!(pins.binds_more_than(&stored));
    }

    #[cfg(unix)]
    #[test]
    fn pipe_or_symlink_in_place_of_the_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = Pins::load(dir.path(), "siem", "https://a/").unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "{\"version\":1,\"receivers\":[]}").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        Pins::load(dir.path(), "siem", "https://a/").unwrap_err();
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
