//! Erasures that were completed, each signed by the receiver's key.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    Digest,
    note::{self, Note, NoteSigner, SignError, VerifierKey},
};

use super::{Selector, directory, lock, mailbox, private, subject};
use crate::{
    ledger::Range,
    regular_file::read_whole_file,
    store::{ReadError, read_epochs},
};

/// A completed erasure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Its id; the tombstones of its entries name it.
    pub id: String,
    /// Time, RFC 3339.
    pub at: String,
    /// What was erased.
    pub selector: Selector,
    /// The reason given.
    pub reason: String,
    /// User of the system who asked for it.
    pub who: String,
    /// Number of erased entries.
    pub entries: u64,
    /// Id of the erasure of the same subject that this one repeats for entries that arrived later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<String>,
    /// Number of the hold that stopped it after these entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by_hold: Option<u64>,
    /// The entries by epoch.
    pub epochs: Vec<ErasedEpoch>,
}

/// Erased entries of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedEpoch {
    /// Id of the machine.
    pub machine: String,
    /// Id of the epoch.
    pub epoch: String,
    /// Their numbers.
    pub seqs: Vec<Range>,
}

/// An erasure as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErasureView {
    /// The erasure.
    #[serde(flatten)]
    pub erasure: Erasure,
    /// True if one of the receiver's keys signed exactly this.
    pub is_signed: bool,
    /// True if a discarded key of the receiver signed exactly this: it cannot be known whether the receiver
    /// did, or who stole the key.
    pub is_signed_by_discarded: bool,
    /// True if entries of the same subject that arrive later are erased too.
    pub is_in_force: bool,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct SignedErasure {
    /// The erasure as JSON, whose bytes are signed.
    erasure: String,
    /// The signed note.
    note: String,
}

/// The signed text about an erasure.
fn statement(erasure: &Erasure, text: &str) -> String {
    let digest = Digest::of(text.as_bytes());
    format!("ai-agent erasure v1\nid={}\nat={}\nsha256={digest}\n", erasure.id, erasure.at)
}

/// Appends an erasure, signed, to the list of the data directory `data`. One that is listed already,
/// by a process that ended then, is not listed again.
pub(super) fn append(data: &Path, erasure: &Erasure, key: &dyn NoteSigner) -> io::Result<()> {
    let text = serde_json::to_string(erasure)?;
    let note = note::sign(&statement(erasure, &text), &[key])
        .map_err(|error: SignError| io::Error::other(error))?;
    let mut line = serde_json::to_vec(&SignedErasure { erasure: text, note })?;
    line.push(b'\n');
    let _held = lock(data)?;
    let path = directory(data).join("erasures.ndjson");
    let text = read_lines(&path)?;
    if text.split(|byte| *byte == b'\n').any(|line| has_id(line, &erasure.id)) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    let mut file = private(options.write(true).create(true).truncate(false)).open(path)?;
    file.set_len(text.len() as u64)?;
    file.seek(SeekFrom::Start(text.len() as u64))?;
    file.write_all(&line)?;
    file.sync_all()
}

/// Reports whether an erasure is in the list of the data directory `data`.
pub(super) fn is_listed(data: &Path, id: &str) -> io::Result<bool> {
    let text = read_lines(&directory(data).join("erasures.ndjson"))?;
    Ok(text.split(|byte| *byte == b'\n').any(|line| has_id(line, id)))
}

/// Returns the whole lines of the list. A torn line was never confirmed.
fn read_lines(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = match read_whole_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    text.truncate(memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1));
    Ok(text)
}

fn has_id(line: &[u8], id: &str) -> bool {
    let signed: Option<SignedErasure> = serde_json::from_slice(line).ok();
    let erasure = signed.and_then(|signed| serde_json::from_str::<Erasure>(&signed.erasure).ok());
    erasure.is_some_and(|erasure| erasure.id == id)
}

/// Returns the erasures of the data directory `data`, the oldest one first. `keys` are the
/// receiver's public keys, and `discarded` those that it discarded.
///
/// # Errors
/// If the file cannot be read or a line has another form.
pub fn erasures(
    data: &Path,
    keys: &[VerifierKey],
    discarded: &[VerifierKey],
) -> io::Result<Vec<ErasureView>> {
    let text = match read_whole_file(&directory(data).join("erasures.ndjson")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => String::from_utf8(text?).map_err(io::Error::other)?,
    };
    let ended = subject::ended(data)?;
    let mut views = Vec::new();
    // A torn line was never confirmed.
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    for line in text[..whole].lines() {
        let SignedErasure { erasure: text, note } = serde_json::from_str(line)?;
        let erasure: Erasure = serde_json::from_str(&text)?;
        let note = Note::parse(&note).map_err(io::Error::other)?;
        let expected = statement(&erasure, &text);
        let is_signed_by = |keys| note.verify(keys).is_ok_and(|it| it.text() == expected);
        let is_signed = is_signed_by(keys);
        let is_signed_by_discarded = !is_signed && is_signed_by(discarded);
        let is_in_force = subject::is_lasting(&erasure) && !ended.contains(&erasure.id);
        views.push(ErasureView { erasure, is_signed, is_signed_by_discarded, is_in_force });
    }
    Ok(views)
}

/// Returns the ids of erasures that the epochs of the data directory `data` name, but the list does not, with the
/// number of erased entries: the list was altered.
///
/// # Errors
/// If a file cannot be read.
pub fn unlisted_erasures(data: &Path) -> Result<BTreeMap<String, u64>, ReadError> {
    let failed = |source| ReadError { path: directory(data), source };
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for epoch in read_epochs(data)? {
        for (id, entries) in epoch.map_err(failed)?.erasures() {
            *found.entry(id.to_owned()).or_default() += entries;
        }
    }
    // One that a receiver executes is listed before its request is removed.
    let waiting = mailbox::waiting(data).map_err(failed)?;
    let listed = erasures(data, &[], &[]).map_err(failed)?.into_iter().map(|view| view.erasure.id);
    for id in listed.chain(waiting) {
        found.remove(&id);
    }
    Ok(found)
}
