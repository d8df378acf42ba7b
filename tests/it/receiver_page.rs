//! The way of an operator through `docs/receiver.md`: its marked commands work in their order, exactly as
//! they are printed.
#![cfg(unix)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{eventually, home::Home, receiver::binary};
use test_requires::requires;

/// A marked block of the page.
struct Step {
    is_server: bool,
    text: String,
}

fn steps() -> Vec<Step> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/receiver.md");
    let page = fs::read_to_string(page).unwrap();
    let (mut steps, mut lines) = (Vec::new(), page.lines());
    while let Some(line) = lines.next() {
        let Some(mark) = line.strip_prefix("<!-- walk") else { continue };
        assert_eq!(lines.next(), Some("```sh"), "a block follows the mark");
        let text = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n"));
        steps.push(Step { is_server: mark.contains("server"), text: text.collect() });
    }
    steps
}

/// An operator in an empty directory, with the programs on the path.
struct Operator {
    folder: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
}

impl Operator {
    fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        Self { folder: tempfile::tempdir().unwrap(), port, server: None }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The shell for a block. Only the port differs from what is printed, since tests run at the same
    /// time.
    fn shell(&self, text: &str) -> Command {
        let script = text.replace("127.0.0.1:8080", &format!("127.0.0.1:{}", self.port));
        let programs: PathBuf = binary("siem-server").parent().unwrap().into();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-euc", &script]).current_dir(self.folder.path()).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{path}", programs.display()));
        shell
    }

    #[track_caller]
    fn run(&self, text: &str) -> String {
        let output = self.shell(text).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the receiver. Its address is the one that the page has everywhere.
    fn serve(&mut self, text: &str) {
        let text = format!("exec {} --listen 127.0.0.1:8080", text.trim());
        let mut shell = self.shell(&text);
        let child = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.server = Some(child);
        let address = format!("127.0.0.1:{}", self.port);
        eventually("the receiver listens", || std::net::TcpStream::connect(&address).ok());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            drop(server.kill());
            drop(server.wait());
        }
    }
}

#[requires(curl, openssl)]
#[test]
fn commands_of_the_page_work_in_their_order() {
    let mut operator = Operator::new();
    let steps = steps();
    assert!(steps.len() >= 6 && steps.iter().filter(|step| step.is_server).count() == 1);
    let mut output = String::new();
    for step in &steps {
        if step.is_server {
            operator.serve(&step.text);
            ship(&operator);
        } else {
            output += &operator.run(&step.text);
        }
    }
    for expected in ["\"ready\":true", "linux.json: ", "backed up ", "restored "] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    // The record of the agent is in the restored directory.
    let lines = crate::support::files_below(&operator.path("restored/machines"));
    let found = lines
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|it| it.contains("a record of alice")));
    assert!(found, "{lines:?}");
}

/// An agent delivers a record with the secrets of the operator.
fn ship(operator: &Operator) {
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"type\":\"user\",\"text\":\"a record of alice\"}\n");
    let read = |name: &str| fs::read_to_string(operator.path(name)).unwrap().trim().to_owned();
    let config = format!("[sink.siem]\nreceiver_keys = [\"{}\"]\n", read("receiver-key"));
    home.agent(&["run", "--once"])
        .config(&config)
        .ships_to(&operator.url())
        .env("CLAUDE_SIEM_TOKEN", read("token"))
        .env("CLAUDE_SIEM_HMAC_SECRET", read("hmac-secret"))
        .succeed();
}
