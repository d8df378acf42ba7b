//! What differs between systems, and what comes from outside: every `cfg(target_os)` lives here.

mod clock;
pub mod file;

pub use clock::{Clock, SystemClock, Timestamp};
