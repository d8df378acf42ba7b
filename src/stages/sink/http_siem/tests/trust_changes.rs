//! Keys and states that change while the sink runs.

use super::*;

/// Moves the clock to the next poll.
fn poll(agent: &Agent) {
    agent.clock.advance(agent.context.poll_interval.as_secs());
}

fn pinned(agent: &Agent) -> Vec<String> {
    crate::siem::pins::stored_trust(agent.path())[0].receiver_keys.clone()
}

#[tokio::test]
async fn confirmed_device_learns_announced_keys_at_each_poll() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    server.state().keys = Some((1, Some(2)));
    server.paths();
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest", "/keys", "/ingest"]);
    assert_eq!(pinned(&agent), [public(1), public(2)].map(|key| key.to_string()));
    // The stolen key signs nothing any more.
    (server.state().keys, server.state().list_signers) = (Some((2, None)), vec![2]);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(pinned(&agent), [public(2).to_string()]);
}

#[tokio::test]
async fn configured_key_that_was_stolen_does_not_return() {
    let (server, mut agent) = (Server::with_keys(), Agent::new());
    let organisation: OrganisationKey = minisign::Minisign::new(7).public().parse().unwrap();
    agent.context.organisation_keys = vec![organisation];
    let batch = agent.batch(0, 1, None);
    let configured = format!("receiver_keys = [\"{}\"]", public(1));
    let mut sink = agent.sink(&server, &configured);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    {
        let mut state = server.state();
        (state.keys, state.list_signers) = (Some((3, None)), vec![3]);
        state.organisation = Some(7);
    }
    let mut sink = agent.sink(&server, &configured);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    // The thief lists a key of their own.
    {
        let mut state = server.state();
        (state.keys, state.list_signers) = (Some((9, None)), vec![9, 1]);
        state.organisation = None;
    }
    let mut sink = agent.sink(&server, &configured);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "list signed by the stolen key");
    assert_eq!(pinned(&agent), [public(3).to_string()]);
}

#[tokio::test]
async fn recorded_recovery_does_not_bring_its_key_back() {
    let (server, mut agent) = (Server::with_keys(), Agent::new());
    let organisation: OrganisationKey = minisign::Minisign::new(7).public().parse().unwrap();
    agent.context.organisation_keys = vec![organisation];
    let batch = agent.batch(0, 1, None);
    let deliver = async |keys, signers: &[u8], organisation| {
        {
            let mut state = server.state();
            (state.keys, state.list_signers) = (Some((keys, None)), signers.to_vec());
            state.organisation = organisation;
        }
        agent.sink(&server, "").deliver(&batch).await
    };
    assert_eq!(deliver(1, &[1], None).await, Delivery::Acknowledged);
    assert_eq!(deliver(3, &[3], Some(7)).await, Delivery::Acknowledged);
    assert_eq!(deliver(4, &[4, 3], None).await, Delivery::Acknowledged);
    let delivery = deliver(3, &[3], Some(7)).await;
    assert_untrusted(&delivery, &batch, "recorded recovery");
    assert_eq!(pinned(&agent), [public(4).to_string()]);
}

#[tokio::test]
async fn nothing_is_sent_until_the_pinned_key_is_stored() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    server.state().refuses_keys = Some(503);
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert!(matches!(sink.deliver(&batch).await, Delivery::Retry { .. }));
    server.state().refuses_keys = None;
    let (dir, away) = (agent.path().to_owned(), agent.path().with_extension("away"));
    std::fs::rename(&dir, &away).unwrap();
    server.paths();
    for _ in 0..2 {
        let delivery = sink.deliver(&batch).await;
        assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
    }
    assert!(!server.paths().contains(&"/ingest".to_owned()));
    std::fs::rename(&away, &dir).unwrap();
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn pending_device_sends_one_batch_and_waits_for_approval() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    server.state().device = Some(DeviceState::Pending);
    server.lie(Lie::Verdict(403, problem::NOT_ENROLLED));
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    for _ in 0..3 {
        assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
        assert_eq!(agent.state(), TrustState::Pending);
    }
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    poll(&agent);
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(server.paths(), ["/keys", "/enroll"]);
    server.state().device = Some(DeviceState::Unconfirmed);
    server.lie(Lie::None);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Unconfirmed);
}

/// The batch continues what the receiver holds, which confirms the key.
#[tokio::test]
async fn pending_device_is_confirmed_by_its_first_batch() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    server.state().device = Some(DeviceState::Pending);
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    server.state().device = Some(DeviceState::Confirmed);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn known_device_sends_while_enrollment_fails() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    assert_eq!(agent.sink(&server, "").deliver(&batch).await, Delivery::Acknowledged);
    server.state().refuses_enrollment = Some(503);
    let mut sink = agent.sink(&server, "");
    server.paths();
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    }
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest", "/ingest"]);
    server.state().refuses_keys = Some(503);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/ingest"]);
    (server.state().refuses_keys, server.state().refuses_enrollment) = (None, None);
    poll(&agent);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn untrusted_state_ends_though_enrollment_is_refused() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    server.lie(Lie::Unsigned);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "unsigned");
    assert_eq!(agent.state(), TrustState::ReceiptUntrusted);
    server.lie(Lie::None);
    server.state().refuses_enrollment = Some(403);
    // The state was stored.
    let mut sink = agent.sink(&server, "");
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
        assert_eq!(agent.state(), TrustState::Confirmed);
    }
}
