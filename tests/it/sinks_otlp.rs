//! The sink `otlp` on session files, with faults: what the receiver has is compared with the files.
#![cfg(unix)]

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use test_requires::requires;

use crate::support::{
    agent::Agent,
    assembly::assemble,
    eventually,
    home::Home,
    http_server::{Fault, HttpServer, Reply, Request},
    otlp_server::{OtlpServer, attribute, content, rejected},
    rotel::Rotel,
    session_tree::{SentRecord, assert_complete, home_with_sessions},
    within,
};

/// Maximum number of entries in a batch.
const BATCH: usize = 50;

/// Options of the agent with a sink that ships to `endpoint`.
fn config(endpoint: &str) -> String {
    format!(
        "[pipeline]\nsinks = [\"otel\"]\n[shipping]\nflush_interval = \"0s\"\nbatch_size = {BATCH}\n\
         [sink.otel]\ntype = \"otlp\"\nendpoint = \"{endpoint}\"\ntimeout = \"10s\"\n\
         max_event_bytes = \"32 KiB\"\nmax_request_bytes = \"64 KiB\"\n"
    )
}

/// Log records that a receiver has, with their files.
fn sent(server: &OtlpServer) -> Vec<SentRecord> {
    let file = |record: &_, name| attribute(record, name).unwrap_or_default();
    let records = server.log_records();
    let files = records
        .iter()
        .map(|record| (file(record, "log.file.path"), file(record, "ai_agent.generation")));
    let events = server.events().into_iter();
    let sent = events.zip(files);
    sent.map(|(event, (path, generation))| SentRecord { event, path, generation }).collect()
}

/// Forwards a request as it is. Returns no response if the receiver does not respond.
fn forward(request: &Request, to: SocketAddr) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        if name != "connection" {
            head += &format!("{name}: {value}\r\n");
        }
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(&request.raw_body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut reply = Reply::new(status.ok_or(io::ErrorKind::UnexpectedEof)?, "");
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-type") {
            reply = reply.header(name, value);
        }
    }
    reader.read_to_end(&mut reply.body)?;
    Ok(reply)
}

#[requires(servers)]
#[test]
fn faults_before_a_collector_lose_nothing_and_repeat_few() {
    let home = home_with_sessions();
    let backend = OtlpServer::start();
    let rotel = Rotel::start(&backend.http().url());
    let address = rotel.address();
    let proxy = HttpServer::start(move |request| {
        forward(request, address).unwrap_or_else(|_| Reply::new(502, ""))
    });
    let answer = |status| Fault::Answer(Reply::new(status, "").header("Retry-After", "1"));
    let faults = [
        answer(429),
        Fault::None,
        Fault::ProcessAndHang,
        answer(503),
        Fault::None,
        Fault::ProcessAndClose,
        Fault::Close,
        Fault::ProcessAndTruncate,
    ];
    let mut lost =
        faults.iter().filter(|fault| format!("{fault:?}").starts_with("Process")).count();
    let count = faults.len();
    proxy.fail("/v1/logs", faults);

    let start = || home.agent(&["run"]).config(&config(&proxy.url())).start_and_wait();
    let agent = start();
    eventually("all faults happened", || (proxy.faults_left() == 0).then_some(()));
    agent.kill();
    lost += 1;

    // The agent is killed with a request that the collector has, and no response.
    home.write("-generated/later.jsonl", "{\"later\":1}\n");
    proxy.fail("/v1/logs", [Fault::None, Fault::ProcessAndHang]);
    let agent = start();
    let is_hanging = || (proxy.faults_left() == 0).then_some(());
    eventually("a request has no response", is_hanging);
    agent.kill();
    lost += 1;

    // The collector is stopped under load, and started again.
    let agent = start();
    let before = proxy.request_count();
    eventually("a request", || (proxy.request_count() > before).then_some(()));
    rotel.stop();
    let before = proxy.request_count();
    home.write("-generated/last.jsonl", "{\"last\":1}\n");
    eventually("a request fails", || (proxy.request_count() > before).then_some(()));
    let rotel = Rotel::on(address, &backend.http().url());
    lost += 1;
    stop_when_done(agent, &home, &proxy);
    rotel.stop();

    let (records, repeated) = assert_complete(&home, sent(&backend));
    let most = lost * BATCH * 2;
    eprintln!(
        "{records} records; {count} faults, 2 kills of the agent, 1 restart of the collector: 0 lost, \
         {repeated} log records repeated after {lost} lost responses, at most {most}"
    );
    assert!(repeated > 0 && repeated <= most, "{repeated}");
}

