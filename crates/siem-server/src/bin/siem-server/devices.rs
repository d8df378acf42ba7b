//! `siem-server devices`.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use siem_protocol::{note::VerifierKey, statement::Confirmation};
use siem_server::trust::{DeviceKey, DeviceView, Registry};

use crate::{Data, failure::Failure, output};

/// Number of digits of a key in the list. More than enough to be unique, and accepted by all
/// commands.
const SHOWN: usize = 16;
/// Minimum number of digits by which a key can be named.
const SHORTEST: usize = 6;

#[derive(Subcommand)]
pub(crate) enum Command {
    List(List),
    Show(Show),
    Approve(Approve),
    Revoke(Revoke),
    AllowShared(AllowShared),
}

/// List the keys of devices
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show the key of a device
#[derive(Args)]
pub(crate) struct Show {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    device: Device,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Confirm that a key belongs to its machine and user
///
/// Compare the key with the output of `ai-agent device show` on that machine before.
#[derive(Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    device: Device,
}

/// Refuse a key, and all keys that it replaced or that replaced it, for good
#[derive(Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    device: Device,
}

/// Accept batches without a key from a machine that has one
///
/// Needed to roll an agent back to a release without device keys. Until it is undone, everyone with
/// the fleet's token and secret can write as this machine.
#[derive(Args)]
pub(crate) struct AllowShared {
    #[command(flatten)]
    data: Data,
    /// Id of the machine
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    machine: String,
    /// Refuse such batches again
    #[arg(long)]
    undo: bool,
}

/// A device on the command line.
#[derive(Args)]
struct Device {
    /// Key: its first digits as in `siem-server devices list`, or as `ai-agent device show` prints it
    key: String,
}

/// Error of a key on the command line.
#[derive(Debug, thiserror::Error)]
enum KeyArgumentError {
    #[error("`{0}` is not the key of a device: give at least {SHORTEST} of its hexadecimal digits")]
    Invalid(String),
    #[error("no device has the key `{0}` (run: siem-server devices list)")]
    Unknown(String),
    #[error("`{given}` is the start of {count} keys: give more digits")]
    Ambiguous { given: String, count: usize },
}

impl Device {
    fn find(&self, registry: &Registry) -> Result<DeviceView, Failure> {
        let given = || self.key.clone();
        let digits = match self.key.parse::<VerifierKey>() {
            Ok(key) => DeviceKey::from(&key).to_string(),
            Err(_) => self.key.to_ascii_lowercase(),
        };
        if digits.len() < SHORTEST || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::usage(KeyArgumentError::Invalid(given())));
        }
        let mut found: Vec<_> = registry
            .devices()
            .into_iter()
            .filter(|device| device.key.to_string().starts_with(&digits))
            .collect();
        match (found.len(), found.pop()) {
            (1, Some(device)) => Ok(device),
            (0, _) => Err(Failure::failed(KeyArgumentError::Unknown(given()))),
            (count, _) => {
                Err(Failure::usage(KeyArgumentError::Ambiguous { given: given(), count }))
            }
        }
    }
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(),
            Self::Show(show) => show.execute(),
            Self::Approve(approve) => approve.execute(),
            Self::Revoke(revoke) => revoke.execute(),
            Self::AllowShared(allow) => allow.execute(),
        }
    }
}

impl List {
    fn execute(self) -> Result<(), Failure> {
        let mut devices = self.data.open()?.devices();
        devices.sort_by(|a, b| {
            let order = |device: &DeviceView| {
                (device.machine.clone(), device.user.clone(), device.first_seen.clone())
            };
            order(a).cmp(&order(b))
        });
        if self.json {
            return output::json(&devices);
        }
        let rows: Vec<_> = devices.iter().map(row).collect();
        output::table(["KEY", "STATE", "BY", "MACHINE", "USER", "HOST", "FIRST SEEN"], &rows)
    }
}

fn row(device: &DeviceView) -> [String; 7] {
    let state = if device.cloned || device.copied { "cloned" } else { device.state.as_str() };
    [
        device.key.to_string()[..SHOWN].to_owned(),
        state.to_owned(),
        confirmed_by(device),
        device.machine.clone(),
        device.user.clone(),
        device.host.clone(),
        device.first_seen.clone(),
    ]
}

fn confirmed_by(device: &DeviceView) -> String {
    device.confirmed_by.map(|by| by.to_string()).unwrap_or_default()
}

impl Show {
    fn execute(self) -> Result<(), Failure> {
        let device = self.device.find(&self.data.open()?)?;
        if self.json {
            return output::json(&device);
        }
        let key = |key: Option<DeviceKey>| key.map(|key| key.to_string()).unwrap_or_default();
        let verifier = device.key.verifier().map_err(Failure::failed)?;
        output::fields(&[
            ("key", device.key.to_string()),
            ("verifier key", verifier.to_string()),
            ("state", device.state.to_string()),
            ("confirmed by", confirmed_by(&device)),
            ("machine", device.machine),
            ("user", device.user),
            ("host", device.host),
            ("os", device.os),
            ("arch", device.arch),
            ("version", device.version),
            ("first seen", device.first_seen),
            ("replaces", key(device.previous)),
            ("replaced by", key(device.next)),
            ("cloned", if device.cloned || device.copied { "yes" } else { "no" }.to_owned()),
        ])
    }
}

impl Approve {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let device = self.device.find(&registry)?;
        let changed = registry.confirm(&device.key, Confirmation::Operator)?;
        let done = if changed { "approved" } else { "was confirmed already:" };
        report(done, &device)
    }
}

impl Revoke {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let device = self.device.find(&registry)?;
        let changed = registry.revoke(&device.key)?;
        report(if changed { "revoked" } else { "was revoked already:" }, &device)
    }
}

fn report(done: &str, device: &DeviceView) -> Result<(), Failure> {
    let (key, machine, user) = (&device.key, &device.machine, &device.user);
    output::line(&output::plain(&format!("{done} `{key}` of machine `{machine}`, user `{user}`")))
}

impl AllowShared {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let machine = &self.machine;
        if !registry.known_machine(machine) {
            let plain = output::plain(machine);
            output::note(&format!("warning: no device of machine `{plain}` is enrolled"));
        }
        let changed = registry.allow_shared(machine, !self.undo)?;
        let already = if changed { "" } else { " already" };
        let accepted = if self.undo { "refused" } else { "accepted" };
        output::line(&output::plain(&format!(
            "batches without a key from machine `{machine}` are {accepted}{already}"
        )))
    }
}
