//! False answers from an attacker in the place of the receiver.

use super::*;

/// A forged answer to a batch.
type Answer = Box<dyn FnMut(&Exchange) -> Reply + Send>;

fn answer(answer: impl FnMut(&Exchange) -> Reply + Send + 'static) -> Answer {
    Box::new(answer)
}

/// All answers by which an attacker could make the agent delete, renumber or give up entries, or
/// stop.
fn forged_answers(real: &RealStatements) -> Vec<(&'static str, Answer)> {
    let own = || SigningKey::from_seed(NAME, [66; 32]).unwrap();
    let mut answers: Vec<(&str, Answer)> = vec![
        ("acknowledgement", answer(Exchange::bare_acknowledgement)),
        ("acknowledgement with a receipt of another key", {
            answer(move |batch| batch.signed_acknowledgement(&own(), |_| ()))
        }),
        ("acknowledgement with text", answer(|batch| batch.acknowledgement(Some("receipt")))),
    ];
    for (what, receipt) in &real.receipts {
        let receipt = receipt.clone();
        answers.push((*what, answer(move |batch| batch.acknowledgement(Some(&receipt)))));
    }
    for (status, kind) in [
        (409, problem::CONFLICT),
        (413, problem::TOO_LARGE),
        (422, problem::ENTRY),
        (403, problem::DEVICE_REVOKED),
        (403, problem::DEVICE_CLONED),
    ] {
        answers.push((kind, answer(move |_| refusal(status, kind, None))));
        answers
            .push((kind, answer(move |batch| batch.signed_refusal(status, kind, &own(), |_| ()))));
        let verdict = real.verdict.clone();
        answers.push((kind, answer(move |_| refusal(status, kind, Some(&verdict)))));
    }
    answers
}

/// Statements that the receiver signed for others, or for something else.
struct RealStatements {
    receipts: Vec<(&'static str, String)>,
    verdict: String,
}

impl RealStatements {
    /// Obtains them as a colleague with a device, and as a listener on the network.
    fn of(receiver: &Receiver, middle: &Middle, identity: &Identity) -> Self {
        let own: Vec<_> = middle.exchanges("/ingest").iter().filter_map(receipt).collect();
        let colleague = |machine: &str, user: &str| {
            let identity =
                Identity { machine_id: machine.into(), user: user.into(), ..identity.clone() };
            Forger::new(&receiver.url(), NAME, &identity, machine.len() as u8 + 100)
        };
        let send = |forger: &Forger, batch: &ForgedBatch| {
            let reply = forger.send(&forger.seal(batch.clone()));
            (reply.status, reply)
        };
        let other_machine = colleague("other-machine", &identity.user);
        assert_eq!(other_machine.enroll().status, 200);
        let epoch = &own.last().unwrap().0.epoch;
        let batch = other_machine.batch(&format!("{epoch}-2"), (0, Digest::ZERO), 2);
        let (status, reply) = send(&other_machine, &batch);
        assert_eq!(status, 200, "{}", reply.body);
        let of_other = reply.member("receipt").as_str().unwrap().to_owned();
        let other_user = colleague(&identity.machine_id, "other-user");
        assert_eq!(other_user.enroll().status, 200);
        let batch = other_user.batch("epoch-of-another-user", (0, Digest::ZERO), 3);
        let (status, reply) = send(&other_user, &batch);
        assert_eq!(status, 200, "{}", reply.body);
        let of_user = reply.member("receipt").as_str().unwrap().to_owned();
        // The receiver refuses other entries under the same numbers, and signs that.
        let other = other_user.batch("epoch-of-another-user", (0, Digest::of(b"other")), 3);
        let (status, reply) = send(&other_user, &other);
        assert_eq!(status, 409, "{}", reply.body);
        let verdict = reply.member("verdict").as_str().unwrap().to_owned();
        let receipts = vec![
            ("receipt for another machine and epoch", of_other),
            ("receipt for another user and epoch", of_user),
            ("earlier receipt for another chain value", own.last().unwrap().1.clone()),
        ];
        Self { receipts, verdict }
    }
}

/// The receipt for a batch, and its header.
fn receipt(exchange: &Exchange) -> Option<(BatchHeader, String)> {
    let receipt = exchange.reply.as_ref()?.member("receipt");
    Some((exchange.header(), receipt.as_str()?.to_owned()))
}

#[test]
fn answers_in_the_receivers_place_change_nothing() {
    let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
    let middle = Middle::to(&receiver.url());
    line(&home, 1);
    let mut running = agent(&home, &middle.url(), &["run"]).start_and_wait();
    wait_for_lines(&receiver, 1);
    let identity = identity_of(&receiver);
    approve(&receiver, &identity);
    let real = RealStatements::of(&receiver, &middle, &identity);
    let (epoch, ..) = head(&receiver);
    let answers = forged_answers(&real);
    assert_eq!(answers.len(), 21);
    for (n, (what, answer)) in (2..).zip(answers) {
        middle.forge(answer);
        line(&home, n);
        eventually(what, || (middle.forged() >= 2).then_some(()));
        assert!(running.runs(), "{what}: {}", running.log());
        eventually(what, || (state(&home, &middle.url()) == "receipt_untrusted").then_some(()));
        middle.release();
        wait_for_lines_of(&receiver, &epoch, n);
        let letters = agent(&home, &middle.url(), &["deadletter", "list"]).succeed();
        assert!(!letters.text().contains("422") && !letters.text().contains("413"), "{what}");
    }
    running.stop();
    assert_eq!(state(&home, &middle.url()), "confirmed");
    machine_is_undisturbed(&receiver, 22);
    assert_eq!(receiver.events("impersonation"), 0);
}

/// The chain is the same if all lines count as dead letters. Anyone with the secrets of the fleet and
/// access to the network could begin an epoch in the place of its device, without any line, and got
/// the receiver's real receipt for it. With that the agent deleted entries that no receiver had.
#[test]
fn receipt_for_another_sender_deletes_nothing() {
    for is_sealed in [false, true] {
        let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
        let (middle, url) = (Middle::to(&receiver.url()), receiver.url());
        middle.forge(move |exchange| {
            let batch = exchange.batch();
            let forger = Forger::new(&url, NAME, &batch.header.identity(), 7);
            let batch = batch.without_lines();
            if !is_sealed {
                return forger.send(&batch);
            }
            assert_eq!(forger.enroll().status, 200);
            forger.send(&forger.seal(batch))
        });
        line(&home, 1);
        let running = agent(&home, &middle.url(), &["run"]).start_and_wait();
        eventually("the agent notices", || {
            (state(&home, &middle.url()) == "receipt_untrusted").then_some(())
        });
        // A stop would try to deliver for 3 s.
        running.kill();
        middle.release();
        let shown = agent(&home, &middle.url(), &["device", "show", "--json"]).succeed();
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        receiver.administer(&["devices", "approve", shown["key"].as_str().unwrap()]);
        ship(&home, &middle.url());
        let entries = receiver.entries_of_all_epochs();
        assert_eq!(entries::lines(&entries).len(), 1, "sealed: {is_sealed}");
    }
}
