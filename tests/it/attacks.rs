//! Attacks on agent and receiver, as processes, by those who have the secrets of the fleet or sit
//! between the two. `docs/reliability.md` lists all attacks with their tests.

use std::fs;

use crate::support::{
    agent::{Agent, AgentCommand},
    copy_tree, entries, eventually,
    forger::{FORGED, ForgedBatch, Forger, identity, refusal},
    home::Home,
    in_process_delivery::{DeliverySetup, NOW},
    lines_with_code,
    middle::{Exchange, Middle, Reply, send},
    receiver::{NAME, Receiver, wait_for},
    scripted_receiver::ScriptedReceiver,
};
use ai_agent::internals::{
    platform::Timestamp,
    protocol::{BatchHeader, Digest, Identity, names::problem, note::SigningKey},
};
use serde_json::{Value, json};

mod false_answers;
mod receiver_keys;
mod release_0_1;

const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"";
const FILE: &str = "-work/a.jsonl";
const LEVELS: [&str; 3] = ["shared", "first-use", "enrolled"];

fn agent(home: &Home, endpoint: &str, arguments: &[&str]) -> AgentCommand {
    home.agent(arguments).config(CONFIG).ships_to(endpoint)
}

fn line(home: &Home, n: usize) {
    home.append(FILE, format!("{{\"n\":{n}}}\n"));
}

/// Delivers what there is.
fn ship(home: &Home, endpoint: &str) {
    agent(home, endpoint, &["run", "--once"]).succeed();
}

/// State of trust in the only receiver, as `status` shows it.
fn state(home: &Home, endpoint: &str) -> Value {
    trust(home, endpoint)["state"].clone()
}

fn trust(home: &Home, endpoint: &str) -> Value {
    let shown = agent(home, endpoint, &["status", "--json"]).run();
    let status: Value = serde_json::from_slice(&shown.stdout).unwrap();
    status["sinks"][0]["trust"].clone()
}

/// Approves the devices of a user on a machine that are not approved yet.
fn approve(receiver: &Receiver, identity: &Identity) {
    for device in receiver.devices() {
        if device["machine"] == *identity.machine_id && device["user"] == *identity.user {
            receiver.administer(&["devices", "approve", device["key"].as_str().unwrap()]);
        }
    }
}

/// A receiver of this level, and an agent whose key is confirmed and whose epoch has a line.
fn confirmed(level: &str) -> (Home, Receiver, Identity) {
    let (home, mut receiver) = (Home::new(), Receiver::at_level("first-use"));
    line(&home, 1);
    ship(&home, &receiver.url());
    let identity = identity_of(&receiver);
    approve(&receiver, &identity);
    if level != "first-use" {
        receiver.restart_at(level);
    }
    (home, receiver, identity)
}

/// Identity of the only agent, confirmed or not.
fn identity_of(receiver: &Receiver) -> Identity {
    let stats = receiver.stats();
    if stats["machines"][0]["epochs"][0].is_object() {
        return identity(&stats);
    }
    serde_json::from_value(stats["machines"][0]["unconfirmed"][0]["identity"].clone()).unwrap()
}

/// Last number and chain value of an epoch, which only its sender and the receiver know.
fn head(receiver: &Receiver) -> (String, u64, Digest) {
    let stats = receiver.stats();
    let epoch = stats["machines"][0]["epochs"][0]["epoch"].as_str().unwrap().to_owned();
    let files = crate::support::files_below(&receiver.data().join("machines"));
    let file =
        files.iter().find(|path| path.to_str().unwrap().ends_with(&format!("{epoch}.ndjson")));
    let text = fs::read(file.unwrap()).unwrap();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let chain = lines.clone().fold(Digest::ZERO, |chain, line| chain.chain(Digest::of(line)));
    (epoch, lines.count() as u64, chain)
}

