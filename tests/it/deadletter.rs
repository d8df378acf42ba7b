//! Dead letters: an entry that a receiver refuses permanently is kept, the others are delivered,
//! and it can be sent again.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    answer_late, entries, eventually,
    home::Home,
    lines_with_code,
    receiver::{Receiver, wait_for},
};
use ai_agent::internals::pipeline::outbox::{DeadLetter, DeadLetterId, Outbox};
use serde_json::Value;

const POISON: &str = "what this receiver will not take";

/// A proxy in front of a receiver that answers 422 to bodies with the poison.
struct Gate {
    port: u16,
    refuses: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    in_flight: Arc<InFlight>,
}

/// Counts concurrent requests.
#[derive(Default)]
struct InFlight {
    now: AtomicUsize,
    most: AtomicUsize,
    /// Delay of each request before it is forwarded, in milliseconds.
    delay_ms: AtomicU64,
}

impl Gate {
    fn before(receiver: &Receiver) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let behind = receiver.url().trim_start_matches("http://").to_owned();
        let (refuses, requests) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let in_flight = Arc::<InFlight>::default();
        let gate = Self {
            port,
            refuses: Arc::clone(&refuses),
            requests: Arc::clone(&requests),
            in_flight: Arc::clone(&in_flight),
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (behind, refuses) = (behind.clone(), Arc::clone(&refuses));
                let requests = Arc::clone(&requests);
                let in_flight = Arc::clone(&in_flight);
                thread::spawn(move || {
                    pass(stream.unwrap(), &behind, &refuses, &requests, &in_flight);
                });
            }
        });
        gate
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Forwards or refuses one request. Each has its own connection.
fn pass(
    mut client: TcpStream,
    behind: &str,
    refuses: &AtomicBool,
    requests: &AtomicUsize,
    in_flight: &InFlight,
) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or_default() == 0 {
            return;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    requests.fetch_add(1, Ordering::Relaxed);
    let now = in_flight.now.fetch_add(1, Ordering::SeqCst) + 1;
    in_flight.most.fetch_max(now, Ordering::SeqCst);
    answer_late(Duration::from_millis(in_flight.delay_ms.load(Ordering::SeqCst)));
    let answer = answer(behind, &head, &body, refuses);
    // Once the client has the answer it may send the next request at any moment.
    in_flight.now.fetch_sub(1, Ordering::SeqCst);
    client.write_all(&answer).unwrap();
}

fn answer(behind: &str, head: &str, body: &[u8], refuses: &AtomicBool) -> Vec<u8> {
    let poisoned = String::from_utf8_lossy(body).contains(POISON);
    if poisoned && refuses.load(Ordering::Relaxed) {
        let problem = r#"{"type":"about:blank","title":"no","status":422,"detail":"bad taste"}"#;
        let answer = format!(
            "HTTP/1.1 422 Unprocessable Content\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{problem}",
            problem.len()
        );
        return answer.into_bytes();
    }
    let mut server = TcpStream::connect(behind).unwrap();
    server.write_all(head.as_bytes()).unwrap();
    server.write_all(b"Connection: close\r\n\r\n").unwrap();
    server.write_all(body).unwrap();
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).unwrap();
    answer
}

fn numbers(receiver: &Receiver, what: &str) -> Value {
    receiver.stats()["machines"][0]["epochs"][0][what].clone()
}

