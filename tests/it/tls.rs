//! TLS and proxies: an untrusted server gets no data, and the log names the remedy.
#![cfg(unix)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    thread,
};

use test_requires::requires;

use crate::support::{
    SECRET, TOKEN,
    agent::AgentCommand,
    entries, eventually,
    home::Home,
    in_process_delivery::{Delivery, DeliverySetup},
    proxy::Proxy,
    scripted_receiver::ScriptedReceiver,
    tls::{self, Authority},
};

const HELD: &str = "delivery_held";
const PASSWORD: &str = "pr0xy-p4ssw0rd";

/// Files for options of the sink.
struct Files(Vec<(&'static str, String)>);

impl Files {
    fn deliver(self, count: u64, port: u16) -> Delivery {
        let post = DeliverySetup::with(count);
        let mut options = String::new();
        for (option, text) in self.0 {
            let path = post.file(option, &text);
            options.push_str(&format!("{option} = \"{}\"\n", path.display()));
        }
        post.options(&options).deliver_to(&format!("https://127.0.0.1:{port}"))
    }
}

#[track_caller]
fn assert_arrived(receiver: &ScriptedReceiver, count: u64) {
    let numbers: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
}

#[test]
fn untrusted_certificate_gets_no_data_and_names_the_remedy() {
    let (company, other) = (Authority::new("Company"), Authority::new("Other"));
    let rows = [
        ("unknown authority", company.issue("127.0.0.1"), None, "`ca_file`"),
        ("another authority", company.issue("127.0.0.1"), Some(&other), "`ca_file`"),
        ("expired", company.issue_until("127.0.0.1", 2020), Some(&company), "expired"),
        ("another name", company.issue("siem.example.com"), Some(&company), "`endpoint`"),
        ("an authority's", company.issue_authority("127.0.0.1"), Some(&company), "CA:FALSE"),
    ];
    for (what, issued, trusted, token) in rows {
        let receiver = ScriptedReceiver::start([]);
        let port = tls::before(receiver.port(), &issued, None);
        let files = trusted.map(|authority| ("ca_file", authority.pem()));
        let delivery = Files(files.into_iter().collect()).deliver(3, port);
        delivery.wait_for_line(HELD, token);
        assert_eq!(receiver.requests(), 0, "{what}");
        assert!(delivery.outbox.stored_bytes() > 0, "{what}");
    }
}

#[test]
fn ca_file_is_trusted_besides_the_system_store() {
    let (company, other) = (Authority::new("Company"), Authority::new("Other"));
    let receiver = ScriptedReceiver::start([]);
    let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), None);
    // A file may contain several certificates with text between them.
    let bundle = format!("# others\n{}# ours\n{}", other.pem(), company.pem());
    Files(vec![("ca_file", bundle)]).deliver(30, port).finish();
    assert_arrived(&receiver, 30);
}

#[test]
fn client_certificate_is_presented_on_request() {
    let company = Authority::new("Company");
    let receiver = ScriptedReceiver::start([]);
    let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), Some(&company));
    let client = company.issue_to_client();
    let files = Files(vec![
        ("ca_file", company.pem()),
        ("client_certificate_file", client.pem().to_owned()),
        ("client_key_file", client.key_pem()),
    ]);
    files.deliver(30, port).finish();
    assert_arrived(&receiver, 30);
}

#[test]
fn missing_or_foreign_client_certificate_holds_delivery() {
    let (company, other) = (Authority::new("Company"), Authority::new("Other"));
    let receiver = ScriptedReceiver::start([]);
    let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), Some(&company));
    let delivery = Files(vec![("ca_file", company.pem())]).deliver(3, port);
    delivery.wait_for_line(HELD, "`client_certificate_file`");

    let client = other.issue_to_client();
    let files = Files(vec![
        ("ca_file", company.pem()),
        ("client_certificate_file", client.pem().to_owned()),
        ("client_key_file", client.key_pem()),
    ]);
    let delivery = files.deliver(3, port);
    delivery.wait_for_line(HELD, "`client_certificate_file`");
    assert_eq!(receiver.requests(), 0);
}