fn kind(reply: &Reply) -> String {
    reply.member("type").as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn refused(reply: &Reply, status: u16, expected: &str) {
    assert_eq!((reply.status, &*kind(reply)), (status, expected), "{}", reply.body);
}

/// Two requests by anyone with the secrets of the fleet used to put text under a machine's name and
/// silence the machine for an hour.
#[test]
fn forged_entries_enter_no_epoch_of_a_device() {
    for level in LEVELS {
        let (home, receiver, identity) = confirmed(level);
        let (epoch, last, chain) = head(&receiver);
        let forger = Forger::new(&receiver.url(), NAME, &identity, 7);
        let next = forger.batch(&epoch, (last, chain), 2);
        refused(&forger.send(&next), 403, problem::EPOCH_OWNED);
        let far = forger.batch(&epoch, (1_000_000, Digest::of(b"x")), 2);
        refused(&forger.send(&far), 403, problem::EPOCH_OWNED);
        let again = forger.batch(&epoch, (0, Digest::ZERO), 2);
        refused(&forger.send(&again), 403, problem::EPOCH_OWNED);
        let keyless = forger.batch("epoch-of-the-forger", (0, Digest::ZERO), 2);
        refused(&forger.send(&keyless), 403, problem::IMPERSONATION);
        assert_eq!(forger.enroll().status, 200);
        for batch in [next, far, again] {
            refused(&forger.send(&forger.seal(batch)), 403, problem::EPOCH_OWNED);
        }
        let own = forger.send(&forger.seal(keyless));
        if level == "enrolled" {
            refused(&own, 403, problem::NOT_ENROLLED);
        } else {
            assert_eq!(own.status, 200, "{}", own.body);
        }
        assert_eq!(receiver.events("impersonation"), 7, "{level}");
        assert_eq!(receiver.events("second_key"), u64::from(level != "enrolled"));
        line(&home, 2);
        ship(&home, &receiver.url());
        machine_is_undisturbed(&receiver, 2);
    }
}

/// Fails unless the confirmed machine has one epoch, whole, with `count` lines, and no entry of a
/// forger.
#[track_caller]
fn machine_is_undisturbed(receiver: &Receiver, count: usize) {
    let stats = receiver.stats();
    let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 1, "{stats:#}");
    for list in ["gaps", "holes", "breaks"] {
        assert_eq!(epochs[0][list], Value::Array(Vec::new()), "{stats:#}");
    }
    let epoch = epochs[0]["epoch"].as_str().unwrap();
    assert_eq!(lines_of(receiver, epoch), count, "{stats:#}");
}

/// Number of lines in an epoch, which has no entry of a forger.
#[track_caller]
fn lines_of(receiver: &Receiver, epoch: &str) -> usize {
    let files = crate::support::files_below(&receiver.data().join("machines"));
    let file =
        files.iter().find(|path| path.to_str().unwrap().ends_with(&format!("{epoch}.ndjson")));
    let text = fs::read(file.unwrap()).unwrap();
    assert!(!String::from_utf8_lossy(&text).contains(FORGED));
    entries::lines(&entries::parse(&text)).len()
}

/// Without device keys, a forger would have to know the last chain value.
#[test]
fn forged_entries_do_not_silence_a_machine_without_a_key() {
    let (home, receiver) = (Home::new(), Receiver::start());
    line(&home, 1);
    ship(&home, &receiver.url());
    let forger = Forger::new(&receiver.url(), NAME, &identity_of(&receiver), 7);
    let (epoch, last, _) = head(&receiver);
    for (after, count) in [
        ((last, Digest::of(b"guessed")), 2),
        ((1_000_000, Digest::of(b"guessed")), 1),
        ((0, Digest::ZERO), 3),
    ] {
        refused(&forger.send(&forger.batch(&epoch, after, count)), 409, problem::CONFLICT);
    }
    assert_eq!(receiver.events("chain_mismatch"), 3);
    let stats = forger.get("/stats");
    let (_, _, chain) = head(&receiver);
    assert!(!stats.body.contains(&chain.to_string()), "the last chain value is not shown");
    line(&home, 2);
    ship(&home, &receiver.url());
    machine_is_undisturbed(&receiver, 2);
    assert_eq!(receiver.stats()["unexplained"], 0);
}

