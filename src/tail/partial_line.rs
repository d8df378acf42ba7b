//! The incomplete last line of a file.

use siem_protocol::nul_runs::{
    LineDigests, MAX_NUL_RUNS, NulRun, NulRunsError, NulSplitter, Segment, check_runs, segments,
    total_length,
};

/// Incomplete last line, or the last part of one, without its runs of NUL.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PartialLine {
    data: Vec<u8>,
    runs: Vec<NulRun>,
}

impl PartialLine {
    /// Creates a line of data and runs.
    ///
    /// # Errors
    /// If the runs do not fit to the data.
    pub(super) fn new(data: Vec<u8>, runs: Vec<NulRun>) -> Result<Self, NulRunsError> {
        check_runs(&runs, Some(data.len() as u64))?;
        Ok(Self { data, runs })
    }

    /// Removes the runs of NUL from `bytes`, as many as an entry may have.
    pub(super) fn fold(bytes: &[u8]) -> Self {
        let mut line = Self::default();
        let mut splitter = NulSplitter::default();
        splitter.push(bytes, &mut |segment| line.add(segment));
        splitter.finish(&mut |segment| line.add(segment));
        line
    }

    fn add(&mut self, segment: Segment<'_>) {
        let offset = self.size();
        let has_room = self.runs.len() < MAX_NUL_RUNS;
        match (segment, self.runs.last_mut()) {
            (Segment::Data(bytes), _) => self.data.extend_from_slice(bytes),
            (Segment::Nuls(count), Some(run)) if run.end() == offset => run.length += count,
            (Segment::Nuls(length), _) if has_room => {
                self.runs.push(NulRun { offset, length });
            }
            (Segment::Nuls(count), _) => {
                let count = usize::try_from(count).unwrap_or_default();
                self.data.resize(self.data.len() + count, 0);
            }
        }
    }

    /// Bytes without the runs.
    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Runs of NUL.
    pub(super) fn runs(&self) -> &[NulRun] {
        &self.runs
    }

    /// Number of bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.data.len() as u64 + total_length(&self.runs)
    }

    /// Returns whether there is no incomplete last line.
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.runs.is_empty()
    }

    /// The bytes of the line in order.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        segments(&self.data, &self.runs).into_iter().flatten()
    }

    /// Length and hashes of a line that is in one entry; `None` if it has no runs.
    pub(super) fn digests(&self) -> Option<LineDigests> {
        let digests = || LineDigests::of(&self.data, &self.runs).ok();
        if self.runs.is_empty() { None } else { digests() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_beyond_the_maximum_are_data() {
        let line = [&[0; 5000][..], b"x"].concat().repeat(MAX_NUL_RUNS + 2);
        let folded = PartialLine::fold(&line);
        assert_eq!((folded.runs.len(), folded.size()), (MAX_NUL_RUNS, line.len() as u64));
        let mut unfolded = Vec::new();
        for segment in folded.segments() {
            match segment {
                Segment::Data(bytes) => unfolded.extend_from_slice(bytes),
                Segment::Nuls(count) => unfolded.resize(unfolded.len() + count as usize, 0),
            }
        }
        assert_eq!(unfolded, line);
        assert_eq!(folded.digests().unwrap().sha256, Some(siem_protocol::Digest::of(&line)));
    }
}
