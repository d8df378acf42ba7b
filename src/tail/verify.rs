//! Verification of files against the hashes of what was read from them.
//!
//! Files whose times changed without growth come first, then all files in turn, within the budget of
//! [`VerifySchedule`]. A block that differs was altered after it was read.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use ai_agent_stage::{BlockUpdate, Chunk, FileKey, GenerationId, Intake, Origin};
use serde::{Deserialize, Serialize};

use super::{
    Tail,
    altered_lines::AlteredLines,
    block_hasher::{hash, seed},
    block_list::{ALTERED, Block, BlockList, SMALLEST, UNKNOWN, ZEROS},
    checkpoint::CheckpointRow,
    decision::{FileDecision, FoundAt, decide},
    file_table::Lane,
    verify_schedule::{BURST, BURST_TIME, VerifySchedule},
};
use crate::platform::{
    Timestamp,
    bounded::BoundedFile,
    file::{self, ReadAt as _, Stamp},
};

/// Number of files that are selected at once for a pass.
const SELECTED: usize = 64;

/// Resources that the verification of files uses.
#[derive(Clone)]
pub struct VerifyResources {
    /// Returns true if the machine runs on battery: nothing is verified then. May take some
    /// milliseconds.
    pub is_on_battery: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Returns the processor's time that was used, with that of helper threads, which open files, and of
    /// programs that `is_on_battery` runs.
    pub cpu_time: Arc<dyn Fn() -> Duration + Send + Sync>,
}

/// State of the verification.
pub(super) struct Verifier {
    resources: VerifyResources,
    pub(super) schedule: VerifySchedule,
    pass: Pass,
    /// True once the stored position was loaded.
    is_loaded: bool,
    /// Next files of the pass.
    selected: VecDeque<FileKey>,
    check: Option<FileCheck>,
    /// Generation that the pass verifies at present; `None` during the check of a suspect.
    current: Option<GenerationId>,
    /// Lines that are being handed over again.
    pub(super) altered: Option<AlteredLines>,
    buffer: Vec<u8>,
}

/// Position of a pass over all files, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pass {
    /// Last generation that was verified; empty before the first.
    #[serde(default)]
    after: String,
    /// Time at which the last whole pass ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<u64>,
}

/// Name of the stored position.
fn pass_name() -> GenerationId {
    GenerationId(String::new())
}

/// Verification of one file.
struct FileCheck {
    key: FileKey,
    generation: GenerationId,
    /// End of the bytes that were read.
    offset: u64,
    /// Seed of the hashes.
    seed: u64,
    /// Hash of the bytes after the last whole block.
    tail: u64,
    blocks: Vec<Block>,
    /// Index of the next block.
    next: usize,
    /// Hashes of the smallest blocks in the next block that were read.
    part: Option<BlockList>,
    altered: AlteredBlocks,
    /// Blocks whose hash was not known, with their present hashes.
    learned: Vec<Block>,
    /// Open during a burst.
    file: Option<BoundedFile>,
}

/// Blocks that differ from those that were read.
#[derive(Debug, Default)]
pub(super) struct AlteredBlocks {
    /// The blocks with their present hashes.
    pub(super) blocks: Vec<Block>,
    /// Present hash of the bytes after the last whole block.
    pub(super) tail: Option<u64>,
}

impl AlteredBlocks {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.tail.is_none()
    }
}

/// Result of a step of a file's verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckProgress {
    More,
    Complete,
    /// The file is another one by now, or shorter: reading it finds out.
    Abandoned,
}

impl Verifier {
    pub(super) fn new(resources: VerifyResources) -> Self {
        Self {
            resources,
            schedule: VerifySchedule::default(),
            pass: Pass::default(),
            is_loaded: false,
            selected: VecDeque::new(),
            check: None,
            current: None,
            altered: None,
            buffer: Vec::new(),
        }
    }

    /// Resources that it uses.
    #[cfg(test)]
    pub(super) fn resources(&self) -> VerifyResources {
        self.resources.clone()
    }

    /// Takes over the position and the schedule of `old`: another configuration must neither exceed the
    /// budget nor forget suspects.
    pub(super) fn inherit(&mut self, old: Self) {
        let resources = self.resources.clone();
        *self = Self { resources, ..old };
    }

