//! The `demo-server` program, as a process.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::common::{SECRET, TOKEN};

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-server"));
    command
        .args(["--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .env_remove("CLAUDE_SIEM_TOKEN")
        .env_remove("CLAUDE_SIEM_HMAC_SECRET")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A process that is killed at the end of the test.
struct Process {
    child: Child,
    #[cfg_attr(not(unix), expect(dead_code, reason = "only tests with signals send to it"))]
    url: String,
}

impl Process {
    fn start(data: &Path) -> Self {
        let mut command = command(data);
        command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        Self { url: url.trim().to_owned(), child }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn output(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn missing_and_empty_secrets_are_reported() {
    let data = tempfile::tempdir().unwrap();
    let (code, text) = output(&mut command(data.path()));
    assert_eq!(code, Some(2));
    for token in ["CLAUDE_SIEM_TOKEN", "--token-file"] {
        assert!(text.contains(token), "{token}: {text}");
    }
    let (code, text) = output(command(data.path()).args(["--token", "t"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("CLAUDE_SIEM_HMAC_SECRET"), "{text}");
    let mut empty = command(data.path());
    let (code, text) = output(empty.env("CLAUDE_SIEM_TOKEN", "").args(["--hmac-secret", "s"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("error: ") && text.contains("token"), "{text}");
    let absent = data.path().join("absent");
    let (code, text) = output(command(data.path()).arg("--token-file").arg(&absent));
    assert_eq!(code, Some(2));
    assert!(text.contains(absent.to_str().unwrap()), "{text}");
}

#[cfg(unix)]
#[test]
fn secret_files_readable_by_others_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = data.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let (token, secret) = (write("token", "one\ntwo\n", 0o600), write("secret", SECRET, 0o640));
    let mut command = command(data.path());
    command.arg("--token-file").arg(&token).arg("--hmac-secret-file").arg(&secret);
    drop(Process::spawn(&mut command));
    write("token", "one\n", 0o644);
    let (code, text) = output(&mut command);
    assert_eq!(code, Some(2));
    assert!(text.contains(token.to_str().unwrap()), "{text}");
}

#[test]
fn receiver_key_is_made_only_for_a_level_of_trust() {
    let key = |data: &Path| data.join("trust/keys/receiver.json").try_exists().unwrap();
    let data = tempfile::tempdir().unwrap();
    drop(Process::start(data.path()));
    assert!(!key(data.path()));
    let with = |options: &[&str]| {
        let mut command = command(data.path());
        command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        command.args(options);
        command
    };
    let named = ["--trust", "first-use", "--receiver-name", "siem.example.com"];
    drop(Process::spawn(&mut with(&named)));
    let read = || std::fs::read_to_string(data.path().join("trust/keys/keys.txt")).unwrap();
    let keys = read();
    assert!(keys.contains("receiver=siem.example.com\n"), "{keys}");
    drop(Process::spawn(&mut with(&["--trust", "enrolled"])));
    drop(Process::start(data.path()));
    assert_eq!(read(), keys, "another start keeps the key");
    let (code, text) = output(&mut with(&["--trust", "high"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("first-use"), "{text}");
    let (code, text) = output(&mut with(&["--receiver-name", "x"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("--trust"), "{text}");
}

#[test]
fn second_server_on_the_same_data_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let _first = Process::start(data.path());
    let (code, text) = output(command(data.path()).args(["--token", "t", "--hmac-secret", "s"]));
    assert_eq!(code, Some(1));
    assert!(text.contains(data.path().to_str().unwrap()), "{text}");
}

/// Tests with signals.
#[cfg(unix)]
mod with_signals {
    use std::{
        io::Read as _,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use siem_protocol::{Chain, Digest, Receipt, names::header, sign, statement::DeviceState};
    use siem_server::{
        ledger::Difference,
        stats::Stats,
        trust::{NewToken, Registry, RegistryOptions, Scope, TokenText},
    };

    use super::*;
    use crate::common::{
        BatchText, Outbox, files, line,
        trust::{RECEIVER, device_key, enrollment, signed},
    };

    impl Process {
        fn request(&self, client: &reqwest::Client, text: &BatchText) -> reqwest::RequestBuilder {
            let body = text.text();
            client
                .post(format!("{}/ingest", self.url))
                .bearer_auth(TOKEN)
                .header(header::SIGNATURE, sign(SECRET.as_bytes(), body.as_bytes()))
                .body(body)
        }
    }

    fn start_with_key(data: &Path) -> Process {
        let mut command = command(data);
        command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        command.args(["--trust", "first-use", "--receiver-name", RECEIVER]);
        let mut process = Process::spawn(&mut command);
        // A log that no process reads would fill its pipe.
        drop(process.child.stderr.take());
        process
    }

    fn open_registry(data: &Path) -> Registry {
        Registry::open(&data.join("trust"), RegistryOptions::default()).unwrap()
    }

    /// Devices enroll with single-use tokens while the server is killed. A key whose enrollment was
    /// answered is confirmed after the kill, and every other one at its next attempt: a kill
    /// between token and device, or between device and response, costs neither.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answered_enrollments_survive_kills() {
        const DEVICES: u16 = 60;
        let data = tempfile::tempdir().unwrap();
        let tokens: Vec<String> = (0..DEVICES).map(|n| single_use_token(data.path(), n)).collect();
        let answered: Arc<Vec<_>> = Arc::new((0..DEVICES).map(|_| AtomicU64::new(0)).collect());
        let count = |answered: &[AtomicU64]| {
            answered.iter().map(|one| one.load(Ordering::SeqCst)).sum::<u64>()
        };
        for round in 0..4 {
            let mut process = start_with_key(data.path());
            let tasks: Vec<_> = (0..DEVICES)
                .map(|n| {
                    let token = tokens[usize::from(n)].clone();
                    tokio::spawn(enroll(process.url.clone(), token, n, answered.clone()))
                })
                .collect();
            let target = u64::from(DEVICES) / 4 * round + 5;
            crate::common::eventually("some are answered", async || count(&answered) >= target)
                .await;
            process.child.kill().unwrap();
            process.child.wait().unwrap();
            for task in tasks {
                task.await.unwrap();
            }
            let registry = open_registry(data.path());
            for n in 0..DEVICES {
                let state = registry.device(&device_key(n)).map(|device| device.state);
                if answered[usize::from(n)].load(Ordering::SeqCst) == 1 {
                    assert_eq!(state, Some(DeviceState::Confirmed), "device {n}");
                }
            }
        }
        let process = start_with_key(data.path());
        for n in 0..DEVICES {
            enroll(process.url.clone(), tokens[usize::from(n)].clone(), n, answered.clone()).await;
        }
        assert_eq!(count(&answered), u64::from(DEVICES));
        let devices = open_registry(data.path()).devices();
        assert_eq!(devices.len(), usize::from(DEVICES));
        assert!(devices.iter().all(|device| device.state == DeviceState::Confirmed));
    }

    fn single_use_token(data: &Path, n: u16) -> String {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        let text = TokenText::from_random(&bytes);
        let scopes = [Scope::Enroll].into();
        let new = NewToken { scopes, single_use: true, ..NewToken::default() };
        open_registry(data).add_token(new, &text).unwrap();
        text.reveal().to_owned()
    }

    /// Enrolls device `n` and notes the response; none if the server was killed.
    async fn enroll(url: String, token: String, n: u16, answered: Arc<Vec<AtomicU64>>) {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let request = client.post(format!("{url}/enroll")).bearer_auth(token);
        let request = request.body(signed(&enrollment(n), &[n]));
        let Ok(response) = request.send().await else { return };
        let status = response.status();
        let Ok(body) = response.bytes().await else { return };
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        answered[usize::from(n)].store(1, Ordering::SeqCst);
    }

    #[tokio::test]
    async fn enrollment_logs_no_token_and_no_private_key() {
        let data = tempfile::tempdir().unwrap();
        let token = single_use_token(data.path(), 1);
        let mut command = command(data.path());
        command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        command.env("RUST_LOG", "trace").args(["--trust", "enrolled", "--receiver-name", RECEIVER]);
        let mut process = Process::spawn(&mut command);
        let mut errors = process.child.stderr.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut log = String::new();
            errors.read_to_string(&mut log).unwrap();
            log
        });
        let client = reqwest::Client::new();
        let url = format!("{}/enroll", process.url);
        for (token, n, status) in
            [(token.as_str(), 1, 200), (&token, 2, 401), ("siem_wrong", 1, 401), (TOKEN, 3, 200)]
        {
            let body = signed(&enrollment(n), &[n]);
            let response = client.post(&url).bearer_auth(token).body(body).send().await.unwrap();
            assert_eq!(response.status(), status, "{token} {n}");
        }
        let pid = process.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
        let log = reading.join().unwrap();
        assert!(log.contains("enrolled a device"), "{log}");
        let keys = std::fs::read_to_string(data.path().join("trust/keys/receiver.json")).unwrap();
        let private = keys.split("PRIVATE+KEY+").nth(1).unwrap();
        // After the name of the key and its id; the key itself may contain `+`.
        let private = private.split('"').next().unwrap().splitn(3, '+').nth(2).unwrap();
        for secret in [&token[5..], TOKEN, "siem_wrong", "PRIVATE", private] {
            assert!(!log.contains(secret), "{secret}: {log}");
        }
    }

    /// A limit of open files below the number of connections, as `ulimit -n` sets it.
    #[tokio::test]
    async fn silent_connections_beyond_the_open_files_delay_no_request() {
        let data = tempfile::tempdir().unwrap();
        let server = env!("CARGO_BIN_EXE_demo-server");
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 128; exec \"$0\" \"$@\"", server]);
        limited.args(["--listen", "127.0.0.1:0", "--data"]).arg(data.path());
        limited.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        let mut process = Process::spawn(limited.stdout(Stdio::piped()).stderr(Stdio::piped()));
        drop(process.child.stderr.take());
        let address = process.url.strip_prefix("http://").unwrap().to_owned();
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(std::net::TcpStream::connect(&address).unwrap());
        }
        let client = reqwest::Client::builder().timeout(Duration::from_secs(8)).build().unwrap();
        let response = process.request(&client, &BatchText::new(1, 4)).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }

    #[tokio::test]
    async fn sigterm_stops_cleanly_and_logs_no_secret() {
        let data = tempfile::tempdir().unwrap();
        let mut child = command(data.path());
        child
            .env("RUST_LOG", "trace")
            .env("CLAUDE_SIEM_TOKEN", TOKEN)
            .env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
        let mut process = Process::spawn(&mut child);
        let mut errors = process.child.stderr.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut log = String::new();
            errors.read_to_string(&mut log).unwrap();
            log
        });
        let client = reqwest::Client::new();
        let secret_line = r#"{"seq":1,"kind":"event","data":"very private"}"#;
        let value = Digest::ZERO.chain(Digest::of(secret_line.as_bytes()));
        let after = value.chain(Digest::of(line(2).as_bytes()));
        let text = BatchText::new(1, 2).line(1, secret_line);
        let text = text.with(|header| {
            header.chain = Some(Chain { before: Digest::ZERO, after });
        });
        let signature = sign(SECRET.as_bytes(), text.text().as_bytes());
        assert_eq!(process.request(&client, &text).send().await.unwrap().status(), 200);
        for (first, token) in [(1, TOKEN), (9, "wrong token")] {
            let other =
                BatchText::new(first, 9).line(9, r#"{"seq":9,"kind":"event","data":"very private"#);
            let request =
                process.request(&client, &other).header("authorization", format!("Bearer {token}"));
            assert!(!request.send().await.unwrap().status().is_success());
        }
        let pid = process.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
        let log = reading.join().unwrap();
        assert!(log.contains("stopped"), "{log}");
        for secret in [TOKEN, SECRET, "wrong token", "very private", &signature] {
            assert!(!log.contains(secret), "{secret}: {log}");
        }
    }

    /// Several agents send as fast as they get responses while the server is killed again and
    /// again. Acknowledged entries are stored once and in order, others are sent again, and the
    /// totals of the agents match.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn acknowledged_batches_survive_kills() {
        const AGENTS: u64 = 6;
        const KILLS: u64 = 5;
        let data = tempfile::tempdir().unwrap();
        let outbox = Arc::new(outbox());
        let next: Vec<_> = (0..AGENTS).map(|_| Arc::new(AtomicU64::new(1))).collect();
        for round in 0..KILLS {
            let mut process = Process::start(data.path());
            // A log that no process reads would fill its pipe.
            drop(process.child.stderr.take());
            let target =
                next.iter().map(|next| next.load(Ordering::SeqCst)).sum::<u64>() + 200 + 77 * round;
            let process = Arc::new(process);
            let agents: Vec<_> = (0..AGENTS)
                .map(|agent| {
                    let (process, outbox) = (process.clone(), outbox.clone());
                    tokio::spawn(send(process, outbox, agent, next[agent as usize].clone()))
                })
                .collect();
            crate::common::eventually("enough is answered", async || {
                next.iter().map(|next| next.load(Ordering::SeqCst)).sum::<u64>() >= target
            })
            .await;
            let pid = process.child.id().to_string();
            assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
            for agent in agents {
                agent.await.unwrap();
            }
            drop(process);
        }
        // A last start recovers from the last kill.
        let mut process = Process::start(data.path());
        let client = reqwest::Client::new();
        for (agent, next) in (0..AGENTS).zip(&next) {
            let text = batch(&outbox, agent, next.load(Ordering::SeqCst));
            let response = process.request(&client, &text).send().await.unwrap();
            assert_eq!(response.status(), 200);
            next.fetch_add(3, Ordering::SeqCst);
        }
        let stats = client.get(format!("{}/stats", process.url)).bearer_auth(TOKEN).send().await;
        let stats: Stats = serde_json::from_slice(&stats.unwrap().bytes().await.unwrap()).unwrap();
        assert_eq!(stats.unexplained, 0);
        for machine in &stats.machines {
            let epoch = &machine.epochs[0];
            assert_eq!(epoch.claims.as_ref().unwrap().difference, Difference::None);
            assert_eq!((epoch.breaks.len(), epoch.gaps.len(), epoch.repetitions), (0, 0, 0));
        }
        let pid = process.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
        let stored = files(&data.path().join("machines"), "ndjson");
        assert_eq!(stored.len() as u64, AGENTS);
        for file in stored {
            let agent = (0..AGENTS)
                .find(|agent| file.to_str().unwrap().contains(&format!("machine-{agent}/")));
            let next = next[agent.unwrap() as usize].load(Ordering::SeqCst);
            let expected = &outbox.lines()[..usize::try_from(next - 1).unwrap()];
            let expected = expected.join("\n") + "\n";
            let stored = std::fs::read_to_string(file).unwrap();
            let same = stored.lines().zip(expected.lines()).take_while(|(a, b)| a == b).count();
            assert!(stored == expected, "{same} of {} lines, then others", next - 1);
        }
    }

    /// Longer than all kills take.
    fn outbox() -> Outbox {
        let mut outbox = Outbox::new("epoch-1");
        for entry in 0..30_000 {
            match entry % 7 {
                1 => outbox.part("h", entry, 1),
                3 => outbox.event(),
                6 => outbox.heartbeat(),
                _ => outbox.record("g", entry * 100, entry),
            };
        }
        outbox
    }

    fn batch(outbox: &Outbox, agent: u64, first: u64) -> BatchText {
        let batch = outbox.batch(first, first + 2);
        batch.with(|header| header.machine_id = format!("machine-{agent}"))
    }

    /// Sends batches until the server stops.
    async fn send(process: Arc<Process>, outbox: Arc<Outbox>, agent: u64, next: Arc<AtomicU64>) {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        loop {
            let first = next.load(Ordering::SeqCst);
            let Ok(response) = process.request(&client, &batch(&outbox, agent, first)).send().await
            else {
                return;
            };
            let status = response.status();
            let Ok(body) = response.bytes().await else { return };
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
            let receipt: Receipt = serde_json::from_slice(&body).unwrap();
            assert_eq!(receipt.last_seq, Some(first + 2));
            assert_eq!(receipt.accepted + receipt.duplicates, 3);
            next.store(first + 3, Ordering::SeqCst);
        }
    }

    /// Concurrent bodies that decode to a gigabyte each are refused, and the peak memory of the
    /// process stays below its limits. The log is not read: each refusal writes a line, and a line
    /// that could not be written once cost the response.
    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn compression_bombs_stay_within_the_memory_limits() {
        use siem_protocol::Encoding;
        let data = tempfile::tempdir().unwrap();
        let mut process = Process::start(data.path());
        drop(process.child.stderr.take());
        let client = reqwest::Client::new();
        let mut tasks = Vec::new();
        for encoding in [Encoding::Zstd, Encoding::Gzip] {
            let bomb = crate::common::encoded(&vec![b' '; 8 << 20], encoding).repeat(130);
            let signature = sign(SECRET.as_bytes(), &bomb);
            for _ in 0..12 {
                let request = client
                    .post(format!("{}/ingest", process.url))
                    .bearer_auth(TOKEN)
                    .header("content-encoding", encoding.as_str())
                    .header(header::SIGNATURE, &signature)
                    .body(bomb.clone());
                tasks.push(tokio::spawn(async move { request.send().await.unwrap().status() }));
            }
        }
        for task in tasks {
            let status = task.await.unwrap().as_u16();
            assert!(status == 413 || status == 503, "{status}");
        }
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("at most {} MiB were in memory", peak >> 10);
        assert!(peak < 512 << 10, "{peak} KiB");
    }
}
