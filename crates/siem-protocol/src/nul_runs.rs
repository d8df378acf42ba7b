//! Lines with long runs of NUL bytes.
//!
//! A crash of the machine or a sparse file leaves runs of NUL that take no space on disk but would
//! take gigabytes on the wire. An entry carries its content without the runs of
//! [`MIN_NUL_RUN`] bytes and more: the *data*, in `raw_base64`, and offset and length of each run in
//! `nul_runs`. The content is reconstructed with [`segments`].
//!
//! The hash of such a line does not require that its NULs are hashed, because a run may have 8 EiB.
//! [`LineHasher`] computes it from either form of the content, and independently of how the line was
//! cut into entries:
//!
//! ```text
//! folded_sha256 = SHA-256( SHA-256(data) ‖ SHA-256(runs) )
//! ```
//!
//! `data` is the line without all of its maximal runs of 4096 and more NULs, and `runs` is the
//! offset in the line and the length of each of them, as 8 bytes each, most significant byte first.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Length of the shortest run that is removed from a content, in bytes.
pub const MIN_NUL_RUN: u64 = 4096;

/// Maximum number of runs in an entry.
pub const MAX_NUL_RUNS: usize = 64;

/// Length of the longest line with runs for which [`LineDigests::sha256`] is computed, in bytes.
pub const MAX_HASHED_LENGTH: u64 = 1 << 30;

/// Length of the longest possible line, in bytes: that of the largest file.
const MAX_LENGTH: u64 = i64::MAX.cast_unsigned();

static NULS: [u8; 4096] = [0; 4096];

/// Run of NUL bytes in the content of an entry. In JSON an array of offset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct NulRun {
    /// Offset in the content with all of its runs, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl NulRun {
    /// Offset of the byte after the run.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl From<(u64, u64)> for NulRun {
    fn from((offset, length): (u64, u64)) -> Self {
        Self { offset, length }
    }
}

impl From<NulRun> for (u64, u64) {
    fn from(run: NulRun) -> Self {
        (run.offset, run.length)
    }
}

/// Total length of `runs`, in bytes.
#[must_use]
pub fn total_length(runs: &[NulRun]) -> u64 {
    runs.iter().fold(0, |sum, run| sum.saturating_add(run.length))
}

/// Runs of a line in one entry.
#[derive(Clone, Copy, Debug)]
pub struct Folded<'a> {
    /// The runs in ascending order.
    pub runs: &'a [NulRun],
    /// Length and hashes of the line with its runs.
    pub digests: LineDigests,
}

/// Runs that no content can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NulRunsError {
    /// There are more than [`MAX_NUL_RUNS`].
    #[error("there are more than {MAX_NUL_RUNS} runs of NUL")]
    TooMany,
    /// A run is shorter than [`MIN_NUL_RUN`].
    #[error("the run of NUL at {offset} is shorter than {MIN_NUL_RUN} bytes")]
    TooShort {
        /// Offset of the run.
        offset: u64,
    },
    /// A run overlaps or touches the run before it, or comes before it.
    #[error("the run of NUL at {offset} does not follow the run before it with a gap")]
    Order {
        /// Offset of the run.
        offset: u64,
    },
    /// A run starts after the end of the data, or ends after the end of the largest file.
    #[error("the run of NUL at {offset} is outside of the content")]
    Outside {
        /// Offset of the run.
        offset: u64,
    },
}

/// Checks the runs of a content whose data has `data` bytes, and returns the length of the content in
/// bytes. `data` is `None` if a filter edited the content: the offsets are then those before the
/// edit, and the result is 0.
///
/// # Errors
/// [`NulRunsError`] for the first run that no content can have.
pub fn check_runs(runs: &[NulRun], data: Option<u64>) -> Result<u64, NulRunsError> {
    if runs.len() > MAX_NUL_RUNS {
        return Err(NulRunsError::TooMany);
    }
    let mut before: Option<NulRun> = None;
    let mut total = 0_u64;
    for run in runs {
        let NulRun { offset, length } = *run;
        if length < MIN_NUL_RUN {
            return Err(NulRunsError::TooShort { offset });
        }
        if before.is_some_and(|before| offset <= before.end()) {
            return Err(NulRunsError::Order { offset });
        }
        let is_in_data = data.is_none_or(|data| offset - total <= data);
        let end = offset.checked_add(length).filter(|end| *end <= MAX_LENGTH);
        if !is_in_data || end.is_none() {
            return Err(NulRunsError::Outside { offset });
        }
        total += length;
        before = Some(*run);
    }
    Ok(data.map_or(0, |data| data.saturating_add(total)))
}

