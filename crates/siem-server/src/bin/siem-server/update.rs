//! `siem-server update`.

use std::{fs, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use siem_protocol::{
    minisign::OrganisationKey,
    update::{ArtifactError, CatalogRelease, ReleaseCatalog, Rollout, Version},
};
use siem_server::{
    run::release_folder,
    updates::{
        AddError, EditError, ReleaseFolder, RemoveError, add_releases, edit_catalog, remove_release,
    },
};

use crate::{
    as_owner::continue_as_owner,
    config::{ConfigSource, Problems},
    failure::Failure,
    output,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    List(List),
    Add(Add),
    Rollout(SetRollout),
    Remove(Remove),
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(),
            Self::Add(add) => add.execute(),
            Self::Rollout(rollout) => rollout.execute(),
            Self::Remove(remove) => remove.execute(),
        }
    }
}

/// Folder with the releases.
#[derive(Args)]
struct FolderSource {
    /// Configuration file of the receiver, for `update.dist` and its data directory [default:
    /// /etc/siem-server/config.toml if it exists]
    #[arg(long, env = "SIEM_SERVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory of the receiver, in place of `store.directory`
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Folder with the releases, in place of `update.dist`
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "data"])]
    dist: Option<PathBuf>,
}

impl FolderSource {
    fn folder(&self) -> Result<ReleaseFolder, Failure> {
        if let Some(dist) = &self.dist {
            return Ok(ReleaseFolder::new(dist));
        }
        let source = ConfigSource::of(self.config.clone(), self.data.clone());
        let loaded = source.load().map_err(|found| Failure::failed(Problems(found)))?;
        Ok(release_folder(&loaded.settings))
    }

    /// Returns the folder to change, as the owner of what is there.
    fn folder_to_change(&self) -> Result<ReleaseFolder, Failure> {
        let folder = self.folder()?;
        let path = folder.path();
        let found = fs::metadata(&path).or_else(|_| match path.parent() {
            Some(parent) => fs::metadata(parent),
            None => fs::metadata(&path),
        });
        // The command reports a folder that cannot be read.
        found.map_or(Ok(()), |found| continue_as_owner(&found))?;
        Ok(folder)
    }
}

/// List the releases, and verify that their artifacts are there and as listed
///
/// The exit code is 1 if an artifact is missing or differs.
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    source: FolderSource,
    /// Public key of the organisation, as text or file, to verify signatures with; may be given several times
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An artifact with what is wrong with it.
#[derive(Serialize)]
struct ListedArtifact {
    version: Version,
    published_at: String,
    rollout: Rollout,
    os: String,
    arch: String,
    artifact: String,
    size: u64,
    signed: bool,
    problem: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} of the artifacts must not be served")]
