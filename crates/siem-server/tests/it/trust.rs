//! Seals, receipts and verdicts over HTTP.

use siem_protocol::{
    Digest, Encoding, Problem, Receipt,
    names::{self, problem as kinds},
    note::{NoteSigner as _, SigningKey, VerifierKey},
    sign,
    statement::{self, Durability, Statement as _, StoredReceipt, TrustLevel, Verdict},
};
use siem_server::Limits;

use crate::common::{
    BatchText, RECEIVER, SECRET, Server, TestDevice, chain, encoded, files, line, problem,
};

/// The receiver's public key.
fn receiver_key() -> VerifierKey {
    SigningKey::from_seed(RECEIVER, [9; 32]).unwrap().key().clone()
}

async fn server() -> Server {
    Server::with_devices(TrustLevel::FirstUse, Limits::default()).await
}

fn receipt(answer: &Receipt) -> StoredReceipt {
    let note = answer.receipt.as_ref().unwrap();
    StoredReceipt::open(note, &[receiver_key()]).unwrap().statement
}

/// Sends a batch that is refused; returns the problem and the hash of the body.
async fn refused(server: &Server, text: &str, encoding: Encoding) -> (Problem, Digest) {
    let body = encoded(text.as_bytes(), encoding);
    let (hash, signature) = (Digest::of(&body), sign(SECRET.as_bytes(), &body));
    let response = server.signed(body, encoding.as_str(), &signature).send().await.unwrap();
    (problem(response).await, hash)
}

fn verdict(problem: &Problem) -> Verdict {
    let note = problem.verdict.as_ref().unwrap();
    Verdict::open(note, &[receiver_key()]).unwrap().statement
}

#[tokio::test]
async fn stored_batch_has_a_signed_receipt() {
    let device = TestDevice::new(1);
    let server = server().await;
    server.confirm(&device).await;
    let sealed = BatchText::new(1, 4).seal(&device);
    let first = server.take(&sealed).await;
    let found = receipt(&first);
    let expected = StoredReceipt {
        receiver: RECEIVER.into(),
        machine: "m-1".into(),
        user: "u".into(),
        epoch: "e-1".into(),
        last_seq: 4,
        chain: chain(4),
        seal: sealed.header.seal.as_deref().map(statement::digest),
        received_at: found.received_at.clone(),
        durability: Durability::Synced,
    };
    assert_eq!(found, expected);
    server.take(&BatchText::new(5, 9).seal(&device)).await;
    let again = server.take(&sealed).await;
    assert_eq!((again.receipt, again.duplicates), (first.receipt, 4));
    let other = receipt(&server.take(&BatchText::new(3, 6).seal(&device)).await);
    assert_eq!((other.last_seq, other.chain), (6, chain(6)));
}

/// The receipt is the one for the seal that came first. It does not tell the sender that the lines of
/// this batch are stored.
#[tokio::test]
async fn receipt_for_another_seal_comes_with_a_verdict() {
    let (device, not_enrolled) = (TestDevice::new(1), TestDevice::new(2));
    let server = server().await;
    let answer = server.take(&BatchText::new(1, 2).seal(&not_enrolled)).await;
    assert_eq!((receipt(&answer).seal, answer.verdict.is_some()), (None, true));
    assert_eq!(server.take(&BatchText::new(1, 2)).await.verdict, None);
    server.confirm(&device).await;
    let sealed = BatchText::new(1, 4).seal(&device);
    for _ in 0..2 {
        assert_eq!(server.take(&sealed).await.verdict, None);
    }
    for encoding in [Encoding::Zstd, Encoding::Identity] {
        let body = encoded(BatchText::new(1, 2).seal(&device).text().as_bytes(), encoding);
        let (hash, signature) = (Digest::of(&body), sign(SECRET.as_bytes(), &body));
        let response = server.signed(body, encoding.as_str(), &signature).send().await.unwrap();
        let answer: Receipt = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let named = receipt(&answer).seal;
        assert_eq!(named, sealed.header.seal.as_deref().map(statement::digest));
        let verdict = Verdict::open(&answer.verdict.unwrap(), &[receiver_key()]).unwrap().statement;
        assert_eq!((verdict.status, &*verdict.kind), (200, names::verdict::STORED));
        assert!(verdict.is_about(RECEIVER, "m-1", Some("e-1"), hash), "{verdict:?}");
    }
}

