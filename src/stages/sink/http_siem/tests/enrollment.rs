//! Enrollment of the device, and its key.

use super::*;

#[tokio::test]
async fn device_that_is_not_enrolled_enrolls_again() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let batch = agent.batch(0, 1, None);
    server.lie(Lie::Verdict(403, problem::NOT_ENROLLED));
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(agent.state(), TrustState::NotEnrolled);
    server.paths();
    server.lie(Lie::None);
    agent.clock.advance(5);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn revoked_device_sends_nothing_until_it_is_approved() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    server.lie(Lie::Verdict(403, problem::DEVICE_REVOKED));
    let mut sink = agent.sink(&server, "");
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(agent.state(), TrustState::Revoked);
    server.state().device = Some(DeviceState::Revoked);
    server.lie(Lie::None);
    server.paths();
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(server.paths(), [""; 0]);
    // Another start of the agent asks again.
    let mut sink = agent.sink(&server, "");
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(server.paths(), ["/keys", "/enroll"]);
    server.state().device = Some(DeviceState::Confirmed);
    agent.clock.advance(agent.context.poll_interval.as_secs());
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn refused_enrollment_uses_the_ingest_token_and_sends() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    server.state().refuses_enrollment = Some(401);
    let mut sink = agent.sink(&server, "enroll_token = \"e-of-16-bytes-or-more\"");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::NotEnrolled);
    let (ingest, enroll) = ("Bearer t-of-16-bytes-or-more", "Bearer e-of-16-bytes-or-more");
    assert_eq!(server.state().tokens, [ingest, enroll, ingest, ingest]);
}

#[tokio::test]
async fn rotated_device_key_enrolls_with_both_keys() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let before = agent.context.device.keys().unwrap().current.key().clone();
    let rotated = agent.context.device.rotate(NOW).unwrap();
    agent.context.device.set_owner(&rotated.keys.public());
    server.state().refuses_enrollment = Some(403);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let seal = server.state().headers[1].seal.clone().unwrap();
    assert!(
        Seal::open(&seal, std::slice::from_ref(&before)).is_ok(),
        "the receiver knows no other key"
    );
    server.state().refuses_enrollment = None;
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let keys = agent.context.device.keys().unwrap();
    assert!(keys.previous.is_none(), "every receiver has the new key");
    let state = server.state();
    assert_eq!(state.enrollments[1].previous, Some(before));
    let seal = state.headers[2].seal.clone().unwrap();
    assert!(Seal::open(&seal, &[keys.current.key().clone()]).is_ok());
}

#[tokio::test]
async fn device_without_its_key_sends_nothing() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    server.paths();
    let unavailable = crate::siem::device::DeviceUnavailable::permanent("the key is lost", NOW);
    agent.context.device.set(Err(unavailable));
    let delivery = sink.deliver(&agent.batch(0, 1, None)).await;
    assert_eq!(delivery, Delivery::Hold { after: None, reason: "the key is lost".into() });
    assert_eq!(server.paths(), [""; 0]);
}

/// As with the file system of a state directory that has no permissions.
#[tokio::test]
async fn receiver_without_keys_needs_no_device_key() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    let unavailable = crate::siem::device::DeviceUnavailable::permanent("mode 0777", NOW);
    agent.context.device.set(Err(unavailable));
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    assert!(server.state().headers.iter().all(|header| header.seal.is_none()));
}