struct BrokenArtifacts(usize);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` has no manifest.json (run: siem-server update add DIR)")]
struct NoReleases(PathBuf);

impl List {
    fn execute(self) -> Result<(), Failure> {
        let (folder, keys) = (self.source.folder()?, read_keys(&self.keys)?);
        let catalog = folder.catalog().map_err(Failure::failed)?;
        let mut catalog = catalog.ok_or_else(|| Failure::failed(NoReleases(folder.path())))?;
        catalog.releases.sort_by(|a, b| b.version.cmp(&a.version));
        let listed = listed(&folder, &catalog, &keys);
        match self.json {
            true => output::json(&listed)?,
            false => {
                let rows: Vec<_> = listed.iter().map(cells).collect();
                let head = ["VERSION", "ROLL-OUT", "ARTIFACT", "SIZE", "SIGNED", "PROBLEM"];
                output::table(head, &rows)?;
            }
        }
        match listed.iter().filter(|it| it.problem.is_some()).count() {
            0 => Ok(()),
            broken => Err(Failure::failed(BrokenArtifacts(broken))),
        }
    }
}

fn listed(
    folder: &ReleaseFolder,
    catalog: &ReleaseCatalog,
    keys: &[OrganisationKey],
) -> Vec<ListedArtifact> {
    let artifacts = catalog
        .releases
        .iter()
        .flat_map(|release| release.artifacts.iter().map(move |artifact| (release, artifact)));
    let list = |(release, artifact): (&CatalogRelease, &siem_protocol::update::CatalogArtifact)| {
        let offered = release.with(artifact);
        let verify = || -> Result<(), String> {
            let opened = folder.open(&artifact.artifact).map_err(|error| causes(&error))?;
            let file = opened.ok_or("it is not listed any more")?.file;
            let verified = match keys {
                [] => offered.verify_hash(file),
                keys => offered.verify(&artifact.platform(), keys, file),
            };
            verified.map_err(|error: ArtifactError| causes(&error))
        };
        ListedArtifact {
            version: release.version.clone(),
            published_at: release.published_at.clone(),
            rollout: release.rollout.clone(),
            os: artifact.platform().os().to_owned(),
            arch: artifact.platform().arch().to_owned(),
            artifact: artifact.artifact.to_string(),
            size: artifact.size,
            signed: artifact.minisig.is_some(),
            problem: verify().err(),
        }
    };
    artifacts.map(list).collect()
}

fn causes(error: &dyn std::error::Error) -> String {
    let source = error.source();
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {}", causes(source)))
}

fn cells(listed: &ListedArtifact) -> [String; 6] {
    [
        listed.version.to_string(),
        rollout(&listed.rollout),
        listed.artifact.clone(),
        output::size(listed.size),
        if listed.signed { "yes" } else { "NO" }.to_owned(),
        listed.problem.clone().unwrap_or_default(),
    ]
}

/// Formats a roll-out: `10 % of dev, ops`.
fn rollout(rollout: &Rollout) -> String {
    let Rollout { percent, groups, halted } = rollout;
    let of = if groups.is_empty() { String::new() } else { format!(" of {}", groups.join(", ")) };
    format!("{percent} %{of}{}", if *halted { ", halted" } else { "" })
}

/// Reads keys, each the text of one or the name of a file.
fn read_keys(keys: &[String]) -> Result<Vec<OrganisationKey>, Failure> {
    let read = |key: &String| match key.parse() {
        Ok(key) => Ok(key),
        Err(_) => {
            let failed = |source| Failure::usage(KeyFileError { path: key.into(), source });
            fs::read_to_string(key).map_err(failed)?.parse().map_err(Failure::usage)
        }
    };
    keys.iter().map(read).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("`{path}` is neither a minisign public key nor a file with one")]
struct KeyFileError {
    path: PathBuf,
    source: std::io::Error,
}

/// Add the releases of a folder, such as one that `cargo xtask dist` wrote
///
/// Verifies sizes and hashes, copies the artifacts, and adds the releases to the manifest. A version that is
/// there keeps its artifacts and its roll-out. A running receiver notices it with the next request.
#[derive(Args)]
pub(crate) struct Add {
    #[command(flatten)]
    source: FolderSource,
    /// Folder with artifacts and their manifest.json
    folder: PathBuf,
    /// Part of the machines that a new release goes to, 0 to 100
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: u8,
    /// Public key of the organisation, as text or file, to verify signatures with; may be given several times
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
}

impl Add {
    fn execute(self) -> Result<(), Failure> {
        let (folder, keys) = (self.source.folder_to_change()?, read_keys(&self.keys)?);
        let added = add_releases(&folder, &self.folder, self.percent, &keys);
        for release in added.map_err(add_failure)? {
            let names: Vec<_> = release.artifacts.iter().map(ToString::to_string).collect();
            if names.is_empty() {
                output::line(&format!("{}: unchanged", release.version))?;
                continue;
            }
            let rollout = rollout(&release.rollout);
            output::line(&format!("{}: {} ({rollout})", release.version, names.join(", ")))?;
            if release.is_unsigned {
                let version = release.version;
                output::note(&format!(
                    "warning: {version} has unsigned artifacts, which agents refuse"
                ));
            }
        }
        Ok(())
    }
}

fn add_failure(error: EditError<AddError>) -> Failure {
    match error {
        EditError::Refused(error) => Failure::failed(error),
        error => Failure::failed(error),
    }
}

/// Set which machines a release goes to
///
/// A machine that is among 10 % is also among 20 %; another version begins with other machines. Machines that
/// installed the release keep it. A running receiver notices the change with the next request, and agents with
/// their next check.
#[derive(Args)]
pub(crate) struct SetRollout {
    #[command(flatten)]
    source: FolderSource,
    /// Version of the release
    version: Version,
    /// Part of the machines, 0 to 100
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100),
        required_unless_present_any = ["groups", "no_groups", "halt", "resume"])]
    percent: Option<u8>,
    /// Only users in this group of the system; may be given several times, replaces the groups before
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Users in any group
    #[arg(long, conflicts_with = "groups")]
    no_groups: bool,
    /// Let no machine install the release
    #[arg(long)]
    halt: bool,
    /// Continue a roll-out that was halted
    #[arg(long, conflicts_with = "halt")]
    resume: bool,
}

/// Error of a version that is not there.
#[derive(Debug, thiserror::Error)]
#[error("there is no release {0} (run: siem-server update list)")]
struct UnknownVersion(Version);

impl SetRollout {
    fn execute(self) -> Result<(), Failure> {
        let folder = self.source.folder_to_change()?;
        let release = edit_catalog(&folder, |_, catalog| self.change(catalog));
        let release = release.map_err(|error| match error {
            EditError::Refused(unknown) => Failure::usage(unknown),
            error => Failure::failed(error),
        })?;
        if release.artifacts.iter().any(|artifact| artifact.minisig.is_none()) {
            let version = &release.version;
            output::note(&format!(
                "warning: {version} has unsigned artifacts, which agents refuse"
            ));
        }
        output::line(&format!("{}: {}", release.version, rollout(&release.rollout)))
    }

    fn change(&self, catalog: &mut ReleaseCatalog) -> Result<CatalogRelease, UnknownVersion> {
        let found = catalog.releases.iter_mut().find(|it| it.version == self.version);
        let release = found.ok_or_else(|| UnknownVersion(self.version.clone()))?;
        let rollout = &mut release.rollout;
        rollout.percent = self.percent.unwrap_or(rollout.percent);
        if self.no_groups || !self.groups.is_empty() {
            rollout.groups.clone_from(&self.groups);
        }
        rollout.halted = self.halt || (rollout.halted && !self.resume);
        Ok(release.clone())
    }
}

/// Remove a release and its artifacts
///
/// Machines that installed it keep it, and no other machine gets it. A running receiver notices the change with
/// the next request.
#[derive(Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    source: FolderSource,
    /// Version of the release
    version: Version,
}

impl Remove {
    fn execute(self) -> Result<(), Failure> {
        let folder = self.source.folder_to_change()?;
        let removed = remove_release(&folder, &self.version).map_err(|error| match error {
            EditError::Refused(unknown @ RemoveError::Unknown(_)) => Failure::usage(unknown),
            error => Failure::failed(error),
        })?;
        let names: Vec<_> = removed.artifacts.iter().map(|it| it.artifact.to_string()).collect();
        output::line(&format!("removed {}: {}", removed.version, names.join(", ")))
    }
}
