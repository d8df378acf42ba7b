//! The steps from the list of releases to a verified file.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use siem_protocol::{
    Identity,
    agent_event::UpdateReason,
    minisign::{MinisignError, OrganisationKey},
    update::{ArtifactError, Platform, TrustedComment, UpdateRelease, Version},
};
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    download::{Download, Limits},
    download_lock::DownloadLock,
    error::UpdateError,
    policy::{Decision, Situation, Wish, decide, needs_groups},
    state::StoredState,
};
use crate::{
    platform::{file, own_program, secure_file, user_groups},
    siem::{Connection, releases::ReleasesError},
    text::causes,
};

/// Longest time of a request for the list of releases.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Start of the third line of a signature.
const TRUSTED: &str = "trusted comment: ";

/// Finds and downloads releases for one agent.
#[derive(Clone)]
pub(crate) struct Updater {
    /// Connection to the receiver that has the releases.
    pub(crate) connection: Connection,
    /// Keys of the organisation, one of which must have signed a release.
    pub(crate) keys: Vec<OrganisationKey>,
    /// Machine, platform and version of the agent.
    pub(crate) identity: Identity,
    /// Directory of downloads.
    pub(crate) dir: PathBuf,
    /// Directory of the program, to which a release is copied; `None` if it is unknown.
    pub(crate) program_dir: Option<PathBuf>,
    /// Limits of a download.
    pub(crate) limits: Limits,
}

impl Updater {
    /// Asks the receiver for releases, and decides which one is meant for this machine.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub(crate) async fn check(
        &self,
        wish: Wish,
        rolled_back: &[Version],
    ) -> Result<Decision, UpdateError> {
        let version = self.version()?;
        let asked = match wish {
            Wish::Command { allows_downgrade: true } => None,
            _ => Some(&*self.identity.agent_version),
        };
        let Some(manifest) = self.connection.releases(asked, REQUEST_TIMEOUT).await? else {
            return Ok(Decision::Current);
        };
        let (offered, platform) = (manifest.platform(), self.platform()?);
        if offered != platform {
            let detail = format!("the list of releases is for `{offered}`, expected `{platform}`");
            return Err(UpdateError::refused(UpdateReason::OtherArtifact, detail));
        }
        // The roll-out does not count for a command.
        let is_staged = matches!(wish, Wish::Mode(_)) && needs_groups(&manifest.releases, &version);
        let groups = match is_staged {
            true => groups().await?,
            false => Vec::new(),
        };
        let (machine_id, groups) = (&*self.identity.machine_id, &*groups);
        let situation = Situation { version: &version, machine_id, groups, rolled_back, wish };
        Ok(decide(&manifest.releases, &situation))
    }

    /// Downloads a release to the directory of `lock`, verifies it, and returns the path of the file.
    ///
    /// # Errors
    /// [`UpdateError`]: there is no such file.
    pub(crate) async fn fetch(
        &self,
        lock: &DownloadLock,
        release: &UpdateRelease,
        state: &mut StoredState,
    ) -> Result<PathBuf, UpdateError> {
        let platform = self.platform()?;
        check_signature_text(release, &platform, &self.keys)?;
        let dir = lock.dir();
        let staged = dir.join(release.artifact.as_str());
        if self.verify(&staged, release, &platform).await.is_ok() {
            return Ok(staged);
        }
        let Self { connection, program_dir, limits, .. } = self;
        let program_dir = program_dir.as_deref();
        let download = Download { connection, release, dir, program_dir, limits: *limits };
        let part = download.run(state).await?;
        let verified = self.verify(&part, release, &platform).await;
        state.download = None;
        let renamed = match verified {
            Ok(()) => rename(&part, &staged).await,
            refused => refused,
        };
        renamed.inspect_err(|_| drop(fs::remove_file(&part)))?;
        // A power cut that undoes the rename costs a download.
        drop(secure_file::sync_dir(dir));
        Ok(staged)
    }

    async fn verify(
        &self,
        path: &Path,
        release: &UpdateRelease,
        platform: &Platform,
    ) -> Result<(), UpdateError> {
        let (path, release) = (path.to_owned(), release.clone());
        let (platform, keys) = (platform.clone(), self.keys.clone());
        let verify = move || {
            let opened = own_program::retry_busy(|| file::open_regular(&path));
            let opened =
                opened.map_err(|error| UpdateError::file("cannot open the download", &error))?;
            let (file, _) = opened.ok_or_else(|| {
                UpdateError::failed(UpdateReason::Install, "the download is not a regular file")
            })?;
            Ok(release.verify(&platform, &keys, file)?)
        };
        spawn_blocking(verify).await.unwrap_or_else(|error| {
            Err(UpdateError::failed(UpdateReason::Install, error.to_string()))
        })
    }

    /// Returns the version of this agent.
    ///
    /// # Errors
    /// It is none that can be compared with others.
    pub(crate) fn version(&self) -> Result<Version, UpdateError> {
        let version = &self.identity.agent_version;
        version.parse().map_err(|error| {
            let detail = format!("the version `{version}` of this agent is {error}");
            UpdateError::failed(UpdateReason::Install, detail)
        })
    }

    fn platform(&self) -> Result<Platform, UpdateError> {
        let Identity { os, arch, .. } = &self.identity;
        Platform::new(os, arch).ok_or_else(|| {
            let detail = format!("there are no releases for `{os} {arch}`");
            UpdateError::failed(UpdateReason::Install, detail)
        })
    }
}