#[test]
fn poisoned_entry_is_a_dead_letter_and_retry_fills_its_hole() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let gate = Gate::before(&receiver);
    let lines = (0..200).map(|n| match n {
        77 => format!("{{\"n\":{n},\"text\":\"{POISON}\"}}\n"),
        _ => format!("{{\"n\":{n}}}\n"),
    });
    home.write("-work/a.jsonl", lines.collect::<String>());
    let config = "[sink.siem]\ncompression = \"none\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&gate.url());

    agent(&["run", "--once"]).fail(1);
    let stored = entries::lines(&receiver.entries());
    assert_eq!(stored.len(), 199);
    assert!(gate.requests.load(Ordering::Relaxed) < 30, "isolated in a logarithm of requests");
    assert_eq!(numbers(&receiver, "holes").as_array().unwrap().len(), 1);
    assert_eq!(numbers(&receiver, "gaps").as_array().unwrap().len(), 0);

    let listed = agent(&["deadletter", "list", "--json"]).succeed();
    let letter: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&letter["status"], &letter["attempts"]), (&422.into(), &1.into()));
    assert_eq!((&letter["reason"], &letter["sink"]), (&"refused".into(), &"siem".into()));
    let shown = agent(&["deadletter", "list"]).succeed();
    for words in [&*letter["seq"].to_string(), "422", "bad taste"] {
        assert!(shown.text().contains(words), "{words}: {}", shown.text());
    }
    assert!(shown.text().contains(letter["at"].as_str().unwrap()), "{}", shown.text());
    assert!(!shown.text().contains("about:blank"), "no JSON: {}", shown.text());
    assert!(letter["answer"].as_str().unwrap().contains("bad taste"));
    let number = letter["seq"].to_string();

    let shown = agent(&["deadletter", "show", &number]).succeed();
    assert!(String::from_utf8_lossy(&shown.stdout).contains(POISON));
    let file = home.path().join("letters.ndjson");
    let file = file.to_str().unwrap();
    agent(&["deadletter", "export", "--all", "--to", file]).succeed();
    assert_eq!(fs::read(file).unwrap(), shown.stdout);

    // Refused again, it is kept, and its count of attempts grows.
    agent(&["deadletter", "retry", &number]).fail(1);
    let listed = agent(&["deadletter", "list", "--json"]).succeed();
    let letter: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(letter["attempts"], 2);

    gate.refuses.store(false, Ordering::Relaxed);
    agent(&["deadletter", "retry", "--all"]).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 200);
    assert_eq!(numbers(&receiver, "holes").as_array().unwrap().len(), 0);
    assert!(agent(&["deadletter", "list", "--json"]).succeed().stdout.is_empty());
    receiver.assert_complete();
}

#[test]
fn purged_dead_letter_is_deleted_and_reported() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let gate = Gate::before(&receiver);
    home.write("-work/a.jsonl", format!("{{\"text\":\"{POISON}\"}}\n"));
    let config = "[sink.siem]\ncompression = \"none\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&gate.url());
    agent(&["run", "--once"]).fail(1);
    let message = agent(&["deadletter", "purge", "4711"]).fail(2);
    assert!(message.contains("4711"), "{message}");
    agent(&["deadletter", "purge", "--all"]).succeed();
    agent(&["run", "--once"]).succeed();
    let stored = receiver.entries();
    assert_eq!(entries::events(&stored, "dead_letters_purged").len(), 1);
    assert_eq!(entries::events(&stored, "entry_dead_lettered").len(), 1);
}

