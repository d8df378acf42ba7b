//! Decides whether a generation continues in a file that was found. A pure function.

use super::fingerprint::FileMatch;

/// Path under which a file was found that may belong to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundAt {
    /// The generation's own path.
    SamePath,
    /// Another path, with the generation's file id.
    OtherPath(OldPath),
}

/// Entry at the generation's own path if its file id was found elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OldPath {
    /// Nothing.
    Missing,
    /// Another file.
    OtherFile,
    /// The same file: the other path is a hard link.
    SameFile,
}

/// FileDecision about a generation and the file that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileDecision {
    /// The generation continues at its path.
    Continue,
    /// The generation continues at the other path.
    Move,
    /// A new generation starts at a line boundary; everything before it is in the outbox.
    Trim {
        /// Offset of the boundary.
        at: u64,
    },
    /// Undecided: the file may still be being written.
    Wait,
    /// A new generation starts at 0 and replaces this one.
    Rewrite,
    /// The file does not belong to the generation: it is read as a new file.
    NewFile,
}

/// Decides about a generation and a file that was found at `found_at`.
///
/// With the same bytes up to the checkpoint, a generation continues at its own path regardless of
/// file ids, and at another path with the same file id if the old path no longer has the file.
pub(super) fn decide(found_at: FoundAt, file_match: FileMatch) -> FileDecision {
    match (found_at, file_match) {
        (FoundAt::SamePath, FileMatch::Whole) => FileDecision::Continue,
        (FoundAt::SamePath, FileMatch::Short { .. }) => FileDecision::Wait,
        (FoundAt::SamePath, FileMatch::UpTo(at)) if at > 0 => FileDecision::Trim { at },
        (FoundAt::SamePath, _) => FileDecision::Rewrite,
        (FoundAt::OtherPath(OldPath::Missing | OldPath::OtherFile), FileMatch::Whole) => {
            FileDecision::Move
        }
        (FoundAt::OtherPath(_), _) => FileDecision::NewFile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decision_follows_the_table() {
        use FileDecision::{Continue, Move, NewFile, Rewrite, Trim, Wait};
        use FileMatch::{Other, Short, UpTo, Whole};
        let at = FoundAt::SamePath;
        let moved = FoundAt::OtherPath(OldPath::Missing);
        let replaced = FoundAt::OtherPath(OldPath::OtherFile);
        let linked = FoundAt::OtherPath(OldPath::SameFile);
        let table = [
            (at, Whole, Continue),
            (at, Short { up_to: None }, Wait),
            (at, Short { up_to: Some(10) }, Wait),
            (at, UpTo(10), Trim { at: 10 }),
            (at, UpTo(0), Rewrite),
            (at, Other, Rewrite),
            (moved, Whole, Move),
            (moved, Short { up_to: Some(10) }, NewFile),
            (moved, UpTo(10), NewFile),
            (moved, Other, NewFile),
            (replaced, Whole, Move),
            (replaced, UpTo(10), NewFile),
            (replaced, Other, NewFile),
            (linked, Whole, NewFile),
            (linked, UpTo(10), NewFile),
            (linked, Other, NewFile),
        ];
        for (found_at, file_match, decision) in table {
            assert_eq!(decide(found_at, file_match), decision, "{found_at:?} {file_match:?}");
        }
    }
}