    /// Starts again from the stored rows.
    pub(super) fn restart(&mut self) {
        let check = self.check.take();
        // The pass selects its current file again.
        if let Some(check) = check.filter(|_| self.current.is_none()) {
            self.schedule.add_suspect(check.key, Duration::ZERO);
        }
        self.current = None;
        if let Some(key) = self.altered.take().and_then(|lines| lines.unreported()) {
            self.schedule.discard_report(key);
        }
        self.schedule.set_unfinished(false);
        self.selected.clear();
    }

    /// Records that the check of a file is over.
    fn end_current(&mut self) {
        if let Some(generation) = self.current.take() {
            self.pass.after = generation.0;
        }
    }

    /// Time at which the last whole pass ended.
    pub(super) fn pass_ended(&self) -> Option<Timestamp> {
        self.pass.ended.map(Timestamp)
    }

    fn load(&mut self, intake: &dyn Intake) {
        if !std::mem::replace(&mut self.is_loaded, true) {
            let stored = intake.blocks(&pass_name());
            let pass = stored.and_then(|stored| serde_json::from_slice(&stored).ok());
            self.pass = pass.unwrap_or_default();
        }
    }

    fn store(&self, intake: &mut dyn Intake) {
        let pass = serde_json::to_vec(&self.pass).expect("a position has only strings as keys");
        intake.store_verification(&pass);
    }
}

impl Tail {
    /// Verifies what was read, within the budget. Returns true if lines have to be handed over again
    /// after other files were read or the group was stored.
    pub(super) fn verify(&mut self, intake: &mut dyn Intake) -> bool {
        let Some(mut verifier) = self.verifier.take() else { return false };
        let is_full = self.run_verifier(&mut verifier, intake);
        self.verifier = Some(verifier);
        is_full
    }

    /// Time until files may be verified.
    pub(super) fn until_verification(&self) -> Option<Duration> {
        let verifier = self.verifier.as_ref()?;
        Some(verifier.schedule.until_due(self.schedule.now()).max(Duration::from_millis(1)))
    }

    /// Verifies a file before the others.
    pub(super) fn suspect(&mut self, key: FileKey) {
        let now = self.schedule.now();
        if let Some(verifier) = &mut self.verifier {
            verifier.schedule.add_suspect(key, now);
        }
    }

    fn run_verifier(&mut self, verifier: &mut Verifier, intake: &mut dyn Intake) -> bool {
        verifier.load(intake);
        if self.hand_over_altered(verifier, intake) {
            return true;
        }
        let now = self.schedule.now();
        if verifier.altered.is_some() {
            verifier.schedule.wait_for_room(now);
            return false;
        }
        if !verifier.schedule.is_due(now) {
            return false;
        }
        let started = (verifier.resources.cpu_time)();
        if (verifier.resources.is_on_battery)() {
            verifier.schedule.wait_for_mains(now);
        } else {
            self.verify_burst(verifier, started, intake);
        }
        let cost = (verifier.resources.cpu_time)().saturating_sub(started);
        verifier.schedule.pause(self.schedule.now(), cost);
        // The lines are read like others, outside of the budget: one file with many altered lines would
        // prevent the verification of all others for days.
        let is_full = self.hand_over_altered(verifier, intake);
        verifier.schedule.set_unfinished(verifier.check.is_some() || verifier.altered.is_some());
        is_full
    }

    /// Verifies files for a short time, or until lines have to be handed over again.
    fn verify_burst(
        &mut self,
        verifier: &mut Verifier,
        started: Duration,
        intake: &mut dyn Intake,
    ) {
        let began = self.schedule.now();
        while verifier.altered.is_none()
            && (verifier.resources.cpu_time)().saturating_sub(started) < BURST
            && self.schedule.now().saturating_sub(began) < BURST_TIME
        {
            let Some(check) = &mut verifier.check else {
                let Some(key) = self.next_to_verify(verifier, intake) else { break };
                verifier.check = self.start_check(key, intake);
                if verifier.check.is_none() {
                    verifier.end_current();
                }
                continue;
            };
            // Errors are reported when the file is read.
            match self.check_next(check, &mut verifier.buffer) {
                Ok(CheckProgress::More) => {}
                Ok(CheckProgress::Complete) => {
                    let Some(check) = verifier.check.take() else { continue };
                    verifier.end_current();
                    verifier.altered = self.end_check(check, &mut verifier.schedule, intake);
                }
                Ok(CheckProgress::Abandoned) | Err(_) => {
                    verifier.check = None;
                    verifier.end_current();
                }
            }
        }
        if verifier.schedule.must_store(self.schedule.now(), false) {
            verifier.store(intake);
        }
        verifier.buffer = Vec::new();
        if let Some(check) = &mut verifier.check {
            check.file = None;
        }
    }

