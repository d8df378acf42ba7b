//! Releases from a server that lies, breaks off and dribbles.

use std::{fs, time::Duration};

use siem_protocol::{
    Digest, Identity,
    agent_event::{UpdateMode, UpdateReason},
    update::UpdateRelease,
};
use siem_sinks::http::ClientSettings;
use test_support::{
    minisign::Minisign,
    release_server::{Fault, ReleaseServer, platform, release},
};

use super::*;
use crate::{
    config::Secret,
    siem::{Connection, Revision},
};

const SECRET: &str = "a secret of the fleet";

/// A program that is longer than one piece of a response.
fn program() -> Vec<u8> {
    (0..300_000_u32).map(|at| (at % 251) as u8).collect()
}

fn key() -> Minisign {
    Minisign::new(7)
}

/// An agent with a directory of its own.
struct Agent {
    server: ReleaseServer,
    dir: tempfile::TempDir,
    limits: Limits,
}

impl Agent {
    fn new() -> Self {
        let limits = Limits { free_space: |_| None, ..Limits::default() };
        Self { server: ReleaseServer::start(), dir: tempfile::tempdir().unwrap(), limits }
    }

    fn updater(&self) -> Updater {
        self.updater_at(&self.server.url())
    }

    fn updater_at(&self, url: &str) -> Updater {
        let settings = ClientSettings {
            connect_timeout: Duration::from_secs(5),
            ignores_environment: true,
            ..ClientSettings::default()
        };
        let identity = Identity {
            machine_id: "m-1".to_owned(),
            hostname: "h".to_owned(),
            user: "u".to_owned(),
            os: platform().os().to_owned(),
            arch: platform().arch().to_owned(),
            agent_version: "0.2.0".to_owned(),
        };
        let secret = || Secret::new(SECRET).unwrap();
        let connection = Connection::new(
            settings.client().unwrap(),
            url.parse().unwrap(),
            secret(),
            secret(),
            identity.clone(),
            Revision::default(),
        );
        let keys =
            vec![Minisign::new(6).public().parse().unwrap(), key().public().parse().unwrap()];
        let dir = self.dir.path().join("update");
        let program_dir = Some(self.dir.path().to_owned());
        Updater { connection, keys, identity, dir, program_dir, limits: self.limits }
    }

    async fn check(&self) -> Result<Decision, UpdateError> {
        self.updater().check(Wish::Mode(UpdateMode::Install), &[]).await
    }

    /// Fetches a release as an agent does that was started since the last attempt.
    async fn fetch(&self, release: &UpdateRelease) -> Result<Vec<u8>, UpdateError> {
        let updater = self.updater();
        let mut state = StoredState::read(&updater.dir);
        let lock = DownloadLock::take(&updater.dir)?;
        let fetched = updater.fetch(&lock, release, &mut state).await;
        state.write(&updater.dir).unwrap();
        fetched.map(|path| fs::read(path).unwrap())
    }

    /// Returns the names of downloads, whole or not.
    fn downloads(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("update")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("ai-agent")).collect()
    }

    fn part(&self, release: &UpdateRelease) -> std::path::PathBuf {
        self.dir.path().join(format!("update/{}.part", release.artifact))
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, UpdateError>) -> (&'static str, &'static str) {
    let error = result.unwrap_err();
    let kind = match error {
        UpdateError::Unavailable { .. } => "unavailable",
        UpdateError::Refused { .. } => "refused",
        UpdateError::Failed { .. } => "failed",
    };
    (kind, error.reason().as_str())
}

#[tokio::test]
async fn release_is_found_downloaded_and_verified() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    assert_eq!(agent.check().await.unwrap(), Decision::Current, "there is no list");
    agent.server.releases.offer(std::slice::from_ref(&release));
    assert_eq!(agent.check().await.unwrap(), Decision::Available(Box::new(release.clone())));
    let query = format!("os={}&arch={}&version=0.2.0", platform().os(), platform().arch());
    assert_eq!(agent.server.releases.queries(), [query.clone(), query]);
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
    assert_eq!(agent.server.releases.requests().len(), 1, "a verified file is not fetched again");
    assert_eq!(agent.downloads(), [release.artifact.to_string()]);
}

