//! The sink `http` in the agent: everything in the session files is at the receiver after faults of every
//! kind, byte for byte.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use serde_json::Value;

use crate::support::{
    http_server::{Fault, HttpServer, Reply, Request},
    siem::{Compared, POISON, compare, home_with_poison, wait_for_count},
};

/// Number of entries in a batch, and of events that one fault can repeat.
const BATCH: usize = 40;
const KEY: &str = "k3y-0f-the-te5t";

type Stored = Arc<Mutex<Vec<Value>>>;

/// Stores the objects of requests with the key, but for requests with the poisoned record.
fn process(stored: &Stored) -> impl FnMut(&Request) -> Reply + Send + 'static {
    let stored = Arc::clone(stored);
    move |request| {
        if request.header("x-api-key") != KEY || request.path != format!("/intake/{KEY}") {
            return Reply::new(403, "forbidden");
        }
        let Ok(Value::Array(mut objects)) = serde_json::from_slice(&request.body) else {
            return Reply::new(415, "not an array");
        };
        let is_poisoned = |object: &Value| object["event.original"].to_string().contains(POISON);
        if objects.iter().any(is_poisoned) {
            return Reply::new(400, "invalid event");
        }
        stored.lock().unwrap().append(&mut objects);
        Reply::new(202, "")
    }
}

#[test]
fn receiver_has_every_record_after_faults() {
    let home = home_with_poison();
    let stored = Stored::default();
    let count = || stored.lock().unwrap().len();
    let server = HttpServer::start(process(&stored));
    let lost = [Fault::ProcessAndHang, Fault::ProcessAndClose, Fault::ProcessAndTruncate];
    let others = [
        Fault::Answer(Reply::new(503, "busy")),
        Fault::Close,
        Fault::Answer(Reply::new(429, "").header("Retry-After", "1")),
    ];
    // A request without a fault after each, so that the waits of the agent stay short.
    let faults = lost.into_iter().chain(others).flat_map(|fault| [Fault::None, fault]);
    server.fail("", faults);
    let file = |name: &str, text: String| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let endpoint = file("endpoint", format!("{}/intake/{KEY}\n", server.url()));
    let headers = file("headers", format!("X-Api-Key: {KEY}\n"));
    let config = format!(
        "pipeline.sinks = [\"intake\"]\n[shipping]\nflush_interval = \"0s\"\nbatch_size = {BATCH}\n\
         [sink.intake]\ntype = \"http\"\nendpoint_file = {endpoint:?}\nheaders_file = {headers:?}\n\
         format = \"array\"\nsuccess = [\"202\"]\ntimeout = \"1s\"\n"
    );
    let agent = |arguments: &[&str]| home.agent(arguments).config(&config);

    let running = agent(&["run"]).start();
    wait_for_count(5 * BATCH, count);
    let mut log = running.log();
    running.kill();
    let running = agent(&["run"]).start();
    let before = count();
    wait_for_count(before + 8 * BATCH, count);
    let (address, faults_left) = (server.address(), server.faults_left());
    drop(server);
    let server = HttpServer::on(address, process(&stored));
    let restarted = count();
    wait_for_count(restarted + 2 * BATCH, count);
    log += &running.log();
    running.kill();
    log += &agent(&["run", "--once"]).deliver().stderr;
    assert_eq!(faults_left, 0);
    assert!(!log.contains(KEY), "the key was printed");

    let letters = agent(&["deadletter", "list", "--json"]).succeed();
    assert_eq!(letters.text().lines().count(), 1, "{}", letters.text());
    let objects = stored.lock().unwrap().clone();
    let content = |object: &Value| object["event.original"].as_str().unwrap().to_owned();
    let objects: Vec<_> =
        objects.into_iter().map(|object| (object.clone(), content(&object))).collect();
    let Compared { records, entries, repetitions } = compare(&home, &objects);
    eprintln!(
        "{entries} entries, {records} of them records: 0 missing, 1 dead letter, {repetitions} \
         twice after 3 lost responses, 2 kills of the agent and 1 restart of the server"
    );
    // Each fault repeats at most one batch.
    let most = 6 * BATCH;
    assert!(repetitions <= most, "{repetitions} repetitions, at most {most}\n{log}");
    drop(server);
}