/// With two dead letters, each command changes only the named one.
#[test]
fn deadletter_commands_affect_only_the_named_letters() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let gate = Gate::before(&receiver);
    let line = |n: u32| format!("{{\"n\":{n},\"text\":\"{POISON}\"}}");
    home.write("-work/a.jsonl", format!("{}\n{{\"n\":2}}\n{}\n", line(1), line(3)));
    let config = "[sink.siem]\ncompression = \"none\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&gate.url());
    let list = || {
        let listed = agent(&["deadletter", "list", "--json"]).succeed().stdout;
        let lines = listed.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect::<Vec<Value>>()
    };
    agent(&["run", "--once"]).fail(1);

    let letters = list();
    let [first, second] = &letters[..] else { panic!("{letters:#?}") };
    for letter in [first, second] {
        let text = |name: &str| letter[name].as_str().unwrap();
        assert_eq!(letter.as_object().unwrap().len(), 9, "{letter}");
        assert!(letter["seq"].is_u64() && !text("epoch").is_empty(), "{letter}");
        assert_eq!((text("sink"), text("reason")), ("siem", "refused"));
        assert_eq!((&letter["status"], &letter["attempts"]), (&422.into(), &1.into()));
        assert!(humantime::parse_rfc3339(text("at")).is_ok(), "{letter}");
        assert!(text("answer").contains("bad taste"), "{letter}");
        assert_eq!(text("line_sha256").len(), 64);
    }
    let number = |letter: &Value| letter["seq"].to_string();
    let (one, other) = (number(first), number(second));

    // Exactly the named entry, as it would be sent.
    let shown = agent(&["deadletter", "show", &other]).succeed().stdout;
    let entry = shown.strip_suffix(b"\n").unwrap();
    assert_eq!(entries::parse(&shown).len(), 1);
    assert_eq!(siem_protocol::Digest::of(entry).to_string(), second["line_sha256"]);
    assert!(String::from_utf8_lossy(entry).contains(&line(3)), "byte for byte");

    let file = home.path().join("letters.ndjson");
    let to = file.to_str().unwrap();
    agent(&["deadletter", "export", &other, "--to", to]).succeed();
    assert_eq!(fs::read(&file).unwrap(), shown);
    let message = agent(&["deadletter", "export", "--all", "--to", to]).fail(1);
    assert!(message.contains("letters.ndjson"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), shown, "what is there is not written over");

    for action in ["show", "retry", "export", "purge"] {
        let message = agent(&["deadletter", action, "4711"]).fail(2);
        assert!(message.contains("4711"), "{action}: {message}");
    }
    agent(&["deadletter", "purge", &one, "--sink", "archive"]).fail(2);
    assert_eq!(list(), letters, "to look, to export and to mistype changes nothing");

    agent(&["deadletter", "retry", &one]).fail(1);
    let again = list();
    assert_eq!((&again[0]["attempts"], &again[1]), (&2.into(), second));
    agent(&["deadletter", "purge", &one]).succeed();
    assert_eq!(list(), std::slice::from_ref(second));
    gate.refuses.store(false, Ordering::Relaxed);
    agent(&["deadletter", "retry", &other]).succeed();
    assert!(list().is_empty());
    agent(&["run", "--once"]).succeed();
    let stored = receiver.entries();
    assert_eq!(entries::lines(&stored).len(), 2);
    // The SIEM learns which number will never arrive.
    let purged = entries::events(&stored, "dead_letters_purged");
    let data = &purged[0].data;
    assert_eq!((&data["count"], &data["letters"][0]["seq"]), (&1.into(), &first["seq"]));
    assert_eq!(
        numbers(&receiver, "holes"),
        serde_json::json!([{ "first": first["seq"], "last": first["seq"] }])
    );
}

