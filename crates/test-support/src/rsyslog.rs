//! A real rsyslog.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::assembly::{ServerEvent, decode};

const DEADLINE: Duration = Duration::from_secs(60);

/// A running rsyslog that appends each message to a file as it was received.
pub struct Rsyslog {
    child: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
    authority: Option<String>,
}

impl Rsyslog {
    /// Starts a server on a port of its own, with a certificate for `localhost` if `with_tls`.
    pub fn start(with_tls: bool) -> Self {
        Self::configured(with_tls, |folder, port| configuration(folder, port, with_tls))
    }

    /// Starts a server with a configuration for a folder and a port. With TLS, the folder has `ca.pem`,
    /// `server.pem` and `server.key`.
    pub fn configured(with_tls: bool, configuration: impl Fn(&Path, u16) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let authority = with_tls.then(|| certificates(folder.path()));
        let text = configuration(folder.path(), port);
        fs::write(folder.path().join("rsyslog.conf"), text).unwrap();
        let mut server = Self { child: None, folder, port, authority };
        server.run();
        server
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Certificate of the authority in PEM, if the server uses TLS.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Starts the server again.
    pub fn run(&mut self) {
        self.child = Some(spawn(self.folder.path()));
        self.wait_until_it_listens();
    }

    /// Stops the server, which writes what it has received.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        child.wait().unwrap();
    }

    fn wait_until_it_listens(&self) {
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < DEADLINE, "rsyslog does not listen: {}", self.errors());
            std::thread::yield_now();
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// Messages in the order in which they were received. Some may be missing while the server runs.
    pub fn messages(&self) -> Vec<Message> {
        let received = fs::read(self.folder.path().join("received")).unwrap_or_default();
        let lines = received.split_inclusive(|byte| *byte == b'\n');
        let whole = lines.filter_map(|line| line.strip_suffix(b"\n"));
        whole.map(|line| parse(std::str::from_utf8(line).unwrap())).collect()
    }

    /// Stops the server, and returns the events of its messages.
    pub fn into_events(mut self) -> Vec<ServerEvent> {
        self.stop();
        self.messages().into_iter().map(|message| message.event).collect()
    }
}

/// A message with the structured data of the sink.
pub struct Message {
    pub event: ServerEvent,
    /// `log.file.path`; empty if there is none.
    pub path: String,
    /// `ai_agent.generation`; empty if there is none.
    pub generation: String,
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn spawn(folder: &Path) -> Child {
    let errors = fs::File::create(folder.join("stderr")).unwrap();
    Command::new("rsyslogd")
        .arg("-n")
        .arg("-f")
        .arg(folder.join("rsyslog.conf"))
        .arg("-i")
        .arg(folder.join("pid"))
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .unwrap()
}

fn configuration(folder: &Path, port: u16, with_tls: bool) -> String {
    let folder = folder.display();
    let (global, driver) = if with_tls {
        (
            format!(
                r#"defaultNetstreamDriverCAFile="{folder}/ca.pem"
                   defaultNetstreamDriverCertFile="{folder}/server.pem"
                   defaultNetstreamDriverKeyFile="{folder}/server.key""#
            ),
            r#"streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon""#,
        )
    } else {
        (String::new(), "")
    };
    format!(
        r#"global(workDirectory="{folder}" {global})
module(load="imtcp" {driver})
template(name="raw" type="string" string="%rawmsg%\n")
ruleset(name="keep") {{ action(type="omfile" file="{folder}/received" template="raw") }}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="keep")
"#
    )
}

/// Writes an authority, and a certificate for `localhost`, and returns the authority in PEM.
pub fn certificates(folder: &Path) -> String {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("ca.pem"), authority_certificate.pem()).unwrap();
    fs::write(folder.join("server.pem"), server.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    authority_certificate.pem()
}

/// Parses a message of RFC 5424 with the structured data of the sink.
fn parse(message: &str) -> Message {
    let (head, mut rest) =
        message.split_once(" [ai-agent@32473").unwrap_or_else(|| panic!("{message}"));
    let head: Vec<&str> = head.split(' ').collect();
    assert_eq!((head.len(), head[3], head[4]), (6, "ai-agent", "-"), "{message}");
    let mut event = ServerEvent::default();
    let (mut path, mut generation) = (String::new(), String::new());
    let (mut of, mut index, mut total, mut encoding) = (None, 1, 1, String::new());
    while let Some(parameter) = rest.strip_prefix(' ') {
        let (name, value) = parameter.split_once("=\"").unwrap();
        let (value, after) = unescape(value);
        rest = after;
        match name {
            "event.id" => event.id = value,
            "event.hash" => event.hash = value,
            "log.file.path" => path = value,
            "ai_agent.generation" => generation = value,
            "ai_agent.part.of" => of = Some(value),
            "ai_agent.part.index" => index = value.parse().unwrap(),
            "ai_agent.part.total" => total = value.parse().unwrap(),
            "ai_agent.encoding" => encoding = value,
            _ => {}
        }
    }
    event.part = of.map(|of| (of, index, total));
    event.content = decode(rest.strip_prefix("] ").unwrap(), &encoding);
    Message { event, path, generation }
}

/// Returns a value up to its closing quote, unescaped, and the text behind the quote.
fn unescape(text: &str) -> (String, &str) {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next().unwrap().1),
            '"' => return (value, &text[at + 1..]),
            other => value.push(other),
        }
    }
    panic!("no closing quote: {text}")
}
