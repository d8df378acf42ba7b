//! Differences between operating systems: every `cfg(target_os)` is in this module.

pub mod bounded;
pub mod call_scope;
mod certificates;
mod clock;
pub mod control;
pub mod core_dumps;
pub mod cpu_time;
pub mod directory;
mod disk;
mod environment;
#[cfg(all(test, unix))]
pub(crate) mod faults;
pub mod file;
mod groups;
mod identity;
pub mod input;
pub mod journal;
pub mod links;
mod lock;
mod log_file;
mod log_reader;
#[cfg(unix)]
mod long_path;
pub mod memory;
mod os;
pub mod own_program;
mod paths;
mod power;
pub mod priority;
pub mod program;
mod program_data;
mod random;
pub mod root_program;
pub mod sandbox;
pub mod secure_file;
#[cfg(windows)]
mod security;
pub mod service;
mod signals;
pub mod state_dir;
pub mod tcp;
pub mod test_limits;
pub mod watch;

pub use certificates::system_certificates;
pub use clock::{Clock, SystemClock, Timestamp};
pub use disk::free_space;
pub use environment::{
    CERTIFICATE_VARIABLES, Environment, PROXY_VARIABLES, parse_service_variables,
};
pub use groups::user_groups;
pub use identity::{UNKNOWN_NAME, identify, is_root, user_id};
pub use lock::{LockError, LockHolder, LockRole, StateLock};
pub use log_file::LogFile;
pub use log_reader::LogReader;
pub use os::Os;
pub use paths::{InstalledPaths, Paths, PathsError};
pub use power::{Power, SystemPower};
pub use random::random_bytes;
pub use sandbox::{Sandbox, SandboxStatus};
pub use signals::{Signal, Signals, survive_file_size_limit};
