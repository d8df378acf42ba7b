//! Errors of the registry.

use siem_protocol::note::SignError;

use super::super::{
    devices::{DEVICE_KEY_NAME, DeviceError, EnrollRefusal},
    journal::JournalError,
    keys::ReceiverKeyError,
    tokens::TokenError,
};

/// Error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The keys of the receiver cannot be read or changed.
    #[error(transparent)]
    Key(#[from] ReceiverKeyError),
    /// The device cannot be changed in this way.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The token cannot be made or changed in this way.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Reason why a device key was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The receiver has no key, so it enrolls no devices.
    #[error("this receiver has no key and enrolls no devices")]
    NoReceiverKey,
    /// The enrollment names another receiver.
    #[error("the enrollment is for the receiver `{named}`, this one is `{own}`")]
    OtherReceiver {
        /// Name in the enrollment.
        named: String,
        /// Name of this receiver.
        own: String,
    },
    /// The name of a device key is not the one of all device keys.
    #[error("the name of the device key is not `{DEVICE_KEY_NAME}`")]
    KeyName,
    /// The token is bound to another machine.
    #[error("the token is bound to another machine")]
    OtherMachine,
    /// The token enrolled another device or is no longer valid.
    #[error(transparent)]
    Token(TokenError),
    /// The key is not accepted.
    #[error(transparent)]
    Refused(#[from] EnrollRefusal),
    /// The enrollment could not be stored.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The statement about the device could not be signed.
    #[error("cannot sign the statement about the device")]
    Sign(#[from] SignError),
}