/// Piece of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Bytes of the data.
    Data(&'a [u8]),
    /// A number of NULs, at least 1.
    Nuls(u64),
}

/// Returns the content of an entry in order: its data with its runs in between.
///
/// # Errors
/// [`NulRunsError`] if the runs do not fit to the data.
pub fn segments<'a>(
    data: &'a [u8],
    runs: &'a [NulRun],
) -> Result<impl Iterator<Item = Segment<'a>>, NulRunsError> {
    check_runs(runs, Some(data.len() as u64))?;
    let (mut rest, mut end) = (data, 0);
    let mut runs = runs.iter();
    let mut segments = Vec::with_capacity(2 * runs.len() + 1);
    for run in &mut runs {
        let before = usize::try_from(run.offset - end).unwrap_or(usize::MAX).min(rest.len());
        let (piece, after) = rest.split_at(before);
        segments.extend((!piece.is_empty()).then_some(Segment::Data(piece)));
        segments.push(Segment::Nuls(run.length));
        (rest, end) = (after, run.end());
    }
    segments.extend((!rest.is_empty()).then_some(Segment::Data(rest)));
    Ok(segments.into_iter())
}

/// Splits a stream of bytes into data and maximal runs of at least [`MIN_NUL_RUN`] NULs.
///
/// Consecutive [`Segment::Nuls`] belong to one run, and [`Segment::Data`] separates two runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NulSplitter {
    /// Number of NULs at the end of the stream so far.
    nuls: u64,
}

impl NulSplitter {
    /// Returns whether the stream so far ends in a run.
    #[must_use]
    pub fn is_in_run(&self) -> bool {
        self.nuls >= MIN_NUL_RUN
    }