#[tokio::test]
async fn list_for_another_platform_or_of_another_form_is_refused() {
    let agent = Agent::new();
    let offer = |text: &str| agent.server.releases.offer_text(text);
    offer(r#"{"v":1,"os":"plan9","arch":"x86_64","releases":[]}"#);
    assert_eq!(reason(agent.check().await), ("refused", "other_artifact"));
    let huge = format!("{{\"v\":1,\"pad\":\"{}\"}}", "x".repeat(70_000));
    for text in ["", "[]", "{\"v\":1}", "<html>", "{\"v\":2,\"releases\":[]}", &huge] {
        offer(text);
        // A captive portal responds like this.
        assert_eq!(reason(agent.check().await), ("unavailable", "download"), "{text}");
    }
    agent.server.releases.sign_with(SECRET);
    for text in ["", "[]", "{\"v\":1}", "{\"v\":2,\"releases\":[]}", &huge] {
        offer(text);
        let expected =
            if text == huge { ("unavailable", "download") } else { ("refused", "manifest") };
        assert_eq!(reason(agent.check().await), expected, "{text}");
    }
}

/// Everything that the holder of a receiver can change in a list of releases and in files.
#[tokio::test]
async fn release_that_the_organisation_did_not_sign_is_refused() {
    let program = program();
    let honest = || release("0.3.0", &program, &key());
    let older = || key().sign(&program, &format!("ai-agent 0.1.0 {}", platform()));
    let other_os = || key().sign(&program, "ai-agent 0.3.0 plan9 x86_64");
    let with = |minisig: String| UpdateRelease { minisig: Some(minisig), ..honest() };
    let altered = [&program[..program.len() - 1], b"!"].concat();
    // The release, the file that is served, the reason, and the number of requests for the file.
    let cases: Vec<(UpdateRelease, &[u8], &str, usize)> = vec![
        (UpdateRelease { size: honest().size + 1, ..honest() }, &program, "wrong_size", 1),
        (UpdateRelease { size: honest().size - 1, ..honest() }, &program, "wrong_size", 1),
        (UpdateRelease { sha256: Digest::ZERO, ..honest() }, &program, "wrong_hash", 1),
        (honest(), &altered, "wrong_hash", 1),
        (
            UpdateRelease { sha256: Digest::of(&altered), ..honest() },
            &altered,
            "wrong_signature",
            1,
        ),
        (release("0.3.0", &program, &Minisign::new(8)), &program, "unknown_key", 0),
        (with(older()), &program, "other_artifact", 0),
        (with(other_os()), &program, "other_artifact", 0),
        // The comment of another signature in place of its own.
        (with(older().replace("0.1.0", "0.3.0")), &program, "wrong_signature", 1),
        (with("untrusted comment: x".to_owned()), &program, "wrong_signature", 0),
        (UpdateRelease { minisig: None, ..honest() }, &program, "unsigned", 0),
        // Another version under the name of this one.
        (
            UpdateRelease { version: "0.4.0".parse().unwrap(), ..honest() },
            &program,
            "other_artifact",
            0,
        ),
    ];
    for (release, file, expected, requests) in cases {
        let agent = Agent::new();
        agent.server.releases.serve(&release, file, "e1");
        assert_eq!(reason(agent.fetch(&release).await), ("refused", expected));
        assert_eq!(agent.server.releases.requests().len(), requests, "{expected}");
        assert_eq!(agent.downloads(), Vec::<String>::new(), "{expected}");
    }
}

#[tokio::test]
async fn file_that_never_ends_is_refused_at_its_size() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    agent.server.releases.fault(Fault::Longer(1 << 20));
    assert_eq!(reason(agent.fetch(&release).await), ("refused", "wrong_size"));
    assert_eq!(agent.downloads(), Vec::<String>::new());
}

#[tokio::test]
async fn download_is_resumed_after_a_cut() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    for count in [100_000, 50_000] {
        agent.server.releases.fault(Fault::CutAfter(count));
    }
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
    let ranges: Vec<_> = agent.server.releases.requests().into_iter().map(|it| it.range).collect();
    let rest = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(ranges, [None, rest(100_000), rest(150_000)]);
}

