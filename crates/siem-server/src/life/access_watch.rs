//! Comparison of the access log with what the running receiver saw of it.
//!
//! The log of the receiver is usually kept elsewhere, so that it proves what lines there were: who may write
//! to the data directory could replace all files of the access log.

use std::{fs, time::SystemTime};

use tracing::{error, info};

use super::{AccessLog, access_log::AccessHead};

/// What a receiver saw of its access log.
#[derive(Debug)]
pub(crate) struct AccessWatch {
    log: AccessLog,
    /// Size and time of the file that was read last.
    version: Option<(u64, SystemTime)>,
    /// The last line then; `None` before the first time.
    seen: Option<AccessHead>,
}

impl AccessWatch {
    pub(crate) fn new(log: AccessLog) -> Self {
        Self { log, version: None, seen: None }
    }

    /// Reads the log if its file changed, or in any case with `is_due`. Logs new lines, or that the log was
    /// altered.
    pub(crate) fn check(&mut self, is_due: bool) {
        let version = fs::metadata(self.log.path()).ok();
        let version = version.and_then(|file| Some((file.len(), file.modified().ok()?)));
        if version == self.version && !is_due {
            return;
        }
        self.version = version;
        let lines = match self.log.verify() {
            Ok(lines) => lines,
            Err(error) => {
                error!(code = "access_log_not_verified", %error, "cannot verify the access log");
                return;
            }
        };
        let count = lines.len() as u64;
        let number = |line: u64| usize::try_from(line).unwrap_or(usize::MAX);
        // At the start the last line proves all before it.
        let seen = self.seen.map_or(count.saturating_sub(1), |seen| seen.lines);
        if let Some(AccessHead { lines: seen @ 1.., sha256 }) = self.seen
            && lines.get(number(seen - 1)).is_none_or(|line| line.sha256 != sha256)
        {
            error!(
                code = "access_log_not_verified",
                line = seen,
                %sha256,
                error = "a line is not there any more, or has another content",
                "cannot verify the access log"
            );
        }
        for (line, it) in (1..).zip(&lines).skip(number(seen)) {
            let (who, action, sha256) = (&it.entry.who, it.entry.action, it.sha256);
            info!(code = "access_logged", line, who, ?action, %sha256, "line of the access log");
        }
        let sha256 = lines.last().map_or(siem_protocol::Digest::ZERO, |line| line.sha256);
        self.seen = Some(AccessHead { lines: count, sha256 });
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{life::AccessAction, log::log_of};

    fn append(log: &AccessLog, why: &str) {
        log.append(UNIX_EPOCH, "root", AccessAction::Read, "line", why).unwrap();
    }

    #[test]
    fn replaced_log_is_reported_once() {
        let root = tempfile::tempdir().unwrap();
        let log = AccessLog::new(root.path());
        let mut watch = AccessWatch::new(log.clone());
        assert_eq!(log_of(|| watch.check(true)), "");
        append(&log, "one");
        append(&log, "two");
        let text = log_of(|| watch.check(false));
        assert_eq!(text.matches("access_logged").count(), 2, "{text}");
        let sha256 = log.verify().unwrap()[1].sha256.to_string();
        assert!(text.contains(&sha256), "{text}");
        assert_eq!(log_of(|| watch.check(true)), "");
        // All files of the log are replaced.
        fs::remove_dir_all(root.path().join("life")).unwrap();
        append(&log, "one");
        append(&log, "other");
        append(&log, "three");
        let text = log_of(|| watch.check(true));
        assert_eq!(text.matches("access_log_not_verified").count(), 1, "{text}");
        assert!(text.contains(&sha256), "{text}");
        assert_eq!(log_of(|| watch.check(true)), "");
    }

    #[test]
    fn start_logs_the_last_line_of_the_log() {
        let root = tempfile::tempdir().unwrap();
        let log = AccessLog::new(root.path());
        append(&log, "one");
        append(&log, "two");
        let text = log_of(|| AccessWatch::new(log.clone()).check(true));
        assert_eq!(text.matches("access_logged").count(), 1, "{text}");
        assert!(text.contains("line=2"), "{text}");
        fs::write(log.path(), "").unwrap();
        let text = log_of(|| AccessWatch::new(log.clone()).check(true));
        assert!(text.contains("access_log_not_verified"), "{text}");
    }
}
