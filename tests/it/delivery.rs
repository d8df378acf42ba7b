//! Faults of a receiver and of the connection to it: nothing is lost, only repetitions arrive
//! twice, and the log names the reason.
#![cfg(unix)]

use std::{fs, time::Duration};

use crate::support::{
    entries, eventually,
    home::Home,
    in_process_delivery::{Delivery, DeliverySetup},
    lines_with_code,
    receiver::Receiver,
    scripted_receiver::{
        Answer::{self, *},
        ScriptedReceiver,
    },
};
use ai_agent::internals::{
    config::ShippingSettings,
    event::Event,
    pipeline::outbox::DeadLetter,
    protocol::names::{event, severity},
};
use serde_json::json;

/// Fails unless exactly the entries up to `count` arrived, and no entry became a dead letter.
#[track_caller]
fn assert_arrived(receiver: &ScriptedReceiver, delivery: &Delivery, count: u64) {
    let numbers: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
    assert_eq!(delivery.outbox.cursor("siem").unwrap().acknowledged.seq, count);
    assert_eq!(delivery.outbox.stored_bytes(), 0);
    assert!(letters(delivery).is_empty());
}

fn letters(delivery: &Delivery) -> Vec<(u64, DeadLetter)> {
    let letters = delivery.outbox.dead_letters().unwrap();
    letters.into_iter().map(|(id, letter)| (id.seq, letter)).collect()
}

const HELD: &str = "delivery_held";
const POSTPONED: &str = "delivery_postponed";

/// A fault that ends by itself, or once it is fixed.
struct Fault {
    answer: Answer,
    /// Number of failures before the receiver works.
    times: usize,
    /// Log code: an alarm, or a failure that passes by itself.
    code: &'static str,
    /// Part of the reason in the log: a status, an option, the cause.
    token: &'static str,
}

fn fault(answer: Answer, times: usize, code: &'static str, token: &'static str) -> Fault {
    Fault { answer, times, code, token }
}

fn status(status: u16, times: usize, code: &'static str) -> Fault {
    let token: &'static str = Box::leak(status.to_string().into_boxed_str());
    fault(Status(status, &[], ""), times, code, token)
}

#[test]
fn fixed_fault_has_lost_and_dead_lettered_nothing() {
    const PORTAL: &str = "<html><h1>Welcome to the hotel</h1></html>";
    const PROBLEM: &str =
        r#"{"type":"about:blank","title":"no","status":400,"detail":"the header is odd"}"#;
    let html = &[("X-Portal", "yes")];
    let moved = &[("Location", "http://127.0.0.1:9/elsewhere")];
    let rows = [
        fault(Close, 2, POSTPONED, "connection closed before message completed"),
        fault(HangBeforeBody, 2, POSTPONED, "300ms"),
        fault(Hang, 2, POSTPONED, "300ms"),
        fault(StoreAndClose, 2, POSTPONED, "connection closed before message completed"),
        fault(StoreAndReset, 2, POSTPONED, "onnection reset"),
        fault(StoreAndTruncateReceipt, 2, POSTPONED, "end of file before message length reached"),
        fault(StoreAndAcknowledge(-1), 2, HELD, "200"),
        fault(Status(200, html, PORTAL), 5, HELD, "200"),
        status(204, 5, HELD),
        fault(Status(301, moved, ""), 5, HELD, "301"),
        fault(Status(307, moved, ""), 5, HELD, "307"),
        fault(Status(400, &[], PROBLEM), 20, HELD, "the header is odd"),
        status(401, 20, HELD),
        status(403, 20, HELD),
        status(404, 20, HELD),
        status(405, 5, HELD),
        fault(Status(407, &[], ""), 5, HELD, "`proxy_user`"),
        status(415, 5, HELD),
        status(408, 2, POSTPONED),
        status(425, 5, POSTPONED),
        status(429, 5, POSTPONED),
        status(500, 20, POSTPONED),
        status(503, 20, POSTPONED),
        status(507, 5, POSTPONED),
    ];
    for Fault { answer, times, code, token } in rows {
        let what = format!("{answer:?}");
        let receiver = ScriptedReceiver::start(vec![answer; times]);
        let delivery =
            DeliverySetup::with(30).options("timeout = \"300ms\"").deliver_to(&receiver.url());
        let log = delivery.finish();
        let failures = lines_with_code(&log, code);
        assert!(failures.iter().any(|line| line.contains(token)), "{what}: {log}");
        assert_eq!(lines_with_code(&log, "delivery_resumed").len(), 1, "{what}: {log}");
        // One batch, sent again after each failure; after a timeout in smaller batches.
        let is_slow = what.starts_with("Hang") || token == "408";
        let rest = if is_slow { 30_usize.div_ceil(30 >> times) } else { 1 };
        assert_eq!(receiver.requests(), times + rest, "{what}: {log}");
        let doubled = if what.starts_with("Store") { times * 30 } else { 0 };
        assert_eq!(receiver.doubled(), doubled, "{what}");
        assert_arrived(&receiver, &delivery, 30);
        assert!(delivery.events().is_empty(), "{what}");
    }
}

