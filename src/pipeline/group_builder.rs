//! Builds groups: encodes and chains entries, and collects the checkpoints that cover them.

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde_json::value::RawValue;
use siem_protocol::{
    Content, Digest,
    entry::{ALTERED, EventLine, PartLine, RecordLine},
    names::severity,
    nul_runs::{Folded, LineDigests, NulRun, total_length},
};
use tracing::warn;

use super::{
    accounting::{Count, Lost, Parts, Share, Totals},
    filter_chain::{Edited, Outcome},
    group::{DroppedPart, Group, GroupStart},
    record_stages::RecordStages,
};
use crate::{
    config::ShippingSettings,
    event::Event,
    frame::{self, Codec, Encoder, Frame, FrameBuilder},
    platform::Timestamp,
    stages::{Named, Record, enricher::Enricher},
    tail::{BlockUpdate, Chunk, GenerationId, Origin, Piece},
};

/// Uncompressed bytes at which a group is full when frames are stored uncompressed. Together with
/// the last chunk that makes two outbox blocks of four frames each.
const FULL: usize = 7 * frame::MAX_RAW;
/// The same for compressed frames, which make about one block.
const FULL_COMPRESSED: usize = 11 * frame::MAX_RAW;

/// Builds one group after the other and reuses its buffers.
pub struct GroupBuilder {
    start: GroupStart,
    next_seq: u64,
    chain: Digest,
    totals: Totals,
    config: Digest,
    batch_size: u64,
    /// Maximum size of a frame before compression, unless a single entry is larger.
    frame_bytes: usize,
    frame: FrameBuilder,
    encoder: Encoder,
    frames: Vec<Frame>,
    /// Bytes in `frames`.
    raw: usize,
    /// Bytes before compression at which the group is full.
    pub(super) full: usize,
    checkpoints: BTreeMap<(String, GenerationId), Option<Vec<u8>>>,
    blocks: BTreeMap<(String, GenerationId), Vec<BlockUpdate>>,
    verification: BTreeMap<String, Vec<u8>>,
    dropped_parts: BTreeMap<GenerationId, Option<DroppedPart>>,
    shares: BTreeMap<GenerationId, Share>,
    /// Members that enrichers added to the current record or event.
    enriched: String,
}

impl GroupBuilder {
    /// Creates a builder whose first group starts at `start`. Frames fit into batches as `shipping`
    /// limits them.
    #[must_use]
    pub fn new(
        start: GroupStart,
        config: Digest,
        shipping: ShippingSettings,
        codec: Codec,
    ) -> Self {
        Self {
            frame_bytes: frame_bytes(shipping),
            next_seq: start.seq,
            chain: start.chain,
            totals: start.totals.clone(),
            start,
            config,
            batch_size: shipping.batch_size as u64,
            frame: FrameBuilder::default(),
            encoder: Encoder::new(codec),
            frames: Vec::new(),
            raw: 0,
            full: if codec == Codec::Plain { FULL } else { FULL_COMPRESSED },
            checkpoints: BTreeMap::new(),
            blocks: BTreeMap::new(),
            verification: BTreeMap::new(),
            dropped_parts: BTreeMap::new(),
            shares: BTreeMap::new(),
            enriched: String::new(),
        }
    }

    /// Switches to another configuration. Call between two groups: entries already in the group
    /// would be labelled with the new configuration.
    pub fn reconfigure(&mut self, config: Digest, shipping: ShippingSettings) {
        self.config = config;
        self.batch_size = shipping.batch_size as u64;
        self.frame_bytes = frame_bytes(shipping);
    }