/// Being first gives nothing: neither mixes with the other, and the machine is not locked out.
#[test]
fn stranger_who_enrolls_first_mixes_with_nothing() {
    let (elsewhere, first) = (Home::new(), Receiver::start());
    line(&elsewhere, 1);
    ship(&elsewhere, &first.url());
    let identity = identity_of(&first);

    let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
    let stranger = Forger::new(&receiver.url(), NAME, &identity, 7);
    assert_eq!(stranger.enroll().status, 200);
    let mut after = (0, Digest::ZERO);
    let mut send_more = |count| {
        let batch = stranger.seal(stranger.batch("epoch-of-the-stranger", after, count));
        after = (after.0 + count, batch.header.chain.unwrap().after);
        assert_eq!(stranger.send(&batch).status, 200);
    };
    send_more(3);
    line(&home, 1);
    ship(&home, &receiver.url());
    send_more(2);
    line(&home, 2);
    ship(&home, &receiver.url());
    assert_eq!(receiver.events("second_key"), 1);
    assert_eq!(receiver.events("impersonation"), 0);
    let machine = &receiver.stats()["machines"][0];
    assert_eq!(machine["unconfirmed"].as_array().unwrap().len(), 2, "{machine:#}");

    let shown = agent(&home, &receiver.url(), &["device", "show", "--json"]).succeed();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    receiver.administer(&["devices", "approve", shown["key"].as_str().unwrap()]);
    line(&home, 3);
    ship(&home, &receiver.url());
    send_more(1);
    machine_is_undisturbed(&receiver, 3);
    let machine = &receiver.stats()["machines"][0];
    let apart = machine["unconfirmed"].as_array().unwrap();
    assert_eq!((apart.len(), apart[0]["entries"].as_u64()), (1, Some(6)), "{machine:#}");
    // From now on the name is the machine's.
    let keyless = stranger.batch("epoch-without-a-key", (0, Digest::ZERO), 1);
    refused(&stranger.send(&keyless), 403, problem::IMPERSONATION);
}

fn wait_for_lines(receiver: &Receiver, count: usize) {
    wait_for(receiver, "the lines", |entries| {
        (entries::lines(entries).len() >= count).then_some(())
    });
}

fn wait_for_lines_of(receiver: &Receiver, epoch: &str, count: usize) {
    eventually(&format!("line {count}"), || {
        drop(receiver.stats());
        (lines_of(receiver, epoch) >= count).then_some(())
    });
}

/// The header and its seal are those of the device, and someone on the way has the secrets of the
/// fleet. The chain is the same without a line, so that the receiver's real receipt for the rest made
/// the agent delete the line, and it was not computed from the lines that came.
#[test]
fn batch_that_was_changed_on_the_way_is_refused() {
    let (home, receiver, identity) = confirmed("enrolled");
    let middle = Middle::to(&receiver.url());
    let running = agent(&home, &middle.url(), &["run"]).start_and_wait();
    let (epoch, ..) = head(&receiver);
    let changes: [fn(ForgedBatch) -> ForgedBatch; 3] = [
        |batch| batch.without_first_line(false),
        |batch| batch.without_first_line(true),
        ForgedBatch::with_forged_line,
    ];
    for (n, change) in (1..).zip(changes) {
        let forger = Forger::new(&receiver.url(), NAME, &identity, 7);
        middle.forge(move |batch| forger.send(&change(batch.batch())));
        home.append(FILE, format!("{{\"n\":{}}}\n{{\"n\":{}}}\n", 2 * n, 2 * n + 1));
        eventually("two attempts", || (middle.forged() >= 2).then_some(()));
        middle.release();
        wait_for_lines_of(&receiver, &epoch, 2 * n + 1);
    }
    running.stop();
    assert!(receiver.events("impersonation") >= 6);
    machine_is_undisturbed(&receiver, 7);
}

/// A receiver that gets too many keys refuses others for a while. It knows no seal of such a device, and
/// says that each batch is stored.
#[test]
fn device_that_cannot_enroll_delivers_nevertheless() {
    let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
    let middle = Middle::to(&receiver.url());
    middle.rule(|exchange| {
        exchange.target.starts_with("POST /enroll").then(|| Reply::new(429, "{}"))
    });
    line(&home, 1);
    ship(&home, &middle.url());
    assert_eq!(state(&home, &middle.url()), "not_enrolled");
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
}