#[test]
fn deadletter_commands_work_through_a_running_agent() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let gate = Gate::before(&receiver);
    home.write("-work/a.jsonl", format!("{{\"text\":\"{POISON}\"}}\n{{\"text\":\"{POISON}\"}}\n"));
    let config = "[sink.siem]\ncompression = \"none\"\n[shipping]\nflush_interval = \"0s\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&gate.url());
    let running = agent(&["run"]).start_and_wait();
    let list = || {
        let listed = agent(&["deadletter", "list", "--json"]).succeed();
        let letters = listed.text().lines().map(|line| serde_json::from_str(line).unwrap());
        letters.collect::<Vec<Value>>()
    };
    let letters = eventually("both are refused", || {
        let letters = list();
        (letters.len() == 2).then_some(letters)
    });
    let number = |at: usize| letters[at]["seq"].to_string();
    let shown = agent(&["deadletter", "show", &number(0)]).succeed();
    assert!(shown.text().contains(POISON), "{}", shown.text());
    // A letter can be sent or deleted once a batch header has announced it.
    eventually("they are announced, and refused again", || {
        agent(&["deadletter", "retry", "--all"]).fail(1);
        list().iter().all(|letter| letter["attempts"] != 1).then_some(())
    });
    eventually("one is sent again", || {
        gate.refuses.store(false, Ordering::Relaxed);
        (agent(&["deadletter", "retry", &number(0)]).run().code == Some(0)).then_some(())
    });
    agent(&["deadletter", "purge", &number(1)]).succeed();
    assert!(list().is_empty());
    let entries = wait_for(&receiver, "the SIEM gets the event", |entries| {
        let is_reported = !entries::events(entries, "dead_letters_purged").is_empty();
        is_reported.then(|| entries.to_vec())
    });
    assert_eq!(entries::lines(&entries).len(), 1);
    // Entries added by a command must not disturb reading.
    home.append("-work/a.jsonl", "{\"n\":3}\n");
    wait_for(&receiver, "reading goes on", |entries| {
        (entries::lines(entries).len() == 2).then_some(())
    });
    let log = running.log();
    assert!(lines_with_code(&log, "commit_failed").is_empty(), "{log}");
    running.stop();
    agent(&["deadletter", "list"]).succeed();
}

/// The running agent built a second set of sinks for a retry: the receiver got two requests at a
/// time, and the retry ignored the sink's `max_bytes_per_second`.
#[test]
fn retry_in_a_running_agent_uses_the_sinks_own_task() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let gate = Gate::before(&receiver);
    home.write("-work/a.jsonl", format!("{{\"text\":\"{POISON}\"}}\n"));
    let config = "[sink.siem]\ncompression = \"none\"\n[shipping]\nflush_interval = \"0s\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&gate.url());
    let running = agent(&["run"]).start_and_wait();
    eventually("the entry is refused", || {
        let listed = agent(&["deadletter", "list", "--json"]).succeed();
        (!listed.text().is_empty()).then_some(())
    });
    home.append("-work/a.jsonl", "{\"n\":2}\n");
    wait_for(&receiver, "the dead letter is announced", |entries| {
        (entries::lines(entries).len() == 1).then_some(())
    });
    gate.refuses.store(false, Ordering::Relaxed);
    gate.in_flight.delay_ms.store(500, Ordering::SeqCst);
    let before = gate.requests.load(Ordering::Relaxed);
    home.append("-work/a.jsonl", "{\"n\":3}\n");
    eventually("a batch is in flight", || {
        (gate.requests.load(Ordering::Relaxed) > before).then_some(())
    });
    agent(&["deadletter", "retry", "--all"]).succeed();
    assert_eq!(gate.in_flight.most.load(Ordering::SeqCst), 1);
    wait_for(&receiver, "both arrive", |entries| {
        (entries::lines(entries).len() == 3).then_some(())
    });
    running.stop();
    receiver.assert_complete();
}

/// Reading dead letters with another configuration removed the registration of every sink that it
/// lacks, and with it their undelivered entries.
#[test]
fn deadletter_command_with_another_config_keeps_every_sink() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let archive = home.path().join("archive.ndjson");
    let elsewhere = home.path().join("not/there/yet.ndjson");
    let agent = |arguments: &[&str], file: &std::path::Path| {
        let sinks = "[pipeline]\nsinks = [\"siem\", \"archive\"]\n[sink.archive]\ntype = \"file\"";
        let config =
            format!("{sinks}\npath = '{}'\n[shipping]\nflush_interval = \"0s\"", file.display());
        home.agent(arguments).config(&config).ships_to(&receiver.url())
    };
    // The archive cannot be written yet; the SIEM has everything.
    let mut running = agent(&["run"], &elsewhere).start();
    wait_for(&receiver, "the record arrives", |entries| {
        (!entries::lines(entries).is_empty()).then_some(())
    });
    running.wait_for_line("delivery_held", "sink=\"archive\"");
    running.stop();
    home.agent(&["deadletter", "list"]).ships_to(&receiver.url()).succeed();
    agent(&["run", "--once"], &archive).succeed();
    let archived = fs::read(&archive).unwrap();
    assert_eq!(entries::lines(&entries::parse(&archived)).len(), 1);
    receiver.assert_complete();
}

