//! `siem-server serve`.

use clap::Args;
use siem_server::init_log;

use crate::{
    config::{ConfigSource, Problems},
    failure::Failure,
};

/// Receive session records until SIGTERM
///
/// SIGHUP reads secrets and certificates again. The exit code is 1 if the receiver cannot start, and 2 if its
/// configuration has problems.
#[derive(Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    source: ConfigSource,
}

impl Serve {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let refused = |problems| Failure::usage(Problems(problems));
        let (loaded, process) = self.source.prepare().map_err(refused)?;
        init_log(&loaded.settings.log);
        process.with_reload(loaded, move || self.source.load()).run().map_err(Failure::failed)
    }
}
