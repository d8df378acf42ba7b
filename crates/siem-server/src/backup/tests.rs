//! Tests of backups without a receiver.

use std::{fs, path::Path};

use super::*;
use crate::{
    clock::SystemClock,
    store::{DataFormat, FileStore},
};

fn data() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = data.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("format", "{\"format\":2}");
    write("lock", "");
    write("journal/000000000007.journal", "frames");
    write("machines/m/e.ndjson", "{}\n");
    write("machines/m/e.new", "half");
    write("trust/devices.ndjson", "{}\n");
    write("trust/keys/receiver.json", "secret");
    data
}

fn names(root: &Path) -> Vec<String> {
    let files = regular_files(root, &|_| false).unwrap();
    files.iter().map(|it| it.strip_prefix(root).unwrap().to_str().unwrap().to_owned()).collect()
}

fn run(data: &Path, target: &Path, with_keys: bool) -> Result<BackupSummary, BackupError> {
    backup(data, target, BackupOptions { with_keys }, &SystemClock)
}

#[test]
fn backup_has_all_files_and_private_keys_only_on_request() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let without = run(data.path(), &to.path().join("a"), false).unwrap();
    assert_eq!((without.files, without.with_keys), (4, false));
    let expected = [
        "backup.ndjson",
        "format",
        "journal/000000000007.journal",
        "machines/m/e.ndjson",
        "trust/devices.ndjson",
    ];
    assert_eq!(names(&to.path().join("a")), expected);
    assert_eq!(run(data.path(), &to.path().join("b"), true).unwrap().files, 5);
    let key = to.path().join("b/trust/keys/receiver.json");
    assert_eq!(fs::read_to_string(&key).unwrap(), "secret");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(to.path().join("b")).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let restored = to.path().join("c");
    assert_eq!(restore(&to.path().join("b"), &restored).unwrap().bytes, 6 + 3 + 3 + 6 + 12);
    assert_eq!(names(&restored)[1..], names(&to.path().join("b"))[2..]);
}

#[test]
fn nothing_is_overwritten() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let backed_up = to.path().join("a");
    run(data.path(), &backed_up, false).unwrap();
    assert!(matches!(run(data.path(), &backed_up, false), Err(BackupError::NotEmpty(_))));
    assert!(matches!(restore(&backed_up, data.path()), Err(BackupError::NotEmpty(_))));
    let inside = run(data.path(), &data.path().join("backup"), false);
    assert!(matches!(inside, Err(BackupError::Inside(_))));
    assert!(!data.path().join("backup").try_exists().unwrap());
    assert!(matches!(run(to.path(), &to.path().join("b"), false), Err(BackupError::NoData(_))));
}

/// A data directory of which a part is on another disk was backed up without this part, with exit code 0.
#[cfg(unix)]
#[test]
fn directories_behind_links_are_backed_up() {
    use std::os::unix::fs::symlink;
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let machines = data.path().join("machines");
    fs::rename(&machines, to.path().join("disk")).unwrap();
    symlink(to.path().join("disk"), &machines).unwrap();
    let backed_up = to.path().join("a");
    assert_eq!(run(data.path(), &backed_up, false).unwrap().files, 4);
    restore(&backed_up, &to.path().join("b")).unwrap();
    assert_eq!(fs::read(to.path().join("b/machines/m/e.ndjson")).unwrap(), b"{}\n");
    symlink(data.path(), machines.join("circle")).unwrap();
    let circle = run(data.path(), &to.path().join("c"), false);
    assert!(matches!(circle, Err(BackupError::Linked(_))), "{circle:?}");
}

/// Each of these blocked its reader for ever.
#[cfg(unix)]
#[test]
fn fifo_in_place_of_a_file_is_an_error() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let replace = |path: &Path| {
        drop(fs::remove_file(path));
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let backed_up = to.path().join("a");
    run(data.path(), &backed_up, false).unwrap();
    for (at, name) in ["machines/m/e.ndjson", "backup.ndjson"].iter().enumerate() {
        replace(&backed_up.join(name));
        let restored = restore(&backed_up, &to.path().join(format!("b{at}")));
        assert!(matches!(restored, Err(BackupError::Io { .. })), "{name}: {restored:?}");
    }
    replace(&data.path().join("journal/000000000008.journal"));
    let journal = run(data.path(), &to.path().join("c"), false);
    assert!(matches!(journal, Err(BackupError::Io { .. })), "{journal:?}");
}

#[test]
fn damaged_or_incomplete_backup_is_not_restored() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let backed_up = to.path().join("a");
    run(data.path(), &backed_up, false).unwrap();
    let lines = backed_up.join("machines/m/e.ndjson");
    for (at, wrong) in ["{ }", "{}", "[]\n"].iter().enumerate() {
        fs::write(&lines, wrong).unwrap();
        let restored = restore(&backed_up, &to.path().join(format!("b{at}")));
        assert!(matches!(restored, Err(BackupError::Damaged(_))), "{wrong}");
    }
    let list = backed_up.join("backup.ndjson");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, text.replace("machines/m/e.ndjson", "../../e.ndjson")).unwrap();
    let escaped = restore(&backed_up, &to.path().join("c"));
    assert!(matches!(escaped, Err(BackupError::Path(_))), "{escaped:?}");
    fs::remove_file(&list).unwrap();
    let incomplete = restore(&backed_up, &to.path().join("d"));
    assert!(matches!(incomplete, Err(BackupError::Incomplete(_))));
}

