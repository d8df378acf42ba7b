//! The group that is being filled: entries, encoded and chained, and the checkpoints over them.

use std::{collections::BTreeMap, mem};

use siem_protocol::{
    Content, Digest,
    entry::{EventLine, PartLine, RecordLine},
};

use super::{
    accounting::{Count, Lost, Parts, Share, Totals},
    filter_chain::{Edited, Outcome},
    group::{DroppedPart, Group, GroupStart},
    record_stages::{Disposition, Observation, RecordStages},
};
use crate::{
    audit::facts::Facts,
    config::Shipping,
    event::Event,
    frame::{self, Codec, Encoder, Frame, FrameBuilder},
    platform::Timestamp,
    stages::{Named, Record, enricher::Enricher},
    tail::{Chunk, GenerationId, Origin, Piece},
};

/// A group is full when it holds this much before compression. With the last chunk that makes two
/// values of four frames each when nothing is compressed, and otherwise about one.
const FULL: usize = 7 * frame::MAX_RAW;
const FULL_COMPRESSED: usize = 11 * frame::MAX_RAW;

/// Fills one group after the other; buffers are used again.
pub struct GroupBuilder {
    start: GroupStart,
    next_seq: u64,
    chain: Digest,
    totals: Totals,
    config: Digest,
    batch_size: u64,
    /// The most that a frame holds before compression, unless one entry is larger.
    frame_bytes: usize,
    builder: FrameBuilder,
    encoder: Encoder,
    frames: Vec<Frame>,
    /// Bytes of the frames.
    raw: usize,
    /// With how many bytes before compression the group is full.
    pub(super) full: usize,
    checkpoints: BTreeMap<(String, GenerationId), Option<Vec<u8>>>,
    dropping: BTreeMap<GenerationId, Option<DroppedPart>>,
    shares: BTreeMap<GenerationId, Share>,
    /// What enrichers added to the record at hand.
    enriched: String,
}

impl GroupBuilder {
    /// Begins at `start`, with frames that fit into batches as `shipping` wants them.
    #[must_use]
    pub fn new(start: GroupStart, config: Digest, shipping: Shipping, codec: Codec) -> Self {
        Self {
            frame_bytes: frame_bytes(shipping),
            next_seq: start.seq,
            chain: start.chain,
            totals: start.totals.clone(),
            start,
            config,
            batch_size: shipping.batch_size as u64,
            builder: FrameBuilder::default(),
            encoder: Encoder::new(codec),
            frames: Vec::new(),
            raw: 0,
            full: if codec == Codec::Plain { FULL } else { FULL_COMPRESSED },
            checkpoints: BTreeMap::new(),
            dropping: BTreeMap::new(),
            shares: BTreeMap::new(),
            enriched: String::new(),
        }
    }

    /// Goes on under another configuration. What is in the group counts as judged by it: to be
    /// called between two groups.
    pub fn follow(&mut self, config: Digest, shipping: Shipping) {
        self.config = config;
        self.batch_size = shipping.batch_size as u64;
        self.frame_bytes = frame_bytes(shipping);
    }

