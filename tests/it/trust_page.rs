//! The commands and configurations in `docs/trust.md` work in the order of the page.
#![cfg(unix)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{
    home::Home,
    receiver::{Receiver, binary, private},
};
use serde_json::Value;
use test_requires::requires;

/// A fenced block of the page.
struct Block {
    section: String,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md");
    let page = fs::read_to_string(page).unwrap();
    let (mut blocks, mut section) = (Vec::new(), String::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            section = line.trim_start_matches(['#', ' ']).to_owned();
        }
        let Some(language) = line.strip_prefix("```") else { continue };
        let text = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n"));
        let text = text.collect();
        blocks.push(Block { section: section.clone(), language: language.to_owned(), text });
    }
    blocks
}

fn blocks_of(language: &str) -> Vec<Block> {
    let mut blocks = blocks();
    blocks.retain(|block| block.language == language);
    blocks
}

#[test]
fn machine_file_and_managed_config_of_the_page_are_valid() {
    let home = Home::new();
    let write = |name: &str, block: &Block| {
        let path = home.path().join(name);
        fs::write(&path, &block.text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let machine = write("config.toml", &blocks_of("toml")[0]);
    let managed = write("config.json", &blocks_of("json")[0]);
    home.agent(&["config", "check", &machine, &managed]).succeed();
}

/// Directory of an administrator, with a receiver and the programs on the path.
struct Desk {
    folder: tempfile::TempDir,
    receiver: Option<Receiver>,
}

impl Desk {
    /// Runs a block in a shell that stops at the first error, and returns its output.
    #[track_caller]
    fn run(&self, block: &Block, variables: &[(&str, &str)]) -> String {
        let is_server = |line: &&str| line.starts_with("demo-server ");
        let lines = block.text.lines().filter(|line| !is_server(line));
        let script = lines.collect::<Vec<_>>().join("\n");
        // A key without a password needs no terminal.
        let script = script.replace("minisign -G ", "minisign -G -W ");
        let script = match &self.receiver {
            Some(receiver) => script.replace("http://127.0.0.1:8080", &receiver.url()),
            None => script,
        };
        let programs = binary("siem-server").parent().unwrap().to_owned();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-euc", &script]).current_dir(self.folder.path()).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{path}", programs.display()));
        let output = shell.envs(variables.iter().copied()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}\n{script}", block.section);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Output of a list of `siem-server`.
    fn list(&self, what: &str) -> Vec<Value> {
        let mut command = Command::new(binary("siem-server"));
        command.args([what, "list", "--json", "--data", "siem-data"]);
        let output = command.current_dir(self.folder.path()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Id of the token of the fleet.
    fn token_id(&self) -> String {
        let tokens = self.list("tokens");
        let fleet = tokens.iter().find(|token| token["name"] == "fleet").unwrap();
        fleet["id"].as_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap().trim().to_owned()
    }
}

#[requires(minisign, openssl)]
#[test]
fn commands_of_the_page_work_in_their_order() {
    let mut desk = Desk { folder: tempfile::tempdir().unwrap(), receiver: None };
    let shell = blocks_of("sh");
    let of = |section: &str| {
        let found: Vec<&Block> = shell.iter().filter(|it| it.section == section).collect();
        assert!(!found.is_empty(), "{section}");
        found
    };
    let [server, token, organisation, enrollment, check, sign] = of("First roll-out")[..] else {
        panic!("the steps of a roll-out changed")
    };
    desk.run(server, &[]);
    let arguments = server.text.lines().find_map(|line| line.strip_prefix("demo-server "));
    let mut arguments: Vec<String> = arguments.unwrap().split(' ').map(str::to_owned).collect();
    for argument in &mut arguments {
        if ["admin-token", "hmac-secret", "siem-data"].contains(&argument.as_str()) {
            *argument = desk.folder.path().join(&*argument).to_str().unwrap().to_owned();
        }
    }
    desk.receiver = Some(Receiver::of_command(&arguments, &desk.read("admin-token")));
    desk.run(token, &[]);
    desk.run(organisation, &[]);
    desk.run(enrollment, &[("MACHINE", "m-1")]);
    for name in ["token", "enroll-token"] {
        assert!(desk.read(name).starts_with("siem_"), "{name}");
    }
    assert!(desk.read("receiver-key").starts_with("siem.example.com+"));

    // An agent with the files of this roll-out.
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    for name in ["token", "hmac-secret"] {
        private(&home.path().join(name), &desk.read(name));
    }
    let config = format!(
        "[agent]\nrequire_tls = true\n[managed]\nkeys = [\"{}\"]\n[sink.siem]\nendpoint = \"{}\"\n\
         token_file = \"{}\"\nhmac_secret_file = \"{}\"\nreceiver_keys = [\"{}\"]\n",
        desk.read("organisation.pub").lines().nth(1).unwrap(),
        desk.receiver.as_ref().unwrap().url(),
        home.path().join("token").display(),
        home.path().join("hmac-secret").display(),
        desk.read("receiver-key"),
    );
    home.agent(&["run", "--once"]).config(&config).succeed();
    let checked = desk.run(check, &[]);
    assert!(checked.contains("\"machines\""), "{checked}");
    fs::write(desk.folder.path().join("config.json"), &blocks_of("json")[0].text).unwrap();
    desk.run(sign, &[]);

    let devices = desk.list("devices");
    let (key, host) = (devices[0]["key"].as_str().unwrap(), devices[0]["host"].as_str().unwrap());
    let id = desk.token_id();
    desk.run(of("Tokens and the HMAC secret")[0], &[("ID", &id)]);
    for block in
        of("The receiver").into_iter().chain(of("A lost laptop")).chain(of("A stolen receiver key"))
    {
        desk.run(block, &[("KEY", key), ("HOST", host)]);
    }
    fs::remove_dir_all(desk.folder.path().join("siem-data/trust/keys")).unwrap();
    desk.run(of("A lost receiver key")[0], &[]);
    assert!(desk.folder.path().join("siem-data/trust/keys/keys.txt.minisig").is_file());
}