/// A batch that needed more than `timeout` on a slow link was sent again forever.
#[test]
fn slow_link_gets_smaller_batches() {
    let receiver = ScriptedReceiver::by_rule(|offered| match offered.lines.len() {
        0..=4 => Receipt,
        _ => HangBeforeBody,
    });
    let delivery =
        DeliverySetup::with(30).options("timeout = \"300ms\"").deliver_to(&receiver.url());
    let log = delivery.finish();
    let failures = lines_with_code(&log, POSTPONED);
    assert!(failures[0].contains("300ms") && failures[0].contains("30 entries"), "{log}");
    // Batches of 30, 15 and 7 timed out; ten batches of 3 did not.
    assert_eq!(receiver.requests(), 13, "{log}");
    assert_arrived(&receiver, &delivery, 30);
}

/// The entry was sent again forever with the same timeout, and nothing after it ever arrived.
#[test]
fn entry_slower_than_the_timeout_gets_more_time() {
    let receiver = ScriptedReceiver::by_rule(|offered| {
        if offered.holds("{\"n\":7}") { After(Duration::from_secs(1)) } else { Receipt }
    });
    let delivery =
        DeliverySetup::with(30).options("timeout = \"200ms\"").deliver_to(&receiver.url());
    let log = delivery.finish();
    let failures = lines_with_code(&log, POSTPONED);
    for [waited, next] in [["200ms", "400ms"], ["400ms", "800ms"]] {
        let found = failures.iter().any(|line| line.contains(waited) && line.contains(next));
        assert!(found, "{waited}, then {next}: {log}");
    }
    assert!(failures.iter().any(|line| line.contains("`timeout`")), "{log}");
    assert_arrived(&receiver, &delivery, 30);
    assert!(delivery.events().is_empty(), "no verdict on the data");
}

#[test]
fn refused_connection_is_logged_and_retried() {
    let unused_address = crate::support::unused_address();
    let delivery = DeliverySetup::with(30).deliver_to(&format!("http://{unused_address}"));
    delivery.wait_for_line(POSTPONED, "onnection refused");
    delivery.wait_for_line(POSTPONED, &format!("`http://{unused_address}`"));
    assert!(delivery.progress().problem.unwrap().contains("onnection refused"));
    let receiver = ScriptedReceiver::on(unused_address, []);
    delivery.finish();
    assert_eq!(delivery.progress().problem, None);
    assert_arrived(&receiver, &delivery, 30);
}

/// The cursor moved to the number in the response, so entries in between were never sent.
#[test]
fn receipt_for_more_than_sent_acknowledges_only_what_was_sent() {
    let receiver =
        ScriptedReceiver::start([StoreAndAcknowledge(1000), StoreAndAcknowledge(i64::MAX)]);
    let delivery = DeliverySetup::with(30).in_batches_of(10).deliver_to(&receiver.url());
    delivery.finish();
    assert_eq!(receiver.requests(), 3);
    assert_arrived(&receiver, &delivery, 30);
}