    /// Whether there is anything to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next_seq == self.start.seq && self.checkpoints.is_empty()
    }

    /// Whether another chunk fits.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.raw + self.builder.raw() < self.full
    }

    /// The totals up to here: those of all numbers below the next.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The chain up to here.
    #[must_use]
    pub fn chain(&self) -> Digest {
        self.chain
    }

    /// Adds an event.
    pub fn event(&mut self, event: &Event, now: Timestamp) {
        let (at, data) = (now.to_string(), event.data.to_string());
        let line = EventLine {
            source: event.source,
            event: event.name,
            severity: event.severity,
            at: &at,
            data: &data,
        };
        self.totals.events += 1;
        self.push(event.is_urgent(), now, |seq, raw| line.write(seq, raw));
    }

    /// Adds the records of a chunk that the filters keep, and its checkpoint.
    pub fn chunk(
        &mut self,
        chunk: Chunk<'_>,
        instance: &str,
        source: &'static str,
        stages: &mut RecordStages,
        now: Timestamp,
    ) {
        for event in chunk.events {
            self.event(&event.from_source(source), now);
        }
        let read_at = now.to_string();
        let reader = Reader { origin: chunk.origin, instance, source, read_at: &read_at, now };
        let mut share = Share::default();
        if chunk.unread > 0 {
            share.deleted_unread = Lost { files: 1, bytes: chunk.unread };
        }
        for piece in chunk.pieces {
            self.piece(piece, &reader, stages, &mut share);
        }
        share.add_to(&mut self.totals);
        for event in stages.filters.take_events() {
            self.event(&event, now);
        }
        // A generation that ends takes along what is known of a line in it.
        let generation = chunk.origin.generation.clone();
        if chunk.checkpoint.is_none() && stages.dropping.remove(&generation).is_some() {
            self.dropping.insert(generation.clone(), None);
        }
        if share != Share::default() {
            *self.shares.entry(generation.clone()).or_default() += share;
        }
        let key = (instance.to_owned(), generation);
        self.checkpoints.insert(key, chunk.checkpoint.map(<[u8]>::to_vec));
    }

    fn piece(
        &mut self,
        piece: &Piece<'_>,
        reader: &Reader<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
    ) {
        match *piece {
            Piece::Line { offset, bytes, size, .. } if is_blank(bytes) => {
                share.blank += Count::line(size);
                if let Some(observer) = &mut stages.observer {
                    let record = Record::new(reader.origin, offset, bytes);
                    observer(&Observation { record: &record, disposition: Disposition::Blank });
                }
            }
            Piece::Line { offset, bytes, size, incomplete } => {
                let record = Record::new(reader.origin, offset, bytes);
                let outcome = stages.filters.check(&record);
                stages.notify_observer(&record, &outcome);
                match outcome {
                    Outcome::Drop { stage, reason } => {
                        share.filtered += Count::line(size);
                        self.totals.drop(stages.filters.name(stage), reason, Count::line(size));
                    }
                    Outcome::Keep(edited) => {
                        let kept = Kept { incomplete, length: bytes.len() as u64, size };
                        let content = match &edited {
                            None => record.content(),
                            Some(edited) => Content::of(&edited.line),
                        };
                        self.record(&record, reader, stages, share, kept, edited.as_ref(), content);
                    }
                }
            }
            Piece::Event { offset, lines, size } => {
                let record = Record::new(reader.origin, offset, lines);
                let outcome = stages.filters.check(&record);
                stages.notify_observer(&record, &outcome);
                let count = memchr::memchr_iter(b'\n', lines).count() as u64;
                match outcome {
                    Outcome::Drop { stage, reason } => {
                        let count = Count { lines: count + 1, bytes: size };
                        share.filtered += count;
                        self.totals.drop(stages.filters.name(stage), reason, count);
                    }
                    Outcome::Keep(edited) => {
                        let length = lines.len() as u64 - count;
                        let kept = Kept { incomplete: false, length, size };
                        let lines = edited.as_ref().map_or(lines, |edited| &edited.line);
                        let audit = Facts::of(lines.split(|byte| *byte == b'\n')).to_json();
                        let content = Content::Lines { lines, audit: &audit };
                        self.record(&record, reader, stages, share, kept, edited.as_ref(), content);
                    }
                }
            }
            Piece::LeftOut { lines, size, reason } => {
                let count = Count { lines, bytes: size };
                share.filtered += count;
                self.totals.drop(reader.instance, reason, count);
            }
            Piece::Part { offset, part, bytes, size, whole, incomplete } => {
                let generation = &reader.origin.generation;
                let record = Record::first_part(reader.origin, offset, bytes);
                let lines = u64::from(whole.is_some());
                // The first part decides for all.
                if part == 1 {
                    let outcome = stages.filters.check(&record);
                    stages.notify_observer(&record, &outcome);
                    let dropping = match outcome {
                        Outcome::Keep(_) => None,
                        Outcome::Drop { stage, reason } => {
                            let stage = stages.filters.name(stage).to_owned();
                            Some(DroppedPart { offset, stage, reason: reason.to_owned() })
                        }
                    };
                    self.decide(stages, generation, dropping);
                }
                if let Some(dropping) = stages.dropping.get(generation)
                    && dropping.offset == offset
                {
                    let count = Count { lines, bytes: size };
                    share.filtered += count;
                    self.totals.drop(&dropping.stage, &dropping.reason, count);
                    if whole.is_some() {
                        self.decide(stages, generation, None);
                    }
                    return;
                }
                let length = bytes.len() as u64;
                share.parts += Parts { parts: 1, lines, bytes: length };
                share.endings += size - length;
                self.enrich(&record, &mut stages.enrichers);
                let enriched = mem::take(&mut self.enriched);
                let line = PartLine {
                    source: reader.source,
                    path: &reader.origin.path_text,
                    generation: &reader.origin.generation.0,
                    offset,
                    part,
                    read_at: reader.read_at,
                    enriched: &enriched,
                    whole,
                    incomplete,
                    bytes,
                };
                self.push(false, reader.now, |seq, raw| line.write(seq, raw));
                self.enriched = enriched;
            }
        }
    }

    /// Adds a record that the filters keep.
    #[expect(clippy::too_many_arguments, reason = "all that is known of a record comes together")]
    fn record(
        &mut self,
        record: &Record<'_>,
        reader: &Reader<'_>,
        stages: &mut RecordStages,
        share: &mut Share,
        Kept { incomplete, length, size }: Kept,
        edited: Option<&Edited>,
        content: Content<'_>,
    ) {
        share.shipped += Count::line(length);
        share.endings += size - length;
        self.enrich(record, &mut stages.enrichers);
        let cut = edited.map_or(&[][..], |edited| &edited.cut);
        let masked = edited.map_or(&[][..], |edited| &edited.masked);
        for cut in cut {
            self.totals.cut(&cut.by, cut.bytes);
        }
        let enriched = mem::take(&mut self.enriched);
        let line = RecordLine {
            source: reader.source,
            path: &reader.origin.path_text,
            generation: &reader.origin.generation.0,
            offset: record.offset(),
            length,
            read_at: reader.read_at,
            enriched: &enriched,
            cut,
            masked,
            sha256: edited.map(|_| record.digest()),
            incomplete,
            content,
        };
        self.push(false, reader.now, |seq, raw| line.write(seq, raw));
        self.enriched = enriched;
    }

    /// Remembers, with the group, whether the line in parts of a generation is dropped.
    fn decide(
        &mut self,
        stages: &mut RecordStages,
        generation: &GenerationId,
        dropping: Option<DroppedPart>,
    ) {
        let known = match dropping.clone() {
            Some(dropping) => stages.dropping.insert(generation.clone(), dropping),
            None => stages.dropping.remove(generation),
        };
        if known != dropping {
            self.dropping.insert(generation.clone(), dropping);
        }
    }

    /// Collects what enrichers add, as members of the entry.
    fn enrich(&mut self, record: &Record<'_>, enrichers: &mut [Named<dyn Enricher>]) {
        self.enriched.clear();
        for (name, enricher) in enrichers {
            if let Some(object) = enricher.enrich(record) {
                self.enriched.push_str(",\"");
                self.enriched.push_str(name);
                self.enriched.push_str("\":");
                self.enriched.push_str(object.get());
            }
        }
    }

    fn push(&mut self, urgent: bool, now: Timestamp, write: impl FnOnce(u64, &mut Vec<u8>)) {
        let seq = self.next_seq;
        self.chain = self.builder.push(self.chain, urgent, |raw| write(seq, raw));
        self.next_seq += 1;
        // An entry that the frame has no room for begins the next one.
        if self.builder.raw() > self.frame_bytes
            && let Some(next) = self.builder.split_last()
        {
            let after = self.chain;
            (self.next_seq, self.chain) = (seq, next.before());
            self.seal(now);
            (self.next_seq, self.chain) = (seq + 1, after);
            self.builder = next;
        }
        // A frame ends when it is as large as frames are, or when a batch of it is full.
        if self.builder.raw() >= self.frame_bytes || self.builder.count() >= self.batch_size {
            self.seal(now);
        }
    }

    fn seal(&mut self, now: Timestamp) {
        let sealed = self.builder.seal(self.next_seq, self.chain, self.config, now);
        if let Some(frame) = sealed {
            self.raw += frame.body.len();
            self.frames.push(frame);
        }
    }

    /// Takes the group, its frames as they are to be stored; the next one begins where it ends.
    pub fn take(&mut self, now: Timestamp) -> Group {
        let mut group = self.draft(now);
        group.encode(&mut self.encoder);
        group
    }

    /// The same, its frames not compressed yet.
    pub fn draft(&mut self, now: Timestamp) -> Group {
        self.seal(now);
        self.raw = 0;
        let next =
            GroupStart { seq: self.next_seq, chain: self.chain, totals: self.totals.clone() };
        Group {
            start: mem::replace(&mut self.start, next),
            frames: mem::take(&mut self.frames),
            checkpoints: mem::take(&mut self.checkpoints),
            dropping: mem::take(&mut self.dropping),
            shares: mem::take(&mut self.shares),
            totals: self.totals.clone(),
        }
    }

    /// Drops the group and begins again at `start`.
    pub fn reset(&mut self, start: GroupStart) {
        self.builder.clear();
        self.frames.clear();
        self.raw = 0;
        self.checkpoints.clear();
        self.dropping.clear();
        self.shares.clear();
        self.next_seq = start.seq;
        self.chain = start.chain;
        self.totals = start.totals.clone();
        self.start = start;
    }
}

/// The most that a frame holds, so that it fits into batches as `shipping` wants them.
fn frame_bytes(shipping: Shipping) -> usize {
    let room = usize::try_from(shipping.room()).unwrap_or(frame::MAX_RAW);
    frame::MAX_RAW.min(room)
}

/// What the records of a chunk have in common.
struct Reader<'a> {
    origin: &'a Origin,
    /// The source's name.
    instance: &'a str,
    source: &'static str,
    read_at: &'a str,
    now: Timestamp,
}

/// What a record takes of its file.
struct Kept {
    /// Whether it is a line that never got its newline.
    incomplete: bool,
    /// How many bytes it has, without endings.
    length: u64,
    /// How many bytes of the file, endings and all.
    size: u64,
}

/// Whether there is nothing in a line: no byte but spaces, tabs and carriage returns.
fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}