/// A receiver started with a part of the entries, without the tokens, and at level `shared`, as with a data directory of
/// release 0.1.
#[test]
fn interrupted_restoration_starts_no_receiver() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let (backed_up, target) = (to.path().join("a"), to.path().join("b"));
    run(data.path(), &backed_up, false).unwrap();
    let devices = backed_up.join("trust/devices.ndjson");
    let content = fs::read(&devices).unwrap();
    fs::write(&devices, "damaged").unwrap();
    restore(&backed_up, &target).unwrap_err();
    assert!(!names(&target).is_empty());
    assert!(DataFormat::ensure(&target).is_err());
    assert!(FileStore::open(&target).is_err());
    fs::write(&devices, content).unwrap();
    fs::remove_dir_all(&target).unwrap();
    restore(&backed_up, &target).unwrap();
    DataFormat::ensure(&target).unwrap();
}

#[test]
fn journal_that_is_deleted_meanwhile_is_copied() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let mut journals = Journals::pin(data.path()).unwrap();
    let journal = |number: u64| data.path().join(format!("journal/{number:012}.journal"));
    fs::write(journal(8), "more").unwrap();
    journals.refresh().unwrap();
    fs::remove_file(journal(7)).unwrap();
    fs::remove_file(journal(8)).unwrap();
    let mut writer = Writer::new(data.path(), to.path());
    journals.copy_to(&mut writer).unwrap();
    assert_eq!(writer.files.len(), 2);
    // One that was there only between two looks is missed.
    let mut journals = Journals::pin(data.path()).unwrap();
    fs::write(journal(9), "").unwrap();
    journals.refresh().unwrap();
    fs::write(journal(11), "").unwrap();
    assert!(matches!(journals.refresh(), Err(BackupError::Overtaken)));
}

#[test]
fn backup_starts_again_when_the_receiver_is_faster() {
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let journal = |number: u32| data.path().join(format!("journal/{number:012}.journal"));
    // Journal 8 was created and deleted unseen.
    let gap = |attempt: u32| fs::write(journal(7 + 2 * attempt), "frames").unwrap();
    let target = to.path().join("a");
    let run = |target: &Path, gaps: u32| {
        let (options, mut attempts) = (BackupOptions::default(), 0);
        let result = copy_in_steps(data.path(), target, options, &SystemClock, &mut |step| {
            if let Step::Begun(attempt) = step {
                attempts = attempt;
                (attempt <= gaps).then(|| gap(attempt));
            }
        });
        (result, attempts)
    };
    let (result, attempts) = run(&target, 2);
    assert_eq!((result.unwrap().files, attempts), (6, 3));
    assert_eq!(restore(&target, &to.path().join("restored")).unwrap().files, 6);
    for number in [9, 11] {
        fs::remove_file(journal(number)).unwrap();
    }
    let (result, attempts) = run(&to.path().join("b"), u32::MAX);
    assert!(matches!(result, Err(BackupError::Overtaken)));
    assert_eq!(attempts, ATTEMPTS);
}

/// Releases are added and removed while a backup copies other files.
#[test]
fn backup_has_the_artifacts_that_its_manifest_lists() {
    use siem_protocol::update::{
        CatalogArtifact, CatalogRelease, Platform, ReleaseCatalog, Rollout,
    };
    let (data, to) = (data(), tempfile::tempdir().unwrap());
    let dist = data.path().join("dist");
    fs::create_dir(&dist).unwrap();
    let write = |version: &str| {
        let platform = Platform::new("linux", "x86_64").unwrap();
        let name = format!("ai-agent-{version}-linux-x86_64");
        fs::write(dist.join(&name), version).unwrap();
        let artifact = CatalogArtifact::new(&platform, name.parse().unwrap(), version.as_bytes());
        let release = CatalogRelease {
            version: version.parse().unwrap(),
            published_at: "2026-01-31T00:00:00Z".to_owned(),
            rollout: Rollout::ALL,
            artifacts: vec![artifact],
            unknown: Default::default(),
        };
        let catalog = ReleaseCatalog { releases: vec![release], ..ReleaseCatalog::default() };
        let text = catalog.to_json().unwrap();
        fs::write(dist.join("other"), &text).unwrap();
        fs::rename(dist.join("other"), dist.join("manifest.json")).unwrap();
        text
    };
    let expected = write("0.3.0");
    let mut change = |step| {
        if step == Step::Begun(1) {
            write("0.4.0");
            fs::remove_file(dist.join("ai-agent-0.3.0-linux-x86_64")).unwrap();
        }
    };
    let target = to.path().join("a");
    copy_in_steps(data.path(), &target, BackupOptions::default(), &SystemClock, &mut change)
        .unwrap();
    assert_eq!(fs::read(target.join("dist/manifest.json")).unwrap(), expected);
    let artifact = target.join("dist/ai-agent-0.3.0-linux-x86_64");
    assert_eq!(fs::read_to_string(artifact).unwrap(), "0.3.0");
    restore(&target, &to.path().join("b")).unwrap();
}