    /// Returns whether there is nothing to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let has_no_rows = self.checkpoints.is_empty() && self.verification.is_empty();
        self.next_seq == self.start.seq && has_no_rows
    }

    /// Returns whether the group accepts another chunk.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.raw_bytes() < self.full
    }

    /// Size of the entries in the group before compression, in bytes.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw + self.frame.raw()
    }

    /// Totals of all sequence numbers below the next one.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Adds an event, with what `enrichers` say about it. Events pass no filters.
    pub fn add_event(
        &mut self,
        event: &Event,
        enrichers: &mut [Named<dyn Enricher>],
        now: Timestamp,
    ) {
        self.enrich_event(event, enrichers);
        let enriched = mem::take(&mut self.enriched);
        let (at, data) = (now.to_string(), event.data.to_string());
        let line = EventLine {
            source: event.source,
            event: event.name,
            severity: event.severity,
            at: &at,
            enriched: &enriched,
            data: &data,
        };
        self.totals.events += 1;
        let is_urgent = event.severity == severity::HIGH;
        self.push(is_urgent, now, |seq, raw| line.write(seq, raw));
        self.enriched = enriched;
    }

    /// Adds a row that belongs to no file. Add the events that changed it before.
    pub fn store_row(&mut self, instance: &str, name: &str, row: &[u8]) {
        let key = (instance.to_owned(), GenerationId(name.to_owned()));
        self.checkpoints.insert(key, Some(row.to_vec()));
    }

    /// Adds the position of a source's verification of files.
    pub fn store_verification(&mut self, instance: &str, position: &[u8]) {
        self.verification.insert(instance.to_owned(), position.to_vec());
    }

    /// Adds the records of a chunk that the filters keep, and the chunk's checkpoint.
    pub fn add_chunk(
        &mut self,
        chunk: Chunk<'_>,
        instance: &str,
        source: &'static str,
        stages: &mut RecordStages,
        now: Timestamp,
    ) {
        for mut event in chunk.events {
            event.source = source;
            self.add_event(&event, &mut stages.enrichers, now);
        }
        let read_at = now.to_string();
        let context =
            ChunkContext { origin: chunk.origin, instance, source, read_at: &read_at, now };
        let mut share = Share::default();
        if chunk.unread > 0 {
            share.deleted_unread = Lost { files: 1, bytes: chunk.unread };
        }
        for piece in chunk.pieces {
            self.add_piece(piece, &context, stages, &mut share);
        }
        if chunk.origin.is_altered {
            share.altered = share.read();
        }
        share.add_to(&mut self.totals);
        for event in stages.filters.take_events() {
            self.add_event(&event, &mut stages.enrichers, now);
        }
        let generation = chunk.origin.generation.clone();
        if chunk.checkpoint.is_none() {
            // A generation that ends will never complete a line.
            self.set_dropped_part(stages, &generation, None);
        }
        if share != Share::default() {
            *self.shares.entry(generation.clone()).or_default() += share;
        }
        let key = (instance.to_owned(), generation);
        if !chunk.blocks.is_empty() {
            self.blocks.entry(key.clone()).or_default().extend(chunk.blocks);
        }
        self.checkpoints.insert(key, chunk.checkpoint.map(<[u8]>::to_vec));
    }

    fn add_piece(
        &mut self,
        piece: &Piece<'_>,
        chunk: &ChunkContext<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
    ) {
        match *piece {
            Piece::Line { offset, bytes, size, folded: None, .. } if is_blank(bytes) => {
                share.blank += Count::line(size);
                stages.observe_blank(|| Record::new(chunk.origin, offset, bytes));
            }
            Piece::Line { offset, bytes, size, incomplete, folded } => {
                let record = Record::new(chunk.origin, offset, bytes);
                match stages.check(&record) {
                    Outcome::Drop { stage, reason } => {
                        let stage = stages.filters.name(stage);
                        self.count_filtered(share, stage, reason, Count::line(size));
                    }
                    Outcome::Keep(edited) => {
                        let edited = edited.as_ref();
                        let content = match (folded, edited) {
                            // Without its runs, a line must not be taken for the whole.
                            (Some(_), edited) => {
                                Content::Bytes(edited.map_or(bytes, |edited| &edited.line))
                            }
                            (None, Some(edited)) => Content::of(&edited.line),
                            (None, None) => record.content(),
                        };
                        let length = folded.map_or(bytes.len() as u64, |it| it.digests.length);
                        let kept = KeptRecord {
                            record: &record,
                            edited,
                            length,
                            size,
                            incomplete,
                            folded,
                        };
                        self.add_record(&kept, content, chunk, stages, share);
                    }
                }
            }
            Piece::Lines { offset, lines, size, facts } => {
                let record = Record::new(chunk.origin, offset, lines);
                self.add_lines(&record, size, facts, chunk, stages, share);
            }
            Piece::Skipped { lines, size, reason } => {
                self.count_filtered(share, chunk.instance, reason, Count { lines, bytes: size });
            }
            Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete } => {
                let part = LinePart { offset, part, bytes, nul_runs, size, whole, incomplete };
                self.add_part(&part, chunk, stages, share);
            }
        }
    }

    /// Adds a record of several lines, unless the filters drop it.
    fn add_lines(
        &mut self,
        record: &Record<'_>,
        size: u64,
        facts: fn(&[u8]) -> String,
        chunk: &ChunkContext<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
    ) {
        let endings = memchr::memchr_iter(b'\n', record.line()).count() as u64;
        match stages.check(record) {
            Outcome::Drop { stage, reason } => {
                let count = Count { lines: endings + 1, bytes: size };
                self.count_filtered(share, stages.filters.name(stage), reason, count);
            }
            Outcome::Keep(edited) => {
                let edited = edited.as_ref();
                let length = record.line().len() as u64 - endings;
                let lines = edited.map_or(record.line(), |edited| &edited.line);
                let facts = facts(lines);
                let content = Content::Lines { lines, audit: &facts };
                let (incomplete, folded) = (false, None);
                let kept = KeptRecord { record, edited, length, size, incomplete, folded };
                self.add_record(&kept, content, chunk, stages, share);
            }
        }
    }

    /// Adds a record that the filters keep.
    fn add_record(
        &mut self,
        kept: &KeptRecord<'_, '_>,
        content: Content<'_>,
        chunk: &ChunkContext<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
    ) {
        let KeptRecord { record, edited, length, size, incomplete, folded } = *kept;
        share.shipped += Count::line(length);
        share.endings = share.endings.saturating_add(size - length);
        // What a filter masks or cuts out must not come back beside the record.
        match edited {
            Some(edited) => {
                let record = Record::new(record.origin(), record.offset(), &edited.line);
                self.enrich(&record, &mut stages.enrichers);
            }
            None => self.enrich(record, &mut stages.enrichers),
        }
        let cut = edited.map_or(&[][..], |edited| &edited.cut);
        let masked = edited.map_or(&[][..], |edited| &edited.masked);
        for cut in cut {
            self.totals.cut(&cut.by, cut.bytes);
        }
        let enriched = mem::take(&mut self.enriched);
        let line = RecordLine {
            source: chunk.source,
            path: &chunk.origin.path_text,
            generation: &chunk.origin.generation.0,
            offset: record.offset(),
            length,
            read_at: chunk.read_at,
            enriched: &enriched,
            cut,
            masked,
            sha256: edited.map(|_| Digest::of(record.line())),
            folded,
            incomplete,
            content,
        };
        self.push(false, chunk.now, |seq, raw| line.write(seq, raw));
        self.enriched = enriched;
    }

    /// Adds a part of a long line, unless the filters drop the line.
    fn add_part(
        &mut self,
        piece: &LinePart<'_>,
        chunk: &ChunkContext<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
    ) {
        let LinePart { offset, part, bytes, nul_runs, size, whole, incomplete } = *piece;
        let record = Record::first_part(chunk.origin, offset, bytes);
        let verdict = chunk.verdict_generation();
        if part == 1 {
            self.check_first_part(&record, &verdict, stages);
        }
        let lines = u64::from(whole.is_some());
        let generation = &chunk.origin.generation;
        if let Some(dropped) = stages.dropped_part(&verdict, offset) {
            let count = Count { lines, bytes: size };
            self.count_filtered(share, &dropped.stage, &dropped.reason, count);
            if whole.is_some() {
                self.set_dropped_part(stages, &verdict, None);
            }
            return;
        }
        let length = (bytes.len() as u64).saturating_add(total_length(nul_runs));
        share.parts += Parts { parts: 1, lines, bytes: length };
        share.endings = share.endings.saturating_add(size - length);
        // A later part starts in the middle of the line, and could be taken for another record.
        let start = if part == 1 { bytes } else { &[] };
        let record = Record::first_part(chunk.origin, offset, start);
        self.enrich(&record, &mut stages.enrichers);
        let enriched = mem::take(&mut self.enriched);
        let line = PartLine {
            source: chunk.source,
            path: &chunk.origin.path_text,
            generation: &generation.0,
            offset,
            part,
            read_at: chunk.read_at,
            enriched: &enriched,
            whole,
            incomplete,
            nul_runs,
            bytes,
        };
        self.push(false, chunk.now, |seq, raw| line.write(seq, raw));
        self.enriched = enriched;
    }

    /// Runs the filters on the first part of a long line: the decision holds for all its parts.
    fn check_first_part(
        &mut self,
        record: &Record<'_>,
        verdict: &GenerationId,
        stages: &mut RecordStages,
    ) {
        let dropped = match stages.check(record) {
            Outcome::Keep(_) => None,
            Outcome::Drop { stage, reason } => {
                let stage = stages.filters.name(stage).to_owned();
                Some(DroppedPart { offset: record.offset(), stage, reason: reason.to_owned() })
            }
        };
        self.set_dropped_part(stages, verdict, dropped);
    }

    /// Sets or clears the dropped line of a generation, in memory and with the group.
    fn set_dropped_part(
        &mut self,
        stages: &mut RecordStages,
        generation: &GenerationId,
        dropped: Option<DroppedPart>,
    ) {
        let is_stored = !generation.0.ends_with(ALTERED_SUFFIX);
        if stages.set_dropped_part(generation, dropped.clone()) && is_stored {
            self.dropped_parts.insert(generation.clone(), dropped);
        }
    }

    /// Counts lines that `stage` dropped.
    fn count_filtered(&mut self, share: &mut Share, stage: &str, reason: &str, count: Count) {
        share.filtered += count;
        self.totals.drop(stage, reason, count);
    }

    /// Collects the members that enrichers add to `record`.
    fn enrich(&mut self, record: &Record<'_>, enrichers: &mut [Named<dyn Enricher>]) {
        self.enriched.clear();
        if record.origin().is_altered {
            self.enriched.push_str(ALTERED);
        }
        let behind = record.behind_marks();
        let record = behind.as_ref().map_or(record, |(_, behind)| behind);
        for (name, enricher) in enrichers {
            self.add_member(name, |json| enricher.append(record, json));
        }
    }

    /// Collects the members that enrichers add to `event`.
    fn enrich_event(&mut self, event: &Event, enrichers: &mut [Named<dyn Enricher>]) {
        self.enriched.clear();
        for (name, enricher) in enrichers {
            self.add_member(name, |json| {
                let add = AssertUnwindSafe(|| {
                    let object = enricher.enrich_event(event);
                    json.push_str(object.map_or("", RawValue::get));
                    object.is_some()
                });
                catch_unwind(add).unwrap_or_else(|_| {
                    warn!(
                        code = "event_not_enriched",
                        enricher = name,
                        event = event.name,
                        "an enricher failed: the event is stored without its object"
                    );
                    false
                })
            });
        }
    }

    /// Adds a member whose value `append` writes, unless that returns false.
    fn add_member(&mut self, name: &str, append: impl FnOnce(&mut String) -> bool) {
        let before = self.enriched.len();
        self.enriched.push_str(",\"");
        self.enriched.push_str(name);
        self.enriched.push_str("\":");
        if !append(&mut self.enriched) {
            self.enriched.truncate(before);
        }
    }

    fn push(&mut self, urgent: bool, now: Timestamp, write: impl FnOnce(u64, &mut Vec<u8>)) {
        let seq = self.next_seq;
        self.chain = self.frame.push(self.chain, urgent, |raw| write(seq, raw));
        self.next_seq += 1;
        // An entry that does not fit into the current frame starts the next one.
        if self.frame.raw() > self.frame_bytes
            && let Some(next) = self.frame.split_last()
        {
            let after = self.chain;
            (self.next_seq, self.chain) = (seq, next.before());
            self.seal_frame(now);
            (self.next_seq, self.chain) = (seq + 1, after);
            self.frame = next;
        }
        if self.frame.raw() >= self.frame_bytes || self.frame.count() >= self.batch_size {
            self.seal_frame(now);
        }
    }

    fn seal_frame(&mut self, now: Timestamp) {
        let sealed = self.frame.seal(self.next_seq, self.chain, self.config, now);
        if let Some(frame) = sealed {
            self.raw += frame.body.len();
            self.frames.push(frame);
        }
    }

    /// Returns the group with encoded frames. The next group starts where this one ends.
    pub fn finish(&mut self, now: Timestamp) -> Group {
        let mut group = self.finish_unencoded(now);
        group.encode(&mut self.encoder);
        group
    }

    /// Returns the group with frames that [`Group::encode`] has yet to encode. The next group
    /// starts where this one ends.
    pub fn finish_unencoded(&mut self, now: Timestamp) -> Group {
        self.seal_frame(now);
        self.raw = 0;
        let next = GroupStart {
            epoch: self.start.epoch.clone(),
            seq: self.next_seq,
            chain: self.chain,
            totals: self.totals.clone(),
        };
        Group {
            start: mem::replace(&mut self.start, next),
            frames: mem::take(&mut self.frames),
            checkpoints: mem::take(&mut self.checkpoints),
            blocks: mem::take(&mut self.blocks),
            verification: mem::take(&mut self.verification),
            dropped_parts: mem::take(&mut self.dropped_parts),
            shares: mem::take(&mut self.shares),
            totals: self.totals.clone(),
        }
    }

    /// Discards the group and starts another one at `start`.
    pub fn restart_at(&mut self, start: GroupStart) {
        self.frame.clear();
        self.frames.clear();
        self.raw = 0;
        self.checkpoints.clear();
        self.blocks.clear();
        self.verification.clear();
        self.dropped_parts.clear();
        self.shares.clear();
        self.next_seq = start.seq;
        self.chain = start.chain;
        self.totals = start.totals.clone();
        self.start = start;
    }
}

