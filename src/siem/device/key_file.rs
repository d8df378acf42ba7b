//! File with the device's private key.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    Identity,
    agent_event::DeviceKeyReason,
    note::{NoteSigner as _, SigningKey},
};
use zeroize::Zeroizing;

use crate::platform::{
    Timestamp, UNKNOWN_NAME, random_bytes,
    secure_file::{self, SecretFileError},
};

/// Name of the note key of every device. It tells nothing about the device, whose identity is the
/// public key.
const KEY_NAME: &str = "ai-agent-device";

/// File in the state directory.
const FILE: &str = "device.key";
/// Version of the file's format.
const VERSION: u32 = 1;

/// Keys of the device, as in the file.
#[derive(Clone, Debug)]
pub struct StoredKeys {
    /// Key in force.
    pub current: Arc<SigningKey>,
    /// Key before a rotation, until the receivers have confirmed the key in force.
    pub previous: Option<Arc<SigningKey>>,
    /// Time at which the key in force was made.
    pub created_at: Timestamp,
    /// Cause of the key in force.
    pub reason: DeviceKeyReason,
}

impl StoredKeys {
    /// Returns the public key in force, `name+hash+base64`.
    #[must_use]
    pub fn public(&self) -> String {
        self.current.key().to_string()
    }

    /// Returns the public key before a rotation.
    #[must_use]
    pub fn previous_public(&self) -> Option<String> {
        self.previous.as_ref().map(|key| key.key().to_string())
    }
}

/// Reason why the file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no key that this machine may use: another one may be made.
    #[error("{}", explain(*.0))]
    Unusable(DeviceKeyReason),
    /// The file cannot be read, or other users can: a person must act.
    #[error(transparent)]
    Refused(#[from] SecretFileError),
    /// The file was written by a newer agent.
    #[error(
        "`{}` has version {version}, and this agent supports version {VERSION}: run the newer agent \
         again, or delete the file to get another key and another epoch", path.display()
    )]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Version of the file.
        version: u32,
    },
}