impl From<ReleasesError> for UpdateError {
    fn from(error: ReleasesError) -> Self {
        let detail = causes(&error);
        match error {
            ReleasesError::Unreachable { .. }
            | ReleasesError::Status { .. }
            | ReleasesError::Foreign(_) => Self::unavailable(UpdateReason::Download, detail),
            ReleasesError::Manifest(_) => Self::refused(UpdateReason::Manifest, detail),
        }
    }
}

/// Renames a verified download. Waits for a virus scanner that holds it.
async fn rename(part: &Path, staged: &Path) -> Result<(), UpdateError> {
    let (part, staged) = (part.to_owned(), staged.to_owned());
    let rename = move || own_program::retry_busy(|| fs::rename(&part, &staged));
    let renamed = spawn_blocking(rename).await.unwrap_or_else(|error| Err(error.into()));
    renamed.map_err(|error| UpdateError::file("cannot rename the download", &error))
}

/// Checks what the text of a signature says, which is proven only with the file: a release that will be
/// refused is not downloaded.
fn check_signature_text(
    release: &UpdateRelease,
    platform: &Platform,
    keys: &[OrganisationKey],
) -> Result<(), UpdateError> {
    let Some(minisig) = &release.minisig else {
        return Err(UpdateError::refused(UpdateReason::Unsigned, "the release is not signed"));
    };
    let mut results = keys.iter().map(|key| key.verify(b"", minisig));
    match results.find(|result| *result != Err(MinisignError::UnknownKey)) {
        None => {
            let detail = "the release is signed by none of `update.keys`";
            return Err(UpdateError::refused(UpdateReason::UnknownKey, detail));
        }
        // It may be the signature of the file, which is not there yet.
        Some(Ok(_) | Err(MinisignError::WrongSignature)) => {}
        Some(Err(error)) => return Err(ArtifactError::Signature(error).into()),
    }
    let (version, platform) = (release.version.clone(), platform.clone());
    let expected = TrustedComment { version, platform }.to_string();
    let found = minisig.lines().nth(2).and_then(|line| line.strip_prefix(TRUSTED));
    match found {
        Some(found) if found != expected => {
            let found = crate::text::summary(found);
            let detail = format!("the signature is for `{found}`, expected `{expected}`");
            Err(UpdateError::refused(UpdateReason::OtherArtifact, detail))
        }
        _ => Ok(()),
    }
}

/// Returns the groups of the user, which may need a directory service.
async fn groups() -> Result<Vec<String>, UpdateError> {
    let unknown = |error: String| {
        let detail = format!("the groups of the user are not known: {error}");
        UpdateError::unavailable(UpdateReason::OtherGroup, detail)
    };
    match timeout(REQUEST_TIMEOUT, spawn_blocking(user_groups)).await {
        Ok(Ok(groups)) => groups.map_err(|error| unknown(error.to_string())),
        Ok(Err(error)) => Err(unknown(error.to_string())),
        Err(error) => Err(unknown(error.to_string())),
    }
}
