//! Rotation of the file: the full one is renamed to `NAME.TIME`, compressed, and deleted once there are
//! too many.
//!
//! A crash between two steps leaves a file that the next [`Rotation::tidy`] finishes. Only files with the
//! name that rotation gives are touched.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::platform::{Timestamp, file, secure_file};

/// Compression of old files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OldFiles {
    /// Zstandard, as `NAME.TIME.zst`.
    Zstd,
    /// gzip, as `NAME.TIME.gz`.
    Gzip,
    /// No compression.
    #[default]
    None,
}

/// When a file is replaced by a new one, and what happens to old files.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) max_bytes: Option<u64>,
    pub(super) max_age: Option<Duration>,
    /// Number of old files that are kept; `None` for all.
    pub(super) keep: Option<usize>,
    pub(super) compression: OldFiles,
    /// Returns the creation time of a file; a test replaces it.
    pub(super) created: fn(&Metadata) -> io::Result<SystemTime>,
}

/// An old file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OldFile {
    /// Time of the rotation; unique, and later than that of each older file.
    rotated_at: Timestamp,
    path: PathBuf,
    is_compressed: bool,
}

impl Rotation {
    /// Renames the file at `path` if it is too old, or would be too large with `more` bytes, without an
    /// incomplete last line. Returns whether it was renamed.
    ///
    /// `first_write` is the time of the first write of this process to the file. It stands for the
    /// creation time where the system reports none.
    ///
    /// # Errors
    /// The error of the system; the file keeps its name.
    pub(super) fn rotate(
        &self,
        path: &Path,
        more: u64,
        first_write: Option<Timestamp>,
        now: Timestamp,
    ) -> io::Result<bool> {
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !found.is_file() || found.len() == 0 {
            return Ok(false);
        }
        let is_large = self.max_bytes.is_some_and(|max| found.len().saturating_add(more) > max);
        if !is_large && self.max_age.is_none() {
            return Ok(false);
        }
        let last = old_files(path)?.pop().map(|file| file.rotated_at);
        // Windows gives a new file the creation time of a file that had its name shortly before.
        let created = (self.created)(&found).ok().map(Timestamp::from).or(first_write).max(last);
        let is_old = self.max_age.zip(created).is_some_and(|(max, created)| now - created >= max);
        if !is_large && !is_old {
            return Ok(false);
        }
        if !cut_incomplete_line(path)? {
            return Ok(false);
        }
        // The order of the names stays the order of the files when the clock goes back.
        let rotated_at = last.map_or(now, |last| now.max(Timestamp(last.0 + 1)));
        fs::rename(path, with_ending(path, &stamp(rotated_at)))?;
        secure_file::sync_dir(parent(path))?;
        Ok(true)
    }

    /// Deletes the oldest files beyond those to keep, and compresses the others.
    ///
    /// # Errors
    /// The error of the system about the first file that failed. The others are done, and the next call
    /// tries again.
    pub(super) fn tidy(&self, path: &Path) -> io::Result<()> {
        let files = old_files(path)?;
        let mut times: Vec<_> = files.iter().map(|file| file.rotated_at).collect();
        times.dedup();
        let surplus = self.keep.map_or(0, |keep| times.len().saturating_sub(keep));
        let first_kept = times.get(surplus);
        // One file that cannot be deleted must not keep all others on the disk.
        let mut result = Ok(());
        for file in files {
            let done = if first_kept.is_none_or(|first| file.rotated_at < *first) {
                fs::remove_file(&file.path)
            } else if !file.is_compressed && self.compression != OldFiles::None {
                self.compress(&file.path)
            } else {
                Ok(())
            };
            result = result.and(done);
        }
        result
    }

    /// Replaces a file by its compressed copy once that is complete and synced.
    fn compress(&self, path: &Path) -> io::Result<()> {
        let unfinished = with_ending(path, "new");
        let result = self.compress_by(path, &unfinished);
        if result.is_err() {
            // An incomplete copy may fill the disk, and the next entries would have no room.
            drop(fs::remove_file(&unfinished));
        }
        result
    }

