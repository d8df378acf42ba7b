//! I/O errors in each kind of system call of the store, while its handle is open and while it is
//! reopened: nothing is lost, nothing is reported as damage, and the next call works.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::{Builder, DatabaseError, StorageBackend, StorageError};
use siem_protocol::Digest;

use super::{super::group::Group, Outbox, OutboxError, SinkRegistration};
use crate::{
    config::ShippingSettings, event::Event, frame::Codec, pipeline::group_builder::GroupBuilder,
    platform::Timestamp,
};

/// Kind of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SystemCall {
    Open,
    Read,
    Write,
    Sync,
    Resize,
}

#[derive(Debug, Default)]
struct FileState {
    bytes: Vec<u8>,
    /// SystemCall that fails, and its error number.
    fails: Option<(SystemCall, i32)>,
    /// Number of failures per call.
    hits: BTreeMap<SystemCall, u64>,
}

/// File in memory whose calls fail on demand.
#[derive(Clone, Debug, Default)]
pub(in crate::pipeline) struct FaultyFile(Arc<Mutex<FileState>>);

impl FaultyFile {
    fn inner(&self) -> MutexGuard<'_, FileState> {
        self.0.lock().unwrap()
    }

    fn call(&self, call: SystemCall) -> io::Result<MutexGuard<'_, FileState>> {
        let mut inner = self.inner();
        match inner.fails {
            Some((which, errno)) if which == call => {
                *inner.hits.entry(call).or_default() += 1;
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(inner),
        }
    }

    /// Makes syncs fail, or succeed again.
    pub(in crate::pipeline) fn fail_syncs(&self, fails: bool) {
        self.inner().fails = fails.then_some((SystemCall::Sync, 5));
    }

    /// Makes reads fail, or succeed again. The store reads again after a sync failed.
    pub(in crate::pipeline) fn fail_reads(&self, fails: bool) {
        self.inner().fails = fails.then_some((SystemCall::Read, 5));
    }

    pub(in crate::pipeline) fn outbox(&self, folder: &Path) -> Outbox {
        let backend = self.clone();
        let opener = move || {
            drop(
                backend
                    .call(SystemCall::Open)
                    .map_err(|error| DatabaseError::Storage(StorageError::Io(error)))?,
            );
            Ok((Builder::new().create_with_backend(backend.clone())?, None))
        };
        let registration = SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
        Outbox::open_with(&folder.join("memory"), Box::new(opener), &[registration], || "e".into())
            .unwrap()
    }
}

fn range(offset: u64, length: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + length
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.call(SystemCall::Read)?.bytes[range(offset, out.len())]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(SystemCall::Resize)?.bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(SystemCall::Sync).map(drop)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(SystemCall::Write)?.bytes[range(offset, data.len())].copy_from_slice(data);
        Ok(())
    }
}

/// Returns a group of events so large that the file has to grow.
fn group(outbox: &Outbox) -> Group {
    let shipping = ShippingSettings::default();
    let mut builder = GroupBuilder::new(outbox.end(), Digest::ZERO, shipping, Codec::Plain);
    for n in 0..20 {
        let data = serde_json::json!({ "n": n, "large": "x".repeat(50_000) });
        builder.add_event(&Event::info("test", data), &mut [], Timestamp(1));
    }
    builder.finish(Timestamp(1))
}

/// Runs every kind of operation; returns the failures.
fn exercise(outbox: &Outbox) -> Vec<OutboxError> {
    let all = |_: &_| ControlFlow::Continue(());
    let failures = [
        outbox.commit(&group(outbox)).err(),
        outbox.cursor("siem").err(),
        outbox.frames(1, all).err(),
        outbox.dead_letters().err(),
        outbox.back_up().err(),
        outbox.commit(&group(outbox)).err(),
    ];
    failures.into_iter().flatten().collect()
}

#[track_caller]
fn assert_whole(outbox: &Outbox, what: &str) {
    let frames = outbox.frames(1, |_| ControlFlow::Continue(())).unwrap();
    let mut next = 1;
    for frame in &frames {
        assert_eq!(frame.head.first_seq, next, "{what}");
        next = frame.head.last_seq() + 1;
        frame.decode().unwrap();
    }
    assert_eq!((outbox.end().seq, outbox.epoch()), (next, "e".into()), "{what}");
}

#[test]
fn io_error_in_any_call_is_temporary() {
    const CALLS: [SystemCall; 5] = [
        SystemCall::Open,
        SystemCall::Read,
        SystemCall::Write,
        SystemCall::Sync,
        SystemCall::Resize,
    ];
    // I/O error, no space left, read-only file system.
    const ERRORS: [i32; 3] = [5, 28, 30];
    let mut hits: BTreeMap<SystemCall, u64> = BTreeMap::new();
    for call in CALLS {
        for errno in ERRORS {
            for is_open in [true, false] {
                let what = format!("{call:?} fails with {errno}, open before: {is_open}");
                let file = FaultyFile::default();
                let folder = tempfile::tempdir().unwrap();
                let outbox = file.outbox(folder.path());
                outbox.commit(&group(&outbox)).unwrap();
                if !is_open {
                    // An error closes the handle.
                    file.inner().fails = Some((SystemCall::Sync, errno));
                    outbox.commit(&group(&outbox)).unwrap_err();
                    assert!(outbox.end().seq > 20, "{what}");
                }
                file.inner().fails = Some((call, errno));
                for failure in exercise(&outbox) {
                    let message = crate::text::causes(&failure);
                    assert!(
                        message.contains("the outbox `") && message.contains("memory`"),
                        "{what}: {message}"
                    );
                }
                assert!(!*outbox.watch_damage().borrow(), "{what}: reported as damage");
                file.inner().fails = None;
                let left = exercise(&outbox);
                assert!(left.is_empty(), "{what}: {left:?}");
                assert_whole(&outbox, &what);
                for (call, count) in &file.inner().hits {
                    *hits.entry(*call).or_default() += count;
                }
            }
        }
    }
    for call in CALLS {
        assert!(hits.get(&call).is_some_and(|count| *count > 0), "{call:?} never failed: {hits:?}");
    }
}