/// The problem used to be the token, which is valid: at `enrolled` also after the batch was refused.
#[test]
fn limit_of_enrollments_is_no_problem_of_the_token() {
    for level in ["first-use", "enrolled"] {
        let (home, receiver) = (Home::new(), Receiver::at_level(level));
        let middle = Middle::to(&receiver.url());
        middle.rule(|exchange| {
            exchange.target.starts_with("POST /enroll").then(|| Reply::new(429, "{}"))
        });
        line(&home, 1);
        let running = agent(&home, &middle.url(), &["run"]).start_and_wait();
        eventually("an answer to the batch", || {
            let is_held = !lines_with_code(&running.log(), "delivery_held").is_empty();
            (is_held || receiver.count() > 0).then_some(())
        });
        let trust = trust(&home, &middle.url());
        assert_eq!(trust["state"], "not_enrolled", "{level}");
        let problem = trust["problem"].as_str().unwrap();
        assert!(!problem.contains("enroll_token_file"), "{level}: {problem}");
    }
}

/// The receiver takes four keys of a device in an hour. Such a device used to be `not_enrolled`, although its
/// key before the rotation sealed what was stored.
#[test]
fn rotation_that_is_refused_keeps_the_state() {
    for level in LEVELS {
        let (home, receiver, _) = confirmed(level);
        let middle = Middle::to(&receiver.url());
        line(&home, 2);
        ship(&home, &middle.url());
        middle.rule(|exchange| {
            exchange.target.starts_with("POST /enroll").then(|| Reply::new(429, "{}"))
        });
        agent(&home, &middle.url(), &["device", "rotate"]).succeed();
        line(&home, 3);
        ship(&home, &middle.url());
        assert!(middle.forged() > 0);
        assert_eq!(state(&home, &middle.url()), "confirmed", "{level}");
        machine_is_undisturbed(&receiver, 3);
    }
}

/// Before a key is pinned the agent believes that a receiver has none; afterwards it does not.
#[test]
fn pinned_receiver_is_not_replaced_by_one_without_a_key() {
    let (home, receiver, _) = confirmed("first-use");
    let (middle, keyless) = (Middle::to(&receiver.url()), Receiver::start());
    line(&home, 2);
    ship(&home, &middle.url());
    middle.redirect(&keyless.url());
    line(&home, 3);
    let running = agent(&home, &middle.url(), &["run"]).start_and_wait();
    eventually("the agent notices", || {
        (state(&home, &middle.url()) == "receipt_untrusted").then_some(())
    });
    middle.redirect(&receiver.url());
    let (epoch, ..) = head(&receiver);
    wait_for_lines_of(&receiver, &epoch, 3);
    running.stop();
    machine_is_undisturbed(&receiver, 3);
}

/// A recorded batch is refused where the device is known, and changes nothing where it came from.
#[test]
fn recorded_batches_are_refused_at_another_receiver() {
    let (home, receiver, other) =
        (Home::new(), Receiver::at_level("first-use"), Receiver::named("other.example.com"));
    let middle = Middle::to(&receiver.url());
    let config = format!(
        "{CONFIG}\n[pipeline]\nsinks = [\"siem\", \"other\"]\n[sink.other]\ntype = \"http-siem\"\n\
         endpoint = \"{}\"\ntoken_file = \"{}\"\nhmac_secret_file = \"{}\"\n",
        other.url(),
        private(&home, "token", crate::support::TOKEN),
        private(&home, "secret", crate::support::SECRET),
    );
    line(&home, 1);
    let both = || home.agent(&["run", "--once"]).config(&config).ships_to(&middle.url());
    both().succeed();
    approve(&receiver, &identity_of(&receiver));
    approve(&other, &identity_of(&other));
    line(&home, 2);
    both().succeed();
    let (before, there) = (receiver.stats()["machines"].clone(), other.stats()["machines"].clone());
    for exchange in middle.exchanges("/ingest") {
        refused(&send(&other.url(), &exchange.request), 403, problem::SEAL);
        let again = send(&receiver.url(), &exchange.request);
        assert_eq!(again.status, 200, "{}", again.body);
        let same = again.member("receipt") == exchange.reply.as_ref().unwrap().member("receipt");
        assert!(same, "a receipt depends on nothing but what is stored");
    }
    assert!(other.events("impersonation") >= 2);
    let entries = |machines: &Value| machines[0]["entries"].clone();
    assert_eq!(entries(&receiver.stats()["machines"]), entries(&before));
    assert_eq!(entries(&other.stats()["machines"]), entries(&there));
}

