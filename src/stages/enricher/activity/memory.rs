//! What the enricher remembers between records: calls of tools, and turns.
//!
//! Both tables are bounded and lose nothing that matters: without them a result has no tool name and
//! no duration, and a record has no turn.

use std::{collections::HashMap, hash::Hash, mem, time::SystemTime};

use ai_agent_stage::FileKey;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::tools::Kind;

/// Maximum number of remembered calls, in two halves: about 100 bytes each.
const CALLS: usize = 8192;
/// Maximum number of files whose turns are remembered, in two halves: about 30 bytes each.
const FILES: usize = 4096;
/// Longer names of tools are not remembered.
const MAX_NAME: usize = 128;

/// Table of at most `limit` entries, in two halves: when the newer one is full, the older one is
/// forgotten. An entry that is used moves to the newer one.
struct Recent<K, V> {
    limit: usize,
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, newer: HashMap::new(), older: HashMap::new() }
    }

    fn insert(&mut self, key: K, value: V) {
        if self.newer.len() >= self.limit / 2 && !self.newer.contains_key(&key) {
            self.older = mem::take(&mut self.newer);
        }
        self.older.remove(&key);
        self.newer.insert(key, value);
    }

    fn get(&mut self, key: K) -> Option<&mut V>
    where
        K: Copy,
    {
        if let Some(value) = self.older.remove(&key) {
            self.insert(key, value);
        }
        self.newer.get_mut(&key)
    }

    fn remove(&mut self, key: &K) {
        self.newer.remove(key);
        self.older.remove(key);
    }

    fn values(&mut self) -> impl Iterator<Item = &mut V> {
        self.newer.values_mut().chain(self.older.values_mut())
    }
}

/// A remembered call.
pub(super) struct KnownCall {
    /// Offset of its record. Only a later record can have its result: after a rollback, calls are
    /// remembered that have not been read again.
    pub(super) offset: u64,
    /// Name of the tool, as in the record.
    pub(super) name: Box<str>,
    pub(super) kind: Kind,
    /// Time of the call.
    pub(super) at: Option<SystemTime>,
}

/// Maximum number of starts of turns that are remembered of a file, until they are stored.
const STARTS: usize = 64;

/// Turns of a file: the offset of the record that starts each, and its number, in order. Records that are
/// read again after a rollback are found here again, and none is counted twice; those that are not read
/// again, because they are stored after all, stay counted.
#[derive(Default)]
struct Turns(Vec<(u64, u64)>);

impl Turns {
    /// Returns the number of starts before `offset`.
    fn before(&self, offset: u64) -> usize {
        self.0.partition_point(|(start, _)| *start < offset)
    }

    fn set(&mut self, offset: u64, turn: u64) {
        let at = self.before(offset);
        match self.0.get_mut(at) {
            Some(start) if start.0 == offset => start.1 = turn,
            _ => self.0.insert(at, (offset, turn)),
        }
        if self.0.len() > STARTS {
            self.0.remove(0);
        }
    }
}

/// A record that may start a turn.
#[derive(Clone, Copy)]
pub(super) struct TurnRecord {
    /// Offset of the record.
    pub(super) offset: u64,
    /// True if nothing of the conversation comes before it.
    pub(super) is_first: bool,
    /// Number that the record itself names.
    pub(super) stated: Option<u64>,
    /// True for a prompt.
    pub(super) is_prompt: bool,
}

/// Everything that is remembered.
pub(super) struct Memory {
    calls: Recent<u128, KnownCall>,
    turns: Recent<FileKey, Turns>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { calls: Recent::new(CALLS), turns: Recent::new(FILES) }
    }
}

impl Memory {
    /// Remembers a call. A result that is read again after a rollback finds it again, because a call
    /// stays until newer ones replace it.
    pub(super) fn call(&mut self, file: FileKey, id: &str, call: KnownCall) {
        if call.name.len() <= MAX_NAME {
            self.calls.insert(call_key(file, id), call);
        }
    }

    /// Returns the call of a result in the record at `offset`.
    pub(super) fn call_of(&mut self, file: FileKey, id: &str, offset: u64) -> Option<&KnownCall> {
        self.calls.get(call_key(file, id)).map(|call| &*call).filter(|call| call.offset < offset)
    }