#[tokio::test]
async fn receiver_without_a_key_signs_nothing() {
    let server = Server::start().await;
    let device = TestDevice::new(1);
    let answer = server.take(&BatchText::new(1, 4).seal(&device)).await;
    assert_eq!((answer.receipt, answer.enroll), (None, false));
    let jump = BatchText::new(7, 8).text();
    let (problem, _) = refused(&server, &jump, Encoding::Zstd).await;
    assert_eq!((problem.status, problem.verdict, problem.enroll), (409, None, false));
}

#[tokio::test]
async fn answers_say_whether_the_device_should_enroll() {
    let (known, unknown) = (TestDevice::new(1), TestDevice::new(2));
    let server = server().await;
    assert!(server.take(&BatchText::new(1, 2)).await.enroll);
    assert!(server.take(&BatchText::new(3, 4).seal(&unknown)).await.enroll);
    server.confirm(&known).await;
    assert!(!server.take(&BatchText::new(5, 6).seal(&known)).await.enroll);
    let sealed = BatchText::new(7, 8).seal(&unknown).text();
    let (problem, _) = refused(&server, &sealed, Encoding::Zstd).await;
    assert_eq!((problem.kind.as_str(), problem.enroll), (kinds::EPOCH_OWNED, true));
}

#[tokio::test]
async fn refusals_that_cost_entries_have_a_verdict_about_the_body() {
    let device = TestDevice::new(1);
    let mut limits = Limits::default();
    limits.decoded = 4096;
    let server = Server::with_devices(TrustLevel::FirstUse, limits).await;
    let key = server.confirm(&device).await;
    server.take(&BatchText::new(1, 3).seal(&device)).await;
    let other = r#"{"seq":3,"kind":"event","x":1}"#;
    let invalid = r#"{"seq":4,"kind":"event","data":nul}"#;
    let large = format!(r#"{{"seq":4,"kind":"event","x":"{}"}}"#, "x".repeat(5000));
    let conflict = BatchText::new(3, 3).line(3, other).chained().seal(&device).text();
    let entry = BatchText::new(4, 4).line(4, invalid).seal(&device).text();
    let large = BatchText::new(4, 4).line(4, &large).seal(&device).text();
    let cases = [
        (&conflict, Encoding::Zstd, 409, kinds::CONFLICT),
        (&conflict, Encoding::Identity, 409, kinds::CONFLICT),
        (&entry, Encoding::Zstd, 422, kinds::ENTRY),
        (&entry, Encoding::Identity, 422, kinds::ENTRY),
        (&large, Encoding::Zstd, 413, kinds::TOO_LARGE),
        (&large, Encoding::Gzip, 413, kinds::TOO_LARGE),
    ];
    for (text, encoding, status, kind) in cases {
        let (problem, body) = refused(&server, text, encoding).await;
        assert_eq!((problem.status, problem.kind.as_str()), (status, kind));
        let verdict = verdict(&problem);
        assert!(verdict.is_about(RECEIVER, "m-1", Some("e-1"), body), "{verdict:?}");
        assert_eq!((verdict.status, verdict.kind.as_str()), (status, kind));
    }
    server.registry().revoke(&key).unwrap();
    let text = BatchText::new(4, 5).seal(&device).text();
    let (problem, body) = refused(&server, &text, Encoding::Zstd).await;
    let verdict = verdict(&problem);
    assert!(verdict.is_about(RECEIVER, "m-1", Some("e-1"), body));
    assert_eq!((verdict.status, verdict.kind.as_str()), (403, kinds::DEVICE_REVOKED));
}

#[tokio::test]
async fn refusals_that_cost_nothing_are_not_signed() {
    let device = TestDevice::new(1);
    let server = server().await;
    server.confirm(&device).await;
    let malformed = BatchText::new(4, 5).line(4, "{\"kind\":\"event\"}").text();
    let wrong = BatchText::new(4, 5).seal_with(&device, None, |seal| seal.last_seq = 6).text();
    for (text, status) in [(malformed, 400), (wrong, 403)] {
        let (problem, _) = refused(&server, &text, Encoding::Zstd).await;
        assert_eq!((problem.status, problem.verdict), (status, None));
    }
}

/// A device shows them to its user, so that they must come from the receiver.
#[tokio::test]
async fn refusals_about_the_device_are_signed() {
    let device = TestDevice::new(1);
    let server = server().await;
    server.confirm(&device).await;
    server.take(&BatchText::new(1, 3).seal(&device)).await;
    let of_owner = BatchText::new(4, 5).text();
    let keyless = BatchText::new(1, 1).with(|header| header.epoch = "e-2".into()).text();
    for (text, epoch, kind) in
        [(of_owner, "e-1", kinds::EPOCH_OWNED), (keyless, "e-2", kinds::IMPERSONATION)]
    {
        let (problem, body) = refused(&server, &text, Encoding::Zstd).await;
        let verdict = verdict(&problem);
        assert!(verdict.is_about(RECEIVER, "m-1", Some(epoch), body));
        assert_eq!((verdict.status, verdict.kind.as_str()), (403, kind));
    }
}

#[tokio::test]
async fn seal_for_another_receiver_is_refused_with_an_event() {
    let device = TestDevice::new(1);
    let server = server().await;
    server.confirm(&device).await;
    let other = |seal: &mut statement::Seal| seal.receiver = Some("other.example.com".into());
    let text = BatchText::new(1, 3).seal_with(&device, None, other).text();
    let (problem, _) = refused(&server, &text, Encoding::Zstd).await;
    assert_eq!((problem.status, problem.kind.as_str()), (403, kinds::SEAL));
    assert_eq!(server.stats().await.events.impersonation, 1);
    let data = server.end().await;
    let log = files(&data.path().join("trust"), "ndjson");
    let log = log.iter().find(|path| path.ends_with("events.ndjson")).unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains(r#""peer":"127.0.0.1""#), "{log}");
}

#[tokio::test]
async fn unconfirmed_key_answers_for_no_confirmed_device() {
    let (confirmed, other) = (TestDevice::new(1), TestDevice::new(2));
    let server = server().await;
    server.confirm(&confirmed).await;
    server.enroll(&other).await;
    for (epoch, device, config) in [("e-1", &confirmed, b"a"), ("e-2", &other, b"b")] {
        let named = BatchText::new(1, 1).with(|header| {
            header.epoch = epoch.into();
            header.managed_hash = Some(Digest::of(config));
        });
        server.take(&named.seal(device)).await;
    }
    let answers = server.registry().device_config("m-1", "u").unwrap();
    assert_eq!(answers.in_force.unwrap().hash, Digest::of(b"a"));
}

#[tokio::test]
async fn batch_that_names_an_unknown_configuration_is_an_event() {
    let server = server().await;
    let config = br#"{"version":1}"#;
    let file = server.data.path().join("config.json");
    let named = |seq, content: &[u8]| {
        let hash = Digest::of(content);
        BatchText::new(seq, seq).with(|header| header.managed_hash = Some(hash))
    };
    std::fs::write(&file, config).unwrap();
    // One that an agent may have got before the receiver kept a list.
    server.take(&named(1, config)).await;
    assert_eq!(server.stats().await.events.config_unknown, 0);
    let response = server.config().await;
    assert_eq!(response.status(), 200);
    std::fs::write(&file, br#"{"version":1,"revision":"2"}"#).unwrap();
    server.take(&named(2, config)).await;
    assert_eq!(server.stats().await.events.config_unknown, 0);
    server.take(&named(3, b"another")).await;
    assert_eq!(server.stats().await.events.config_unknown, 1);
    assert!(!line(1).is_empty());
}
