//! Keys of the receiver: the current one, the next one, and those before.
//!
//! ```text
//! keys/receiver.json       the private keys
//! keys/keys.txt            text of the list of public keys, for a signature by the organisation
//! keys/keys.txt.minisig    that signature, if the operator puts it there
//! former-keys.json         public keys that sign no longer: erasures have their signatures
//! ```
//! All receivers behind one endpoint have the same files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use siem_protocol::{
    KeysAnswer,
    note::{KeyError, NoteSigner, SignError, SigningKey, VerifierKey},
    statement::{KeyList, Statement as _},
};
use tracing::error;
use zeroize::Zeroizing;

use super::journal::{JournalError, create_directory, replace_file};
use crate::regular_file::read_regular_file;

/// Number of earlier keys that are kept. They sign the list of keys too, so that agents that were
/// offline during a rotation accept it.
const RETIRED: usize = 8;
/// Maximum size of each file in bytes.
const FILE_BYTES: u64 = 64 << 10;
/// Maximum size of the file with former keys in bytes.
const FORMER_BYTES: u64 = 4 << 20;

/// Error of the receiver's keys.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverKeyError {
    /// There is a key already.
    #[error("the receiver has a key already; to replace it, run `siem-server keys rotate`")]
    Exists,
    /// There is no key.
    #[error("the receiver has no key; make one with `siem-server keys new --name NAME`")]
    Missing,
    /// The name cannot be that of a key.
    #[error("`{name}` cannot be the name of a receiver")]
    Name {
        /// The name.
        name: String,
        /// Cause.
        #[source]
        source: KeyError,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] JournalError),
    /// The file with the keys has another form.
    #[error("`{path}` does not hold the keys of a receiver: it is damaged, or of a later release")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Other users can read the private keys.
    #[error("`{path}` with the receiver's keys is readable by others; chmod it to 600")]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// The list of keys cannot be signed.
    #[error("cannot sign the list of keys")]
    Sign(#[from] SignError),
}

/// Content of `receiver.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    receiver: String,
    current: PrivateKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<PrivateKey>,
    /// The latest one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<PrivateKey>,
}

/// Public key of the receiver that signs no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerKey {
    /// The key.
    pub key: VerifierKey,
    /// True if it was discarded, as a stolen one is: what it signed may be of someone else.
    pub discarded: bool,
}

/// A private key, in its text form in the file.
struct PrivateKey(Arc<SigningKey>);

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_text())
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map(Arc::new).map(Self).map_err(D::Error::custom)
    }
}

/// The keys in memory.
#[derive(Debug)]
pub(super) struct ReceiverKeys {
    pub(super) name: String,
    pub(super) current: Arc<SigningKey>,
    next: Option<Arc<SigningKey>>,
    retired: Vec<Arc<SigningKey>>,
    /// Response to `GET /keys`.
    pub(super) answer: KeysAnswer,
}

/// Public keys of a receiver, as shown by `siem-server keys list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiverKeysView {
    /// Name of the receiver.
    pub receiver: String,
    /// Key that signs.
    pub current: VerifierKey,
    /// Key that will replace it.
    pub next: Option<VerifierKey>,
    /// Earlier keys that still sign the list of keys, the latest one first.
    pub retired: Vec<VerifierKey>,
    /// True if the organisation's signature is served with the list.
    pub organisation_signature: bool,
}

impl ReceiverKeys {
    fn new(
        name: String,
        current: Arc<SigningKey>,
        next: Option<Arc<SigningKey>>,
        mut retired: Vec<Arc<SigningKey>>,
    ) -> Result<Self, ReceiverKeyError> {
        retired.truncate(RETIRED);
        let list = KeyList {
            receiver: name.clone(),
            current: current.key().clone(),
            next: next.as_ref().map(|next| next.key().clone()),
        };
        let signers: Vec<&dyn NoteSigner> =
            std::iter::once(&current).chain(&retired).map(|key| &**key as _).collect();
        let answer = KeysAnswer { keys: list.sign(&signers)?, organisation: None };
        Ok(Self { name, current, next, retired, answer })
    }

    fn list_text(&self) -> String {
        let (current, next) = (self.current.key(), self.next.as_ref());
        let next = next.map(|next| next.key().clone());
        KeyList { receiver: self.name.clone(), current: current.clone(), next }.encode()
    }

    fn public(&self) -> Vec<VerifierKey> {
        let all = std::iter::once(&self.current).chain(&self.next).chain(&self.retired);
        all.map(|key| key.key().clone()).collect()
    }

