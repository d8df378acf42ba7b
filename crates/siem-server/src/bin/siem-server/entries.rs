//! `siem-server entries`.

use std::io::{self, BufWriter, Write as _};

use clap::Args;
use siem_server::{
    life::AccessAction,
    store::{ReadError, StoredLines, read_lines},
    with_origin,
};

use crate::{Data, failure::Failure};

/// Write stored entries, each with its machine, user, host, epoch, device, and times
///
/// Each line is the entry as it was received, with the members `machine_id`, `hostname`, `user`,
/// `epoch`, `device`, `received_at` and `time` in front. Works also while the receiver runs.
#[derive(Args)]
pub(crate) struct Entries {
    #[command(flatten)]
    data: Data,
    /// Only entries of the machine with this id
    #[arg(long, value_name = "ID")]
    machine: Option<String>,
    /// Only entries of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Reason, for the access log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl Entries {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        self.data.continue_as_owner()?;
        // What cannot be logged is not read.
        let part = |name: &str, wanted: &Option<String>| {
            wanted.as_ref().map(|wanted| format!(" of {name} {wanted}")).unwrap_or_default()
        };
        let what = format!("entries{}{}", part("machine", &self.machine), part("user", &self.user));
        crate::access_log::log(&self.data.directory, AccessAction::Read, &what, &self.reason)?;
        let mut output = BufWriter::new(io::stdout().lock());
        read_lines(&self.data.directory, |lines| {
            if self.is_wanted(&lines) {
                output.write_all(&with_origin(&lines)).map_err(Failure::failed)?;
            }
            Ok::<_, Failure>(())
        })?;
        output.flush().map_err(Failure::failed)
    }

    fn is_wanted(&self, lines: &StoredLines<'_>) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        is(&self.machine, &lines.sender.machine_id) && is(&self.user, &lines.sender.user)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::failed(error)
    }
}