#[test]
fn tls_to_a_plain_http_port_holds_delivery() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 16];
            stream.read_exact(&mut hello).unwrap();
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
            drop(stream.read_to_end(&mut Vec::new()));
        }
    });
    let delivery = Files(Vec::new()).deliver(3, port);
    delivery.wait_for_line(HELD, "`endpoint`");
}

/// The agent with a record to ship and these options of its sink.
fn agent(home: &Home, arguments: &[&str], endpoint: &str, options: &str) -> AgentCommand {
    let config = format!("[shipping]\nflush_interval = \"0s\"\n[sink.siem]\n{options}");
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    home.agent(arguments).config(&config).ships_to(endpoint)
}

/// Simulates a machine without certificate authorities.
#[cfg(target_os = "linux")]
fn without_authorities(agent: AgentCommand) -> AgentCommand {
    agent.env("SSL_CERT_FILE", "/nowhere/at.all").env("SSL_CERT_DIR", "/nowhere")
}

#[cfg(target_os = "linux")]
#[test]
fn machine_without_a_ca_store_ships_by_http_or_ca_file() {
    let company = Authority::new("Company");
    let receiver = ScriptedReceiver::start([]);
    let home = Home::new();
    without_authorities(agent(&home, &["run", "--once"], &receiver.url(), "")).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);

    let receiver = ScriptedReceiver::start([]);
    let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), None);
    let home = Home::new();
    let ca = home.path().join("ca.pem");
    fs::write(&ca, company.pem()).unwrap();
    let endpoint = format!("https://127.0.0.1:{port}");
    let options = format!("ca_file = \"{}\"", ca.display());
    without_authorities(agent(&home, &["run", "--once"], &endpoint, &options)).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);

    // Authorities of the system are trusted without any configuration.
    let receiver = ScriptedReceiver::start([]);
    let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), None);
    let another = Home::new();
    let endpoint = format!("https://127.0.0.1:{port}");
    agent(&another, &["run", "--once"], &endpoint, "").env("SSL_CERT_FILE", &ca).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);

    let error = without_authorities(agent(&another, &["run"], &endpoint, "")).fail(2);
    assert!(error.contains("`ca_file`"), "{error}");
}

#[test]
fn proxy_comes_from_the_environment_or_the_config() {
    let company = Authority::new("Company");
    for tls in [false, true] {
        for configured in [false, true] {
            for credentials in [false, true] {
                let what = format!("tls {tls}, configured {configured}, credentials {credentials}");
                let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
                let proxy = Proxy::start();
                let proxy = if credentials { proxy.wants("me", PASSWORD) } else { proxy };
                let mut options = String::new();
                let port = if tls {
                    let ca = home.path().join("ca.pem");
                    fs::write(&ca, company.pem()).unwrap();
                    options.push_str(&format!("ca_file = \"{}\"\n", ca.display()));
                    tls::before(receiver.port(), &company.issue("127.0.0.1"), None)
                } else {
                    receiver.port()
                };
                if configured {
                    options.push_str(&format!("proxy = \"{}\"\n", proxy.url()));
                    if credentials {
                        let file = private(&home, "proxy-password", PASSWORD);
                        options.push_str("proxy_user = \"me\"\n");
                        options.push_str(&format!("proxy_password_file = \"{file}\"\n"));
                    }
                }
                let scheme = if tls { "https" } else { "http" };
                let endpoint = format!("{scheme}://127.0.0.1:{port}");
                let mut agent =
                    agent(&home, &["run", "--once"], &endpoint, &options).env("RUST_LOG", "trace");
                if !configured {
                    let url = match credentials {
                        true => proxy.url_of("me", PASSWORD),
                        false => proxy.url(),
                    };
                    agent = agent.env(format!("{}_PROXY", scheme.to_uppercase()), url);
                }
                let ended = agent.succeed();
                assert!(!ended.stderr.contains(PASSWORD), "{what}: {}", ended.stderr);
                let pair = data_encoding::BASE64.encode(format!("me:{PASSWORD}").as_bytes());
                assert!(!ended.stderr.contains(&pair), "{what}: {}", ended.stderr);
                assert_eq!(entries::lines(&receiver.entries()).len(), 1, "{what}");
                let asked = if tls {
                    format!("CONNECT 127.0.0.1:{port}")
                } else {
                    format!("POST http://127.0.0.1:{port}/ingest")
                };
                assert!(proxy.seen().contains(&asked), "{what}: {:?}", proxy.seen());
            }
        }
    }
}

