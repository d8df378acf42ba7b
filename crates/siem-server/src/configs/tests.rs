//! Tests of the choice among managed configurations, and of the folder.

use std::{fs, path::Path, sync::Arc};

use proptest::prelude::*;
use siem_protocol::{Digest, ManagedConfig, managed::Audience};

use super::*;

fn file(name: &str, serial: u64, audience: &str) -> ConfigFile {
    let body = format!(r#"{{"version":1,"serial":{serial},"audience":{audience}}}"#).into_bytes();
    file::parse(name, false, body, None).unwrap()
}

fn rolled_out(name: &str, serial: u64, audience: &str, percent: u64) -> ConfigFile {
    ConfigFile { rollout: Some(Rollout::new(percent)), ..file(name, serial, audience) }
}

fn arcs(files: Vec<ConfigFile>) -> Vec<Arc<ConfigFile>> {
    files.into_iter().map(Arc::new).collect()
}

/// A device in bucket 16.
fn device() -> DeviceFacts {
    DeviceFacts {
        machine: "m-1".into(),
        user: "u".into(),
        os: Some("linux".into()),
        groups: Some(vec!["dev".into()]),
        in_force: None,
    }
}

fn chosen<'f>(files: &'f [Arc<ConfigFile>], device: &DeviceFacts) -> Option<&'f str> {
    choose(files, device, |_| false).map(|file| file.name.as_str())
}