#[test]
fn poisoned_entry_among_hundreds_is_isolated_in_few_requests() {
    for poisoned in [1, 2, 333, 499, 500] {
        let poison = format!("{{\"n\":{poisoned}}}");
        let receiver = ScriptedReceiver::by_rule(move |batch| {
            if batch.holds(&poison) { Status(422, &[], "bad taste") } else { Receipt }
        });
        let delivery = DeliverySetup::with(500).deliver_to(&receiver.url());
        let log = delivery.finish();
        assert!(receiver.requests() <= 2 * 9 + 4, "{poisoned}: {}", receiver.requests());
        assert_eq!(lines_with_code(&log, "entry_refused").len(), 1, "{log}");
        let numbers: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
        assert_eq!(numbers, (1..=500).filter(|n| *n != poisoned).collect::<Vec<_>>());
        let named: Vec<u64> =
            receiver.headers().iter().flat_map(|h| &h.dead_lettered).map(|dead| dead.seq).collect();
        assert_eq!(named, [poisoned], "a number is no gap: it is named, once");
        let letters = letters(&delivery);
        let [(seq, letter)] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((*seq, letter.status, &*letter.answer), (poisoned, 422, "bad taste"));
        let events = delivery.events();
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].name, &events[0].data["seq"]),
            (event::ENTRY_DEAD_LETTERED, &poisoned.into())
        );
    }
}

#[test]
fn scattered_poisoned_entries_are_each_isolated() {
    let receiver = ScriptedReceiver::by_rule(|batch| {
        let poisoned = (0..40).any(|n| batch.holds(&format!("{{\"n\":{}}}", n * 13 + 5)));
        if poisoned { Status(422, &[], "") } else { Receipt }
    });
    let delivery = DeliverySetup::with(500).deliver_to(&receiver.url());
    delivery.finish();
    // 39 refusals are more than ten, but other entries were accepted between them.
    assert_eq!(letters(&delivery).len(), 39);
    assert_eq!(receiver.entries().len(), 500 - 39);
}