/// Maximum size of a frame that fits into batches as `shipping` limits them.
fn frame_bytes(shipping: ShippingSettings) -> usize {
    let room = usize::try_from(shipping.room()).unwrap_or(frame::MAX_RAW);
    frame::MAX_RAW.min(room)
}

/// End of the key of a verdict on a line that is handed over again.
const ALTERED_SUFFIX: &str = " altered";

/// Data shared by all records of a chunk.
struct ChunkContext<'a> {
    origin: &'a Origin,
    /// Instance name of the source.
    instance: &'a str,
    /// `source` member of the entries.
    source: &'static str,
    read_at: &'a str,
    now: Timestamp,
}

impl ChunkContext<'_> {
    /// Generation under which the verdict on a line in parts is remembered. A line that is handed over
    /// again does not affect one that is still being read. It starts again if the group is lost, so
    /// that its verdict is not stored.
    fn verdict_generation(&self) -> GenerationId {
        match self.origin.is_altered {
            true => GenerationId(format!("{}{ALTERED_SUFFIX}", self.origin.generation)),
            false => self.origin.generation.clone(),
        }
    }
}

/// A record that the filters keep.
struct KeptRecord<'a, 'l> {
    record: &'a Record<'l>,
    edited: Option<&'a Edited>,
    /// Length of the record as it was read, without line endings.
    length: u64,
    /// Bytes that the record occupies in the file, line endings included.
    size: u64,
    /// True if the line never got its newline.
    incomplete: bool,
    /// Runs of NUL of a line that `record` contains without them.
    folded: Option<Folded<'a>>,
}

/// The fields of [`Piece::Part`].
struct LinePart<'a> {
    offset: u64,
    part: u32,
    bytes: &'a [u8],
    nul_runs: &'a [NulRun],
    size: u64,
    whole: Option<LineDigests>,
    incomplete: bool,
}

/// Returns whether a line has no bytes but spaces, tabs and carriage returns.
fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}