    /// Returns the file that is verified next.
    fn next_to_verify(
        &mut self,
        verifier: &mut Verifier,
        intake: &mut dyn Intake,
    ) -> Option<FileKey> {
        let now = self.schedule.now();
        if let Some(key) = verifier.schedule.next_suspect(now) {
            return Some(key);
        }
        if !verifier.schedule.is_in_pass(now) {
            return None;
        }
        if verifier.selected.is_empty() {
            verifier.selected = self.select(&verifier.pass.after);
        }
        let next = verifier.selected.pop_front();
        match next.and_then(|key| self.files.get(key)) {
            Some(known) => verifier.current = Some(known.generation.clone()),
            None if next.is_some() => {}
            None => {
                verifier.pass = Pass { after: String::new(), ended: Some(self.clock.now().0) };
                verifier.schedule.end_pass();
                verifier.schedule.must_store(now, true);
                verifier.store(intake);
            }
        }
        next
    }

    /// Returns the next files of a pass, in the order of their generations.
    fn select(&self, after: &str) -> VecDeque<FileKey> {
        let mut files: Vec<(&str, FileKey)> = self
            .files
            .iter()
            .filter(|(_, known)| known.has_row && known.offset > 0 && !known.is_deleted)
            .map(|(key, known)| (known.generation.0.as_str(), key))
            .filter(|(generation, _)| *generation > after)
            .collect();
        if files.len() > SELECTED {
            files.select_nth_unstable(SELECTED);
            files.truncate(SELECTED);
        }
        files.sort_unstable();
        files.into_iter().map(|(_, key)| key).collect()
    }

    /// Loads the hashes of a file; `None` if it has none.
    fn start_check(&self, key: FileKey, intake: &dyn Intake) -> Option<FileCheck> {
        let known = self.files.get(key).filter(|known| known.has_row && !known.is_deleted)?;
        let row = self.row(key, known, intake).ok()?;
        let tail = row.blocks?;
        let stored = (row.offset >= SMALLEST).then(|| intake.blocks(&known.generation)).flatten();
        let list = stored.and_then(|stored| BlockList::decode(&stored));
        let list = list.unwrap_or_default();
        let blocks = list.blocks().collect();
        let (generation, seed) = (known.generation.clone(), seed(&known.generation));
        let (altered, learned, offset) = (AlteredBlocks::default(), Vec::new(), row.offset);
        Some(FileCheck {
            key,
            generation,
            offset,
            seed,
            tail,
            blocks,
            next: 0,
            part: None,
            altered,
            learned,
            file: None,
        })
    }

    /// Opens the file of a check, unless it is another one by now.
    fn open_checked(&self, check: &FileCheck) -> io::Result<Option<(BoundedFile, Stamp)>> {
        let Some(known) = self.files.get(check.key) else { return Ok(None) };
        if known.is_deleted || known.generation != check.generation {
            return Ok(None);
        }
        let opened = self.access.open(&known.path)?;
        Ok(opened.filter(|(_, stamp)| stamp.id == known.id && stamp.size >= check.offset))
    }

    /// Verifies the next 64 KiB of a file.
    fn check_next(&self, check: &mut FileCheck, buffer: &mut Vec<u8>) -> io::Result<CheckProgress> {
        let file = match check.file.take() {
            Some(file) => file,
            None => match self.open_checked(check)? {
                Some((file, _)) => file,
                None => return Ok(CheckProgress::Abandoned),
            },
        };
        let progress = check.read_next(&file, buffer);
        check.file = Some(file);
        progress
    }

