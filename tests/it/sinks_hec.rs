//! The sink `splunk-hec` in the agent: everything in the session files is in Splunk after faults of every
//! kind, byte for byte.
#![cfg(unix)]

use serde_json::Value;

use crate::support::{
    agent::AgentCommand,
    hec_server::{Collector, HEC_TOKEN, HecServer},
    home::Home,
    http_server::{Fault, Reply},
    siem::{Compared, POISON, compare, home_with_poison, wait_for_count},
};

/// Returns fields and content of each stored object.
fn objects(server: &HecServer) -> Vec<(Value, String)> {
    let collector = server.collector();
    let event = |object: &Value| object["event"].as_str().unwrap().to_owned();
    collector.stored.iter().map(|object| (object["fields"].clone(), event(object))).collect()
}

fn stored(server: &HecServer) -> usize {
    server.collector().stored.len()
}

/// Ships all sessions through faults in batches of `batch` entries, and prints the counts.
#[track_caller]
fn assert_arrives(collector: Collector, batch: usize, options: &str) {
    let home = home_with_poison();
    let poison = Some((POISON.to_owned(), 6));
    let mut server = HecServer::start(Collector { poison, ..collector });
    let busy = Reply::new(503, r#"{"text":"Server is busy","code":9}"#);
    let slow_down = Reply::new(429, "").header("Retry-After", "1");
    let lost = [Fault::ProcessAndHang, Fault::ProcessAndClose, Fault::ProcessAndTruncate];
    let others = [Fault::Answer(busy), Fault::Close, Fault::Answer(slow_down)];
    // A request without a fault after each, so that the waits of the agent stay short.
    let faults = lost.into_iter().chain(others).flat_map(|fault| [Fault::None, fault]);
    server.http().fail("/event", faults);
    let config = format!(
        "pipeline.sinks = [\"splunk\"]\n[shipping]\nflush_interval = \"0s\"\nbatch_size = {batch}\n\
         [sink.splunk]\ntype = \"splunk-hec\"\nendpoint = \"{}\"\ntoken = \"{HEC_TOKEN}\"\n\
         timeout = \"1s\"\n{options}",
        server.http().url()
    );
    let agent = |arguments: &[&str]| -> AgentCommand { home.agent(arguments).config(&config) };

    let running = agent(&["run"]).start();
    wait_for_count(5 * batch, || stored(&server));
    let mut log = running.log();
    running.kill();
    server.collector().busy_after = Some(7);
    let running = agent(&["run"]).start();
    let before = stored(&server);
    wait_for_count(before + 2 * batch, || stored(&server));
    server.restart(|| ());
    let restarted = stored(&server);
    wait_for_count(restarted + 2 * batch, || stored(&server));
    log += &running.log();
    running.kill();
    log += &agent(&["run", "--once"]).deliver().stderr;
    assert_eq!(server.http().faults_left(), 0);
    assert!(!log.contains(HEC_TOKEN), "the token was printed");

    let letters = agent(&["deadletter", "list", "--json"]).succeed();
    let letters: Vec<&str> = letters.text().lines().collect();
    assert!(letters.len() == 1 && !letters[0].contains(POISON), "{letters:?}");
    let Compared { records, entries, repetitions } = compare(&home, &objects(&server));
    eprintln!(
        "{entries} entries, {records} of them records: 0 missing, 1 dead letter, {repetitions} \
         twice after 3 lost responses, 2 kills of the agent and 1 restart of the server"
    );
    // Each fault repeats at most one batch.
    let most = 6 * batch;
    assert!(repetitions <= most, "{repetitions} repetitions, at most {most}\n{log}");
}

#[test]
fn splunk_has_every_record_after_faults() {
    assert_arrives(Collector::default(), 40, "");
}

#[test]
fn splunk_has_indexed_every_record_after_faults() {
    let collector =
        Collector { uses_ack: true, polls_until_indexed: Some(1), ..Collector::default() };
    let options = "acknowledgement = \"indexed\"\nacknowledgement_timeout = \"5s\"";
    assert_arrives(collector, 100, options);
}

#[test]
fn doctor_checks_the_token_of_splunk() {
    let home = Home::new();
    let server = HecServer::start(Collector::default());
    let doctor = |token: &str| {
        let config = format!(
            "pipeline.sinks = [\"splunk\"]\n[sink.splunk]\ntype = \"splunk-hec\"\n\
             endpoint = \"{}\"\ntoken = \"{token}\"\n",
            server.http().url()
        );
        home.agent(&["doctor"]).config(&config).run().text().to_owned()
    };
    let found = doctor(HEC_TOKEN);
    assert!(found.contains("token is accepted"), "{found}");
    let found = doctor("22222222-2222-3333-4444-555555555555");
    assert!(found.contains("FAIL") && found.contains("code 4"), "{found}");
    assert_eq!(stored(&server), 0);
}