    /// Replaces a file by its compressed copy, which is written to `unfinished` first.
    fn compress_by(&self, path: &Path, unfinished: &Path) -> io::Result<()> {
        let Some((mut from, _)) = file::open_regular(path)? else { return Ok(()) };
        if let Err(error) = fs::remove_file(unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let to = secure_file::create_new(unfinished)?;
        let (to, ending) = match self.compression {
            OldFiles::None => return Ok(()),
            OldFiles::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::default());
                io::copy(&mut from, &mut encoder)?;
                (encoder.finish()?, "gz")
            }
            OldFiles::Zstd => {
                zstd::stream::copy_encode(&mut from, &to, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                (to, "zst")
            }
        };
        to.sync_all()?;
        drop::<(File, File)>((to, from));
        fs::rename(unfinished, with_ending(path, ending))?;
        secure_file::sync_dir(parent(path))?;
        fs::remove_file(path)
    }
}

/// Removes an incomplete last line: the line is written again, to the next file. Returns false if no
/// line remains.
fn cut_incomplete_line(path: &Path) -> io::Result<bool> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let end = super::cut_incomplete_line(&mut file)?;
    file.sync_data()?;
    Ok(end > 0)
}

/// Returns the old files of the file at `path`, the oldest first.
fn old_files(path: &Path) -> io::Result<Vec<OldFile>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for entry in fs::read_dir(parent(path))? {
        let entry = entry?;
        let found = entry.file_name();
        let ending = found.to_str().and_then(|found| found.strip_prefix(name)?.strip_prefix('.'));
        let Some(ending) = ending else { continue };
        let plain = ending.strip_suffix(".gz").or(ending.strip_suffix(".zst"));
        if let Some(rotated_at) = time_of(plain.unwrap_or(ending)) {
            files.push(OldFile { rotated_at, path: entry.path(), is_compressed: plain.is_some() });
        }
    }
    files.sort();
    Ok(files)
}

/// Formats a time for a file name: `20261121T200000.120Z`.
fn stamp(time: Timestamp) -> String {
    time.to_string().replace(['-', ':'], "")
}

