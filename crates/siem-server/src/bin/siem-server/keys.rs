//! `siem-server keys`.

use clap::{Args, Subcommand};
use siem_server::trust::{ReceiverKeyError, ReceiverKeysView, RegistryError, Rotation};

use crate::{Data, failure::Failure, output, random};

#[derive(Subcommand)]
pub(crate) enum Command {
    New(New),
    List(List),
    Rotate(Rotate),
}

/// Make the first key of a receiver
///
/// With a key the receiver signs receipts and refusals, and enrolls devices. After the loss of a
/// key, make another one with the same name, and let the organisation sign the list of keys.
#[derive(Args)]
pub(crate) struct New {
    #[command(flatten)]
    data: Data,
    /// Name of the receiver, such as its host name; all receivers behind one endpoint share name
    /// and keys
    #[arg(long)]
    name: String,
}

/// List the public keys
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Announce the next key, or if there is one, make it the current key
///
/// Run it once to announce a key, and again to use it. Agents that were offline meanwhile accept the
/// new key too, because the old one still signs the list of keys.
#[derive(Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    data: Data,
    /// Delete the old keys: agents that know none but these need a recovery by the organisation.
    /// For a stolen key
    #[arg(long)]
    discard_old: bool,
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::New(new) => new.execute(),
            Self::List(list) => list.execute(),
            Self::Rotate(rotate) => rotate.execute(),
        }
    }
}

impl New {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open_or_create()?;
        match registry.create_receiver_key(&self.name, random()?) {
            Err(RegistryError::Key(error @ ReceiverKeyError::Name { .. })) => {
                return Err(Failure::usage(error));
            }
            created => created?,
        }
        let keys = registry.receiver_keys_view().ok_or(ReceiverKeyError::Missing);
        output::line(&keys.map_err(Failure::failed)?.current.to_string())?;
        let list = registry.key_list_path();
        output::note(&format!(
            "made the key of receiver `{}`; agents learn it when they enroll, or from `receiver_keys` in their configuration\n\
             if it replaces a lost key: sign `{list}` with minisign, and put the signature at `{list}.minisig`",
            self.name,
            list = list.display(),
        ));
        Ok(())
    }
}

impl List {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let keys = registry.receiver_keys_view().ok_or(ReceiverKeyError::Missing);
        let keys = keys.map_err(Failure::failed)?;
        if self.json { output::json(&keys) } else { output::table(["STATE", "KEY"], &rows(&keys)) }
    }
}

fn rows(keys: &ReceiverKeysView) -> Vec<[String; 2]> {
    let current = std::iter::once(("current", &keys.current));
    let next = keys.next.iter().map(|key| ("next", key));
    let retired = keys.retired.iter().map(|key| ("retired", key));
    let all = current.chain(next).chain(retired);
    all.map(|(state, key)| [state.to_owned(), key.to_string()]).collect()
}

impl Rotate {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let rotation = registry.rotate_receiver_key(random()?, self.discard_old)?;
        let keys = registry.receiver_keys_view().ok_or(ReceiverKeyError::Missing);
        output::table(["STATE", "KEY"], &rows(&keys.map_err(Failure::failed)?))?;
        output::note(match rotation {
            Rotation::Announced => {
                "announced the next key; run this command again to make it the current one"
            }
            Rotation::Replaced => "the next key is now the current one",
        });
        Ok(())
    }
}