    /// Adds bytes, and passes what is known of the stream to `visit`.
    pub fn push(&mut self, mut bytes: &[u8], visit: &mut impl FnMut(Segment<'_>)) {
        while !bytes.is_empty() {
            if self.nuls > 0 || bytes[0] == 0 {
                let leading = leading_nuls(bytes);
                self.push_nuls(leading as u64, visit);
                bytes = &bytes[leading..];
                if bytes.is_empty() {
                    return;
                }
                self.finish(visit);
            }
            // The next run, or NULs at the end that may be the start of one.
            let end =
                first_run(bytes).map_or(bytes.len() - trailing_nuls(bytes), |(start, _)| start);
            visit(Segment::Data(&bytes[..end]));
            bytes = &bytes[end..];
        }
    }

    /// Adds `count` NULs.
    pub fn push_nuls(&mut self, count: u64, visit: &mut impl FnMut(Segment<'_>)) {
        let new = if self.is_in_run() { count } else { self.nuls.saturating_add(count) };
        self.nuls = self.nuls.saturating_add(count);
        if self.is_in_run() && new > 0 {
            visit(Segment::Nuls(new));
        }
    }

    /// Ends the stream, or the NULs at its end: too few for a run are data.
    pub fn finish(&mut self, visit: &mut impl FnMut(Segment<'_>)) {
        let nuls = std::mem::take(&mut self.nuls);
        if nuls > 0 && nuls < MIN_NUL_RUN {
            visit(Segment::Data(&NULS[..usize::try_from(nuls).unwrap_or(NULS.len())]));
        }
    }
}

/// Returns start and end of the first run of at least [`MIN_NUL_RUN`] NULs.
///
/// Reads one byte in 4096 of bytes without a run: a run contains a byte at a multiple of its length.
#[must_use]
pub fn first_run(bytes: &[u8]) -> Option<(usize, usize)> {
    const STEP: usize = NULS.len();

    let mut probe = STEP - 1;
    while let Some(byte) = bytes.get(probe) {
        if *byte == 0 {
            let start = probe + 1 - trailing_nuls(&bytes[..=probe]);
            let end = probe + leading_nuls(&bytes[probe..]);
            if end - start >= STEP {
                return Some((start, end));
            }
        }
        probe += STEP;
    }
    None
}

fn leading_nuls(bytes: &[u8]) -> usize {
    let blocks = bytes.chunks_exact(NULS.len()).take_while(|block| **block == NULS).count();
    let start = blocks * NULS.len();
    start + bytes[start..].iter().take_while(|byte| **byte == 0).count()
}

/// Number of NULs at the end, at most one more than the length of a short run.
fn trailing_nuls(bytes: &[u8]) -> usize {
    bytes.iter().rev().take(NULS.len()).take_while(|byte| **byte == 0).count()
}

/// Length and hashes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineDigests {
    /// Length without the line's ending, in bytes.
    pub length: u64,
    /// SHA-256 of the line. `None` for a line with runs that is longer than [`MAX_HASHED_LENGTH`].
    pub sha256: Option<Digest>,
    /// Hash over data and runs, see the [module](self). `None` for a line without runs.
    pub folded_sha256: Option<Digest>,
}

impl LineDigests {
    /// Computes the digests of a line of one entry.
    ///
    /// # Errors
    /// [`NulRunsError`] if the runs do not fit to the data.
    pub fn of(data: &[u8], runs: &[NulRun]) -> Result<Self, NulRunsError> {
        let mut hasher = LineHasher::default();
        for segment in segments(data, runs)? {
            hasher.update(segment);
        }
        Ok(hasher.finish())
    }
}

/// Computes the digests of a line, segment by segment.
#[derive(Clone, Debug, Default)]
pub struct LineHasher {
    splitter: NulSplitter,
    state: HashState,
}

impl LineHasher {
    /// Adds the next segment of the line, of any entry of it.
    pub fn update(&mut self, segment: Segment<'_>) {
        let Self { splitter, state } = self;
        match segment {
            Segment::Data(bytes) => splitter.push(bytes, &mut |segment| state.add(segment)),
            Segment::Nuls(count) => splitter.push_nuls(count, &mut |segment| state.add(segment)),
        }
    }

    /// Returns whether `count` NULs after a run are added without hashing them.
    #[must_use]
    pub fn skips_nuls(&self, count: u64) -> bool {
        let Self { splitter, state } = self;
        splitter.is_in_run() && !state.is_hashed(count)
    }

    /// Returns whether the line so far ends in a run.
    #[must_use]
    pub fn is_in_run(&self) -> bool {
        self.splitter.is_in_run()
    }

    /// Length of the line so far, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        let Self { splitter, state } = self;
        // A run is passed on as soon as it is one.
        let held = if splitter.is_in_run() { 0 } else { splitter.nuls };
        state.length.saturating_add(held)
    }

    /// Returns the digests of the line.
    #[must_use]
    pub fn finish(self) -> LineDigests {
        let Self { mut splitter, mut state } = self;
        splitter.finish(&mut |segment| state.add(segment));
        state.finish()
    }
}

#[derive(Clone, Debug, Default)]
struct HashState {
    length: u64,
    data: Sha256,
    /// Hash of the runs before the current one; `None` if there was no run.
    runs: Option<Sha256>,
    run: Option<NulRun>,
    whole: WholeHash,
}

/// Hash of a line with its NULs.
#[derive(Clone, Debug, Default)]
enum WholeHash {
    /// There was no run: the hash of the data.
    #[default]
    SameAsData,
    Separate(Sha256),
    /// The line is too long.
    Unknown,
}

impl HashState {
    fn add(&mut self, segment: Segment<'_>) {
        match segment {
            Segment::Data(bytes) => self.add_data(bytes),
            Segment::Nuls(count) => self.add_nuls(count),
        }
    }

    fn add_data(&mut self, bytes: &[u8]) {
        self.end_run();
        if !self.is_hashed(bytes.len() as u64) {
            self.whole = WholeHash::Unknown;
        }
        self.data.update(bytes);
        if let WholeHash::Separate(whole) = &mut self.whole {
            whole.update(bytes);
        }
        self.length = self.length.saturating_add(bytes.len() as u64);
    }