    /// Returns what has to be handed over again of a file, if bytes of it were altered, it was not
    /// replaced as a whole, and a report is permitted. Stores the hashes that were not known.
    fn end_check(
        &mut self,
        check: FileCheck,
        schedule: &mut VerifySchedule,
        intake: &mut dyn Intake,
    ) -> Option<AlteredLines> {
        if check.altered.is_empty() && check.learned.is_empty() {
            return None;
        }
        let (file, stamp) = self.open_checked(&check).ok().flatten()?;
        let known = self.files.get(check.key)?;
        let origin = known.origin(check.key);
        let row = self.row(check.key, known, intake).ok()?;
        if self.is_replaced(check.key, &row, &file).unwrap_or(true) {
            return None;
        }
        if !check.learned.is_empty() {
            self.store_learned(&check, &origin, &row, intake);
        }
        if check.altered.is_empty() || !schedule.may_report(check.key, self.schedule.now()) {
            return None;
        }
        let lines = AlteredLines::new(check.key, origin, check.offset, check.altered, file, &stamp);
        Some(lines)
    }

    fn store_learned(
        &mut self,
        check: &FileCheck,
        origin: &Origin,
        row: &CheckpointRow,
        intake: &mut dyn Intake,
    ) {
        let checkpoint = row.encode();
        let mut chunk = Chunk::new(origin, &[], Some(&checkpoint));
        let update = |block: &Block| {
            let Block { first, level, hash } = *block;
            BlockUpdate::Replace { first, level, hash }
        };
        chunk.blocks.extend(check.learned.iter().map(update));
        intake.take(chunk);
        self.uncommitted.insert(check.key, (self.group, checkpoint));
    }

    /// Returns true if an open file that belongs to a known one was replaced as a whole, which
    /// reading it finds out.
    pub(super) fn is_replaced(
        &mut self,
        key: FileKey,
        row: &CheckpointRow,
        file: &BoundedFile,
    ) -> io::Result<bool> {
        let size = file.size()?;
        let file_match = row.compare(file, size, &mut self.edges)?;
        let is_replaced = decide(FoundAt::SamePath, file_match) != FileDecision::Continue;
        if is_replaced {
            self.files.enqueue(key, Lane::Live, 0);
        }
        Ok(is_replaced)
    }
}

fn drop_from_cache(file: &BoundedFile, offset: u64, len: u64) -> io::Result<()> {
    file.run(move |file| {
        file::drop_from_cache(file, offset, len);
        Ok(())
    })
}

impl FileCheck {
    /// Reads the next 64 KiB, or skips a hole.
    fn read_next(&mut self, file: &BoundedFile, buffer: &mut Vec<u8>) -> io::Result<CheckProgress> {
        let Some(block) = self.blocks.get(self.next).copied() else {
            return self.read_tail(file, buffer);
        };
        if self.part.is_none()
            && block.hash == ZEROS
            && file.next_data(block.start())?.is_none_or(|data| data >= block.end())
        {
            self.next += 1;
            return Ok(CheckProgress::More);
        }
        let part = self.part.get_or_insert_with(|| BlockList::of_level(block.level));
        let at = (block.first + part.len()) * SMALLEST;
        buffer.resize(usize::try_from(SMALLEST).unwrap_or_default(), 0);
        if file.fill_at(buffer, at)? < buffer.len() {
            return Ok(CheckProgress::Abandoned);
        }
        drop_from_cache(file, at, SMALLEST)?;
        let found = hash(buffer, self.seed);
        part.push(found, 1);
        let missing = block.count() - part.len();
        if found == ZEROS && missing > 0 {
            let next = at + SMALLEST;
            let data = file.next_data(next)?.unwrap_or(u64::MAX);
            part.push(ZEROS, (data.saturating_sub(next) / SMALLEST).min(missing));
        }
        if part.len() == block.count() {
            let found = part.first_hash().unwrap_or(ALTERED);
            if block.hash == UNKNOWN {
                self.learned.push(Block { hash: found, ..block });
            } else if found != block.hash {
                self.altered.blocks.push(Block { hash: found, ..block });
            }
            self.part = None;
            self.next += 1;
        }
        Ok(CheckProgress::More)
    }

    /// Verifies the bytes after the last whole block.
    fn read_tail(&mut self, file: &BoundedFile, buffer: &mut Vec<u8>) -> io::Result<CheckProgress> {
        let len = self.offset % SMALLEST;
        if len == 0 || self.tail == UNKNOWN {
            return Ok(CheckProgress::Complete);
        }
        buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
        if file.fill_at(buffer, self.offset - len)? < buffer.len() {
            return Ok(CheckProgress::Abandoned);
        }
        drop_from_cache(file, self.offset - len, len)?;
        let found = hash(buffer, self.seed);
        self.altered.tail = (found != self.tail).then_some(found);
        Ok(CheckProgress::Complete)
    }
}