#[tokio::test]
async fn download_is_resumed_after_a_restart() {
    let (mut agent, program) = (Agent::new(), program());
    agent.limits.attempts = 1;
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    agent.server.releases.fault(Fault::CutAfter(100_000));
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "download"));
    // A receiver that refuses for a while costs nothing.
    agent.server.releases.fault(Fault::Status(503));
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "download"));
    assert_eq!(fs::metadata(agent.part(&release)).unwrap().len(), 100_000);
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
    let last = agent.server.releases.requests().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=100000-"));
    assert_eq!(last.if_range.as_deref(), Some("\"e1\""));
}

#[tokio::test]
async fn changed_etag_or_release_starts_over() {
    let (mut agent, program) = (Agent::new(), program());
    agent.limits.attempts = 1;
    let first = release("0.3.0", &program, &key());
    agent.server.releases.serve(&first, &program, "e1");
    agent.server.releases.fault(Fault::CutAfter(100_000));
    assert_eq!(reason(agent.fetch(&first).await), ("unavailable", "download"));
    agent.server.releases.serve(&first, &program, "e2");
    agent.server.releases.fault(Fault::CutAfter(1000));
    assert_eq!(reason(agent.fetch(&first).await), ("unavailable", "download"));
    assert_eq!(fs::metadata(agent.part(&first)).unwrap().len(), 1000, "a new file");

    // The same version, built again.
    let rebuilt = [&program[..], b"again"].concat();
    let second = release("0.3.0", &rebuilt, &key());
    agent.server.releases.serve(&second, &rebuilt, "e2");
    assert_eq!(agent.fetch(&second).await.unwrap(), rebuilt);
    assert_eq!(agent.server.releases.requests().pop().unwrap().range, None);
}

#[tokio::test]
async fn wrong_part_of_a_file_is_discarded() {
    let (mut agent, program) = (Agent::new(), program());
    agent.limits.attempts = 1;
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    for fault in [Fault::OtherRange, Fault::Status(416)] {
        agent.server.releases.fault(Fault::CutAfter(100_000));
        assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "download"));
        agent.server.releases.fault(fault);
        assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "download"));
        assert_eq!(fs::metadata(agent.part(&release)).unwrap().len(), 0, "{fault:?}");
    }
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
}

#[tokio::test]
async fn damaged_part_is_refused_once_and_fetched_again() {
    let (mut agent, program) = (Agent::new(), program());
    agent.limits.attempts = 1;
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    agent.server.releases.fault(Fault::CutAfter(100_000));
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "download"));
    fs::write(agent.part(&release), vec![0; 100_000]).unwrap();
    assert_eq!(reason(agent.fetch(&release).await), ("refused", "wrong_hash"));
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
}

#[tokio::test]
async fn server_that_stalls_or_dribbles_is_given_up() {
    let (mut agent, program) = (Agent::new(), program());
    agent.limits.attempts = 1;
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    agent.limits.patience = Duration::from_millis(200);
    agent.server.releases.fault(Fault::StallAfter(1000));
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "too_slow"));
    assert_eq!(fs::metadata(agent.part(&release)).unwrap().len(), 1000);
    // Each byte comes in time, and all of them would take an hour.
    agent.limits.slowest = 1 << 20;
    agent.server.releases.fault(Fault::Dribble(Duration::from_millis(10)));
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "too_slow"));
    let present = fs::metadata(agent.part(&release)).unwrap().len();
    assert!(present > 1000 && present < 2000, "{present} bytes");
    agent.limits = Limits { free_space: |_| None, ..Limits::default() };
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
}