    pub(super) fn view(&self) -> ReceiverKeysView {
        ReceiverKeysView {
            receiver: self.name.clone(),
            current: self.current.key().clone(),
            next: self.next.as_ref().map(|key| key.key().clone()),
            retired: self.retired.iter().map(|key| key.key().clone()).collect(),
            organisation_signature: self.answer.organisation.is_some(),
        }
    }
}

/// Result of a rotation of the receiver key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A next key was made. Agents learn it with the list of keys.
    Announced,
    /// The next key became the current one.
    Replaced,
}

/// The files with the keys, and their content as read last.
#[derive(Debug)]
pub(super) struct KeyStore {
    directory: PathBuf,
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    stamp: Stamp,
    keys: Option<Arc<ReceiverKeys>>,
    /// Set after an error was logged, so that it is logged once.
    failed: bool,
}

/// State of the files, by which a change is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp([Option<FileStamp>; 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self { modified: file.modified().ok(), length: file.len(), inode: inode(&file) })
    }
}

impl KeyStore {
    /// Reads the keys from `directory`; there may be none.
    pub(super) fn open(directory: PathBuf) -> Result<Self, ReceiverKeyError> {
        let store = Self { directory, cached: Mutex::default() };
        let stamp = store.stamp();
        let keys = store.read()?.map(Arc::new);
        *store.cached() = Cached { stamp, keys, failed: false };
        Ok(store)
    }

    /// Returns the keys, read again if a file changed. If they cannot be read then, that is logged
    /// and the keys read before stay in use.
    pub(super) fn keys(&self) -> Option<Arc<ReceiverKeys>> {
        self.keys_by(true)
    }

    /// Like [`Self::keys`], for what needs no signature by the organisation: looks at one file.
    pub(super) fn private_keys(&self) -> Option<Arc<ReceiverKeys>> {
        self.keys_by(false)
    }

    /// Returns the keys as last read, without a look at the files.
    pub(super) fn known(&self) -> Option<Arc<ReceiverKeys>> {
        self.cached().keys.clone()
    }

    fn keys_by(&self, needs_signature: bool) -> Option<Arc<ReceiverKeys>> {
        let mut cached = self.cached();
        let is_same = FileStamp::of(&self.path()) == cached.stamp.0[0]
            && (!needs_signature || FileStamp::of(&self.signature_path()) == cached.stamp.0[1]);
        if !is_same {
            let stamp = self.stamp();
            match self.read() {
                Ok(keys) if keys.is_some() || cached.keys.is_none() => {
                    *cached = Cached { stamp, keys: keys.map(Arc::new), failed: false };
                }
                Ok(_) => cached.log_once(&ReceiverKeyError::Missing),
                Err(error) => cached.log_once(&error),
            }
        }
        cached.keys.clone()
    }

    /// Makes the first key of a receiver. The lock of the registry must be held.
    pub(super) fn create(&self, name: &str, seed: [u8; 32]) -> Result<(), ReceiverKeyError> {
        if self.read()?.is_some() {
            return Err(ReceiverKeyError::Exists);
        }
        let key = new_key(name, seed)?;
        self.write(&ReceiverKeys::new(name.to_owned(), key, None, Vec::new())?)
    }

    /// Makes a next key with `seed`, or makes the next key the current one. With `discard` no
    /// earlier key signs the list of keys any longer. The lock of the registry must be held.
    pub(super) fn rotate(
        &self,
        seed: [u8; 32],
        discard: bool,
    ) -> Result<Rotation, ReceiverKeyError> {
        let before = self.read()?.ok_or(ReceiverKeyError::Missing)?;
        let known = before.public();
        let ReceiverKeys { name, current, next, retired, .. } = before;
        let (keys, rotation) = match next {
            None => {
                let next = new_key(&name, seed)?;
                let retired = if discard { Vec::new() } else { retired };
                (ReceiverKeys::new(name, current, Some(next), retired)?, Rotation::Announced)
            }
            Some(next) => {
                let earlier = std::iter::once(current).chain(retired);
                let earlier = if discard { Vec::new() } else { earlier.collect() };
                (ReceiverKeys::new(name, next, None, earlier)?, Rotation::Replaced)
            }
        };
        self.write_former(&known, &keys.public(), discard)?;
        self.write(&keys)?;
        Ok(rotation)
    }

