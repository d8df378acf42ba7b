//! What becomes of a generation: decided from facts alone.

use super::fingerprint::FileMatch;

/// Where the file was found that a generation is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundAt {
    /// At the generation's own path.
    SamePath,
    /// At another path, under the generation's file id.
    OtherPath(OldPath),
}

/// What lies at the generation's own path, when its file id was found elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OldPath {
    /// Nothing any more.
    Gone,
    /// Another file.
    OtherFile,
    /// Still the file: a hard link.
    SameFile,
}

/// What becomes of a generation, or of the file held against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The generation goes on, where it is.
    Continue,
    /// The generation goes on, under the other path.
    Move,
    /// A new generation begins at a border; what lies before it is in the outbox.
    Trim {
        /// The border.
        at: u64,
    },
    /// Nothing yet: the writer may be at work.
    Wait,
    /// A new generation begins at 0, in place of this one.
    Rewrite,
    /// The file is not this generation's: a file of its own, from 0.
    Begin,
}

/// Decides what becomes of a generation whose file seems to lie at `place`.
///
/// The same path with the same bytes up to the checkpoint goes on whatever the ids say; the same
/// id under another path does when the bytes are the same too and the old path let it go.
pub(super) fn decide(place: FoundAt, sameness: FileMatch) -> Decision {
    match (place, sameness) {
        (FoundAt::SamePath, FileMatch::Whole) => Decision::Continue,
        (FoundAt::SamePath, FileMatch::Short { .. }) => Decision::Wait,
        (FoundAt::SamePath, FileMatch::UpTo(at)) if at > 0 => Decision::Trim { at },
        (FoundAt::SamePath, _) => Decision::Rewrite,
        (FoundAt::OtherPath(OldPath::Gone | OldPath::OtherFile), FileMatch::Whole) => {
            Decision::Move
        }
        (FoundAt::OtherPath(_), _) => Decision::Begin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_as_the_table_says() {
        use Decision::{Begin, Continue, Move, Rewrite, Trim, Wait};
        use FileMatch::{Other, Short, UpTo, Whole};
        let at = FoundAt::SamePath;
        let moved = FoundAt::OtherPath(OldPath::Gone);
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
            (moved, Short { up_to: Some(10) }, Begin),
            (moved, UpTo(10), Begin),
            (moved, Other, Begin),
            (replaced, Whole, Move),
            (replaced, UpTo(10), Begin),
            (replaced, Other, Begin),
            (linked, Whole, Begin),
            (linked, UpTo(10), Begin),
            (linked, Other, Begin),
        ];
        for (place, sameness, decision) in table {
            assert_eq!(decide(place, sameness), decision, "{place:?} {sameness:?}");
        }
    }
}