    fn add_nuls(&mut self, count: u64) {
        let run = self.run.get_or_insert(NulRun { offset: self.length, length: 0 });
        run.length = run.length.saturating_add(count);
        if self.runs.is_none() {
            self.runs = Some(Sha256::new());
            self.whole = WholeHash::Separate(self.data.clone());
        }
        if !self.is_hashed(count) {
            self.whole = WholeHash::Unknown;
        }
        if let WholeHash::Separate(whole) = &mut self.whole {
            let mut left = usize::try_from(count).unwrap_or(usize::MAX);
            while left > 0 {
                let step = left.min(NULS.len());
                whole.update(&NULS[..step]);
                left -= step;
            }
        }
        self.length = self.length.saturating_add(count);
    }

    /// Returns whether the hash of the line is computed after `more` bytes.
    fn is_hashed(&self, more: u64) -> bool {
        match self.whole {
            WholeHash::SameAsData => true,
            WholeHash::Separate(_) => self.length.saturating_add(more) <= MAX_HASHED_LENGTH,
            WholeHash::Unknown => false,
        }
    }

    fn end_run(&mut self) {
        if let (Some(run), Some(runs)) = (self.run.take(), &mut self.runs) {
            runs.update(run.offset.to_be_bytes());
            runs.update(run.length.to_be_bytes());
        }
    }

    fn finish(mut self) -> LineDigests {
        self.end_run();
        let data = Digest::from_bytes(self.data.finalize().into());
        let sha256 = match self.whole {
            WholeHash::SameAsData => Some(data),
            WholeHash::Separate(whole) => Some(Digest::from_bytes(whole.finalize().into())),
            WholeHash::Unknown => None,
        };
        let folded_sha256 = self.runs.map(|runs| {
            let runs = Digest::from_bytes(runs.finalize().into());
            data.chain(runs)
        });
        LineDigests { length: self.length, sha256, folded_sha256 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns data and runs of a line, by a simple algorithm.
    fn fold(line: &[u8]) -> (Vec<u8>, Vec<NulRun>) {
        let (mut data, mut runs, mut at) = (Vec::new(), Vec::new(), 0);
        for group in line.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            if group[0] == 0 && group.len() as u64 >= MIN_NUL_RUN {
                runs.push(NulRun { offset: at, length: group.len() as u64 });
            } else {
                data.extend_from_slice(group);
            }
            at += group.len() as u64;
        }
        (data, runs)
    }

    fn unfold(data: &[u8], runs: &[NulRun]) -> Vec<u8> {
        let mut line = Vec::new();
        for segment in segments(data, runs).unwrap() {
            match segment {
                Segment::Data(bytes) => line.extend_from_slice(bytes),
                Segment::Nuls(count) => {
                    line.resize(line.len() + usize::try_from(count).unwrap(), 0)
                }
            }
        }
        line
    }

    fn expected(line: &[u8]) -> LineDigests {
        let (data, runs) = fold(line);
        let encoded: Vec<u8> = runs
            .iter()
            .flat_map(|run| [run.offset.to_be_bytes(), run.length.to_be_bytes()].concat())
            .collect();
        let hashes = [*Digest::of(&data).as_bytes(), *Digest::of(&encoded).as_bytes()].concat();
        LineDigests {
            length: line.len() as u64,
            sha256: Some(Digest::of(line)),
            folded_sha256: (!runs.is_empty()).then(|| Digest::of(&hashes)),
        }
    }

    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => (0..3_usize).prop_map(|more| vec![0; 4095 + more]),
            1 => (0..20_000_usize).prop_map(|len| vec![0; len]),
            2 => (0..9000_usize).prop_map(|len| vec![b'x'; len]),
            2 => prop::collection::vec(0..2_u8, 0..20),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn line_in_any_pieces_is_split_and_hashed_alike(
            line in lines(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(line.len() + 1)).collect();
            cuts.extend([0, line.len()]);
            cuts.sort_unstable();
            let (mut splitter, mut hasher) = (NulSplitter::default(), LineHasher::default());
            let (mut data, mut runs) = (Vec::new(), Vec::<NulRun>::new());
            let mut add = |segment: Segment<'_>| match segment {
                Segment::Data(bytes) => data.extend_from_slice(bytes),
                Segment::Nuls(count) => {
                    let offset = data.len() as u64 + total_length(&runs);
                    match runs.last_mut() {
                        Some(run) if run.end() == offset => run.length += count,
                        _ => runs.push(NulRun { offset, length: count }),
                    }
                }
            };
            for cut in cuts.windows(2) {
                let piece = &line[cut[0]..cut[1]];
                if piece.iter().all(|byte| *byte == 0) {
                    splitter.push_nuls(piece.len() as u64, &mut add);
                    hasher.update(Segment::Nuls(piece.len() as u64));
                } else {
                    splitter.push(piece, &mut add);
                    hasher.update(Segment::Data(piece));
                }
            }
            splitter.finish(&mut add);
            prop_assert_eq!((&data, &runs), (&fold(&line).0, &fold(&line).1));
            prop_assert_eq!(unfold(&data, &runs), &line[..]);
            prop_assert_eq!(hasher.finish(), expected(&line));
            prop_assert_eq!(LineDigests::of(&data, &runs).unwrap(), expected(&line));
        }