#[test]
fn no_proxy_bypasses_the_proxy() {
    let (home, receiver, proxy) = (Home::new(), ScriptedReceiver::start([]), Proxy::start());
    agent(&home, &["run", "--once"], &receiver.url(), "")
        .env("HTTP_PROXY", proxy.url())
        .env("NO_PROXY", "example.com,127.0.0.1")
        .succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    assert_eq!(proxy.seen(), [""; 0]);
}

#[test]
fn proxy_without_credentials_holds_delivery_until_it_opens() {
    let company = Authority::new("Company");
    for tls in [false, true] {
        let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
        let proxy = Proxy::start().wants("me", "another one");
        let ca = home.path().join("ca.pem");
        fs::write(&ca, company.pem()).unwrap();
        let endpoint = if tls {
            let port = tls::before(receiver.port(), &company.issue("127.0.0.1"), None);
            format!("https://127.0.0.1:{port}")
        } else {
            receiver.url()
        };
        let file = private(&home, "proxy-password", PASSWORD);
        let options = format!(
            "ca_file = \"{}\"\nproxy = \"{}\"\nproxy_user = \"me\"\nproxy_password_file = \"{file}\"",
            ca.display(),
            proxy.url(),
        );
        let mut agent = agent(&home, &["run"], &endpoint, &options).start();
        agent.wait_for_line(HELD, "`proxy_user`");
        proxy.opens();
        eventually("the record arrives", || {
            (entries::lines(&receiver.entries()).len() == 1).then_some(())
        });
        assert!(!agent.stop().stderr.contains(PASSWORD));
    }
}

/// Writes a file that only its owner can read. Returns its path.
fn private(home: &Home, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;

    let path = home.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Any program that sets a variable of the user could read what the agent sends.
#[requires(mount)]
#[test]
fn user_proxy_and_authority_do_not_count_for_a_locked_sink() {
    let own = Authority::new("User");
    for (options, reaches) in [("", true), ("locked = [\"sink\"]", false)] {
        let (home, receiver, proxy) = (Home::new(), ScriptedReceiver::start([]), Proxy::start());
        home.write("-work/one.jsonl", "{\"n\":1}\n");
        let ca = home.path().join("ca.pem");
        fs::write(&ca, own.pem()).unwrap();
        let port = tls::before(receiver.port(), &own.issue("127.0.0.1"), None);
        // The machine's file, seen by this process only.
        let etc = home.path().join("etc");
        let script = "cp -a /etc \"$0\" && mkdir -p \"$0/ai-agent\" && \
                      printf %s \"$1\" > \"$0/ai-agent/config.toml\" && \
                      mount --bind \"$0\" /etc && exec \"$2\" run --once";
        let machine = format!(
            "{options}\n[sink.siem]\nendpoint = \"https://127.0.0.1:{port}\"\n\
             token = \"{TOKEN}\"\nhmac_secret = \"{SECRET}\"\n"
        );
        let run = AgentCommand::of(Path::new("unshare"), home.path(), &["-m", "sh", "-c", script]);
        let mut run = run
            .arg(&etc)
            .arg(&machine)
            .arg(env!("CARGO_BIN_EXE_ai-agent"))
            .env("HTTPS_PROXY", proxy.url())
            .env("SSL_CERT_FILE", &ca)
            .start();
        if reaches {
            eventually("the record arrives", || (!receiver.entries().is_empty()).then_some(()));
            assert!(!proxy.seen().is_empty());
        } else {
            run.wait_for_line("delivery_held", "unknown authority");
            assert_eq!(proxy.seen(), [""; 0]);
            assert!(run.log().contains("`HTTPS_PROXY` has no effect"), "{}", run.log());
        }
    }
}
