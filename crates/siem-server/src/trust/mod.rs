//! Trust in devices: the receiver's keys, the devices it knows, tokens with scopes, and the log of
//! events about senders.
//!
//! [`Registry`] is the interface of this module. Its state is in files below the data directory,
//! which the running server and the commands of `siem-server` share:
//!
//! ```text
//! trust/lock              held by the one process that appends
//! trust/devices.ndjson    enrollments, confirmations, revocations
//! trust/tokens.ndjson     tokens: hashes, scopes, use
//! trust/events.ndjson     events about senders
//! trust/offered.ndjson    managed configurations that were offered
//! trust/config-answers.ndjson  what devices answered to them
//! trust/former-keys.json  public keys of the receiver that sign no longer
//! trust/keys/             private keys of the receiver
//! ```

mod config_answers;
mod damage;
mod devices;
mod events;
mod instances;
mod journal;
mod keys;
mod offered;
pub mod policy;
mod registry;
mod seal;
mod tokens;

pub use config_answers::{ConfigAnswer, DeviceConfig};
pub(crate) use damage::{EpochOwner, damage, lacks_devices};
pub(crate) use devices::DeviceStanding;
pub use devices::{
    DEVICE_KEY_NAME, DeviceError, DeviceKey, DeviceView, EnrollRefusal, InvalidDeviceKey,
};
pub use events::{Event, EventCounts, EventKind};
pub use instances::CloneFinding;
pub use journal::JournalError;
pub(crate) use journal::{RegistryLock, replace_file};
pub use keys::{FormerKey, ReceiverKeyError, ReceiverKeysView, Rotation};
pub(crate) use offered::is_meant_for;
pub use registry::{
    ConfigRefusal, EnrollError, Enrollment, HaltedRollout, Registry, RegistryError, RegistryOptions,
};
pub(crate) use registry::{SenderFacts, Standings, StandingsVersion};
pub use seal::{BatchSeal, VerifiedSeal};
pub use tokens::{
    Grant, NewToken, Scope, TokenError, TokenId, TokenState, TokenText, TokenView, UnknownScope,
};