    /// Returns the keys that sign no longer.
    pub(super) fn former(&self) -> Result<Vec<FormerKey>, ReceiverKeyError> {
        let path = self.former_path();
        let text = match read_regular_file(&path, FORMER_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(JournalError::io("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|_| ReceiverKeyError::Damaged { path })
    }

    /// Adds the keys of `known` that are not in `kept`. With `discard` all former keys are discarded: the
    /// stolen one may be among them.
    fn write_former(
        &self,
        known: &[VerifierKey],
        kept: &[VerifierKey],
        discard: bool,
    ) -> Result<(), ReceiverKeyError> {
        let before = self.former()?;
        let mut former = before.clone();
        for key in known.iter().filter(|key| !kept.contains(key)) {
            if !former.iter().any(|it| it.key == *key) {
                former.push(FormerKey { key: key.clone(), discarded: discard });
            }
        }
        former.iter_mut().for_each(|it| it.discarded |= discard);
        if former == before {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&former).expect("texts can be written as JSON");
        Ok(replace_file(&self.former_path(), &json)?)
    }

    fn write(&self, keys: &ReceiverKeys) -> Result<(), ReceiverKeyError> {
        let path = self.path();
        create_directory(&self.directory)?;
        let private = |key: &Arc<SigningKey>| PrivateKey(key.clone());
        let file = KeyFile {
            version: 1,
            receiver: keys.name.clone(),
            current: private(&keys.current),
            next: keys.next.as_ref().map(private),
            retired: keys.retired.iter().map(private).collect(),
        };
        let json = serde_json::to_vec_pretty(&file).expect("texts can be written as JSON");
        replace_file(&path, &Zeroizing::new(json))?;
        replace_file(&self.list_path(), keys.list_text().as_bytes())?;
        // It is a signature of the list before.
        let signature = self.signature_path();
        if let Err(error) = fs::remove_file(&signature)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(JournalError::io("remove", &signature)(error).into());
        }
        self.keys();
        Ok(())
    }

    fn read(&self) -> Result<Option<ReceiverKeys>, ReceiverKeyError> {
        let path = self.path();
        let Some(text) = read_private(&path)? else { return Ok(None) };
        let damaged = || ReceiverKeyError::Damaged { path: path.clone() };
        // Causes could quote a private key.
        let file: KeyFile = serde_json::from_str(&text).map_err(|_| damaged())?;
        let KeyFile { version, receiver, current, next, retired } = file;
        let retired: Vec<_> = retired.into_iter().map(|key| key.0).collect();
        let (current, next) = (current.0, next.map(|key| key.0));
        let is_foreign = |key: &Arc<SigningKey>| key.key().name() != receiver;
        let foreign = [&current].into_iter().chain(&next).chain(&retired).any(is_foreign);
        if version != 1 || foreign {
            return Err(damaged());
        }
        let mut keys = ReceiverKeys::new(receiver, current, next, retired)?;
        keys.answer.organisation = self.read_signature()?;
        Ok(Some(keys))
    }

    fn read_signature(&self) -> Result<Option<String>, ReceiverKeyError> {
        let path = self.signature_path();
        let text = read_bounded(&path).map_err(JournalError::io("read", &path))?;
        Ok(text.map(|text| text.to_string()))
    }

    fn stamp(&self) -> Stamp {
        Stamp([self.path(), self.signature_path()].map(|path| FileStamp::of(&path)))
    }

    fn path(&self) -> PathBuf {
        self.directory.join("receiver.json")
    }

    /// Not beside the private keys: it is in every backup.
    fn former_path(&self) -> PathBuf {
        self.directory.with_file_name("former-keys.json")
    }

    /// Path of the text that the organisation signs after the loss of a key.
    pub(super) fn list_path(&self) -> PathBuf {
        self.directory.join("keys.txt")
    }

    fn signature_path(&self) -> PathBuf {
        self.directory.join("keys.txt.minisig")
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    fn log_once(&mut self, error: &ReceiverKeyError) {
        if !self.failed {
            self.failed = true;
            error!(code = "receiver_key_unreadable", %error, "cannot read the receiver's keys again, using those read before");
        }
    }
}

fn new_key(name: &str, seed: [u8; 32]) -> Result<Arc<SigningKey>, ReceiverKeyError> {
    let key = SigningKey::from_seed(name, seed);
    key.map(Arc::new).map_err(|source| ReceiverKeyError::Name { name: name.to_owned(), source })
}

/// Reads a file with private keys; `None` if it does not exist.
fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, ReceiverKeyError> {
    #[cfg(unix)]
    if let Ok(file) = fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt as _;
        if file.permissions().mode() & 0o007 != 0 {
            return Err(ReceiverKeyError::Open { path: path.to_owned() });
        }
    }
    Ok(read_bounded(path).map_err(JournalError::io("read", path))?)
}

/// Reads a regular file of at most [`FILE_BYTES`]; `None` if it does not exist.
fn read_bounded(path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    let file = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if file.len() > FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large"));
    }
    fs::read_to_string(path).map(Zeroizing::new).map(Some)
}

#[cfg(unix)]
fn inode(file: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests;
