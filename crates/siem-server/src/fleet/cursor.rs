//! Position between two rows.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;

use crate::trust::DeviceKey;

/// Position after a row. Rows are ordered by machine, user, device (those without one first), and
/// the id of the row's first epoch, of which none changes while entries arrive.
///
/// Text form: URL-safe base64. Its content may change with any release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub(super) machine: String,
    pub(super) user: String,
    /// First key of the device's lineage.
    pub(super) device: Option<DeviceKey>,
    pub(super) first_epoch: String,
}

/// Text that is not a [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not one of a response: start again without it")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = (&self.machine, &self.user, &self.device, &self.first_epoch);
        let text = serde_json::to_vec(&fields).map_err(|_| fmt::Error)?;
        f.write_str(&BASE64URL_NOPAD.encode(&text))
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| InvalidCursor)?;
        let (machine, user, device, first_epoch) =
            serde_json::from_slice(&bytes).map_err(|_| InvalidCursor)?;
        Ok(Self { machine, user, device, first_epoch })
    }
}