fn private(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    crate::support::receiver::private(&path, text);
    path.to_str().unwrap().replace('\\', "/")
}

#[test]
fn revoked_device_stops_and_keeps_its_entries() {
    let (home, receiver, _) = confirmed("first-use");
    let mut running = agent(&home, &receiver.url(), &["run"]).start_and_wait();
    let key = receiver.devices()[0]["key"].as_str().unwrap().to_owned();
    receiver.administer(&["devices", "revoke", &key]);
    let before = receiver.stats()["machines"][0]["entries"].clone();
    line(&home, 2);
    eventually("the agent stops", || (state(&home, &receiver.url()) == "revoked").then_some(()));
    assert!(running.runs());
    // The receiver would refuse the successor of the key, too.
    let refused = agent(&home, &receiver.url(), &["device", "rotate"]).fail(2);
    assert!(refused.contains("delete `device.key`"), "{refused}");
    running.stop();
    agent(&home, &receiver.url(), &["device", "rotate"]).fail(2);
    assert_eq!(receiver.stats()["machines"][0]["entries"], before);
    let kept = agent(&home, &receiver.url(), &["outbox", "export"]).succeed();
    assert!(kept.text().contains(r#"{"n":2}"#), "{}", kept.text());

    // An operator who admits the machine again gets everything, in an epoch of the new key.
    fs::remove_file(home.state_dir().join("device.key")).unwrap();
    ship(&home, &receiver.url());
    let stats = receiver.stats();
    let apart = stats["machines"][0]["unconfirmed"].as_array().unwrap();
    let epoch = apart[0]["epochs"][0]["epoch"].as_str().unwrap();
    assert_eq!(lines_of(&receiver, epoch), 1, "{stats:#}");
}

/// Nothing of the backlog is given up while the new key waits for an operator.
#[test]
fn backlog_waits_for_approval_of_the_key_after_a_loss() {
    let (home, receiver, identity) = confirmed("enrolled");
    fs::remove_file(home.state_dir().join("device.key")).unwrap();
    line(&home, 2);
    let running = agent(&home, &receiver.url(), &["run"]).start_and_wait();
    eventually("the key waits", || (state(&home, &receiver.url()) == "pending").then_some(()));
    line(&home, 3);
    running.stop();
    drop(receiver.stats());
    assert!(!stored_text(&receiver).contains("{\"n\":2}"));
    approve(&receiver, &identity);
    ship(&home, &receiver.url());
    drop(receiver.stats());
    let text = stored_text(&receiver);
    for n in 1..=3 {
        assert_eq!(text.matches(&format!("{{\"n\":{n}}}")).count(), 1, "{n}");
    }
}

/// Two installations with one state directory, one machine id and one key.
#[test]
fn cloned_state_directories_get_keys_of_their_own() {
    let (home, receiver, identity) = confirmed("first-use");
    let clone = Home::new();
    copy_tree(&home.state_dir(), &clone.state_dir());
    let homes = [&home, &clone];
    let running: Vec<Agent> =
        homes.iter().map(|home| agent(home, &receiver.url(), &["run"]).start_and_wait()).collect();
    for n in 0..8 {
        let home = homes[n % 2];
        home.append(&format!("-work/{}.jsonl", n % 2), format!("{{\"clone\":{n}}}\n"));
        eventually("the line arrives", || {
            drop(receiver.stats());
            let text = format!("{{\"clone\":{n}}}");
            stored_text(&receiver).contains(&text).then_some(())
        });
    }
    for agent in running {
        agent.stop();
    }
    assert!(receiver.events("clone") >= 1);
    let mut keys: Vec<_> =
        receiver.devices().iter().map(|device| device["key"].to_string()).collect();
    keys.dedup();
    assert!(keys.len() >= 2, "{keys:?}");
    approve_new(&receiver, &identity);
    let text = stored_text(&receiver);
    for n in 0..8 {
        assert_eq!(text.matches(&format!("{{\"clone\":{n}}}")).count(), 1, "{n}");
    }
}

fn approve_new(receiver: &Receiver, identity: &Identity) {
    for device in receiver.devices() {
        if device["state"] == "unconfirmed" && device["machine"] == *identity.machine_id {
            receiver.administer(&["devices", "approve", device["key"].as_str().unwrap()]);
        }
    }
}

/// All stored lines of all epochs.
fn stored_text(receiver: &Receiver) -> String {
    let files = crate::support::files_below(&receiver.data().join("machines"));
    let lines = files.iter().filter(|path| path.extension().is_some_and(|it| it == "ndjson"));
    lines.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn rotated_device_key_keeps_epoch_and_confirmation() {
    let (home, receiver, _) = confirmed("enrolled");
    let home = &home;
    let running = agent(home, &receiver.url(), &["run"]).start_and_wait();
    line(home, 2);
    wait_for_lines(&receiver, 2);
    agent(home, &receiver.url(), &["device", "rotate"]).succeed();
    line(home, 3);
    wait_for_lines(&receiver, 3);
    running.stop();
    machine_is_undisturbed(&receiver, 3);
    let devices = receiver.devices();
    let states: Vec<_> = devices.iter().map(|device| device["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["confirmed", "confirmed"]);
}

/// A copy of the key from before a rotation is refused, and the row of its device says so.
#[test]
fn copy_of_a_replaced_device_key_is_marked_in_its_row() {
    let (home, receiver, _) = confirmed("enrolled");
    let key = home.state_dir().join("device.key");
    let copy = fs::read(&key).unwrap();
    agent(&home, &receiver.url(), &["device", "rotate"]).succeed();
    line(&home, 2);
    ship(&home, &receiver.url());
    machine_is_undisturbed(&receiver, 2);
    assert_eq!(receiver.stats()["rows"][0]["problems"], json!([]));
    fs::write(&key, copy).unwrap();
    line(&home, 3);
    let running = agent(&home, &receiver.url(), &["run"]).start_and_wait();
    eventually("the copy is noticed", || (receiver.events("clone") > 0).then_some(()));
    running.stop();
    let row = &receiver.stats()["rows"][0];
    assert_eq!(row["device_state"], "confirmed");
    assert_eq!(row["problems"], json!(["clone"]));
    let problem = receiver.administer(&["fleet", "--problem", "clone", "--json"]);
    assert!(problem.contains(row["device"].as_str().unwrap()), "{problem}");
    let devices = receiver.administer(&["devices", "list"]);
    let states = ["confirmed", "cloned"].map(|state| devices.matches(state).count());
    assert_eq!(states, [1, 1], "{devices}");
}

/// A receiver of the plain protocol, without keys, gets everything.
#[test]
fn receiver_of_the_plain_protocol_gets_everything() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    line(&home, 1);
    ship(&home, &receiver.url());
    line(&home, 2);
    ship(&home, &receiver.url());
    assert_eq!(entries::lines(&receiver.entries()).len(), 2);
    let epochs: Vec<_> = receiver.headers().into_iter().map(|header| header.epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]));
    assert_eq!(state(&home, &receiver.url()), "shared");
}

/// Times are for people: no statement is refused for its time.
#[test]
fn clock_that_is_off_by_a_year_changes_nothing() {
    const YEAR: u64 = 366 * 24 * 3600 * 1000;
    for now in [NOW.0 - YEAR, NOW.0, NOW.0 + YEAR] {
        let receiver = Receiver::at_level("first-use");
        let setup = DeliverySetup::with(5).in_batches_of(2).with_device_key().at(Timestamp(now));
        let delivery = setup.deliver_to(&receiver.url());
        delivery.finish();
        let machine = &receiver.stats()["machines"][0];
        let device = &machine["unconfirmed"][0];
        assert_eq!(device["entries"], 5, "{machine:#}");
        assert_eq!(device["epochs"][0]["device"]["sealed"], 5, "{machine:#}");
        let receipt = delivery.outbox.cursor("siem").unwrap().receipt;
        assert!(receipt.unwrap().contains("last_seq=5"), "the last receipt is stored");
    }
}