    /// Returns the turn of a record, and remembers it if the record starts one; `None` before the first
    /// prompt, and if the beginning of the file was not seen.
    pub(super) fn turn(&mut self, file: FileKey, record: TurnRecord) -> Option<u64> {
        let TurnRecord { offset, is_first, stated, is_prompt } = record;
        if self.turns.get(file).is_none() {
            self.turns.insert(file, Turns::default());
        }
        let turns = self.turns.get(file)?;
        if offset == 0 {
            // The file may be another one.
            turns.0.clear();
        }
        let earlier = turns.before(offset).checked_sub(1).map(|at| turns.0[at].1);
        let earlier = if is_first { Some(0) } else { earlier };
        let turn = stated.or_else(|| earlier.map(|turn| turn + u64::from(is_prompt)))?;
        if is_first || stated.is_some() || is_prompt {
            turns.set(offset, turn);
        }
        (turn > 0).then_some(turn)
    }

    /// All records are stored: none before the last start will be read again.
    pub(super) fn commit(&mut self) {
        for Turns(starts) in self.turns.values() {
            starts.drain(..starts.len().saturating_sub(1));
        }
    }

    /// Forgets the turns of a deleted file. Its calls are replaced by newer ones.
    pub(super) fn forget(&mut self, file: FileKey) {
        self.turns.remove(&file);
    }
}

/// A fork of a session copies the ids of calls into another file.
fn call_key(file: FileKey, id: &str) -> u128 {
    xxh3_128_with_seed(id.as_bytes(), file.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileKey = FileKey(1);

    #[test]
    fn table_is_bounded_and_keeps_what_is_used() {
        let mut table = Recent::new(8);
        table.insert(0, 'a');
        for key in 1..100 {
            table.insert(key, 'b');
            assert!(table.newer.len() + table.older.len() <= 8);
            assert_eq!(table.get(0), Some(&mut 'a'), "used at each step");
        }
        assert_eq!(table.get(50), None);
        assert_eq!(table.get(99), Some(&mut 'b'));
    }

    fn record(offset: u64) -> TurnRecord {
        TurnRecord { offset, is_first: offset == 0, stated: None, is_prompt: false }
    }

    fn prompt(offset: u64) -> TurnRecord {
        TurnRecord { is_prompt: true, ..record(offset) }
    }

    #[test]
    fn turns_read_again_have_the_same_numbers() {
        let mut memory = Memory::default();
        let mut read = |records: &[TurnRecord]| {
            records.iter().map(|record| memory.turn(FILE, *record)).collect::<Vec<_>>()
        };
        let first = [prompt(0), record(1), prompt(2), record(3)];
        let turns = [Some(1), Some(1), Some(2), Some(2)];
        assert_eq!(read(&first), turns);
        assert_eq!(read(&first[1..]), turns[1..], "from the checkpoint on");
        assert_eq!(read(&first), turns, "from the beginning");
        assert_eq!(read(&[prompt(4)]), [Some(3)], "stored, and not read again");
    }

    #[test]
    fn turns_continue_after_a_commit() {
        let mut memory = Memory::default();
        for offset in 0..1000 {
            assert_eq!(memory.turn(FILE, prompt(offset)), Some(offset + 1));
        }
        memory.commit();
        assert_eq!(memory.turn(FILE, record(1000)), Some(1000));
        assert_eq!(memory.turn(FILE, prompt(1001)), Some(1001));
    }

    #[test]
    fn turns_without_a_beginning_are_unknown() {
        let mut memory = Memory::default();
        assert_eq!(memory.turn(FILE, prompt(5)), None);
        assert_eq!(memory.turn(FILE, TurnRecord { stated: Some(7), ..record(6) }), Some(7));
        assert_eq!(memory.turn(FILE, prompt(8)), Some(8));
        memory.forget(FILE);
        assert_eq!(memory.turn(FILE, record(9)), None);
    }

    #[test]
    fn calls_of_two_files_are_distinguished() {
        let mut memory = Memory::default();
        let call = KnownCall { offset: 5, name: "Bash".into(), kind: Kind::Execute, at: None };
        memory.call(FILE, "t1", call);
        assert!(memory.call_of(FileKey(2), "t1", 9).is_none());
        assert_eq!(&*memory.call_of(FILE, "t1", 9).unwrap().name, "Bash");
        assert!(memory.call_of(FILE, "t1", 5).is_none(), "only a later record has its result");
        assert!(memory.call_of(FILE, "t1", 9).is_some(), "its result may be read again");
    }
}