/// Error of making and storing a key.
#[derive(Debug, thiserror::Error)]
pub enum StoreKeyError {
    /// The system gave no random bytes.
    #[error("cannot make a device key: the system gives no random bytes")]
    Random(#[source] io::Error),
    /// The file cannot be written.
    #[error("cannot write the device key to `{}`", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

type Replace = dyn Fn(&Path, &[u8]) -> io::Result<()> + Send + Sync;
type Random = dyn Fn() -> io::Result<[u8; 32]> + Send + Sync;

/// File with the device's private key, for the agent of one user on one machine.
#[derive(Clone)]
pub struct KeyFile {
    path: PathBuf,
    machine_id: String,
    /// `None` if the user is not compared.
    user: Option<String>,
    replace: Arc<Replace>,
    random: Arc<Random>,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Contents of the file. No `Debug`: they are secret.
#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    machine_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    key: Zeroizing<String>,
    created_at: String,
    reason: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Zeroizing<String>>,
}

impl KeyFile {
    /// Returns the file in a state directory, for the machine with this id.
    #[must_use]
    pub fn new(state_dir: &Path, machine_id: &str) -> Self {
        Self {
            path: state_dir.join(FILE),
            machine_id: machine_id.to_owned(),
            user: None,
            replace: Arc::new(secure_file::replace),
            random: Arc::new(random_bytes::<32>),
        }
    }

    /// Returns the file in a state directory, for this machine and user. A receiver enrolls a key for
    /// one machine and user only.
    #[must_use]
    pub fn of(state_dir: &Path, identity: &Identity) -> Self {
        Self { user: Some(identity.user.clone()), ..Self::new(state_dir, &identity.machine_id) }
    }

    /// Returns the same file with another way to write it.
    #[cfg(test)]
    pub(crate) fn with_replace(
        self,
        replace: impl Fn(&Path, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { replace: Arc::new(replace), ..self }
    }

    /// Returns the path of the file.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the id of the machine that keys are made for.
    #[must_use]
    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// [`KeyFileError`]: only for [`KeyFileError::Unusable`] may another key be made.
    pub fn load(&self) -> Result<StoredKeys, KeyFileError> {
        let keys = self.read()?;
        // The process that wrote the file may have ended between the rename and the sync of the
        // directory. A key that is used must not be lost in a power cut.
        let dir = self.path.parent().unwrap_or(&self.path);
        secure_file::sync_dir(dir)
            .map_err(|source| SecretFileError::Read { path: dir.to_owned(), source })?;
        Ok(keys)
    }

    /// Makes a key, and replaces the file by it. After `Ok` a power cut does not lose the key.
    ///
    /// # Errors
    /// [`StoreKeyError`]: the key must not be used.
    pub fn create(
        &self,
        reason: DeviceKeyReason,
        now: Timestamp,
    ) -> Result<StoredKeys, StoreKeyError> {
        self.store(StoredKeys { current: self.make()?, previous: None, created_at: now, reason })
    }

    /// Makes a key that replaces `keys`, and keeps the key in force beside it.
    ///
    /// # Errors
    /// [`StoreKeyError`]: the key must not be used, and `keys` stay in force.
    pub fn rotate(&self, keys: &StoredKeys, now: Timestamp) -> Result<StoredKeys, StoreKeyError> {
        self.store(StoredKeys {
            current: self.make()?,
            previous: Some(Arc::clone(&keys.current)),
            created_at: now,
            reason: DeviceKeyReason::Rotated,
        })
    }

    /// Removes the key before a rotation.
    ///
    /// # Errors
    /// [`StoreKeyError`]: `keys` stay in force.
    pub fn drop_previous(&self, keys: &StoredKeys) -> Result<StoredKeys, StoreKeyError> {
        self.store(StoredKeys { previous: None, ..keys.clone() })
    }

    fn make(&self) -> Result<Arc<SigningKey>, StoreKeyError> {
        let seed = (self.random)().map_err(StoreKeyError::Random)?;
        let key = SigningKey::from_seed(KEY_NAME, seed);
        key.map(Arc::new).map_err(|error| StoreKeyError::Random(io::Error::other(error)))
    }

    fn store(&self, keys: StoredKeys) -> Result<StoredKeys, StoreKeyError> {
        let failed = |source| StoreKeyError::Write { path: self.path.clone(), source };
        let contents = Contents {
            version: VERSION,
            machine_id: self.machine_id.clone(),
            user: self.user.clone(),
            key: keys.current.to_text(),
            created_at: keys.created_at.to_string(),
            reason: serde_json::json!(keys.reason),
            previous: keys.previous.as_ref().map(|key| key.to_text()),
        };
        let json = serde_json::to_vec_pretty(&contents).map_err(|e| failed(e.into()))?;
        let mut json = Zeroizing::new(json);
        json.push(b'\n');
        (self.replace)(&self.path, &json).map_err(failed)?;
        Ok(keys)
    }

    fn read(&self) -> Result<StoredKeys, KeyFileError> {
        let damaged = || KeyFileError::Unusable(DeviceKeyReason::Damaged);
        let text = match secure_file::read_own(&self.path) {
            Ok(text) => text,
            Err(error) if error.is_absent() => {
                return Err(KeyFileError::Unusable(DeviceKeyReason::Missing));
            }
            Err(SecretFileError::TooLong { .. }) => return Err(damaged()),
            Err(SecretFileError::Read { source, .. })
                if source.kind() == io::ErrorKind::InvalidData =>
            {
                return Err(damaged());
            }
            Err(error) => return Err(error.into()),
        };
        // The errors of the parsers may quote the secret and are dropped.
        let Versioned { version } = serde_json::from_str(&text).map_err(|_| damaged())?;
        if version > VERSION {
            return Err(KeyFileError::Newer { path: self.path.clone(), version });
        }
        let contents: Contents = serde_json::from_str(&text).map_err(|_| damaged())?;
        let key = |text: &str| text.parse().map(Arc::new).map_err(|_| damaged());
        let current = key(&contents.key)?;
        let previous = contents.previous.as_ref().map(|text| key(text)).transpose()?;
        if contents.machine_id != self.machine_id {
            return Err(KeyFileError::Unusable(DeviceKeyReason::OtherMachine));
        }
        if let (Some(made_for), Some(user)) = (&contents.user, &self.user)
            // A name that cannot be determined now is no other name. A key that was made for such a
            // name is enrolled under it, so that it cannot be confirmed for the real one.
            && made_for != user
            && user != UNKNOWN_NAME
        {
            return Err(KeyFileError::Unusable(DeviceKeyReason::OtherUser));
        }
        let created_at = humantime::parse_rfc3339(&contents.created_at);
        let reason = serde_json::from_value(contents.reason);
        Ok(StoredKeys {
            current,
            previous,
            created_at: created_at.map(Timestamp::from).unwrap_or_default(),
            reason: reason.unwrap_or(DeviceKeyReason::First),
        })
    }
}

fn explain(reason: DeviceKeyReason) -> &'static str {
    match reason {
        DeviceKeyReason::Damaged => "the file of the device key is damaged",
        DeviceKeyReason::OtherMachine => "the device key was made on another machine",
        DeviceKeyReason::OtherUser => "the device key was made for another user",
        _ => "there is no device key",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_291_200_000);

    fn unusable(file: &KeyFile) -> Option<DeviceKeyReason> {
        match file.load() {
            Err(KeyFileError::Unusable(reason)) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn stored_key_loads_with_its_time_and_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        assert_eq!(unusable(&file), Some(DeviceKeyReason::Missing));
        let made = file.create(DeviceKeyReason::Missing, NOW).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.public(), made.public());
        assert_eq!((loaded.created_at, loaded.reason), (NOW, DeviceKeyReason::Missing));
        assert_eq!(loaded.previous_public(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn two_keys_differ() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let first = file.create(DeviceKeyReason::First, NOW).unwrap();
        assert_ne!(first.public(), file.create(DeviceKeyReason::First, NOW).unwrap().public());
    }

    #[test]
    fn rotation_keeps_the_key_before_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let first = file.create(DeviceKeyReason::First, NOW).unwrap();
        let second = file.rotate(&first, NOW).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.public(), second.public());
        assert_eq!(loaded.previous_public(), Some(first.public()));
        file.drop_previous(&second).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!((loaded.public(), loaded.previous_public()), (second.public(), None));
        assert_eq!(loaded.reason, DeviceKeyReason::Rotated);
    }

    #[test]
    fn file_of_another_machine_is_unusable() {
        let dir = tempfile::tempdir().unwrap();
        KeyFile::new(dir.path(), "m").create(DeviceKeyReason::First, NOW).unwrap();
        let other = KeyFile::new(dir.path(), "n");
        assert_eq!(unusable(&other), Some(DeviceKeyReason::OtherMachine));
    }

    #[test]
    fn file_of_another_user_is_unusable() {
        let dir = tempfile::tempdir().unwrap();
        let of = |user: &str| {
            let context = crate::test_context::context();
            let identity = Identity { user: user.to_owned(), ..context.identity };
            KeyFile::of(dir.path(), &identity)
        };
        let made = of("ann").create(DeviceKeyReason::First, NOW).unwrap();
        assert_eq!(of("ann").load().unwrap().public(), made.public());
        assert_eq!(unusable(&of("bob")), Some(DeviceKeyReason::OtherUser));
        // A name that cannot be determined now is no other name.
        assert_eq!(of(UNKNOWN_NAME).load().unwrap().public(), made.public());
        of(UNKNOWN_NAME).create(DeviceKeyReason::First, NOW).unwrap();
        assert_eq!(unusable(&of(UNKNOWN_NAME)), None);
        assert_eq!(unusable(&of("bob")), Some(DeviceKeyReason::OtherUser));
    }

    #[test]
    fn damaged_file_is_unusable_at_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let keys = file.create(DeviceKeyReason::First, NOW).unwrap();
        file.rotate(&keys, NOW).unwrap();
        let whole = fs::read(file.path()).unwrap();
        // The last two bytes are the end of the object and a newline.
        for length in 0..whole.len() - 2 {
            fs::write(file.path(), &whole[..length]).unwrap();
            assert_eq!(unusable(&file), Some(DeviceKeyReason::Damaged), "{length} bytes");
        }
        let mut flipped = whole.clone();
        let at = whole.windows(3).position(|part| part == b"KEY").unwrap() + 40;
        flipped[at] ^= 1;
        for bytes in [vec![0; 200], vec![0xff; 200], vec![b' '; 70_000], flipped] {
            fs::write(file.path(), bytes).unwrap();
            assert_eq!(unusable(&file), Some(DeviceKeyReason::Damaged));
        }
    }

    #[test]
    fn file_of_a_newer_agent_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        file.create(DeviceKeyReason::First, NOW).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        fs::write(file.path(), text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, KeyFileError::Newer { version: 2, .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn file_that_others_can_read_is_refused_with_the_fix() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        file.create(DeviceKeyReason::First, NOW).unwrap();
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, KeyFileError::Refused(_)));
        assert!(error.to_string().contains("`chmod 600 '"), "{error}");
    }

