//! `siem-server serve`, as a process.

#[cfg(target_os = "linux")]
mod hanging_disk;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use siem_protocol::{names::header, sign};

use crate::common::{BatchText, SECRET, TOKEN, eventually};

/// Directory with the files of a receiver.
struct Installed {
    directory: tempfile::TempDir,
}

impl Installed {
    /// Installs token and secret, and a configuration file with `text` after the paths.
    fn new(text: &str) -> Self {
        let installed = Self { directory: tempfile::tempdir().unwrap() };
        installed.write("token", TOKEN);
        installed.write("hmac-secret", SECRET);
        installed.configure(text);
        installed
    }

    fn configure(&self, text: &str) {
        let paths = format!(
            "[secrets]\ntoken_file = {:?}\nhmac_secret_file = {:?}\n[store]\ndirectory = {:?}\nmin_free = 0\n",
            self.path("token"),
            self.path("hmac-secret"),
            self.path("data")
        );
        self.write("config.toml", &(paths + text));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Installs a certificate of an authority.
    fn write_certificate(&self, authority: &Authority) {
        let (certificate, key) = authority.issue("127.0.0.1");
        self.write("tls.crt", &certificate);
        self.write("tls.key", &key);
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
        command.arg(subcommand).arg("--config").arg(self.path("config.toml"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIEM_SERVER_")) {
            command.env_remove(name);
        }
        for name in ["RUST_LOG", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"] {
            command.env_remove(name);
        }
        command.env_remove("CLAUDE_SIEM_TOKEN").env_remove("CLAUDE_SIEM_HMAC_SECRET");
        command.stdin(Stdio::null());
        command
    }

    fn serve(&self) -> Serving {
        Serving::spawn(self, &mut self.command("serve"))
    }

    /// Runs `serve` with a configuration that it refuses, and returns the errors.
    fn refused(&self) -> String {
        let output = self.command("serve").output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(output.stdout.is_empty());
        text
    }
}

/// A receiver that is killed at the end of the test.
struct Serving {
    child: Child,
    url: String,
    log: PathBuf,
}

impl Serving {
    fn spawn(installed: &Installed, command: &mut Command) -> Self {
        let log = installed.path("log");
        let errors = fs::File::create(&log).unwrap();
        command.args(["--listen", "127.0.0.1:0", "--set", "log.format=json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ");
        let url = url.unwrap_or_else(|| panic!("{line:?}: {}", fs::read_to_string(&log).unwrap()));
        Self { url: url.trim().to_owned(), child, log }
    }

    fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Returns the lines of the log with a code.
    fn logged(&self, code: &str) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
        lines.filter(|line| line["code"] == code).collect()
    }

    async fn wait_for_log(&self, code: &str, count: usize) -> Vec<Value> {
        eventually(code, async || self.logged(code).len() >= count).await;
        self.logged(code)
    }

    async fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the receiver ends", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Returns a client that trusts this authority alone, and makes a new connection for each request.
    fn client(&self, identity: Option<(String, String)>) -> reqwest::Client {
        let root = reqwest::Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder()
            .tls_certs_only([root])
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(20));
        if let Some((certificate, key)) = identity {
            let pem = format!("{certificate}\n{key}");
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

fn tls(installed: &Installed) -> String {
    format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\n",
        installed.path("tls.crt"),
        installed.path("tls.key")
    )
}

fn batch(client: &reqwest::Client, url: &str, token: &str) -> reqwest::RequestBuilder {
    let body = BatchText::new(1, 4).text();
    client
        .post(format!("{url}/ingest"))
        .bearer_auth(token)
        .header(header::SIGNATURE, sign(SECRET.as_bytes(), body.as_bytes()))
        .body(body)
}

#[tokio::test]
async fn sighup_replaces_a_certificate_unless_the_new_one_is_bad() {
    let installed = Installed::new("");
    installed.configure(&tls(&installed));
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    installed.write_certificate(&first);
    let serving = installed.serve();
    assert!(serving.url.starts_with("https://"), "{}", serving.url);
    let healthz = format!("{}/healthz", serving.url);
    let works = async |authority: &Authority| {
        authority.client(None).get(&healthz).send().await.is_ok_and(|it| it.status() == 200)
    };
    assert!(works(&first).await && !works(&second).await);
    let response = batch(&first.client(None), &serving.url, TOKEN).send().await.unwrap();
    assert_eq!(response.status(), 200);

    installed.write_certificate(&second);
    serving.signal("-HUP");
    serving.wait_for_log("tls_reloaded", 1).await;
    assert!(works(&second).await && !works(&first).await);

    installed.write("tls.key", &first.issue("127.0.0.1").1);
    serving.signal("-HUP");
    let failed = serving.wait_for_log("tls_reload_failed", 1).await;
    let text = failed[0]["fields"]["error"].as_str().unwrap();
    assert!(text.contains("tls.key"), "{text}");
    assert!(works(&second).await, "the certificate before stays in use");
    assert!(!serving.logged("tls_handshake_failed").is_empty(), "of the clients above");
}

#[tokio::test]
async fn client_without_a_certificate_of_the_authority_is_refused() {
    let installed = Installed::new("");
    let (server, clients) = (Authority::new("server"), Authority::new("clients"));
    installed.write_certificate(&server);
    installed.write("clients.crt", &clients.0.pem());
    let client_ca = format!("client_ca = {:?}\n", installed.path("clients.crt"));
    installed.configure(&(tls(&installed) + &client_ca));
    let serving = installed.serve();
    let status = async |identity| {
        let request = server.client(identity).get(format!("{}/healthz", serving.url));
        request.send().await.ok().map(|response| response.status().as_u16())
    };
    assert_eq!(status(Some(clients.issue("laptop"))).await, Some(200));
    assert_eq!(status(None).await, None);
    assert_eq!(status(Some(server.issue("laptop"))).await, None, "of another authority");
}

/// HAProxy resets a connection after it has seen that the port is open.
#[tokio::test]
async fn reset_before_the_tls_handshake_is_no_warning() {
    let installed = Installed::new("");
    installed.configure(&tls(&installed));
    installed.write_certificate(&Authority::new("x"));
    let serving = installed.serve();
    let reset = tokio::net::TcpStream::connect(serving.address()).await.unwrap();
    reset.set_zero_linger().unwrap();
    drop(reset);
    TcpStream::connect(serving.address()).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let failed = serving.wait_for_log("tls_handshake_failed", 1).await;
    let errors: Vec<_> = failed.iter().map(|line| &line["fields"]["error"]).collect();
    assert_eq!(errors, ["received corrupt message of type InvalidContentType"]);
}

/// Agents refuse the certificate, and nothing else of the receiver says why they are quiet.
#[tokio::test]
async fn certificate_that_is_not_valid_is_logged() {
    let installed = Installed::new("");
    installed.configure(&tls(&installed));
    let authority = Authority::new("x");
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2026, 1, 1);
    let key = KeyPair::generate().unwrap();
    installed.write("tls.crt", &params.signed_by(&key, &authority.0).unwrap().pem());
    installed.write("tls.key", &key.serialize_pem());
    let serving = installed.serve();
    let logged = serving.wait_for_log("tls_certificate_not_valid", 1).await;
    assert_eq!(logged[0]["level"], "error");
    assert_eq!(logged[0]["fields"]["until"], "2026-01-01T00:00:00.000Z");
}

/// A handshake that never ends counts for the time of the headers.
#[tokio::test]
async fn slow_tls_handshake_is_ended_in_the_time_of_the_headers() {
    let installed = Installed::new("");
    installed.configure(&(tls(&installed) + "[http]\nheader_timeout = \"1s\"\n"));
    installed.write_certificate(&Authority::new("x"));
    let serving = installed.serve();
    let start = Instant::now();
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // The start of a handshake, one byte at a time: each of them would restart a limit on idle time.
    let mut hello = [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(0));
    loop {
        let sent = stream.write_all(&[hello.next().unwrap()]);
        let received = stream.read(&mut [0; 100]);
        let has_ended = sent.is_err()
            || matches!(received, Ok(0))
            || received.is_err_and(|it| it.kind() == std::io::ErrorKind::ConnectionReset);
        if has_ended {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "the connection is still open");
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
}

#[tokio::test]
async fn sigterm_finishes_the_request_whose_body_is_arriving() {
    let installed = Installed::new("[shutdown]\ndelay = \"1s\"\ngrace = \"20s\"\n");
    let mut serving = installed.serve();
    let body = BatchText::new(1, 4).text();
    let signature = sign(SECRET.as_bytes(), body.as_bytes());
    let head = format!(
        "POST /ingest HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{}: {signature}\r\n\
         content-length: {}\r\n\r\n",
        header::SIGNATURE,
        body.len()
    );
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    let (start, rest) = body.as_bytes().split_at(body.len() / 2);
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(start).unwrap();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let readyz = format!("{}/readyz", serving.url);
    let ready = client.get(&readyz).send().await.unwrap();
    assert_eq!(
        (ready.status().as_u16(), ready.text().await.unwrap()),
        (200, r#"{"ready":true,"reasons":[]}"#.into())
    );

    serving.signal("-TERM");
    let mut reasons = Value::Null;
    eventually("the receiver is not ready", async || {
        let response = client.get(&readyz).send().await.expect("connections are accepted still");
        let status = response.status();
        reasons = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        status == 503
    })
    .await;
    assert_eq!(reasons["reasons"][0]["code"], "draining");
    eventually("no connection is accepted", async || {
        TcpStream::connect(serving.address()).is_err()
    })
    .await;
    assert!(serving.child.try_wait().unwrap().is_none(), "a request is running");
    stream.write_all(rest).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(serving.wait().await.code(), Some(0));
    assert!(serving.logged("shutdown_timeout").is_empty());
}

/// The first check of the disk has no earlier result: of several probes, all but the first found it stalled.
#[tokio::test]
async fn first_probes_at_the_same_time_are_ready() {
    let serving = Installed::new("").serve();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let request = || client.get(format!("{}/readyz", serving.url)).send();
    let probes: Vec<_> = (0..40).map(|_| tokio::spawn(request())).collect();
    for probe in probes {
        assert_eq!(probe.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn request_that_does_not_end_in_time_is_cut_off() {
    let installed = Installed::new("[shutdown]\ndelay = \"0s\"\ngrace = \"300ms\"\n");
    let mut serving = installed.serve();
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    let head = format!(
        "POST /ingest HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{}: {}\r\ncontent-length: 9\r\n\r\nx",
        header::SIGNATURE,
        "0".repeat(64)
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The receiver has the request when it has answered a later one.
    let healthz = format!("{}/healthz", serving.url);
    reqwest::get(&healthz).await.unwrap();
    serving.signal("-TERM");
    assert_eq!(serving.wait().await.code(), Some(0));
    assert_eq!(serving.logged("shutdown_timeout").len(), 1);
}

/// Returns the address that the receiver logs for a refused request with these headers.
async fn logged_peer(installed: &Installed, name: &'static str, value: &str) -> String {
    let serving = installed.serve();
    let client = reqwest::Client::new();
    let response = batch(&client, &serving.url, "wrong").header(name, value).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let refused = serving.wait_for_log("request_refused", 1).await;
    refused[0]["fields"]["peer"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn forwarded_header_counts_only_from_a_trusted_proxy() {
    let of = |proxies: &str| {
        format!("[http]\nbehind_tls_proxy = true\ntrusted_proxies = [\"{proxies}\"]\n")
    };
    let spoofed = "203.0.113.9, 198.51.100.4";
    let untrusted = Installed::new(&of("192.0.2.1"));
    assert_eq!(logged_peer(&untrusted, "x-forwarded-for", spoofed).await, "127.0.0.1");
    let trusted = Installed::new(&of("127.0.0.0/8"));
    assert_eq!(logged_peer(&trusted, "x-forwarded-for", spoofed).await, "198.51.100.4");
    assert_eq!(logged_peer(&trusted, "forwarded", "for=203.0.113.9").await, "127.0.0.1");
    assert_eq!(logged_peer(&Installed::new(""), "x-forwarded-for", spoofed).await, "127.0.0.1");
}

#[test]
fn plain_http_for_other_machines_does_not_start() {
    let installed = Installed::new("[http]\nlisten = \"0.0.0.0:8080\"\n");
    let text = installed.refused();
    for word in ["config.toml:8", "`tls.certificate`", "`http.behind_tls_proxy = true`"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn unusable_secrets_and_certificates_are_reported_together() {
    let installed = Installed::new("");
    installed.configure(&tls(&installed));
    fs::remove_file(installed.path("token")).unwrap();
    fs::set_permissions(installed.path("hmac-secret"), fs::Permissions::from_mode(0o604)).unwrap();
    let text = installed.refused();
    let errors: Vec<_> = text.lines().collect();
    assert_eq!(errors.len(), 3, "{text}");
    for (error, key) in
        errors.iter().zip(["secrets.token_file", "secrets.hmac_secret_file", "tls.key"])
    {
        assert!(error.starts_with(&format!("error: `{key}` in `")), "{error}");
    }
    let mut check = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    check.args(["config", "check", "--config"]).arg(installed.path("config.toml"));
    assert_eq!(check.output().unwrap().status.code(), Some(1));
}

#[tokio::test]
async fn sighup_reloads_secrets_and_names_keys_that_need_a_restart() {
    let installed = Installed::new("");
    let serving = installed.serve();
    let client = reqwest::Client::new();
    let status =
        async |token| batch(&client, &serving.url, token).send().await.unwrap().status().as_u16();
    assert_eq!((status(TOKEN).await, status("another token").await), (200, 401));
    installed.write("token", "another token\n");
    installed.configure("[limits]\nmax_wait = \"3s\"\n");
    serving.signal("-HUP");
    let needed = serving.wait_for_log("restart_needed", 1).await;
    assert_eq!(needed[0]["fields"]["keys"], "limits.max_wait");
    assert_eq!((status(TOKEN).await, status("another token").await), (401, 200));

    installed.write("token", "");
    serving.signal("-HUP");
    serving.wait_for_log("config_reload_failed", 1).await;
    installed.configure("[limits]\nmax_wat = \"3s\"\n");
    serving.signal("-HUP");
    let failed = serving.wait_for_log("config_reload_failed", 2).await;
    assert!(failed[1]["fields"]["problem"].as_str().unwrap().contains("limits.max_wat"));
    assert_eq!(status("another token").await, 200);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn service_manager_is_notified_of_each_state() {
    let installed = Installed::new("[shutdown]\ndelay = \"0s\"\n");
    let socket = std::os::unix::net::UnixDatagram::bind(installed.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let received = || {
        let mut bytes = [0; 100];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let mut command = installed.command("serve");
    let mut serving =
        Serving::spawn(&installed, command.env("NOTIFY_SOCKET", installed.path("notify")));
    assert_eq!(received(), "READY=1");
    serving.signal("-HUP");
    assert_eq!([received(), received()], ["RELOADING=1", "READY=1"]);
    serving.signal("-TERM");
    assert_eq!(received(), "STOPPING=1");
    assert_eq!(serving.wait().await.code(), Some(0));
}

#[tokio::test]
async fn credentials_of_systemd_are_used() {
    let installed = Installed::new("");
    let data = installed.path("data");
    installed.write("config.toml", &format!("[store]\ndirectory = {data:?}\n"));
    let mut command = installed.command("serve");
    command.env("CREDENTIALS_DIRECTORY", installed.directory.path());
    let serving = Serving::spawn(&installed, &mut command);
    let client = reqwest::Client::new();
    assert_eq!(batch(&client, &serving.url, TOKEN).send().await.unwrap().status(), 200);
}

fn health(installed: &Installed, path: &Path) -> (Option<i32>, String) {
    let mut command = installed.command("health");
    let output = command.env("SIEM_SERVER_CONFIG", path).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn health_requests_the_listener_for_probes() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let probe = free.local_addr().unwrap();
    drop(free);
    let installed = Installed::new("");
    installed.write_certificate(&Authority::new("x"));
    installed.configure(&tls(&installed));
    let path = installed.path("config.toml");
    let (code, text) = health(&installed, &path);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("set `probe.listen`"), "{text}");
    let with_probe = |min_free: &str| {
        let text = tls(&installed) + &format!("[probe]\nlisten = \"{probe}\"\n");
        installed.configure(&text);
        let text = fs::read_to_string(&path).unwrap();
        installed.write("config.toml", &text.replace("min_free = 0", min_free));
    };
    with_probe("min_free = \"1000 PiB\"");
    assert_eq!(health(&installed, &path).0, Some(1), "nothing listens");
    let serving = installed.serve();
    let (code, text) = health(&installed, &path);
    assert_eq!(code, Some(1));
    assert!(text.contains("not ready: ") && text.contains("are free"), "{text}");
    let ingest = reqwest::Client::new().post(format!("http://{probe}/ingest")).send().await;
    assert_eq!(ingest.unwrap().status(), 404, "probes alone");
    drop(serving);
    with_probe("min_free = 0");
    let _serving = installed.serve();
    assert_eq!(health(&installed, &path), (Some(0), "ready\n".to_owned()));
}

#[test]
fn metrics_are_served_on_a_private_socket() {
    let installed = Installed::new("");
    let socket = installed.path("metrics");
    installed.configure(&format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display()));
    let serving = installed.serve();
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let connection = TcpStream::connect(serving.address()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let text = loop {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        if text.contains("siem_server_connections{state=\"idle\"} 1") || Instant::now() > deadline {
            break text;
        }
    };
    drop(connection);
    let lines = [
        "siem_server_connections{state=\"idle\"} 1",
        "siem_server_trust_events_total{kind=\"quota_exceeded\"} 0",
        "siem_server_machines 0",
    ];
    for line in lines {
        assert!(text.contains(line), "{line} in {text}");
    }
}
