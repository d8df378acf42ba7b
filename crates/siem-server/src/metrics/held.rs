//! Figures of the entries held. To count them takes time that grows with the number of machines.

use std::time::{Duration, Instant};

use metrics_endpoint::Exposition;
use tokio::{sync::Mutex, time::timeout};

use super::{Figures, PATIENCE};
use crate::{
    fleet::{FleetProblem, FleetTotals},
    stats::Stats,
};

/// Age up to which figures are shown again.
const REUSE: Duration = Duration::from_secs(60);

/// Figures that were counted last.
#[derive(Debug, Default)]
pub(super) struct HeldCache(Mutex<Option<(Instant, FleetTotals)>>);

impl HeldCache {
    /// Adds the figures; nothing if the store does not answer in time.
    pub(super) async fn add_to(&self, figures: &mut Exposition, source: &dyn Figures) {
        let mut last = self.0.lock().await;
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= REUSE) {
            let query = source.stats_query();
            let stats = timeout(PATIENCE, source.storage().stats(query));
            let Ok(Ok(Stats { totals, .. })) = stats.await else { return };
            *last = Some((Instant::now(), totals));
        }
        if let Some((_, totals)) = &*last {
            add_totals(figures, totals);
        }
    }
}

fn add_totals(figures: &mut Exposition, totals: &FleetTotals) {
    let mut gauge = |name, help, value: u64| figures.gauge(name, help, value as f64);
    gauge("siem_server_machines", "Machines of which entries are held.", totals.machines);
    gauge("siem_server_epochs", "Epochs of which entries are held.", totals.epochs);
    gauge("siem_server_stored_entries", "Entries that are held.", totals.entries);
    gauge("siem_server_stored_bytes", "Size of the lines held.", totals.bytes);
    gauge("siem_server_missing_entries", "Entries that never arrived.", totals.missing);
    let help = "Senders of which entries are held: users of machines with their devices.";
    gauge("siem_server_senders", help, totals.rows);
    let problems = FleetProblem::ALL.map(|problem| {
        let senders = totals.problems.get(&problem).copied().unwrap_or_default();
        (vec![("problem", problem.as_str().to_owned())], senders as f64)
    });
    figures.gauges("siem_server_sender_problems", "Senders with a problem.", problems);
}