/// Dead letters have a limit of their own. The oldest are purged first, except unannounced ones,
/// whose entries would be sent again. Each purge is reported.
#[test]
fn dead_letters_over_the_cap_are_purged_oldest_first() {
    let receiver = ScriptedReceiver::by_rule(|batch| {
        let poisoned = (0..40).any(|n| batch.holds(&format!("{{\"n\":{}}}", n * 12 + 5)));
        if poisoned { Status(422, &[], "") } else { Receipt }
    });
    let mut post = DeliverySetup::with(480);
    post.max_dead_letter_bytes = 4096;
    let delivery = post.deliver_to(&receiver.url());
    let log = delivery.finish();
    assert!(!lines_with_code(&log, "dead_letters_purged").is_empty(), "{log}");

    let refused: Vec<u64> = (0..40).map(|n| n * 12 + 5).collect();
    let left: Vec<u64> = letters(&delivery).iter().map(|(seq, _)| *seq).collect();
    assert!((5..20).contains(&left.len()), "{left:?}");
    let (gone, newest) = refused.split_at(refused.len() - left.len());
    assert_eq!(left, newest);

    let events = delivery.events();
    let purges: Vec<_> =
        events.iter().filter(|event| event.name == event::DEAD_LETTERS_PURGED).collect();
    let reported: Vec<u64> = purges
        .iter()
        .flat_map(|purge| purge.data["letters"].as_array().unwrap())
        .map(|letter| letter["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(reported, gone);
    let last = &purges.last().unwrap().data;
    assert_eq!((&last["reason"], &last["total"]["entries"]), (&"cap".into(), &gone.len().into()));
    let buried = events.iter().filter(|event| event.name == event::ENTRY_DEAD_LETTERED).count();
    assert_eq!(buried, 40);
    // Each was still announced in a header once, so no number is a gap.
    let headers = receiver.headers();
    let named = headers.iter().flat_map(|header| &header.dead_lettered).map(|dead| dead.seq);
    assert_eq!(named.collect::<Vec<_>>(), refused);
}

/// A receiver that refuses everything is at fault itself. It accepts batches that only announce
/// dead letters, which once counted as a success: every entry became a dead letter.
#[test]
fn ten_refusals_without_a_success_hold_delivery() {
    const NO_SCHEMA: &str = r#"{"type":"about:blank","title":"no schema","status":422}"#;
    let receiver = ScriptedReceiver::by_rule(|batch| {
        if batch.lines.is_empty() { Receipt } else { Status(422, &[], NO_SCHEMA) }
    });
    let delivery = DeliverySetup::with(300).deliver_to(&receiver.url());
    for token in ["422", "no schema", "`ai-agent deadletter retry --all`"] {
        delivery.wait_for_line(HELD, token);
    }
    let dead: Vec<u64> = letters(&delivery).iter().map(|(seq, _)| *seq).collect();
    assert_eq!(dead, (1..=10).collect::<Vec<_>>());
    receiver.accept_everything();
    delivery.finish();
    let numbers: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (11..=300).collect::<Vec<_>>());
    assert_eq!(letters(&delivery).len(), 10);
}

#[test]
fn receiver_accepting_single_entries_gets_single_entries() {
    let receiver = ScriptedReceiver::by_rule(|batch| match batch.lines {
        [_] => Receipt,
        _ => Status(413, &[], ""),
    });
    let delivery = DeliverySetup::with(100).deliver_to(&receiver.url());
    delivery.finish();
    assert!(receiver.requests() <= 7 + 2 * 100, "{}", receiver.requests());
    assert_arrived(&receiver, &delivery, 100);
}

#[test]
fn entry_refused_as_too_large_becomes_a_dead_letter() {
    let receiver = ScriptedReceiver::by_rule(|batch| {
        if batch.holds("{\"n\":7}") { Status(413, &[], "too much") } else { Receipt }
    });
    let delivery = DeliverySetup::with(300).deliver_to(&receiver.url());
    delivery.finish();
    let letters = letters(&delivery);
    assert_eq!((letters.len(), letters[0].0, letters[0].1.status), (1, 7, 413));
    assert_eq!(receiver.entries().len(), 299);
    assert!(receiver.requests() <= 40, "{}", receiver.requests());
}

#[test]
fn retry_after_is_respected_up_to_an_hour() {
    let rows: [(&'static str, &str); 9] = [
        ("7", "delay=7s"),
        ("3600", "delay=3600s"),
        ("86400", "delay=3600s"),
        ("99999999999999999999999999", "delay=3600s"),
        ("Sat, 21 Nov 2026 20:00:30 GMT", "delay=30s"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "delay=3600s"),
        // A time in the past or an invalid value is ignored.
        ("Sat, 21 Nov 2026 19:00:00 GMT", "delay=0ns"),
        ("0", "delay=0ns"),
        ("in a while", "delay=0ns"),
    ];
    for (value, expected) in rows {
        let headers: &'static [_] = Vec::leak(vec![("Retry-After", value)]);
        for status in [429, 503] {
            let receiver = ScriptedReceiver::start([Status(status, headers, "")]);
            let delivery = DeliverySetup::with(3).deliver_to(&receiver.url());
            delivery.wait_for_line(POSTPONED, expected);
            if expected == "delay=0ns" {
                delivery.finish();
                assert_arrived(&receiver, &delivery, 3);
            } else {
                // New entries do not shorten the delay.
                delivery.store([Event::info("test", json!({}))]);
                assert_eq!(receiver.requests(), 1, "{value}");
            }
        }
    }
}

#[test]
fn retry_after_in_seconds_is_respected() {
    let receiver = ScriptedReceiver::start([Status(503, &[("Retry-After", "1")], "")]);
    let started_at = std::time::Instant::now();
    let delivery = DeliverySetup::with(3).deliver_to(&receiver.url());
    delivery.wait_for_line(POSTPONED, "delay=1s");
    eventually("the batch comes again", || (receiver.requests() == 2).then_some(()));
    assert!(started_at.elapsed() >= Duration::from_secs(1));
    delivery.finish();
    assert_arrived(&receiver, &delivery, 3);
}

#[test]
fn violation_flushes_everything_before_it_at_once() {
    let receiver = ScriptedReceiver::start([]);
    let mut post = DeliverySetup::with(5);
    // Nothing else would be sent today.
    post.shipping =
        ShippingSettings { flush_interval: Duration::from_secs(86_400), ..post.shipping };
    let delivery = post.deliver_to(&receiver.url());
    let data = json!({ "violation": "no_account" });
    let mut violation = Event::warning(event::COMPLIANCE_VIOLATION, data);
    violation.severity = severity::HIGH;
    delivery.store([violation, Event::info("test", json!({ "n": "in the same frame" }))]);
    eventually("the violation arrives", || {
        let entries = receiver.entries();
        (!entries::events(&entries, event::COMPLIANCE_VIOLATION).is_empty()).then_some(())
    });
    let header = &receiver.headers()[0];
    assert_eq!((header.first_seq, receiver.requests()), (Some(1), 1));
    // Later entries wait as before.
    eventually("the cursor moves", || (delivery.progress().acknowledged >= 6).then_some(()));
    delivery.store([Event::info("test", json!({ "n": "later" }))]);
    delivery.finish();
    assert_eq!(receiver.requests(), 2);
    assert_arrived(&receiver, &delivery, 8);
}

#[test]
fn repeated_conflicts_start_one_epoch_and_then_hold() {
    let problem = r#"{"type":"about:blank","title":"conflict","status":409,"expected_seq":9}"#;
    let receiver = ScriptedReceiver::start(vec![Status(409, &[], problem); 10]);
    let delivery = DeliverySetup::with(30).deliver_to(&receiver.url());
    let log = delivery.finish();
    assert_eq!(lines_with_code(&log, "epoch_conflict").len(), 1, "{log}");
    assert!(!lines_with_code(&log, "receiver_conflict").is_empty(), "{log}");
    assert!(!lines_with_code(&log, HELD).is_empty(), "{log}");
    assert_eq!(receiver.requests(), 11);
    assert_eq!(receiver.headers()[0].previous_epoch.as_deref(), Some("epoch-1"));
    assert_arrived(&receiver, &delivery, 30);
    let started: Vec<_> = delivery.events().iter().map(|event| event.name).collect();
    assert_eq!(started, [event::EPOCH_STARTED]);
}

/// A home directory restored from yesterday's copy continues with numbers that the receiver already
/// has, for other entries.
#[test]
fn store_restored_from_a_copy_starts_an_epoch_and_loses_nothing() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let line = |day: &str| format!("{{\"type\":\"user\",\"day\":\"{day}\"}}\n");
    let once = || home.agent(&["run", "--once"]).ships_to(&receiver.url());
    let state = home.path().join(".local/state/ai-agent");
    let copy = home.path().join("copy");

    home.append("-work/a.jsonl", line("first"));
    once().succeed();
    crate::support::copy_tree(&state, &copy);
    home.append("-work/a.jsonl", line("second"));
    once().succeed();

    fs::remove_dir_all(&state).unwrap();
    fs::rename(&copy, &state).unwrap();
    home.append("-work/b.jsonl", line("third"));
    let ended = once().succeed();
    for code in ["receiver_conflict", "epoch_conflict"] {
        assert_eq!(lines_with_code(&ended.stderr, code).len(), 1, "{code}: {}", ended.stderr);
    }

    let stats = receiver.stats();
    let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 2, "{stats:#}");
    for epoch in epochs {
        for list in ["gaps", "holes", "breaks"] {
            assert_eq!(epoch[list], json!([]), "{stats:#}");
        }
    }
    let mut days = Vec::new();
    for file in crate::support::files_below(&receiver.data().join("machines")) {
        if file.extension().is_some_and(|e| e == "ndjson") {
            let lines = entries::lines(&entries::parse(&fs::read(&file).unwrap()));
            days.extend(
                lines.into_iter().map(|line| String::from_utf8(line.bytes).unwrap() + "\n"),
            );
        }
    }
    days.sort();
    // The second day arrives again in the new epoch, since the copy did not know it.
    assert_eq!(days, [line("first"), line("second"), line("second"), line("third")]);
}

