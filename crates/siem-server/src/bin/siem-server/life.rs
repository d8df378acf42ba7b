//! `siem-server erase`, `erasures`, `hold` and `retention`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use data_encoding::HEXLOWER;
use siem_server::{
    Clock as _, FileStore, FileStoreOptions, OpenError, SystemClock,
    config::{Inputs, load},
    life::{
        self, AccessAction, ErasureView, Hold, Holds, LifeRequest, LifeResponse, Mention, Reason,
        RetentionPolicy, Selector,
    },
    trust::ReceiverKeysView,
};

use crate::{Data, access_log::log, config::Problems, failure::Failure, output, random, who::who};

/// Time for which a command waits for the server.
const LIMIT: Duration = Duration::from_secs(600);

/// Time for which a command that executes a request itself waits for its end.
const CLOSE_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Erase entries: each becomes a tombstone with the hash of its line
///
/// The chain and the seals of its epoch can still be verified, and an agent that sends the line again
/// sends a duplicate. Works while the server runs. The erasure stays in force: entries of the session that
/// arrive later, and entries of the user from before it that arrive later, are erased once an hour, see
/// `siem-server erasures`.
#[derive(Args)]
pub(crate) struct Erase {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    selection: ErasedSelection,
    /// With `--session`, also entries of other sessions that contain the id
    #[arg(long, requires = "session")]
    with_mentions: bool,
    /// Reason, for the list of erasures and the access log
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct ErasedSelection {
    /// All entries of this session, those of its subagents included
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// All entries that agents of this user sent
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Erasures {
    List(List),
    Repeat(Repeat),
    End(End),
}

/// Erase what arrived since of the subjects of all erasures in force, without waiting for the next hour
#[derive(Args)]
pub(crate) struct Repeat {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// End an erasure: entries of its subject that arrive later are kept
#[derive(Args)]
pub(crate) struct End {
    #[command(flatten)]
    data: Data,
    /// Id of the erasure
    id: String,
    /// Reason, for the access log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// List the completed erasures, and verify their signatures, and that the list has all
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum HoldCommand {
    Add(AddHold),
    Remove(RemoveHold),
    List(ListHolds),
}

/// Add a legal hold
#[derive(Args)]
pub(crate) struct AddHold {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    selection: HeldSelection,
    /// Reason
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct HeldSelection {
    /// All entries that contain the id of this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// All entries that agents of this user sent
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// All entries of the machine with this id
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    machine: Option<String>,
}

/// Remove a legal hold
#[derive(Args)]
pub(crate) struct RemoveHold {
    #[command(flatten)]
    data: Data,
    /// Number of the hold
    id: u64,
    /// Reason
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// List the legal holds
#[derive(Args)]
pub(crate) struct ListHolds {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Retention {
    Plan(PlanRetention),
    Apply(ApplyRetention),
}

/// Print what would be removed
#[derive(Args)]
pub(crate) struct PlanRetention {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    limits: RetentionLimits,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove the epochs and entries that `plan` prints
#[derive(Args)]
pub(crate) struct ApplyRetention {
    #[command(flatten)]
    plan: PlanRetention,
    /// Reason, for the access log
    #[arg(long, value_name = "TEXT", default_value = "retention")]
    reason: String,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct RetentionLimits {
    /// Configuration file, whose `[retention]` has the limits
    #[arg(long, value_name = "FILE", conflicts_with_all = ["max_age", "max_bytes"])]
    config: Option<PathBuf>,
    /// Time for which entries are kept, such as `90d`
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Size of all entries in bytes, beyond which the oldest entries are removed
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

#[derive(Debug, thiserror::Error)]
#[error("there is no hold {0}")]
struct NoHold(u64);

#[derive(Debug, thiserror::Error)]
#[error("there is no erasure `{0}` in force")]
struct NoErasure(String);

#[derive(Debug, thiserror::Error)]
#[error("{0} of the erasures are not signed by a key of the receiver")]
struct NotSigned(usize);

#[derive(Debug, thiserror::Error)]
#[error("the list of erasures was altered, it lacks {0}")]
struct NotListed(String);

fn selector(
    session: Option<String>,
    user: Option<String>,
    machine: Option<String>,
) -> Result<Selector, Failure> {
    match (session, user, machine) {
        (Some(id), _, _) => Selector::session(&id).map_err(Failure::usage),
        (_, Some(name), _) => Ok(Selector::User(name)),
        (_, _, machine) => Ok(Selector::Machine(machine.unwrap_or_default())),
    }
}

fn noun<N: PartialEq + From<u8>>(count: N, one: &'static str, many: &'static str) -> &'static str {
    if count == N::from(1) { one } else { many }
}

fn now() -> SystemTime {
    SystemClock.now()
}

/// Lets the server execute a request, or if none runs, this process.
fn request(data: &Data, request: LifeRequest, why: &str) -> Result<LifeResponse, Failure> {
    let registry = Arc::new(data.open()?);
    let id = HEXLOWER.encode(&random()?[..8]);
    let reason = Reason { who: who(), why: why.to_owned() };
    let open = || {
        let mut options = FileStoreOptions::default();
        // The store is closed once the request is completed, however long that takes.
        options.close_within = CLOSE_WITHIN;
        match FileStore::open_with_registry(&data.directory, options, registry) {
            Ok(store) => Ok(Some(store)),
            // The server executes it.
            Err(OpenError::InUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let answer = life::execute(&data.directory, &id, request, reason, LIMIT, open);
    match answer.map_err(Failure::failed)? {
        LifeResponse::Refused(why) => Err(Failure::failed(Refused(why))),
        answer => Ok(answer),
    }
}

impl Erase {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let selector = match selector(self.selection.session, self.selection.user, None)? {
            Selector::Session(id) if self.with_mentions => Selector::Mentions(id),
            selector => selector,
        };
        let answer = request(&self.data, LifeRequest::Erase(selector), &self.reason)?;
        if self.json {
            return output::json(&answer);
        }
        let LifeResponse::Erased { id, entries, epochs, mentions, mentioned } = answer else {
            return Ok(());
        };
        let (entry, epoch) = (noun(entries, "entry", "entries"), noun(epochs, "epoch", "epochs"));
        output::line(&format!("erased {entries} {entry} of {epochs} {epoch}, erasure {id}"))?;
        if mentioned == 0 {
            return Ok(());
        }
        let text = match mentioned {
            1 => {
                "1 entry of another session contains the id and stays (to erase it: --with-mentions):"
            }
            _ => &format!(
                "{mentioned} entries of other sessions contain the id and stay (to erase them: --with-mentions):"
            ),
        };
        output::line(text)?;
        let row = |it: Mention| [it.machine, it.of, it.entries.to_string()];
        let rows: Vec<_> = mentions.into_iter().map(row).collect();
        output::table(["MACHINE", "PART OF", "ENTRIES"], &rows)
    }
}

impl Erasures {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(),
            Self::Repeat(repeat) => repeat.execute(),
            Self::End(end) => end.execute(),
        }
    }
}

impl Repeat {
    fn execute(self) -> Result<(), Failure> {
        let answer = request(&self.data, LifeRequest::RepeatErasures, "")?;
        if self.json {
            return output::json(&answer);
        }
        let LifeResponse::Repeated { erasures, entries, held } = answer else { return Ok(()) };
        let entry = noun(entries, "entry", "entries");
        let names =
            if erasures.is_empty() { String::new() } else { format!(", {}", erasures.join(", ")) };
        output::line(&format!("erased {entries} later {entry}{names}"))?;
        if held > 0 {
            let place = noun(held, "place", "places");
            output::line(&format!("later entries in {held} {place} stay: a hold covers them"))?;
        }
        Ok(())
    }
}

impl End {
    fn execute(self) -> Result<(), Failure> {
        self.data.open()?;
        let directory = &self.data.directory;
        // What cannot be logged is not done.
        log(directory, AccessAction::EraseEnd, &format!("erasure {}", self.id), &self.reason)?;
        match life::end_erasure(directory, &self.id).map_err(Failure::failed)? {
            true => output::line(&format!("ended erasure {}", self.id)),
            false => Err(Failure::failed(NoErasure(self.id))),
        }
    }
}

impl List {
    fn execute(self) -> Result<(), Failure> {
        let list = self;
        let registry = list.data.open()?;
        let mut keys = registry.receiver_keys_view().map(public_keys).unwrap_or_default();
        let mut discarded = Vec::new();
        for former in registry.former_receiver_keys()? {
            if former.discarded { &mut discarded } else { &mut keys }.push(former.key);
        }
        let erasures = life::erasures(&list.data.directory, &keys, &discarded);
        let erasures = erasures.map_err(Failure::failed)?;
        if list.json {
            output::json(&erasures)?;
        } else {
            let rows: Vec<_> = erasures
                .iter()
                .map(|view| {
                    let it = &view.erasure;
                    let signed = match (view.is_signed, view.is_signed_by_discarded) {
                        (true, _) => "ok",
                        (_, true) => "discarded",
                        _ => "FAIL",
                    };
                    let in_force = if view.is_in_force { "yes" } else { "no" };
                    [
                        it.id.clone(),
                        it.at.clone(),
                        it.who.clone(),
                        it.selector.to_string(),
                        it.entries.to_string(),
                        in_force.to_owned(),
                        signed.to_owned(),
                        it.reason.clone(),
                    ]
                })
                .collect();
            let head =
                ["ERASURE", "AT", "WHO", "WHAT", "ENTRIES", "IN FORCE", "SIGNATURE", "REASON"];
            output::table(head, &rows)?;
        }
        let unlisted = life::unlisted_erasures(&list.data.directory).map_err(Failure::failed)?;
        if !unlisted.is_empty() {
            let text = |(id, count)| format!("{id} ({count} {})", noun(count, "entry", "entries"));
            let texts: Vec<_> = unlisted.into_iter().map(text).collect();
            return Err(Failure::failed(NotListed(texts.join(", "))));
        }
        let is_unsigned = |view: &&ErasureView| !view.is_signed && !view.is_signed_by_discarded;
        match erasures.iter().filter(is_unsigned).count() {
            0 => Ok(()),
            count => Err(Failure::failed(NotSigned(count))),
        }
    }
}

fn public_keys(keys: ReceiverKeysView) -> Vec<siem_protocol::note::VerifierKey> {
    std::iter::once(keys.current).chain(keys.next).chain(keys.retired).collect()
}

impl HoldCommand {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Add(add) => add.execute(),
            Self::Remove(remove) => remove.execute(),
            Self::List(list) => list.execute(),
        }
    }
}

impl AddHold {
    fn execute(self) -> Result<(), Failure> {
        self.data.open()?;
        let HeldSelection { session, user, machine } = self.selection;
        let selector = selector(session, user, machine)?;
        let directory = &self.data.directory;
        log(directory, AccessAction::HoldAdd, &selector.to_string(), &self.reason)?;
        let at = humantime::format_rfc3339_millis(now()).to_string();
        let hold = Hold { id: 0, selector, reason: self.reason, who: who(), at };
        let id = Holds::add(directory, hold).map_err(Failure::failed)?;
        output::line(&format!("hold {id}"))
    }
}

impl RemoveHold {
    fn execute(self) -> Result<(), Failure> {
        self.data.open()?;
        let directory = &self.data.directory;
        let holds = Holds::read(directory).map_err(Failure::failed)?;
        let hold = holds.list().iter().find(|hold| hold.id == self.id);
        let hold = hold.ok_or_else(|| Failure::failed(NoHold(self.id)))?;
        // What cannot be logged is not done.
        log(directory, AccessAction::HoldRemove, &hold.selector.to_string(), &self.reason)?;
        let removed = Holds::remove(directory, self.id).map_err(Failure::failed)?;
        removed.ok_or_else(|| Failure::failed(NoHold(self.id)))?;
        output::line(&format!("removed hold {}", self.id))
    }
}

impl ListHolds {
    fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        let holds = Holds::read(&self.data.directory).map_err(Failure::failed)?;
        if self.json {
            return output::json(&holds.list());
        }
        let row = |hold: &Hold| {
            let Hold { id, selector, reason, who, at } = hold.clone();
            [id.to_string(), at, who, selector.to_string(), reason]
        };
        let rows: Vec<_> = holds.list().iter().map(row).collect();
        output::table(["HOLD", "AT", "WHO", "WHAT", "REASON"], &rows)
    }
}

impl RetentionLimits {
    fn policy(self) -> Result<RetentionPolicy, Failure> {
        let Self { config, max_age, max_bytes } = self;
        let Some(file) = config else { return Ok(RetentionPolicy { max_age, max_bytes }) };
        let inputs = Inputs { file: Some(file), is_file_optional: false, ..Inputs::default() };
        let loaded = load(&inputs).map_err(|problems| Failure::failed(Problems(problems)))?;
        Ok(loaded.settings.retention.policy())
    }
}

impl Retention {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Plan(plan) => plan.execute(),
            Self::Apply(apply) => apply.execute(),
        }
    }
}

impl ApplyRetention {
    fn execute(self) -> Result<(), Failure> {
        let Self { plan: PlanRetention { data, limits, json }, reason } = self;
        let removal = LifeRequest::ApplyRetention(limits.policy()?);
        let LifeResponse::Removals(removals) = request(&data, removal, &reason)? else {
            return Ok(());
        };
        print_removals(&removals, json)
    }
}

impl PlanRetention {
    fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        self.data.continue_as_owner()?;
        let removals = life::plan(&self.data.directory, &self.limits.policy()?, now());
        print_removals(&removals.map_err(Failure::failed)?, self.json)
    }
}

fn print_removals(removals: &[life::Removal], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&removals);
    }
    let row = |it: &life::Removal| {
        let cause = match it.cause {
            life::RemovalCause::Age => "age",
            life::RemovalCause::Size => "size",
        };
        let part = if it.before.is_some() { ", oldest entries" } else { "" };
        let (machine, epoch) = (it.machine.clone(), it.epoch.clone());
        [machine, epoch, it.last_seen.clone(), it.bytes.to_string(), format!("{cause}{part}")]
    };
    let rows: Vec<_> = removals.iter().map(row).collect();
    output::table(["MACHINE", "EPOCH", "LAST BATCH", "BYTES", "LIMIT"], &rows)
}
