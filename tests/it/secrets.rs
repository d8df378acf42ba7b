//! Secrets: the ways to configure them, and that no output and no stored file shows one.
#![cfg(unix)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::support::{
    SECRET, TOKEN,
    agent::{Agent, AgentCommand, Finished},
    entries, eventually, files_below,
    home::Home,
    lines_with_code,
    proxy::Proxy,
    receiver::Receiver,
    scripted_receiver::{Answer, ScriptedReceiver},
    tls::{self, Authority},
};
use ai_agent::internals::{
    config::{self, ConfigInputs},
    platform::{Environment, Os, Paths},
};

const USER: &str = "user-at-the-proxy";
const PASSWORD: &str = "password-at-the-proxy-77d2";

/// Writes a file with these permissions. Returns its path.
fn file(home: &Home, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = home.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// An agent with its secrets as systemd credentials with these permissions.
fn with_credentials(home: &Home, arguments: &[&str], endpoint: &str, mode: u32) -> AgentCommand {
    let token = file(home, "credentials/ai-agent.siem.token", TOKEN, mode);
    file(home, "credentials/ai-agent.siem.hmac-secret", SECRET, 0o400);
    home.agent(arguments)
        .env("CREDENTIALS_DIRECTORY", token.parent().unwrap())
        .env("CLAUDE_SIEM_ENDPOINT", endpoint)
}

#[test]
fn systemd_credentials_replace_variables_and_files() {
    let home = Home::new();
    home.write("-p/a.jsonl", "{\"n\":1}\n");
    let receiver = Receiver::start();
    with_credentials(&home, &["run", "--once"], &receiver.url(), 0o400).succeed();
    receiver.assert_complete();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    fs::remove_dir_all(home.path().join("credentials")).unwrap();
    let error = with_credentials(&home, &["run", "--once"], &receiver.url(), 0o444).fail(2);
    for token in ["`sink.siem.token_file`", "`ai-agent.siem.token`", "0444"] {
        assert!(error.contains(token), "{token}: {error}");
    }
}

fn has(log: &str, code: &str) -> bool {
    !lines_with_code(log, code).is_empty()
}

/// All output and files of an agent, except the files in which the test itself put a secret.
struct Traces {
    home: Home,
    own: BTreeSet<PathBuf>,
    outputs: Vec<(String, Vec<u8>)>,
}

impl Traces {
    /// Writes a file that may contain secrets.
    fn own(&mut self, name: &str, text: &str) -> PathBuf {
        let path = file(&self.home, name, text, 0o600);
        self.own.insert(path.clone());
        path
    }

    /// An agent with all log levels enabled.
    fn agent(&mut self, arguments: &[&str], config: &str) -> AgentCommand {
        self.own.insert(self.home.path().join("agent.toml"));
        self.home.agent(arguments).config(config).env("RUST_LOG", "trace")
    }

    fn note(&mut self, what: &str, Finished { stdout, stderr, .. }: Finished) {
        self.outputs.push((format!("standard output of {what}"), stdout));
        self.outputs.push((format!("standard error of {what}"), stderr.into_bytes()));
    }

    /// Runs the agent until its log satisfies `is_enough`, and reads its command line meanwhile.
    fn run_until(&mut self, what: &str, agent: AgentCommand, is_enough: impl Fn(&str) -> bool) {
        let mut agent = agent.start();
        eventually(what, || (is_enough(&agent.log()) || !agent.runs()).then_some(()));
        assert!(is_enough(&agent.log()), "{what}:\n{}", agent.log());
        if let Some(arguments) = arguments(&agent) {
            self.outputs.push((format!("the arguments of {what}"), arguments));
        }
        self.note(what, agent.stop());
    }

    /// Fails if any secret occurs in any encoding.
    fn assert_clean(&self) {
        let base64 = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
        let hex = |text: &str| data_encoding::HEXLOWER.encode(text.as_bytes());
        let pair = base64(&format!("{USER}:{PASSWORD}"));
        let mut forms = vec![pair];
        for secret in [TOKEN, SECRET, PASSWORD] {
            // Without its end, base64 does not depend on what follows.
            let start = base64(secret);
            forms.extend([secret.to_owned(), hex(secret), start[..start.len() - 4].to_owned()]);
        }
        let holds = |bytes: &[u8]| {
            forms.iter().find(|form| memchr::memmem::find(bytes, form.as_bytes()).is_some())
        };
        let mut is_plain = false;
        for path in files_below(self.home.path()) {
            let bytes = fs::read(&path).unwrap();
            let name = path.as_os_str().as_encoded_bytes();
            assert_eq!(holds(name), None, "the name of a file");
            if !self.own.contains(&path) {
                assert_eq!(holds(&bytes), None, "{}", path.display());
                is_plain |= memchr::memmem::find(&bytes, b"\"agent_started\"").is_some();
            }
        }
        assert!(is_plain, "the outbox is not among these files, or not in plain text");
        for (what, bytes) in &self.outputs {
            assert_eq!(holds(bytes), None, "{what}:\n{}", String::from_utf8_lossy(bytes));
        }
    }
}

/// The command line, which every user of the machine can read.
fn arguments(agent: &Agent) -> Option<Vec<u8>> {
    let path = Path::new("/proc").join(agent.pid().to_string()).join("cmdline");
    let read = fs::read(path).ok();
    assert!(cfg!(not(target_os = "linux")) || read.as_ref().is_some_and(|it| !it.is_empty()));
    read
}

/// No secret is shown, whatever goes wrong with secrets configured.
#[test]
fn no_output_and_no_stored_file_shows_a_secret() {
    let home = Home::new();
    home.write("-p/a.jsonl", "{\"n\":1}\n{\"n\":2}\n");
    let mut traces = Traces { home, own: BTreeSet::new(), outputs: Vec::new() };
    let token = traces.own("secrets/token", TOKEN);
    let secret = traces.own("secrets/hmac-secret", SECRET);
    let password = traces.own("secrets/proxy-password", PASSWORD);
    // Frames are stored in plain text.
    let plain = "[sink.siem]\ncompression = \"none\"\n";
    let files = format!("{plain}token_file = {token:?}\nhmac_secret_file = {secret:?}\n");
    let inline = format!("{plain}token = \"{TOKEN}\"\nhmac_secret = \"{SECRET}\"\n");

    // A receiver that refuses token and secret at first, with a managed configuration signed by
    // another secret.
    let managed = "{\"version\":1}";
    let script = [401, 403, 400, 500].map(|status| Answer::Status(status, &[], "no"));
    let receiver = ScriptedReceiver::start(script).manages(managed, "another secret");
    let ways =
        [("files", &files, "delivery_resumed"), ("the configuration", &inline, "agent_started")];
    for (way, config, code) in ways {
        let agent =
            traces.agent(&["run", "--debug"], config).env("CLAUDE_SIEM_ENDPOINT", receiver.url());
        let what = format!("the agent with secrets in {way}");
        traces.run_until(&what, agent, |log| has(log, code));
    }
    let agent = traces.agent(&["run", "--once"], plain).ships_to(&receiver.url());
    traces.note("the agent with secrets in variables", agent.succeed());
    traces.outputs.push(("what the receiver got".to_owned(), receiver.taken()));

    // A certificate of an unknown authority.
    let certificate = Authority::new("Unknown").issue("127.0.0.1");
    let stranger =
        format!("https://127.0.0.1:{}", tls::before(receiver.port(), &certificate, None));
    let agent = traces.agent(&["run"], &files).env("CLAUDE_SIEM_ENDPOINT", &stranger);
    traces.run_until("the agent over TLS", agent, |log| {
        has(log, "delivery_held") || has(log, "managed_config_fetch_failed")
    });
    // A proxy with another password.
    let proxy = Proxy::start().wants(USER, "another password");
    let proxied = format!(
        "{files}proxy = {:?}\nproxy_user = \"{USER}\"\nproxy_password_file = {password:?}\n",
        proxy.url()
    );
    let agent = traces.agent(&["run"], &proxied).env("CLAUDE_SIEM_ENDPOINT", receiver.url());
    traces.run_until("the agent behind a proxy", agent, |log| has(log, "delivery_held"));
    let by_variable = traces
        .agent(&["run"], &files)
        .env("CLAUDE_SIEM_ENDPOINT", receiver.url())
        .env("http_proxy", proxy.url_of(USER, PASSWORD));
    traces.run_until("the agent behind the environment's proxy", by_variable, |log| {
        has(log, "delivery_held")
    });

    // Invalid configurations that contain a secret, and every command that prints one.
    let mut configs = vec![inline.clone(), format!("{inline}proxy_password = \"{PASSWORD}\"\n")];
    for wrong in
        ["tokn = 1", "hmac_secret_file = 1", "endpoint = \"nowhere\"", "= x", "timeout = 0x"]
    {
        configs.push(format!("{inline}proxy_password = \"{PASSWORD}\"\n{wrong}\n"));
    }
    configs.push(format!("[sink.siem]\ntoken = [\"{TOKEN}\"]\nhmac_secret = {SECRET}\n"));
    configs.push(format!("[sink.siem]\ntokne = \"{TOKEN}\"\nproxy_pasword = \"{PASSWORD}\"\n"));
    configs.push(format!("[sink.siem]\nendpoint = \"http://{USER}:{PASSWORD}@127.0.0.1\"\n"));
    let commands: [&[&str]; 16] = [
        &["config", "show", "--json"],
        &["config", "show", "--origin"],
        &["config", "explain", "sink.siem.token"],
        &["config", "explain", "sink.siem.proxy_password"],
        // Under these names the values are not known to be secrets.
        &["config", "explain", "sink.siem.tokne"],
        &["config", "explain", "sink.siem.proxy_pasword"],
        &["config", "check"],
        &["test"],
        &["run", "--test"],
        &["run", "--once"],
        &["deadletter", "list"],
        &["outbox", "forget-sink", "siem"],
        &["check"],
        &["check", "--strict"],
        &["status", "--json"],
        &["outbox", "status"],
    ];
    for config in &configs {
        for command in commands {
            let agent = traces.agent(command, config);
            traces.note(&format!("{command:?} with a configuration"), agent.run());
        }
        traces.outputs.push(("what a program prints".to_owned(), debug(&traces.home, config)));
    }
    traces.assert_clean();
}

/// Debug output of the library for a configuration.
fn debug(home: &Home, text: &str) -> Vec<u8> {
    let path = home.path().join("agent.toml");
    fs::write(&path, text).unwrap();
    let variables = [
        ("HOME", home.path().to_str().unwrap()),
        ("CLAUDE_SIEM_TOKEN", TOKEN),
        ("CLAUDE_SIEM_HMAC_SECRET", SECRET),
    ];
    let environment = Environment::from_iter(variables);
    let paths = Paths::on(Os::CURRENT, &environment).unwrap();
    let inputs = ConfigInputs {
        paths: &paths,
        environment: &environment,
        explicit: Some(&path),
        managed: None,
    };
    let printed = match config::load(&inputs) {
        Ok(loaded) => format!("{inputs:?} {loaded:#?} {:?}", loaded.settings),
        Err(error) => format!("{inputs:?} {error} {error:#?}"),
    };
    printed.into_bytes()
}
