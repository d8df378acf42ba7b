//! The unit and the container file of the receiver.

use std::{collections::BTreeMap, fs, path::Path};

use siem_server::config::{Inputs, load};
use test_requires::requires;

fn sample(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/receiver");
    fs::read_to_string(folder.join(name)).unwrap()
}

#[requires(systemd_analyze)]
#[test]
fn unit_passes_systemd_analyze() {
    let unit = sample("siem-server.service");
    let program = env!("CARGO_BIN_EXE_siem-server");
    // `verify` requires the program to exist.
    let unit = unit.replace("ExecStart=/usr/bin/siem-server", &format!("ExecStart={program}"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("siem-server.service");
    fs::write(&file, unit).unwrap();
    let mut verify = std::process::Command::new("systemd-analyze");
    let output = verify.args(["verify", "--man=no"]).arg(file).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !messages.contains("siem-server.service"), "{messages}");
}

#[test]
fn unit_gives_a_drain_enough_time_and_names_the_packaged_files() {
    let unit = sample("siem-server.service");
    let value = |key: &str| {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let shutdown = load(&Inputs::default()).unwrap().settings.shutdown;
    let stop = humantime::parse_duration(&value("TimeoutStopSec")[0]).unwrap();
    assert!(stop > shutdown.delay.0 + shutdown.grace.0, "{stop:?}");
    assert_eq!(value("Type"), ["notify"]);
    // A conversion of the data directory that is cut off would start again.
    assert_eq!(value("TimeoutStartSec"), ["infinity"]);
    assert_eq!(value("RestartPreventExitStatus"), ["2"]);
    assert_eq!(value("LoadCredential").len(), 2);
    let user = format!("u {} ", value("User")[0]);
    assert!(sample("sysusers.conf").lines().any(|line| line.starts_with(&user)));
}

#[test]
fn image_runs_the_program_without_root_and_with_known_variables() {
    let text = sample("Containerfile").replace("\\\n", " ");
    let mut instructions = BTreeMap::<&str, Vec<&str>>::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, rest) = line.split_once(' ').unwrap();
        instructions.entry(name).or_default().push(rest.trim());
    }
    let one = |name: &str| instructions[name].as_slice();
    assert_eq!(one("FROM"), ["scratch"]);
    assert_eq!(one("USER"), ["65532:65532"]);
    assert_eq!(one("VOLUME"), ["/data"]);
    assert_eq!(one("ENTRYPOINT"), [r#"["/usr/bin/siem-server"]"#]);
    assert_eq!(one("CMD"), [r#"["serve"]"#]);
    assert!(one("HEALTHCHECK")[0].ends_with(r#"CMD ["/usr/bin/siem-server", "health"]"#));
    let variables = one("ENV")[0].split_whitespace().map(|pair| pair.split_once('=').unwrap());
    let mut variables: Vec<_> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mounted = [("SIEM_SERVER_TLS_CERTIFICATE", "c"), ("SIEM_SERVER_TLS_KEY", "k")];
    variables.extend(mounted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let settings = load(&Inputs { variables, ..Inputs::default() }).unwrap().settings;
    assert_eq!(settings.store.directory, Path::new("/data"));
    assert!(settings.probe.listen.is_some_and(|probe| probe.ip().is_loopback()));
}