        #[test]
        fn any_runs_are_refused_or_unfold(
            runs in prop::collection::vec((0..20_000_u64, 4000..9000_u64), 0..4), data in 0..20_000_usize,
        ) {
            let runs: Vec<_> = runs.into_iter().map(NulRun::from).collect();
            let data = vec![b'x'; data];
            if let Ok(length) = check_runs(&runs, Some(data.len() as u64)) {
                let line = unfold(&data, &runs);
                prop_assert_eq!(line.len() as u64, length);
                prop_assert_eq!(fold(&line), (data, runs));
            }
        }
    }

    #[test]
    fn runs_that_no_content_has_are_refused() {
        let check = |runs: &[(u64, u64)], data| {
            check_runs(&runs.iter().copied().map(NulRun::from).collect::<Vec<_>>(), data)
        };
        assert_eq!(check(&[(0, 4096), (4097, 5000)], Some(1)), Ok(9097));
        assert_eq!(check(&[(3, 4096)], Some(3)), Ok(4099));
        assert_eq!(check(&[(4, 4096)], Some(3)), Err(NulRunsError::Outside { offset: 4 }));
        assert_eq!(check(&[(4, 4096)], None), Ok(0));
        assert_eq!(check(&[(0, 4095)], Some(3)), Err(NulRunsError::TooShort { offset: 0 }));
        assert_eq!(
            check(&[(0, 4096), (4096, 4096)], Some(3)),
            Err(NulRunsError::Order { offset: 4096 })
        );
        assert_eq!(check(&[(0, u64::MAX)], Some(0)), Err(NulRunsError::Outside { offset: 0 }));
        assert_eq!(
            check(&[(u64::MAX, 4096)], None),
            Err(NulRunsError::Outside { offset: u64::MAX })
        );
        let many: Vec<_> = (0..65).map(|n| (n * 4097, 4096)).collect();
        assert_eq!(check(&many, Some(99)), Err(NulRunsError::TooMany));
        assert_eq!(check(&many[..64], Some(99)), Ok(64 * 4096 + 99));
    }

    /// A hole of 8 EiB is hashed without its bytes.
    #[test]
    fn line_with_an_enormous_run_has_a_folded_hash_only() {
        let mut hasher = LineHasher::default();
        hasher.update(Segment::Data(b"a"));
        hasher.update(Segment::Nuls(1 << 20));
        assert!(!hasher.skips_nuls(MAX_HASHED_LENGTH - (1 << 20) - 1));
        assert!(hasher.skips_nuls(MAX_HASHED_LENGTH - (1 << 20)));
        hasher.update(Segment::Nuls((1 << 63) - 2 - (1 << 20)));
        let digests = hasher.finish();
        assert_eq!((digests.length, digests.sha256), ((1 << 63) - 1, None));
        let run = NulRun { offset: 1, length: (1 << 63) - 2 };
        assert_eq!(LineDigests::of(b"a", &[run]).unwrap(), digests);
        let run = [1_u64.to_be_bytes(), ((1_u64 << 63) - 2).to_be_bytes()].concat();
        let hashes = [*Digest::of(b"a").as_bytes(), *Digest::of(&run).as_bytes()].concat();
        assert_eq!(digests.folded_sha256, Some(Digest::of(&hashes)));
    }
}