/// Stops the agent, and delivers what is left.
#[track_caller]
fn stop_when_done(agent: Agent, home: &Home, proxy: &HttpServer) {
    agent.stop();
    home.agent(&["run", "--once"]).config(&config(&proxy.url())).succeed();
}

#[test]
fn poisoned_entry_is_a_dead_letter_and_all_others_arrive() {
    let home = home_with_sessions();
    home.write("-generated/poison.jsonl", "{\"n\":1}\n{\"poison\":1}\n{\"n\":3}\n");
    let server = OtlpServer::by_rule(|records| {
        let is_poisoned = |content: Vec<u8>| content == b"{\"poison\":1}";
        let refused = records.iter().any(|record| is_poisoned(content(record)));
        refused.then(|| Reply::new(400, "invalid"))
    });
    let url = server.http().url();
    home.agent(&["run", "--once"]).config(&config(&url)).fail(1);
    let list = home.agent(&["deadletter", "list", "--json"]).config(&config(&url)).succeed();
    let letter: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&letter["status"], &letter["sink"]), (&400.into(), &"otel".into()));

    // Without the poisoned line the files and the server are the same.
    home.write("-generated/poison.jsonl", "{\"n\":1}\n            \n{\"n\":3}\n");
    let (records, repeated) = assert_complete(&home, sent(&server));
    eprintln!("{records} records beside 1 poisoned entry: 0 lost, {repeated} log records repeated");
    // Parts of an entry whose last parts are in the refused request.
    assert!(repeated < 8, "{repeated}");
}

#[test]
fn refused_log_records_without_names_are_reported() {
    let home = Home::new();
    let lines: String = (0..20).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    home.write("-generated/a.jsonl", lines);
    let server = OtlpServer::by_rule(|records| {
        let is_old = |content: Vec<u8>| content == b"{\"n\":7}";
        let is_refused = records.iter().any(|record| is_old(content(record)));
        is_refused.then(|| rejected(1, "too old"))
    });
    let url = server.http().url();
    let agent = home.agent(&["run"]).config(&config(&url)).start();
    let reports = || {
        let mut records = server.log_records();
        records.retain(|record| record.event_name == "entries_refused_unidentified");
        records
    };
    eventually("the report arrives", || (!reports().is_empty()).then_some(()));
    agent.stop();
    let reports = reports();
    assert_eq!(reports.len(), 1);
    let report: serde_json::Value = serde_json::from_slice(&content(&reports[0])).unwrap();
    assert_eq!((&report["refused"], &report["sink"]), (&1.into(), &"otel".into()));
    assert_eq!(assemble(server.events()).repetitions, 0);
}

/// An endpoint that answers with the page of a captive portal gets nothing acknowledged.
#[test]
fn captive_portal_acknowledges_nothing() {
    let home = Home::new();
    home.write("-generated/a.jsonl", "{\"n\":1}\n");
    let server = OtlpServer::start();
    let page = Reply::new(200, "<html>sign in</html>").header("Content-Type", "text/html");
    server.http().fail("/v1/logs", [Fault::Answer(page)]);
    let url = server.http().url();
    let mut agent = home.agent(&["run"]).config(&config(&url)).start();
    agent.wait_for_line("delivery_held", "`endpoint`");
    within(Duration::from_secs(60), "the record arrives", || {
        (!server.events().is_empty()).then_some(())
    });
    agent.stop();
    assert_eq!(assert_complete(&home, sent(&server)), (1, 0));
}
