//! `siem-server tokens`.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use serde::Serialize;
use siem_server::{
    Clock as _, SystemClock,
    trust::{NewToken, Registry, RegistryError, Scope, TokenId, TokenText, TokenView},
};

use crate::{Data, failure::Failure, output, random};

#[derive(Subcommand)]
pub(crate) enum Command {
    New(New),
    List(List),
    Revoke(Revoke),
}

/// Make a token, and print it once
///
/// Only its hash is stored.
#[derive(Args)]
pub(crate) struct New {
    #[command(flatten)]
    data: Data,
    /// Rights, separated by commas: `ingest` (all that agents do), `enroll` (only the enrollment of
    /// a device), `read` (statistics), `content` (records), `admin`
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', required = true)]
    scope: Vec<Scope>,
    /// Name for people; two tokens with one name are valid at once, to replace one by the other
    #[arg(long)]
    name: Option<String>,
    /// Time for which it is valid, such as `30d`
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Make an enrollment token that enrolls one device, and confirms its key
    #[arg(long)]
    single_use: bool,
    /// Make a token that is valid only for the machine with this id; if it enrolls, it confirms the
    /// keys of that machine
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    machine: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List the tokens
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Revoke a token
#[derive(Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    data: Data,
    /// Id of the token, as in `siem-server tokens list`
    id: String,
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::New(new) => new.execute(),
            Self::List(list) => list.execute(),
            Self::Revoke(revoke) => revoke.execute(),
        }
    }
}

/// Output of `tokens new --json`.
#[derive(Serialize)]
struct Made<'a> {
    id: &'a TokenId,
    token: &'a str,
    expires: Option<String>,
}

/// Error of a duration that ends after the last time that can be represented.
#[derive(Debug, thiserror::Error)]
#[error("the time of --expires is too long")]
struct TooLong;

impl New {
    fn execute(self) -> Result<(), Failure> {
        let expires = self.expires.map(end).transpose()?;
        let new = NewToken {
            name: self.name,
            scopes: self.scope.into_iter().collect::<BTreeSet<_>>(),
            expires,
            single_use: self.single_use,
            machine: self.machine,
        };
        let text = TokenText::from_random(&random()?);
        let id = match self.data.open_or_create()?.add_token(new, &text) {
            Err(RegistryError::Token(error)) => return Err(Failure::usage(error)),
            added => added?,
        };
        let expires = expires.map(|time| humantime::format_rfc3339_seconds(time).to_string());
        if self.json {
            return output::json(&Made { id: &id, token: text.reveal(), expires });
        }
        output::line(text.reveal())?;
        let until = expires.map(|time| format!(", valid until {time}")).unwrap_or_default();
        output::note(&format!("made the token `{id}`{until}; it is not shown again"));
        Ok(())
    }
}

/// Returns the time at which a token expires. RFC 3339 ends with the year 9999.
fn end(expires: Duration) -> Result<SystemTime, Failure> {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let end = SystemClock.now().checked_add(expires);
    let end = end.filter(|end| *end <= SystemTime::UNIX_EPOCH + LAST);
    end.ok_or_else(|| Failure::usage(TooLong))
}

impl List {
    fn execute(self) -> Result<(), Failure> {
        let tokens = self.data.open()?.tokens();
        if self.json {
            return output::json(&tokens);
        }
        let rows: Vec<_> = tokens.iter().map(row).collect();
        output::table(["ID", "NAME", "SCOPES", "STATE", "EXPIRES", "USE", "MACHINE"], &rows)
    }
}

fn row(token: &TokenView) -> [String; 7] {
    let scopes: Vec<_> = token.scopes.iter().map(|scope| scope.as_str()).collect();
    [
        token.id.to_string(),
        token.name.clone().unwrap_or_default(),
        scopes.join(","),
        token.state.as_str().to_owned(),
        token.expires.clone().unwrap_or_else(|| "never".to_owned()),
        if token.single_use { "once" } else { "any" }.to_owned(),
        token.machine.clone().unwrap_or_default(),
    ]
}

/// Error of an id on the command line.
#[derive(Debug, thiserror::Error)]
#[error("there is no token with the id `{0}` (run: siem-server tokens list)")]
struct UnknownToken(String);

impl Revoke {
    fn execute(self) -> Result<(), Failure> {
        let registry = self.data.open()?;
        let id = find(&registry, &self.id)?;
        let changed = registry.revoke_token(&id)?;
        output::line(&if changed {
            format!("revoked the token `{id}`")
        } else {
            format!("the token `{id}` was revoked already")
        })
    }
}

fn find(registry: &Registry, id: &str) -> Result<TokenId, Failure> {
    let mut ids = registry.tokens().into_iter().map(|token| token.id);
    ids.find(|known| known.as_str() == id)
        .ok_or_else(|| Failure::failed(UnknownToken(id.to_owned())))
}
