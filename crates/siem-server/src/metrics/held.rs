//! Figures of the entries held. To count them takes time that grows with the number of machines.

use std::time::{Duration, Instant, SystemTime};

use metrics_endpoint::Exposition;
use tokio::sync::Mutex;

use super::Figures;
use crate::stats::{MachineStats, Stats};

/// Age up to which figures are shown again.
const REUSE: Duration = Duration::from_secs(60);
/// Time without a batch after which a machine is quiet: three heartbeats.
const QUIET_AFTER: Duration = Duration::from_secs(15 * 60);

/// Figures that were counted last.
#[derive(Debug, Default)]
pub(super) struct HeldCache(Mutex<Option<(Instant, Held)>>);

/// Figures of the entries held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) machines: u64,
    pub(super) quiet: u64,
    pub(super) epochs: u64,
    pub(super) with_gaps: u64,
    pub(super) unexplained: u64,
    pub(super) bytes: u64,
}

impl HeldCache {
    /// Adds the figures; nothing if the store does not answer.
    pub(super) async fn add_to(&self, figures: &mut Exposition, source: &dyn Figures) {
        let mut last = self.0.lock().await;
        if last.is_none_or(|(at, _)| at.elapsed() >= REUSE) {
            let Ok(stats) = source.storage().stats().await else { return };
            let held = Held::of(&stats, source.now());
            *last = Some((Instant::now(), held));
        }
        if let Some((_, held)) = *last {
            held.add_to(figures);
        }
    }
}

impl Held {
    pub(super) fn of(stats: &Stats, now: SystemTime) -> Self {
        let since = crate::clock::text(now - QUIET_AFTER);
        let epochs = || stats.machines.iter().flat_map(|machine| machine.all_epochs());
        let quiet =
            |machine: &&MachineStats| !machine.last_seen.is_empty() && machine.last_seen < since;
        Self {
            machines: stats.machines.len() as u64,
            quiet: stats.machines.iter().filter(quiet).count() as u64,
            epochs: epochs().count() as u64,
            with_gaps: epochs().filter(|epoch| !epoch.gaps.is_empty()).count() as u64,
            unexplained: stats.unexplained,
            bytes: epochs().map(|epoch| epoch.bytes).sum(),
        }
    }

    fn add_to(self, figures: &mut Exposition) {
        let mut gauge = |name, help, value: u64| figures.gauge(name, help, value as f64);
        gauge("siem_server_machines", "Machines of which entries are held.", self.machines);
        let help = "Machines that sent no batch for 15 minutes.";
        gauge("siem_server_quiet_machines", help, self.quiet);
        gauge("siem_server_epochs", "Epochs of which entries are held.", self.epochs);
        gauge("siem_server_epochs_with_gaps", "Epochs that lack numbers.", self.with_gaps);
        let help = "Epochs whose entries differ from the agent's claims without an explanation.";
        gauge("siem_server_unexplained_epochs", help, self.unexplained);
        gauge("siem_server_stored_bytes", "Size of the lines held.", self.bytes);
    }
}
