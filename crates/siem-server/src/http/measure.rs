//! Metrics of requests.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use metrics_endpoint::Exposition;

use super::{Shared, refusal_log::Refused};
use crate::{fleet::StatsQuery, metrics::Figures, store::Storage, trust::EventKind};

/// Counts requests by path and duration, and those that are refused.
pub(super) async fn measure(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let (path, begun) = (super::path_of_route(request.uri().path()), Instant::now());
    let response = next.run(request).await;
    shared.metrics.count_request(path, begun.elapsed());
    if let Some(refused) = response.extensions().get::<Refused>() {
        shared.metrics.count_refusal(refused.status, refused.kind);
    }
    response
}

impl Figures for Shared {
    fn add_to(&self, figures: &mut Exposition) {
        let help = "Bodies that wait for a turn or for memory.";
        let waiting = self.intake.turns.waiting() as f64;
        figures.gauge("siem_server_turns_waiting", help, waiting);
        let (bodies, bodies_limit) = self.intake.memory();
        let (batches, batches_limit) = (self.texts.reserved(), self.texts.total());
        let both = |bodies: usize, batches: usize| {
            [("bodies", bodies), ("batches", batches)]
                .map(|(of, bytes)| (vec![("of", of.to_owned())], bytes as f64))
        };
        let help = "Memory that is reserved for bodies as sent, and for decoded batches.";
        figures.gauges("siem_server_memory_reserved_bytes", help, both(bodies, batches));
        let help = "Memory that can be reserved.";
        let limits = both(bodies_limit, batches_limit);
        figures.gauges("siem_server_memory_limit_bytes", help, limits);
    }

    fn add_from_files(&self, figures: &mut Exposition) {
        if let Some(registry) = &self.registry {
            let counts = registry.event_counts();
            let events = EventKind::ALL
                .map(|kind| (vec![("kind", kind.as_str().to_owned())], counts.get(kind)));
            let help = "Events about senders, since the data directory exists.";
            figures.counters("siem_server_trust_events", help, events);
        }
    }

    fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    fn stats_query(&self) -> StatsQuery {
        StatsQuery { thresholds: self.fleet, limit: 0, ..StatsQuery::all(self.clock.now()) }
    }
}