#[tokio::test]
async fn full_disk_fails_before_a_byte_is_requested() {
    let (mut agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    agent.limits.free_space = |_| Some(256 << 20);
    assert_eq!(reason(agent.fetch(&release).await), ("failed", "disk_full"));
    assert_eq!(agent.server.releases.requests(), []);
    assert_eq!(agent.downloads(), Vec::<String>::new());
    // That of the program is another one.
    agent.limits.free_space = |dir| Some(if dir.ends_with("update") { 300 } else { 256 } << 20);
    assert_eq!(reason(agent.fetch(&release).await), ("failed", "disk_full"));
    agent.limits.free_space = |_| Some(300 << 20);
    assert_eq!(agent.fetch(&release).await.unwrap(), program);
}

/// Regression: an agent that found no release removed the download of a command.
#[tokio::test]
async fn download_of_another_process_is_left_alone() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    let dir = agent.updater().dir;
    remove_downloads(&dir);
    assert!(!dir.try_exists().unwrap(), "nothing is created");
    agent.fetch(&release).await.unwrap();
    let lock = DownloadLock::take(&dir).unwrap();
    remove_downloads(&dir);
    assert_eq!(agent.downloads(), [release.artifact.to_string()]);
    assert_eq!(reason(agent.fetch(&release).await), ("unavailable", "busy"));
    drop(lock);
    remove_downloads(&dir);
    assert_eq!(agent.downloads(), Vec::<String>::new());
}

/// Regression: files of the user in the directory that a symlink named were taken for downloads.
#[cfg(unix)]
#[tokio::test]
async fn directory_of_downloads_is_no_symlink() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    let elsewhere = agent.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("ai-agent-notes"), "mine").unwrap();
    let dir = agent.updater().dir;
    std::os::unix::fs::symlink(&elsewhere, &dir).unwrap();
    let error = DownloadLock::take(&dir).unwrap_err();
    assert!(error.detail().contains("symbolic link"), "{error}");
    remove_downloads(&dir);
    assert!(elsewhere.join("ai-agent-notes").is_file());
    assert_eq!(reason(agent.fetch(&release).await).0, "failed");
}

#[test]
fn errors_of_files_have_a_reason() {
    use std::io::{Error, ErrorKind};
    for (kind, expected) in [
        (ErrorKind::StorageFull, UpdateReason::DiskFull),
        (ErrorKind::QuotaExceeded, UpdateReason::DiskFull),
        (ErrorKind::FileTooLarge, UpdateReason::DiskFull),
        (ErrorKind::ReadOnlyFilesystem, UpdateReason::ReadOnly),
        (ErrorKind::PermissionDenied, UpdateReason::ReadOnly),
        (ErrorKind::ExecutableFileBusy, UpdateReason::FileInUse),
    ] {
        assert_eq!(UpdateError::file("write", &Error::from(kind)).reason(), expected);
    }
}

#[tokio::test]
async fn receiver_that_is_away_is_no_failure() {
    let agent = Agent::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let updater = agent.updater_at(&format!("http://{free}/"));
    let checked = updater.check(Wish::Mode(UpdateMode::Install), &[]).await;
    assert_eq!(reason(checked), ("unavailable", "download"));
    let release = release("0.3.0", b"program", &key());
    let lock = DownloadLock::take(&updater.dir).unwrap();
    let fetched = updater.fetch(&lock, &release, &mut StoredState::default()).await;
    assert_eq!(reason(fetched), ("unavailable", "download"));
}

#[tokio::test]
async fn downgrade_asks_for_all_releases() {
    let (agent, program) = (Agent::new(), program());
    let older = release("0.1.0", &program, &key());
    agent.server.releases.offer(std::slice::from_ref(&older));
    assert_eq!(agent.check().await.unwrap(), Decision::Current);
    let back = Wish::Command { allows_downgrade: true };
    let decision = agent.updater().check(back, &[]).await.unwrap();
    assert_eq!(decision, Decision::Available(Box::new(older)));
    assert!(!agent.server.releases.queries()[1].contains("version"));
}

/// Another program of the user could direct the download to any file.
#[cfg(unix)]
#[tokio::test]
async fn download_follows_no_symlink() {
    let (agent, program) = (Agent::new(), program());
    let release = release("0.3.0", &program, &key());
    agent.server.releases.serve(&release, &program, "e1");
    let other = agent.dir.path().join("other");
    fs::write(&other, "mine").unwrap();
    fs::create_dir(agent.dir.path().join("update")).unwrap();
    std::os::unix::fs::symlink(&other, agent.part(&release)).unwrap();
    assert_eq!(reason(agent.fetch(&release).await).0, "failed");
    assert_eq!(fs::read(&other).unwrap(), b"mine");
}
