//! Keys of the receiver: pinned, listed, configured, lost.

use super::*;

#[tokio::test]
async fn pinned_receiver_never_counts_as_one_without_keys() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    assert_eq!(agent.sink(&server, "").deliver(&batch).await, Delivery::Acknowledged);
    server.state().keys = None;
    let mut sink = agent.sink(&server, "");
    server.paths();
    for _ in 0..2 {
        assert_untrusted(&sink.deliver(&batch).await, &batch, "404");
    }
    assert_eq!(server.paths(), ["/keys", "/keys"], "no entries are sent");
    assert_eq!(agent.state(), TrustState::ReceiptUntrusted);
}

#[tokio::test]
async fn receiver_without_keys_is_believed_and_asked_again() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    }
    assert_eq!(server.paths(), ["/keys", "/ingest", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Shared);
    assert_eq!(findings(&batch), crate::stages::sink::ResponseFindings::default());
    // Sealed nevertheless: the epoch belongs to the device once the receiver has keys.
    assert!(server.state().headers.iter().all(|header| header.seal.is_some()));
    server.lie(Lie::Refused(409, problem::CONFLICT));
    assert_eq!(sink.deliver(&batch).await, Delivery::Conflict { expected: Some(7) });
    {
        let mut state = server.state();
        (state.keys, state.list_signers) = (Some((1, None)), vec![1]);
        (state.device, state.lie) = (Some(DeviceState::Confirmed), Lie::None);
        state.asks_for_enrollment = true;
    }
    agent.clock.advance(10);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn foreign_receiver_gets_neither_seal_nor_enrollment() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "acknowledgement = \"status\"");
    server.lie(Lie::Unsigned);
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    let state = server.state();
    assert!(state.headers[0].seal.is_none() && state.headers[0].instance.is_none());
}

#[tokio::test]
async fn key_list_counts_if_a_pinned_key_has_signed_it() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    // Another key, which only vouches for itself.
    (server.state().keys, server.state().list_signers) = (Some((2, None)), vec![2]);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "receipt of an unknown key");
    agent.clock.advance(5);
    server.paths();
    assert_untrusted(&sink.deliver(&batch).await, &batch, "list of an unknown key");
    assert_eq!(server.paths(), ["/keys"]);
    // The same key with the signature of the one before.
    server.state().list_signers = vec![2, 1];
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
    // The list of the time before that does not bring the old key back.
    (server.state().keys, server.state().list_signers) = (Some((1, Some(2))), vec![1, 2]);
    let mut sink = agent.sink(&server, "");
    assert_untrusted(&sink.deliver(&batch).await, &batch, "replayed list");
}

#[tokio::test]
async fn organisation_recovers_a_lost_receiver_key() {
    let (server, mut agent) = (Server::with_keys(), Agent::new());
    let organisation: OrganisationKey = minisign::Minisign::new(7).public().parse().unwrap();
    agent.context.organisation_keys = vec![organisation];
    let batch = agent.batch(0, 1, None);
    assert_eq!(agent.sink(&server, "").deliver(&batch).await, Delivery::Acknowledged);
    (server.state().keys, server.state().list_signers) = (Some((3, None)), vec![3]);
    let mut sink = agent.sink(&server, "");
    for stranger in [None, Some(8)] {
        server.state().organisation = stranger;
        assert_untrusted(&sink.deliver(&batch).await, &batch, "no recovery");
    }
    server.state().organisation = Some(7);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let trust = &agent.context.trust.all()[0];
    assert_eq!(trust.receiver_keys, [public(3).to_string()]);
}

#[tokio::test]
async fn configured_receiver_key_is_needed_from_the_first_answer() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    let other = format!("receiver_keys = [\"{}\"]", public(5));
    let mut sink = agent.sink(&server, &other);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "another key");
    assert_eq!(server.paths(), ["/keys"]);
    let right = format!("receiver_keys = [\"{}\"]", public(1));
    assert_eq!(agent.sink(&server, &right).deliver(&batch).await, Delivery::Acknowledged);
    let mut sink = agent.sink(&server, &other);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "configured over pinned");
}

#[tokio::test]
async fn damaged_pins_hold_delivery() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    std::fs::write(agent.path().join("trust.json"), "{").unwrap();
    let delivery = agent.sink(&server, "").deliver(&agent.batch(0, 1, None)).await;
    assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
    assert_eq!(server.paths(), [""; 0]);
}

#[test]
fn invalid_receiver_keys_are_refused() {
    let agent = Agent::new();
    let (one, two) = (public(1), SigningKey::from_seed("other", [1; 32]).unwrap());
    for (options, word) in [
        ("receiver_keys = [\"x\"]".to_owned(), "contains `x`"),
        (format!("receiver_keys = [\"{one}\", \"{}\"]", two.key()), "two receivers"),
        (format!("receiver_keys = [\"{one}\"]\nacknowledgement = \"status\""), "acknowledgement"),
    ] {
        let options = format!(
            "endpoint = \"http://siem.test\"\ntoken = \"t-of-16-bytes-or-more\"\n\
             hmac_secret = \"s-of-16-bytes-or-more\"\n{options}"
        );
        let built = build("http-siem", &options.parse().unwrap(), &agent.context);
        let error = built.err().unwrap().to_string();
        assert!(error.contains("`receiver_keys`") && error.contains(word), "{error}");
    }
}