    /// State of the directory when the process is killed in the middle of a replacement.
    #[derive(Clone, Copy, Debug)]
    enum Killed {
        BeforeWrite,
        WhileWriting,
        BeforeRename,
        AfterRename,
    }

    fn kill(at: Killed) -> impl Fn(&Path, &[u8]) -> io::Result<()> {
        move |path, bytes| {
            let beside = path.with_extension("key.new");
            match at {
                Killed::BeforeWrite => {}
                Killed::WhileWriting => fs::write(&beside, &bytes[..bytes.len() / 2]).unwrap(),
                Killed::BeforeRename => fs::write(&beside, bytes).unwrap(),
                Killed::AfterRename => secure_file::replace(path, bytes).unwrap(),
            }
            Err(io::Error::other("killed"))
        }
    }

    const KILLED: [Killed; 4] =
        [Killed::BeforeWrite, Killed::WhileWriting, Killed::BeforeRename, Killed::AfterRename];

    #[test]
    fn kill_during_creation_leaves_one_key_or_none() {
        for at in KILLED {
            let dir = tempfile::tempdir().unwrap();
            let file = KeyFile::new(dir.path(), "m");
            let killed = file.clone().with_replace(kill(at));
            killed.create(DeviceKeyReason::First, NOW).unwrap_err();
            let key = match file.load() {
                Ok(keys) => keys.public(),
                Err(error) => {
                    assert!(matches!(error, KeyFileError::Unusable(DeviceKeyReason::Missing)));
                    file.create(DeviceKeyReason::First, NOW).unwrap().public()
                }
            };
            assert_eq!(file.load().unwrap().public(), key, "{at:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{at:?}");
        }
    }

    #[test]
    fn kill_during_rotation_leaves_the_key_or_its_successor() {
        for at in KILLED {
            let dir = tempfile::tempdir().unwrap();
            let file = KeyFile::new(dir.path(), "m");
            let first = file.create(DeviceKeyReason::First, NOW).unwrap();
            let killed = file.clone().with_replace(kill(at));
            killed.rotate(&first, NOW).unwrap_err();
            let loaded = file.load().unwrap();
            match at {
                Killed::AfterRename => {
                    assert_eq!(loaded.previous_public(), Some(first.public()));
                }
                _ => assert_eq!(loaded.public(), first.public(), "{at:?}"),
            }
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let first = file.create(DeviceKeyReason::First, NOW).unwrap();
        let text = first.current.to_text();
        let secret = text.splitn(5, '+').last().unwrap().to_owned();
        let failing = file.clone().with_replace(|_, _| Err(io::Error::other("no")));
        let error = failing.rotate(&first, NOW).unwrap_err();
        let shown = format!("{file:?} {first:?} {error} {error:?}");
        assert!(!shown.contains(&secret), "{shown}");
        fs::write(file.path(), format!("{{\"version\":\"{secret}\"}}")).unwrap();
        let error = file.load().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret));
    }
}
