//! Clock of the system.

use std::time::SystemTime;

pub use ai_agent_stage::{Clock, Timestamp};

/// Clock of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "every other time comes from a `Clock`")]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}
