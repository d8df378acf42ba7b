//! `siem-server fleet` and `entries`, as processes, beside a running receiver.

use std::process::{Command, Output};

use crate::common::{BatchText, Server, TOKEN, TestDevice};
use serde_json::Value;
use siem_protocol::statement::TrustLevel;
use siem_server::Limits;

fn run(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    command.env("CLAUDE_SIEM_TOKEN", TOKEN).args(arguments);
    if !arguments.contains(&"--url") {
        command.arg("--data").arg(server.data.path());
    }
    command.output().unwrap()
}

fn text(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the files have what the receiver has acknowledged.
async fn settled(server: &Server) {
    server.stats().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_from_the_directory_equals_that_of_the_server() {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let device = TestDevice::new(1);
    server.confirm(&device).await;
    server.take(&BatchText::new(1, 1).seal(&device)).await;
    server.take(&BatchText::new(3, 3).seal(&device)).await;
    for machine in ["m-2", "m-3"] {
        server.take(&BatchText::new(1, 2).with(|header| header.machine_id = machine.into())).await;
    }
    settled(&server).await;
    let url = server.url("");
    for filter in [&[][..], &["--problem", "gap"], &["--machine", "m-3"], &["--user", "x"]] {
        let of_directory = text(&server, &[&["fleet", "--json"], filter].concat());
        let of_server = text(&server, &[&["fleet", "--json", "--url", &url], filter].concat());
        let parsed: Value = serde_json::from_str(&of_directory).unwrap();
        assert_eq!(parsed, serde_json::from_str::<Value>(&of_server).unwrap());
        assert_eq!(parsed["totals"]["rows"], 3);
    }
    let table = text(&server, &["fleet", "--problem", "gap"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("MACHINE  USER  HOST    DEVICE            STATE      SEEN"),
        "{table}"
    );
    assert!(lines[1].starts_with("m-1      u     laptop  "), "{table}");
    assert_eq!(lines[2], "1 of 3 rows, 1 machine, 0 without problems, 1 gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_do_not_control_the_terminal() {
    let server = Server::start().await;
    let evil = BatchText::new(1, 1).with(|header| {
        header.hostname = "\u{1b}]0;x\u{7}\u{202e}\r\n".into();
        header.user = "u\n1 of 1 rows".into();
    });
    server.take(&evil).await;
    settled(&server).await;
    for source in [&["fleet"][..], &["fleet", "--url", &server.url("")]] {
        let table = text(&server, source);
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(
            table.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'),
            "{table:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_stand_alone_and_keep_their_bytes() {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let device = TestDevice::new(1);
    let key = server.confirm(&device).await.to_string();
    server.take(&BatchText::new(1, 2).seal(&device)).await;
    server.take(&BatchText::new(2, 4).seal(&device)).await;
    let other = BatchText::new(1, 1).with(|header| header.machine_id = "m-2".into());
    server.take(&other).await;
    settled(&server).await;
    let lines = text(&server, &["entries", "--machine", "m-1"]);
    let seqs = lines.lines().enumerate().map(|(at, line)| {
        let value: Value = serde_json::from_str(line).unwrap();
        let names = ["machine_id", "hostname", "user", "epoch", "device"].map(|name| &value[name]);
        assert_eq!(names, ["m-1", "laptop", "u", "e-1", key.as_str()]);
        assert!(value["received_at"].as_str().unwrap().ends_with('Z'));
        let raw = crate::common::line(at as u64 + 1);
        assert!(line.ends_with(&raw[1..]), "{line}");
        value["seq"].as_u64().unwrap()
    });
    assert_eq!(seqs.collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(text(&server, &["entries"]).lines().count(), 5);
    assert_eq!(text(&server, &["entries", "--user", "x"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_of_fleet_are_exit_code_2() {
    let server = Server::start().await;
    for arguments in [
        &["fleet", "--problem", "lost"][..],
        &["fleet", "--url", "https://127.0.0.1"],
        &["fleet", "--url", "http://127.0.0.1:1", "--token-file", "/nonexistent"],
    ] {
        assert_eq!(run(&server, arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(run(&server, &["fleet", "--url", "http://127.0.0.1:1"]).status.code(), Some(1));
}
