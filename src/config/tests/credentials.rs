//! Secrets passed by systemd.

use super::*;
/// Returns a machine whose unit has these credentials, all with the content `s3cr3t`.
fn given(names: &[&str], text: &str) -> Machine {
    let mut machine = Machine::new().user(text);
    fs::create_dir(machine.path("credentials")).unwrap();
    for name in names {
        machine = machine.write(&format!("credentials/{name}"), "s3cr3t\n");
    }
    let directory = machine.path("credentials").to_str().unwrap().to_owned();
    machine.variable("CREDENTIALS_DIRECTORY", &directory)
}

/// Returns the value of an option of `[sink.siem]`, and its location.
fn siem(machine: &Machine, option: &str) -> Option<(String, String)> {
    let loaded = machine.load().unwrap();
    let sink = stage(&loaded.settings.pipeline.sinks, "siem");
    let value = sink.options.get(option)?.as_str()?.to_owned();
    let path = ["sink", "siem", option].map(str::to_owned);
    let location = &loaded.explain_key(&path).values[0].location;
    Some((machine.plain(&value), machine.plain(&location.to_string())))
}

#[test]
fn credential_sets_the_file_of_its_sink() {
    let both = "pipeline.sinks = [\"siem\", \"archive\"]\n[sink.archive]\ntype = \"http-siem\"";
    let names = ["ai-agent.siem.token", "ai-agent.siem.hmac-secret", "ai-agent.archive.token"];
    let machine = given(&[&names[..], &["another-program.token"]].concat(), both);
    assert_eq!(
        siem(&machine, "token_file"),
        Some((
            "DIR/credentials/ai-agent.siem.token".to_owned(),
            "the systemd credential `ai-agent.siem.token`".to_owned()
        ))
    );
    assert!(siem(&machine, "hmac_secret_file").is_some());
    let loaded = machine.load().unwrap();
    let archive = &stage(&loaded.settings.pipeline.sinks, "archive").options;
    assert!(archive.get("token_file").is_some() && archive.get("hmac_secret_file").is_none());
    assert_eq!(machine.warnings(), Vec::<String>::new());
}

/// Each option that names a file with a secret can be a credential. The URL of the sink `http` could not,
/// and no credential reached a sink `siem` of another type than that of the defaults.
#[test]
fn file_with_any_secret_of_a_sink_can_be_a_credential() {
    for stage in ai_agent_stage::registered() {
        let sample: toml::Table = stage.sample.parse().unwrap();
        let files = sample.keys().filter(|key| key.ends_with("_file"));
        // A certificate is no secret, and the key of a client is read with it.
        const NO_CREDENTIALS: [&str; 3] = ["ca_file", "client_certificate_file", "client_key_file"];
        let files = files.filter(|key| !NO_CREDENTIALS.contains(&key.as_str()));
        for file in files.filter(|_| stage.kind == ai_agent_stage::StageKind::Sink) {
            let name = file.trim_end_matches("_file").replace('_', "-");
            let credential = format!("ai-agent.siem.{name}");
            let table = format!("[sink.siem]\ntype = \"{}\"\npath = \"/x\"", stage.name);
            let machine = given(&[&credential], &table);
            let path = format!("DIR/credentials/{credential}");
            assert_eq!(siem(&machine, file).map(|it| it.0), Some(path), "{} {file}", stage.name);
        }
    }
    let machine = given(&["ai-agent.siem.endpoint"], "[sink.siem]\ntype = \"http\"");
    assert!(siem(&machine, "endpoint_file").is_some());
    let own = "[sink.siem]\ntype = \"http\"\nendpoint = \"https://own\"";
    let machine = given(&["ai-agent.siem.endpoint"], own);
    assert!(siem(&machine, "endpoint_file").is_none() && siem(&machine, "endpoint").is_some());
    let machine = given(&["ai-agent.siem.endpoint"], "");
    assert!(machine.warnings()[0].contains("has no effect"), "{:?}", machine.warnings());
}

#[test]
fn credential_is_overridden_by_every_other_layer() {
    let file = given(&["ai-agent.siem.token"], "[sink.siem]\ntoken_file = \"/mine\"");
    assert_eq!(siem(&file, "token_file").unwrap().0, "/mine");
    let variable =
        given(&["ai-agent.siem.token"], "").variable("CLAUDE_SIEM_TOKEN", "of-a-variable");
    assert_eq!(siem(&variable, "token").unwrap().0, "of-a-variable");
    assert!(siem(&variable, "token_file").is_none());
    // The machine's file may lock the sink, and leave its secrets to the unit.
    let locked = given(&["ai-agent.siem.token"], "").machine("locked = [\"sink\"]");
    assert!(siem(&locked, "token_file").is_some());
}

#[test]
fn unknown_credential_is_a_warning() {
    let machine = given(
        &["ai-agent.siem.tokn", "ai-agent.copy.token", "ai-agent.siem.hmac-secret"],
        "[sink.copy]\ntype = \"file\"\npath = \"/x\"\n[pipeline]\nsinks = [\"siem\", \"copy\"]",
    );
    assert_eq!(
        machine.warnings(),
        [
            "the systemd credential `ai-agent.copy.token` has no effect: the name must be \
             `ai-agent.SINK` and one of `.token`, `.hmac-secret`, `.enroll-token`, `.api-key`, \
             `.headers`, `.password`, `.endpoint`, `.proxy-password`, where SINK is a sink with that \
             secret",
            "the systemd credential `ai-agent.siem.tokn` has no effect: did you mean \
             `ai-agent.siem.token`?"
        ]
    );
    let nowhere = Machine::new().variable("CREDENTIALS_DIRECTORY", "/no/such/directory");
    let warnings = nowhere.warnings();
    assert!(
        warnings[0].starts_with("cannot read the systemd credentials in `/no/such/directory`: "),
        "{warnings:?}"
    );
}

#[test]
fn missing_settings_mention_credentials_if_systemd_has_any() {
    let warning =
        |machine: &Machine| machine.load().unwrap().missing_for_delivery().unwrap().to_string();
    let with = warning(&given(&["ai-agent.siem.token"], "[sink.siem]\nendpoint = \"https://x\""));
    assert!(with.starts_with("cannot deliver without the HMAC secret\n"), "{with}");
    assert!(
        with.contains(
            "set CLAUDE_SIEM_HMAC_SECRET, or pass the systemd credential \
             `ai-agent.siem.hmac-secret`, or set `hmac_secret`"
        ),
        "{with}"
    );
    assert!(!warning(&Machine::new()).contains("credential"));
}