/// A new receiver has no earlier entries: it learns where the epoch starts for it, and reports no
/// gap.
#[test]
fn new_receiver_learns_where_the_epoch_begins() {
    let home = Home::new();
    let (before, after) = (Receiver::start(), Receiver::start());
    home.append("-p/a.jsonl", "{\"n\":1}\n{\"n\":2}\n");
    home.agent(&["run", "--once"]).ships_to(&before.url()).succeed();
    let there = before.entries().len() as u64;
    home.append("-p/a.jsonl", "{\"n\":3}\n");
    for _ in 0..2 {
        home.agent(&["run", "--once"]).ships_to(&after.url()).succeed();
    }
    assert_eq!(before.entries().len() as u64, there, "nothing goes to the old one any more");
    let stats = after.stats();
    let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
    let [epoch] = &epochs[..] else { panic!("{stats:#}") };
    assert_eq!(epoch["begins_at"]["seq"], there, "{stats:#}");
    for list in ["gaps", "holes", "breaks"] {
        assert_eq!(epoch[list], json!([]), "{list}: {stats:#}");
    }
    assert_eq!((&epoch["conflicts"], &stats["unexplained"]), (&json!(0), &json!(0)), "{stats:#}");
    let numbers: Vec<u64> = after.entries().iter().map(|entry| entry.seq).collect();
    let expected: Vec<u64> = (there + 1..=there + numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    assert_eq!(entries::lines(&after.entries()).len(), 1);
}