/// An unannounced letter was deleted and reported as purged, but its entry was sent again, refused,
/// and kept again.
#[test]
fn unannounced_dead_letter_is_neither_deleted_nor_sent() {
    let (home, mut receiver) = (Home::new(), Receiver::start());
    receiver.kill();
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let config = "[shipping]\nflush_interval = \"0s\"";
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&receiver.url());
    let mut running = agent(&["run"]).start();
    running.wait_for_code("delivery_postponed");
    running.stop();
    // As if the agent had been killed just after the first entry was refused.
    let path = home.state_dir().join("outbox.redb");
    let outbox = Outbox::open(&path, &[], String::new).unwrap();
    let frame = &outbox.frames(1, |_| std::ops::ControlFlow::Continue(())).unwrap()[0];
    let lines = frame.decode().unwrap();
    let line = lines.split(|byte| *byte == b'\n').next().unwrap();
    let letter = DeadLetter::new(line, frame.head.config, 422, "no".into(), String::new());
    let id = DeadLetterId { sink: "siem".into(), epoch: outbox.epoch(), seq: 1 };
    outbox.store_dead_letter(&id, &letter).unwrap();
    drop(outbox);

    for action in ["purge", "retry"] {
        agent(&["deadletter", action, "1"]).fail(1);
    }
    agent(&["deadletter", "purge", "--all"]).succeed();
    agent(&["deadletter", "retry", "--all"]).fail(1);
    assert!(!agent(&["deadletter", "list", "--json"]).succeed().stdout.is_empty());

    receiver.restart();
    let agent = |arguments: &[&str]| home.agent(arguments).config(config).ships_to(&receiver.url());
    agent(&["run", "--once"]).succeed();
    assert_eq!(numbers(&receiver, "holes").as_array().unwrap().len(), 1);
    agent(&["deadletter", "retry", "1"]).succeed();
    assert_eq!(numbers(&receiver, "holes").as_array().unwrap().len(), 0);
    assert!(entries::events(&receiver.entries(), "dead_letters_purged").is_empty());
    receiver.assert_complete();
}

#[test]
fn deadletter_without_an_outbox_is_an_error() {
    let home = Home::new();
    let error = home.agent(&["deadletter", "list"]).fail(1);
    assert!(error.contains(home.state_dir().to_str().unwrap()), "{error}");
}

/// Listing dead letters created an empty store in place of a lost one. The next start used it, and
/// sent everything again.
#[test]
fn deadletter_commands_never_create_an_outbox() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let agent = |arguments: &[&str]| home.agent(arguments).ships_to(&receiver.url());
    agent(&["run", "--once"]).succeed();
    let store = home.state_dir().join("outbox.redb");
    let actions = ["list", "show", "export", "retry", "purge"];
    let look = || {
        for action in actions {
            let all = if action == "list" { None } else { Some("--all") };
            let arguments: Vec<&str> = ["deadletter", action].into_iter().chain(all).collect();
            let error = agent(&arguments).fail(1);
            assert!(error.contains(home.state_dir().to_str().unwrap()), "{action}: {error}");
        }
    };
    fs::remove_file(&store).unwrap();
    look();
    assert!(!store.try_exists().unwrap());
    fs::write(&store, b"").unwrap();
    look();
    assert_eq!(fs::metadata(&store).unwrap().len(), 0);
    // The acknowledged offsets come from the copy.
    agent(&["run", "--once"]).succeed();
    let epochs = receiver.epochs();
    let lines: usize = epochs.iter().map(|entries| entries::lines(entries).len()).sum();
    assert_eq!((epochs.len(), lines), (2, 1));
}
