//! The fleet as rows: one for each machine, user and device, with what is wrong with it.
//!
//! Pure: the store passes `EpochFacts` of one machine after the other. It keeps figures of all rows, of
//! which the totals are sums, and gets a page of rows.

mod cursor;
mod figures;
mod heartbeat;
mod page;
mod problem;
mod row;
mod rows;

use std::time::{Duration, SystemTime};

pub use cursor::{Cursor, InvalidCursor};
#[cfg(test)]
pub(crate) use figures::totals_of;
pub(crate) use figures::{FleetFigures, FleetSums};
pub(crate) use heartbeat::HeartbeatText;
pub use heartbeat::{ConfigRefusal, Heartbeat, UpdateFigures};
#[cfg(test)]
use page::Page;
pub(crate) use page::PageBuilder;
pub use problem::{FleetProblem, UnknownProblem};
pub use row::{FleetRow, FleetTotals};
pub(crate) use rows::{DeviceFacts, EpochFacts};

/// Limits from which a row has a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetThresholds {
    /// Time without a batch after which a row is quiet. A heartbeat arrives every 5 minutes.
    pub quiet_after: Duration,
    /// Age of a heartbeat at the time of sending, by the agent's clock, above which its agent is
    /// behind.
    pub behind_after: Duration,
    /// Number of bytes waiting at the agent, unread or not delivered, above which it is behind.
    pub behind_bytes: u64,
}

impl Default for FleetThresholds {
    fn default() -> Self {
        // Three heartbeats.
        let three = Duration::from_secs(15 * 60);
        Self { quiet_after: three, behind_after: three, behind_bytes: 64 << 20 }
    }
}

/// Rows to return.
#[derive(Clone, Debug)]
pub struct StatsQuery {
    /// Current time.
    pub now: SystemTime,
    /// Limits from which a row has a problem.
    pub thresholds: FleetThresholds,
    /// Only rows of this machine.
    pub machine: Option<String>,
    /// Only rows of this user.
    pub user: Option<String>,
    /// Only rows with this problem.
    pub problem: Option<FleetProblem>,
    /// Only rows after this one.
    pub after: Option<Cursor>,
    /// Maximum number of rows.
    pub limit: usize,
}

impl StatsQuery {
    /// Number of rows on a page, unless a request says otherwise.
    pub const LIMIT: usize = 1000;
    /// Maximum number of rows on a page.
    pub const MAX_LIMIT: usize = 5000;

    /// Asks for all rows at `now`.
    #[must_use]
    pub fn all(now: SystemTime) -> Self {
        Self {
            now,
            thresholds: FleetThresholds::default(),
            machine: None,
            user: None,
            problem: None,
            after: None,
            limit: usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests;
