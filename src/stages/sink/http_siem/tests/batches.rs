//! Batches, and honest and false answers to them.

use super::*;

#[tokio::test]
async fn batch_is_sealed_and_its_receipt_is_kept() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let first = agent.batch(0, 2, None);
    assert_eq!(sink.deliver(&first).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Confirmed);
    let receipt = findings(&first).receipt.unwrap();

    let second = agent.batch(2, 3, Some(receipt.clone()));
    assert_eq!(sink.deliver(&second).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    let state = server.state();
    let header = &state.headers[1];
    assert_eq!(header.instance.as_deref(), Some("instance"));
    let identity = agent.identity();
    let expected = Seal {
        receiver: Some(NAME.into()),
        machine: identity.machine_id.clone(),
        user: identity.user.clone(),
        epoch: "e".into(),
        first_seq: Some(3),
        last_seq: 5,
        chain: point(5).hash,
        dead_lettered: None,
        config: header.config_hash,
        receipt: Some(digest(&receipt)),
        instance: header.instance.clone(),
    };
    assert_eq!(sealed(header.seal.as_ref().unwrap(), &state.enrollments), Some(expected));
}

#[tokio::test]
async fn lie_holds_delivery_until_an_honest_answer() {
    let forged = [
        (401, problem::TOKEN),
        (403, problem::SIGNATURE),
        (403, problem::DEVICE_REVOKED),
        (403, problem::DEVICE_CLONED),
        (409, problem::CONFLICT),
        (413, problem::TOO_LARGE),
        (422, problem::ENTRY),
    ];
    let mut lies = vec![
        // First: afterwards the last receipt is for the same batch.
        Lie::Replayed,
        Lie::Unsigned,
        Lie::OtherKey,
        Lie::OtherMachine,
        Lie::OtherUser,
        Lie::OtherEpoch,
        Lie::OtherChain,
        Lie::OtherReceiver,
    ];
    lies.extend(forged[2..].iter().map(|(status, kind)| Lie::Refused(*status, kind)));
    lies.extend(forged.map(|(status, kind)| Lie::RefusedByStranger(status, kind)));
    lies.extend(forged.map(|(status, kind)| Lie::RefusedAnother(status, kind)));
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    for lie in lies {
        server.lie(lie);
        let batch = agent.batch(1, 1, None);
        assert_untrusted(&sink.deliver(&batch).await, &batch, &format!("{lie:?}"));
        assert_eq!(agent.state(), TrustState::ReceiptUntrusted, "{lie:?}");
        assert_eq!(agent.context.device.take_request(), None, "{lie:?}");
        server.lie(Lie::None);
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged, "{lie:?}");
        assert_eq!(agent.state(), TrustState::Confirmed, "{lie:?}");
    }
}

#[tokio::test]
async fn lie_with_several_entries_splits_at_most() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    server.lie(Lie::Refused(413, problem::TOO_LARGE));
    let delivery = sink.deliver(&agent.batch(1, 2, None)).await;
    assert!(matches!(delivery, Delivery::Refused { status: 413, .. }), "{delivery:?}");
    for (status, kind) in [(409, problem::CONFLICT), (422, problem::ENTRY)] {
        server.lie(Lie::Refused(status, kind));
        let batch = agent.batch(1, 2, None);
        assert_untrusted(&sink.deliver(&batch).await, &batch, kind);
    }
}

#[tokio::test]
async fn unsigned_refusal_of_the_token_only_holds() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    for (status, kind) in [(401, problem::TOKEN), (403, problem::SIGNATURE), (404, "")] {
        server.lie(Lie::Refused(status, kind));
        let batch = agent.batch(1, 1, None);
        let delivery = sink.deliver(&batch).await;
        assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
        assert_eq!(findings(&batch).untrusted, None);
        assert_eq!(agent.state(), TrustState::Confirmed);
    }
    server.lie(Lie::Refused(503, problem::FULL));
    let delivery = sink.deliver(&agent.batch(1, 1, None)).await;
    assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
}

#[tokio::test]
async fn signed_verdict_is_acted_on() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let deliver = async |sink: &mut Box<dyn Sink>, status, kind| {
        server.lie(Lie::Verdict(status, kind));
        sink.deliver(&agent.batch(0, 1, None)).await
    };
    let conflict = deliver(&mut sink, 409, problem::CONFLICT).await;
    assert_eq!(conflict, Delivery::Conflict { expected: Some(7) });
    for (status, kind) in [(413, problem::TOO_LARGE), (422, problem::ENTRY)] {
        let refused = deliver(&mut sink, status, kind).await;
        assert!(matches!(refused, Delivery::Refused { status: s, .. } if s == status));
    }
    for kind in [problem::EPOCH_OWNED, problem::IMPERSONATION, problem::SEAL] {
        let held = deliver(&mut sink, 403, kind).await;
        assert!(matches!(held, Delivery::Hold { .. }), "{kind}");
        assert_eq!(agent.state(), TrustState::Confirmed, "{kind}");
    }
    let held = deliver(&mut sink, 403, problem::DEVICE_CLONED).await;
    assert!(matches!(held, Delivery::Hold { .. }));
    assert_eq!(agent.context.device.take_request(), Some(DeviceKeyReason::Cloned));
}

#[tokio::test]
async fn redelivery_is_sealed_at_the_point_that_is_held() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let batch = agent.redelivery(2, Some(point(4)));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    {
        let state = server.state();
        let seal = sealed(state.headers[0].seal.as_ref().unwrap(), &state.enrollments).unwrap();
        assert_eq!((seal.last_seq, seal.chain), (4, point(4).hash));
    }
    for lie in [Lie::OtherChain, Lie::Unsigned, Lie::OtherEpoch] {
        server.lie(lie);
        assert_untrusted(&sink.deliver(&batch).await, &batch, &format!("{lie:?}"));
    }
}

/// The receiver has no receipt for the beginning, and says only that it holds the entries.
#[tokio::test]
async fn redelivery_of_a_forgotten_epoch_is_sealed_at_its_start() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.redelivery(2, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    {
        let state = server.state();
        let seal = sealed(state.headers[0].seal.as_ref().unwrap(), &state.enrollments).unwrap();
        assert_eq!((seal.last_seq, seal.chain), (0, Digest::ZERO));
    }
    server.lie(Lie::UnsignedVerdict);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "verdict without signature");
    server.lie(Lie::None);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn receiver_that_fails_other_paths_gets_entries() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    server.state().refuses_keys = Some(502);
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    for _ in 0..2 {
        assert!(matches!(sink.deliver(&batch).await, Delivery::Retry { .. }));
    }
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    }
    assert_eq!(server.paths(), ["/keys", "/keys", "/keys", "/ingest", "/ingest"]);
}