/// Returns the time in a file name, if it has exactly the format of [`stamp`].
fn time_of(name: &str) -> Option<Timestamp> {
    let part = |range: std::ops::Range<usize>| name.get(range);
    let date = [part(0..4)?, part(4..6)?, part(6..8)?].join("-");
    let time = [part(9..11)?, part(11..13)?, part(13..name.len())?].join(":");
    let parsed: SystemTime = humantime::parse_rfc3339(&format!("{date}T{time}")).ok()?;
    let time = Timestamp::from(parsed.max(UNIX_EPOCH));
    (stamp(time) == name).then_some(time)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A time after the creation of the files of this test.
    const NOW: Timestamp = Timestamp(4_102_444_800_000);

    fn rotation() -> Rotation {
        Rotation {
            max_bytes: None,
            max_age: None,
            keep: None,
            compression: OldFiles::None,
            created: Metadata::created,
        }
    }

    fn names(path: &Path) -> Vec<String> {
        let files = old_files(path).unwrap();
        files.iter().map(|it| it.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn time_in_a_name_reads_back_and_other_names_do_not() {
        assert_eq!(stamp(Timestamp(1_795_291_200_120)), "20261121T200000.120Z");
        assert_eq!(time_of("20261121T200000.120Z"), Some(Timestamp(1_795_291_200_120)));
        for other in [
            "",
            "1",
            "20261121",
            "20261121T200000Z",
            "20261121X200000.120Z",
            "2026é121T200000.120Z",
        ] {
            assert_eq!(time_of(other), None, "{other}");
        }
    }

    #[test]
    fn file_is_rotated_by_size_and_by_age() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let by_size = Rotation { max_bytes: Some(10), ..rotation() };
        assert!(!by_size.rotate(&path, 100, None, NOW).unwrap(), "there is no file yet");
        fs::write(&path, "one\n").unwrap();
        assert!(!by_size.rotate(&path, 6, None, NOW).unwrap());
        assert!(by_size.rotate(&path, 7, None, NOW).unwrap());
        assert_eq!(names(&path), ["out.ndjson.21000101T000000.000Z"]);

        fs::write(&path, "two\n").unwrap();
        let by_age = Rotation { max_age: Some(Duration::from_secs(60)), ..rotation() };
        let later = |seconds: u64| Timestamp(NOW.0 + seconds * 1000);
        assert!(!by_age.rotate(&path, 1, None, later(59)).unwrap(), "the last rotation was before");
        assert!(by_age.rotate(&path, 1, None, later(60)).unwrap());
        assert_eq!(names(&path).len(), 2);
    }

    /// With the clock's time alone, the newest file would be deleted as the oldest.
    #[test]
    fn old_files_keep_their_order_when_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let rotation = Rotation { max_bytes: Some(1), keep: Some(1), ..rotation() };
        for (text, now) in [("old\n", NOW), ("new\n", Timestamp(NOW.0 - 1_000_000))] {
            fs::write(&path, text).unwrap();
            assert!(rotation.rotate(&path, 1, None, now).unwrap());
        }
        rotation.tidy(&path).unwrap();
        let kept = old_files(&path).unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read_to_string(&kept[0].path).unwrap(), "new\n");
    }

    /// A disk that is full stayed full.
    #[test]
    fn failed_compression_leaves_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.20261121T200000.120Z");
        fs::write(&path, "entry\n").unwrap();
        fs::create_dir(with_ending(&path, "gz")).unwrap();
        let rotation = Rotation { compression: OldFiles::Gzip, ..rotation() };
        rotation.compress(&path).unwrap_err();
        assert!(!with_ending(&path, "new").try_exists().unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "entry\n");
    }

    /// All later files stayed, uncompressed, until the disk was full.
    #[test]
    fn file_that_cannot_be_deleted_does_not_keep_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for n in 0..4 {
            fs::write(with_ending(&path, &stamp(Timestamp(NOW.0 + n))), "entry\n").unwrap();
        }
        let oldest = with_ending(&path, &stamp(Timestamp(NOW.0 - 1)));
        fs::create_dir(&oldest).unwrap();
        let rotation = Rotation { keep: Some(2), compression: OldFiles::Gzip, ..rotation() };
        rotation.tidy(&path).unwrap_err();
        let kept = old_files(&path).unwrap();
        let compressed: Vec<_> = kept.iter().map(|file| file.is_compressed).collect();
        assert_eq!(compressed, [false, true, true], "{kept:?}");
        fs::remove_dir(oldest).unwrap();
        rotation.tidy(&path).unwrap();
    }

    #[test]
    fn old_files_are_compressed_and_the_oldest_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(folder.path().join("out.bak"), "not ours").unwrap();
        for (compression, ending) in [(OldFiles::Gzip, "gz"), (OldFiles::Zstd, "zst")] {
            let rotation =
                Rotation { max_bytes: Some(1), keep: Some(3), compression, ..rotation() };
            for n in 0..5 {
                fs::write(&path, format!("entry {n}\n")).unwrap();
                assert!(rotation.rotate(&path, 1, None, NOW).unwrap());
            }
            // What a crash between the last two steps leaves, and one within the first.
            let newest = old_files(&path).unwrap().pop().unwrap().path;
            fs::write(with_ending(&newest, ending), "torn").unwrap();
            fs::write(with_ending(&newest, "new"), "torn").unwrap();
            rotation.tidy(&path).unwrap();
            let kept = old_files(&path).unwrap();
            assert_eq!(kept.len(), 3);
            assert!(kept.iter().all(|file| file.is_compressed), "{kept:?}");
            for (file, n) in kept.iter().zip(2..) {
                let (mut text, bytes) = (String::new(), fs::read(&file.path).unwrap());
                match compression {
                    OldFiles::Gzip => {
                        flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
                    }
                    _ => text = String::from_utf8(zstd::decode_all(&*bytes).unwrap()).unwrap(),
                }
                assert_eq!(text, format!("entry {n}\n"));
            }
        }
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            4,
            "3 old files and one of others"
        );
    }
}
