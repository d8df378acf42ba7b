//! Members of events about files that were changed.

use serde::{Deserialize, Serialize};

/// A file that no longer holds the bytes read before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct FileReplaced {
    /// Path of the file.
    pub path: String,
    /// The new generation.
    pub generation: String,
    /// The generation before.
    pub previous_generation: String,
    /// Offset from which the file is read now.
    pub offset: u64,
    /// Offset up to which the generation before was read.
    pub previous_offset: u64,
    /// Largest known size of the generation before.
    pub previous_size: u64,
    /// Size of the file now.
    pub size: u64,
}

/// A file of which bytes were altered after they were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct FileAltered {
    /// Path of the file.
    pub path: String,
    /// Generation of the file.
    pub generation: String,
    /// Ranges in which bytes were altered, each of one or more blocks: the first 100.
    pub ranges: Vec<AlteredRange>,
    /// Number of ranges.
    pub range_count: u64,
    /// Number of bytes in the ranges.
    pub bytes: u64,
    /// Size of the file.
    pub size: u64,
}

/// A range of bytes in which at least one was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct AlteredRange {
    /// Offset of its first byte.
    pub from: u64,
    /// Offset of the first byte after it.
    pub to: u64,
}