#[test]
fn most_specific_audience_wins() {
    let all = [
        ("machine.json", r#"{"machines":["m-1"]}"#),
        ("user-group.json", r#"{"users":["u"],"groups":["dev"]}"#),
        ("user.json", r#"{"users":["u"],"os":["linux"]}"#),
        ("group.json", r#"{"groups":["dev"],"percentage":100}"#),
        ("os.json", r#"{"os":["linux"]}"#),
        ("part.json", r#"{"percentage":17}"#),
        ("all.json", "{}"),
    ];
    for (at, (name, _)) in all.iter().enumerate() {
        // The serial does not count.
        let files = arcs(all[at..].iter().map(|(name, it)| file(name, at as u64, it)).collect());
        assert_eq!(chosen(&files, &device()), Some(*name));
        let choice = resolve(&files, &device(), |_| false);
        let winner = choice.winner.unwrap();
        assert_eq!(winner.0.name, *name);
        let expected = if files.len() == 1 { Winner::Only } else { Winner::MostSpecific };
        assert_eq!(winner.1, expected);
        assert!(choice.others.iter().all(|it| it.1 == Exclusion::LessSpecific((*name).into())));
    }
}

#[test]
fn reason_says_why_a_file_is_not_meant() {
    let unknown = DeviceFacts { os: None, groups: None, ..device() };
    for (audience, device, reason) in [
        (r#"{"machines":["m-2"]}"#, device(), Exclusion::Machine),
        (r#"{"machines":["m-1"],"users":[]}"#, device(), Exclusion::User),
        (r#"{"os":["macos"]}"#, device(), Exclusion::Os),
        (r#"{"os":["linux"]}"#, unknown.clone(), Exclusion::OsUnknown),
        (r#"{"groups":["ops"]}"#, device(), Exclusion::Groups),
        (r#"{"groups":["dev"]}"#, unknown, Exclusion::GroupsUnknown),
        (r#"{"percentage":16}"#, device(), Exclusion::Percentage { percentage: 16, bucket: 16 }),
    ] {
        let choice = resolve(&arcs(vec![file("a.json", 1, audience)]), &device, |_| false);
        assert!(choice.winner.is_none());
        assert_eq!(choice.others[0].1, reason, "{audience}");
    }
}

#[test]
fn groups_that_no_file_names_are_left_out() {
    let one = file("a.json", 1, r#"{"groups":["dev","ops"]}"#);
    let set = FileSet { files: arcs(vec![one, file("b.json", 2, "{}")]), ..FileSet::default() };
    let groups = ["x", "ops", "ops", "dev"].map(str::to_owned).to_vec();
    assert_eq!(set.relevant_groups(groups), ["dev", "ops"]);
}

#[test]
fn rollout_replaces_the_lower_serial_for_its_part() {
    for (percent, expected) in
        [(0, "old.json"), (16, "old.json"), (17, "new.json"), (100, "new.json")]
    {
        let files = arcs(vec![file("old.json", 1, "{}"), rolled_out("new.json", 2, "{}", percent)]);
        assert_eq!(chosen(&files, &device()), Some(expected), "{percent}");
    }
}

#[test]
fn halted_rollout_stays_where_it_is_in_force() {
    let files = arcs(vec![file("old.json", 1, "{}"), rolled_out("new.json", 2, "{}", 100)]);
    let new = files[1].hash;
    let is_halted = |hash: &Digest| *hash == new;
    let has = DeviceFacts { in_force: Some(new), ..device() };
    assert_eq!(choose(&files, &has, is_halted).unwrap().name, "new.json");
    assert_eq!(choose(&files, &device(), is_halted).unwrap().name, "old.json");
}

#[test]
fn fallback_is_served_to_the_rest_only() {
    let fallback = ConfigFile { is_fallback: true, ..file("config.json", 9, r#"{"users":[]}"#) };
    let files = arcs(vec![file("a.json", 1, r#"{"os":["linux"]}"#), fallback]);
    assert_eq!(chosen(&files, &device()), Some("a.json"));
    let other = DeviceFacts { os: Some("macos".into()), ..device() };
    assert_eq!(chosen(&files, &other), Some("config.json"));
}

#[test]
fn rollout_halts_above_the_limit_only() {
    let rollout = Rollout { percent: 10, max_refused_percent: 5, min_refused: 3 };
    for (applied, refused, halts) in [
        (0, 0, false),
        (0, 2, false),
        (0, 3, true),
        (57, 3, false),
        (56, 3, true),
        (u64::MAX, u64::MAX, true),
    ] {
        assert_eq!(rollout.is_exceeded(applied, refused), halts, "{applied} {refused}");
    }
    let never = Rollout { max_refused_percent: 100, ..rollout };
    assert!(!never.is_exceeded(0, 1000));
}

#[test]
fn rollout_out_of_range_is_refused() {
    assert_eq!(Rollout::parse(br#"{"percent":10}"#).unwrap(), Rollout::new(10));
    for text in [
        "{}",
        r#"{"percent":101}"#,
        r#"{"percent":-1}"#,
        r#"{"percent":1,"min_refused":0}"#,
        r#"{"percent":1,"max_refused_percent":101}"#,
        r#"{"percent":1,"percentage":1}"#,
    ] {
        assert!(Rollout::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// Codes and files of the problems.
fn problems(files: Vec<ConfigFile>, is_signed: bool) -> Vec<(String, &'static str)> {
    let set = FileSet { files: arcs(files), ..FileSet::default() };
    let found = check(&set, is_signed, std::time::UNIX_EPOCH);
    found.into_iter().map(|problem| (problem.file, problem.code)).collect()
}

#[test]
fn two_files_for_one_device_are_a_tie() {
    let linux = r#"{"os":["linux"]}"#;
    for (one, other, is_tie) in [
        ("{}", "{}", true),
        (linux, r#"{"os":["linux","macos"]}"#, true),
        (linux, r#"{"os":["macos"]}"#, false),
        (linux, "{}", false),
        (r#"{"groups":["a"]}"#, r#"{"groups":["b"]}"#, true),
        (r#"{"percentage":10}"#, r#"{"percentage":20}"#, true),
        (r#"{"percentage":10}"#, r#"{"percentage":0}"#, false),
        (r#"{"users":["u"],"os":["linux"]}"#, r#"{"users":["v"],"os":["linux"]}"#, false),
    ] {
        let found = problems(vec![file("a.json", 1, one), file("b.json", 2, other)], false);
        assert_eq!(found.iter().any(|it| it.1 == "tie"), is_tie, "{one} {other}: {found:?}");
    }
}

#[test]
fn rollout_is_no_tie_with_a_higher_serial() {
    let of = |serial| {
        problems(vec![file("a.json", 3, "{}"), rolled_out("b.json", serial, "{}", 5)], false)
    };
    assert_eq!(of(4), []);
    assert_eq!(of(3), [("b.json".to_owned(), "rollout_serial")]);
    assert_eq!(of(2), [("b.json".to_owned(), "rollout_superseded")]);
}

#[test]
fn serials_of_signed_files_are_compared() {
    let linux = r#"{"os":["linux"]}"#;
    let lower = vec![file("all.json", 5, "{}"), file("linux.json", 4, linux)];
    assert_eq!(problems(lower.clone(), true), [("linux.json".to_owned(), "serial_lower")]);
    assert_eq!(problems(lower, false), []);
    let reused = vec![file("all.json", 5, "{}"), file("linux.json", 5, linux)];
    assert_eq!(problems(reused, true), [("linux.json".to_owned(), "serial_reused")]);
}

#[test]
fn serial_is_replaced_and_all_else_is_kept() {
    let with = |body: &str| {
        String::from_utf8(with_serial(body.as_bytes(), 8, "2026-02-01T00:00:00Z").unwrap()).unwrap()
    };
    assert_eq!(
        with(r#" { "version" : 1 , "x":{"serial":1,"issued":"i"}, "serial" : 5 }"#),
        r#" {"issued":"2026-02-01T00:00:00Z", "version" : 1 , "x":{"serial":1,"issued":"i"}, "serial" : 8 }"#
    );
    assert!(with_serial(b"{}", 1, "2026-02-01T00:00:00Z").is_err());
}

fn audiences() -> impl Strategy<Value = Audience> {
    let list = |values: &'static [&'static str]| {
        prop::option::of(prop::collection::vec(prop::sample::select(values), 0..3)).prop_map(
            |list| list.map(|list| list.into_iter().map(str::to_owned).collect::<Vec<String>>()),
        )
    };
    (
        list(&["m-0", "m-1", "m-2"]),
        list(&["u", "v"]),
        list(&["dev", "ops"]),
        list(&["linux", "macos"]),
        prop::option::of(0..=100_u64),
    )
        .prop_map(|(machines, users, groups, os, percentage)| Audience {
            machines,
            users,
            groups,
            os,
            percentage,
        })
}

fn files() -> impl Strategy<Value = Vec<Arc<ConfigFile>>> {
    let one =
        (audiences(), prop::option::of(0..4_u64), prop::option::of(0..=100_u64), any::<bool>());
    prop::collection::vec(one, 0..8).prop_map(|files| {
        let named = files.into_iter().enumerate().map(|(at, (audience, serial, percent, last))| {
            let config = ManagedConfig {
                version: 1,
                serial,
                audience: Some(audience),
                ..ManagedConfig::default()
            };
            let body = serde_json::to_vec(&config).unwrap();
            let file = file::parse(&format!("{at}.json"), false, body, None).unwrap();
            let is_fallback = last && at == 7;
            Arc::new(ConfigFile { rollout: percent.map(Rollout::new), is_fallback, ..file })
        });
        named.collect()
    })
}

fn devices() -> impl Strategy<Value = DeviceFacts> {
    let os = prop::option::of(prop::sample::select(&["linux", "macos"][..]));
    let groups = prop::option::of(prop::collection::vec(
        prop::sample::select(&["dev", "ops", "x"][..]),
        0..3,
    ));
    ("m-[0-9]{1,2}", "[uvw]", os, groups).prop_map(|(machine, user, os, groups)| DeviceFacts {
        machine,
        user,
        os: os.map(str::to_owned),
        groups: groups.map(|list| list.into_iter().map(str::to_owned).collect()),
        in_force: None,
    })
}

proptest! {
    #[test]
    fn device_in_a_part_is_in_each_larger_part(
        machine in ".{0,40}", lower in 0..=100_u64, more in 0..=100_u64,
    ) {
        let higher = (lower + more).min(100);
        let is_in = |percent| Rollout::new(percent).includes(&machine);
        prop_assert!(!is_in(lower) || is_in(higher));
        prop_assert!(!is_in(0) && is_in(100));
    }

    /// The same files and device give the same result in any order of the files, every file is the
    /// winner or excluded with a reason, and the winner is a file that the agent accepts.
    #[test]
    fn resolution_is_total_and_deterministic(
        mut files in files(), device in devices(), halted in any::<bool>(), turn in 0..8_usize,
    ) {
        let is_halted = |_: &Digest| halted;
        let choice = resolve(&files, &device, is_halted);
        let name = choice.winner.as_ref().map(|(file, _)| file.name.clone());
        prop_assert_eq!(choice.others.len() + usize::from(name.is_some()), files.len());
        if let Some((winner, _)) = &choice.winner {
            let identity = siem_protocol::Identity {
                machine_id: device.machine.clone(),
                hostname: String::new(),
                user: device.user.clone(),
                os: device.os.clone().unwrap_or_default(),
                arch: String::new(),
                agent_version: String::new(),
            };
            let groups = device.groups.clone().unwrap_or_default();
            prop_assert!(winner.is_fallback || winner.audience().unwrap().includes(&identity, &groups));
        }
        let turn = turn.min(files.len());
        files.rotate_left(turn);
        let again = resolve(&files, &device, is_halted);
        prop_assert_eq!(again.winner.map(|(file, _)| file.name.clone()), name.clone());
        prop_assert_eq!(choose(&files, &device, is_halted).map(|file| file.name.clone()), name);
    }

    /// Files without a tie never leave the choice to their names.
    #[test]
    fn names_decide_only_where_the_check_finds_an_error(files in files(), device in devices()) {
        let set = FileSet { files: files.clone(), ..FileSet::default() };
        let found = check(&set, false, std::time::UNIX_EPOCH);
        let choice = resolve(&files, &device, |_| false);
        if choice.winner.is_some_and(|(_, why)| why == Winner::FirstName) {
            prop_assert!(found.iter().any(|it| it.severity == Severity::Error));
        }
    }
}

/// A data directory with a folder of configurations.
struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("configs")).unwrap();
        Self(data)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("configs").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn server(&self) -> ConfigFolder {
        ConfigFolder::new(FolderOptions {
            is_server: true,
            ..FolderOptions::of_data(self.0.path())
        })
    }
}

fn body(serial: u64) -> String {
    format!(r#"{{"version":1,"serial":{serial}}}"#)
}

/// Serial of the only configuration that is served, and the codes of the problems.
fn served(folder: &ConfigFolder) -> (Option<u64>, Vec<&'static str>) {
    let set = folder.current();
    let codes = set.problems.iter().flat_map(|(_, found)| found.iter().map(|it| it.code()));
    (set.files.first().and_then(|file| file.config.serial), codes.collect())
}

#[test]
fn broken_file_keeps_the_content_before_also_after_a_restart() {
    let data = Data::new();
    let folder = data.server();
    data.write("a.json", &body(1));
    assert_eq!(served(&folder), (Some(1), vec![]));
    let wrong_value = r#"{"version":1,"compliance":{"transcript_within_seconds":0}}"#;
    for (broken, code) in ["{", "", r#"{"version":2}"#, wrong_value].map(|it| (it, "invalid")) {
        data.write("a.json", broken);
        assert_eq!(served(&folder), (Some(1), vec![code]), "{broken}");
        assert_eq!(served(&data.server()), (Some(1), vec![code]), "{broken}");
    }
    data.write("a.json", &body(2));
    assert_eq!(served(&folder), (Some(2), vec![]));
    fs::remove_file(data.path("a.json")).unwrap();
    assert_eq!(served(&folder), (None, vec![]), "removed on purpose");
}

#[test]
fn removed_file_that_comes_back_broken_is_not_served() {
    // Removed while the server runs, and while it does not.
    for is_seen in [true, false] {
        for is_fallback in [false, true] {
            let data = Data::new();
            let path = if is_fallback { "../config.json" } else { "a.json" };
            let mut folder = data.server();
            data.write(path, &body(1));
            assert_eq!(served(&folder), (Some(1), vec![]));
            fs::remove_file(data.path(path)).unwrap();
            if is_seen {
                assert_eq!(served(&folder), (None, vec![]));
            } else {
                folder = data.server();
                assert_eq!(served(&folder), (None, vec![]));
            }
            data.write(path, "{");
            assert_eq!(served(&folder), (None, vec!["invalid"]), "{is_seen} {is_fallback}");
            assert_eq!(served(&data.server()), (None, vec!["invalid"]), "{is_seen} {is_fallback}");
            data.write(path, &body(1));
            assert_eq!(served(&folder), (Some(1), vec![]));
            data.write(path, "{");
            assert_eq!(served(&data.server()), (Some(1), vec!["invalid"]), "it is back");
        }
    }
}

#[test]
fn rollout_that_cannot_be_read_reaches_no_more_devices() {
    let data = Data::new();
    let folder = data.server();
    data.write("a.json", &body(1));
    data.write("a.json.rollout", r#"{"percent":10}"#);
    assert_eq!(folder.current().files[0].rollout, Some(Rollout::new(10)));
    data.write("a.json.rollout", r#"{"percent":"#);
    assert_eq!(served(&folder), (Some(1), vec!["rollout_invalid"]));
    let set = folder.current();
    assert_eq!(set.files[0].rollout, Some(Rollout::new(0)));
    assert_eq!(chosen(&set.files, &device()), None);
    let has = DeviceFacts { in_force: Some(set.files[0].hash), ..device() };
    assert_eq!(chosen(&set.files, &has), Some("a.json"), "those that have it keep it");
    fs::remove_file(data.path("a.json.rollout")).unwrap();
    assert_eq!(folder.current().files[0].rollout, None);
}

#[cfg(unix)]
#[test]
fn only_regular_files_of_proper_names_are_served() {
    let data = Data::new();
    let fifo = data.path("fifo.json");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::create_dir(data.path("folder.json")).unwrap();
    fs::write(data.path("huge.json"), vec![b' '; (4 << 20) + 1]).unwrap();
    data.write("name with spaces.json", &body(1));
    data.write(".hidden.json", &body(1));
    data.write("a.json.minisig", "");
    std::os::unix::fs::symlink("/dev/zero", data.path("zero.json")).unwrap();
    std::os::unix::fs::symlink("/absent", data.path("link.json")).unwrap();
    let set = data.server().current();
    assert!(set.files.is_empty());
    let found: Vec<_> = set.problems.iter().map(|(name, it)| (&**name, it[0].code())).collect();
    let expected = [
        ("fifo.json", "unreadable"),
        ("folder.json", "unreadable"),
        ("huge.json", "unreadable"),
        ("name with spaces.json", "name"),
        ("zero.json", "unreadable"),
    ];
    assert_eq!(found, expected);
    assert_eq!(set.orphans, ["a.json.minisig"]);
}

#[test]
fn signature_is_verified_where_there_is_a_key() {
    let data = Data::new();
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/support/policy");
    let copy = |from: &str, to: &str| {
        fs::copy(policy.join(from), data.path(to)).unwrap();
    };
    let folder = data.server();
    copy("serial-5.json", "a.json");
    assert_eq!(served(&folder).1, Vec::<&str>::new());
    copy("org.pub", "org.pub");
    assert_eq!(served(&folder), (Some(5), vec!["unsigned"]), "its content before stays");
    copy("serial-5.json.minisig", "a.json.minisig");
    assert_eq!(served(&folder), (Some(5), vec![]));
    // The operator copies the content first.
    copy("serial-6.json", "a.json");
    assert_eq!(served(&folder), (Some(5), vec!["signature"]));
    copy("serial-6.json.minisig", "a.json.minisig");
    assert_eq!(served(&folder), (Some(6), vec![]));
    copy("forged.json", "a.json");
    copy("forged.json.minisig", "a.json.minisig");
    assert_eq!(served(&folder), (Some(6), vec!["signature"]));
    // Half of a key that is just copied.
    fs::write(data.path("org.pub"), "untrusted comment").unwrap();
    copy("without-serial.json", "a.json");
    fs::remove_file(data.path("a.json.minisig")).unwrap();
    let set = folder.current();
    assert_eq!(set.files[0].config.serial, Some(6), "its signature is still needed");
    assert_eq!(set.keys.len(), 1);
    copy("org.pub", "org.pub");
    copy("without-serial.json", "a.json");
    copy("without-serial.json.minisig", "a.json.minisig");
    assert_eq!(served(&folder), (Some(6), vec!["member_missing"]));
    assert_eq!(served(&data.server()).0, Some(6), "also after a restart");
}

#[test]
fn nothing_is_served_while_no_key_can_be_read() {
    let data = Data::new();
    data.write("a.json", &body(1));
    assert_eq!(served(&data.server()), (Some(1), vec![]));
    data.write("org.pub", "untrusted comment");
    let folder = data.server();
    assert_eq!(served(&folder), (None, vec!["key", "unverified"]));
    fs::remove_file(data.path("org.pub")).unwrap();
    assert_eq!(served(&folder), (Some(1), vec![]), "there is no key any more");
    data.write("org.pub", "untrusted comment");
    data.write("a.json", &body(2));
    assert_eq!(served(&folder), (Some(1), vec!["key", "unverified"]), "its content before stays");
}

#[test]
fn history_keeps_the_last_contents() {
    let data = Data::new();
    let folder = data.server();
    for serial in 1..=25 {
        data.write("a.json", &body(serial));
        assert_eq!(served(&folder).0, Some(serial));
    }
    let entries = folder.history().unwrap().entries("a.json", false).unwrap();
    assert_eq!(entries.len(), 20);
    assert_eq!(entries[0].read().unwrap().0, body(6).into_bytes());
    assert_eq!(folder.history().unwrap().highest_serial().unwrap(), Some(25));
}
