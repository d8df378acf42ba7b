//! Follows files that others write: which have unread bytes, and whole lines out of them.
//!
//! A sweep is the truth, a watcher only a hint. A file is known by its bytes, not by its name: one
//! life of a file is a *generation*, and its checkpoint says up to where its lines are in the
//! outbox. What is read is handed over in chunks that carry the checkpoint that covers them, so
//! that neither can be stored without the other.

#[allow(dead_code, reason = "the tail itself comes next")]
mod checkpoint;
mod chunk;
#[allow(dead_code, reason = "the tail itself comes next")]
mod decide;
#[allow(dead_code, reason = "the tail itself comes next")]
mod identity;
#[allow(dead_code, reason = "the tail itself comes next")]
mod parts;
#[allow(dead_code, reason = "the tail itself comes next")]
mod reader;

pub use chunk::{Chunk, FileKey, GenerationId, Intake, Origin, Piece};
