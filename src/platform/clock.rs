//! The system's clock.

use std::time::SystemTime;

pub use ai_agent_stage::{Clock, Timestamp};

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "every other time comes from a `Clock`")]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}
