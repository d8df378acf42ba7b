//! `GET /keys`, `POST /enroll`, and the scopes of tokens, over HTTP.

use reqwest::StatusCode;
use siem_protocol::{
    Digest, Encoding, KeysAnswer, Problem,
    names::{header, problem},
    note::NoteSigner as _,
    statement::{DeviceState, KeyList, Statement as _, TrustLevel, Verdict},
};
use siem_server::trust::{EventCounts, NewToken, Scope};

use crate::common::{
    BatchText, SECRET, TOKEN, encoded, problem as read_problem,
    trust::{RECEIVER, TrustServer, device, enrollment, rotation, signed},
};

async fn refused(server: &TrustServer, token: &str, body: String) -> Problem {
    read_problem(server.post_enroll(token, body).send().await.unwrap()).await
}

fn enroll_token(single_use: bool, machine: Option<&str>) -> NewToken {
    let machine = machine.map(str::to_owned);
    NewToken { scopes: [Scope::Enroll].into(), single_use, machine, ..NewToken::default() }
}

#[tokio::test]
async fn keys_and_enrollment_are_404_without_receiver_key() {
    let server = crate::common::Server::start().await;
    let client = reqwest::Client::new();
    let keys = client.get(server.url("/keys")).bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(read_problem(keys).await.status, 404);
    let enroll = client.post(server.url("/enroll")).bearer_auth(TOKEN).body("{}");
    assert_eq!(read_problem(enroll.send().await.unwrap()).await.status, 404);
}

#[tokio::test]
async fn keys_are_a_list_signed_by_the_current_key() {
    let server = TrustServer::start(TrustLevel::FirstUse).await;
    let response = server.get("/keys", TOKEN).send().await.unwrap().error_for_status().unwrap();
    let answer: KeysAnswer = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let key = server.registry().receiver_key().unwrap().key().clone();
    let list = KeyList::open(&answer.keys, std::slice::from_ref(&key)).unwrap().statement;
    assert_eq!((list.receiver.as_str(), list.current, list.next), (RECEIVER, key, None));
    assert_eq!(answer.organisation, None);
}

#[tokio::test]
async fn fleet_token_enrolls_without_confirming() {
    for (level, state) in [
        (TrustLevel::Shared, DeviceState::Unconfirmed),
        (TrustLevel::FirstUse, DeviceState::Unconfirmed),
        (TrustLevel::Enrolled, DeviceState::Pending),
    ] {
        let server = TrustServer::start(level).await;
        for _ in 0..2 {
            let device = server.enroll_with_fleet_token(&enrollment(1)).await;
            assert_eq!((device.state, device.level), (state, level));
            assert_eq!(device.confirmed_by, None);
        }
        assert_eq!(server.registry().devices().len(), 1);
    }
}

#[tokio::test]
async fn single_use_token_enrolls_one_device() {
    let server = TrustServer::start(TrustLevel::Enrolled).await;
    let token = server.token(enroll_token(true, None));
    for _ in 0..2 {
        let device = server.enroll(&token, &enrollment(1)).await;
        assert_eq!(device.state, DeviceState::Confirmed);
    }
    let problem = refused(&server, &token, signed(&enrollment(2), &[2])).await;
    assert_eq!((problem.status, problem.kind.as_str()), (401, problem::TOKEN));
}

#[tokio::test]
async fn machine_bound_token_enrolls_its_machine_only() {
    let server = TrustServer::start(TrustLevel::Enrolled).await;
    let token = server.token(enroll_token(false, Some("m-1")));
    let post = |machine: &str, body: String| {
        server.post_enroll(&token, body).header(header::MACHINE_ID, machine)
    };
    let right = post("m-1", signed(&enrollment(1), &[1])).send().await.unwrap();
    assert_eq!(right.status(), 200);
    assert!(server.registry().confirmed_for("m-1", "u"));
    let mut other = enrollment(2);
    other.machine = "m-2".into();
    for named in ["m-1", "m-2"] {
        let response = post(named, signed(&other, &[2])).send().await.unwrap();
        let problem = read_problem(response).await;
        assert_eq!((problem.status, problem.kind.as_str()), (403, problem::SCOPE), "{named}");
    }
    assert_eq!(server.registry().devices().len(), 1);
}

/// The token may have been read on the way, or by another user of the machine.
#[tokio::test]
async fn token_that_confirms_a_second_key_is_an_event() {
    let server = TrustServer::start(TrustLevel::Enrolled).await;
    let token = server.token(enroll_token(false, Some("m-1")));
    let enroll =
        |body: String| server.post_enroll(&token, body).header(header::MACHINE_ID, "m-1").send();
    let mut other_user = enrollment(4);
    other_user.user = "v".into();
    for (body, second_key) in [
        (signed(&enrollment(1), &[1]), 0),
        (signed(&enrollment(1), &[1]), 0),
        (signed(&other_user, &[4]), 0),
        (signed(&rotation(2, 1), &[2, 1]), 0),
        (signed(&enrollment(3), &[3]), 1),
        (signed(&enrollment(3), &[3]), 1),
    ] {
        assert_eq!(enroll(body).await.unwrap().status(), 200);
        let counts = EventCounts { second_key, ..EventCounts::default() };
        assert_eq!(server.registry().event_counts(), counts);
    }
    // Without a confirmation the first batch is the event.
    server.enroll_with_fleet_token(&enrollment(5)).await;
    assert_eq!(server.registry().event_counts().second_key, 1);
    let events = std::fs::read_to_string(server.data().join("trust/events.ndjson")).unwrap();
    assert!(events.contains("127.0.0.1"), "{events}");
}

#[tokio::test]
async fn rotated_key_continues_the_confirmed_one() {
    let server = TrustServer::start(TrustLevel::Enrolled).await;
    let token = server.token(enroll_token(true, None));
    server.enroll(&token, &enrollment(1)).await;
    let body = signed(&rotation(2, 1), &[2, 1]);
    let answer = server.post_enroll(TOKEN, body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let devices = server.registry().devices();
    assert!(devices.iter().all(|device| device.state == DeviceState::Confirmed));
    // A second agent that holds the first key rotates too.
    let answer = server.post_enroll(TOKEN, signed(&rotation(3, 1), &[3, 1])).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let counts = EventCounts { clone: 1, ..EventCounts::default() };
    assert_eq!(server.registry().event_counts(), counts);
    let events = std::fs::read_to_string(server.data().join("trust/events.ndjson")).unwrap();
    assert!(events.contains("127.0.0.1"), "{events}");
}

#[tokio::test]
async fn enrollment_not_signed_by_its_keys_is_400() {
    let server = TrustServer::start(TrustLevel::FirstUse).await;
    let mut other = enrollment(1);
    other.receiver = "other.example.com".into();
    for body in [
        String::new(),
        "{}".into(),
        "x".repeat(100),
        signed(&enrollment(1), &[2]),
        signed(&rotation(2, 1), &[2]),
        signed(&rotation(2, 1), &[1]),
        signed(&other, &[1]),
        signed(&enrollment(1), &[1]).replace("machine=m-1", "machine=m-2"),
    ] {
        let problem = refused(&server, TOKEN, body).await;
        assert_eq!((problem.status, problem.kind.as_str()), (400, problem::MALFORMED));
    }
    assert_eq!(server.registry().devices(), []);
}

#[tokio::test]
async fn successor_of_a_revoked_key_is_403() {
    let server = TrustServer::start(TrustLevel::FirstUse).await;
    server.enroll_with_fleet_token(&enrollment(1)).await;
    server.registry().revoke(&crate::common::trust::device_key(1)).unwrap();
    let body = signed(&rotation(2, 1), &[2, 1]);
    let problem = refused(&server, TOKEN, body.clone()).await;
    assert_eq!((problem.status, problem.kind.as_str()), (403, problem::DEVICE_REVOKED));
    let key = server.registry().receiver_key().unwrap().key().clone();
    let verdict = Verdict::open(&problem.verdict.unwrap(), std::slice::from_ref(&key)).unwrap();
    let verdict = verdict.statement;
    assert_eq!((verdict.status, verdict.kind.as_str()), (403, problem::DEVICE_REVOKED));
    assert!(verdict.is_about(RECEIVER, "m-1", None, Digest::of(body.as_bytes())));
}

#[tokio::test]
async fn large_enrollment_is_413() {
    let server = TrustServer::start(TrustLevel::FirstUse).await;
    assert_eq!(refused(&server, TOKEN, " ".repeat(40 << 10)).await.status, 413);
}

/// Which tokens each route accepts.
#[tokio::test]
async fn each_route_accepts_its_scopes_only() {
    let server = TrustServer::start(TrustLevel::Shared).await;
    std::fs::write(server.data().join("config.json"), r#"{"version":1}"#).unwrap();
    let client = reqwest::Client::new();
    for scope in Scope::ALL {
        let expires = Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(9_999_999_999));
        let new = NewToken { scopes: [scope].into(), expires, ..NewToken::default() };
        let token = server.token(new);
        let agent = scope == Scope::Ingest;
        let enrolls = agent || scope == Scope::Enroll;
        let body = encoded(BatchText::new(1, 2).text().as_bytes(), Encoding::Zstd);
        let ingest = client
            .post(server.url("/ingest"))
            .bearer_auth(&token)
            .header("content-encoding", "zstd")
            .header(header::SIGNATURE, siem_protocol::sign(SECRET.as_bytes(), &body))
            .body(body);
        for (request, accepted) in [
            (ingest, agent),
            (server.get("/config", &token), agent),
            (server.get("/keys", &token), enrolls),
            (server.post_enroll(&token, signed(&enrollment(1), &[1])), enrolls),
            (server.get("/stats", &token), scope == Scope::Read),
            (server.get("/healthz", &token), true),
            (server.get("/openapi.json", &token), true),
        ] {
            let response = request.send().await.unwrap();
            let path = response.url().path().to_owned();
            if accepted {
                assert_eq!(response.status(), 200, "{scope} {path}");
            } else {
                assert_eq!(response.status(), StatusCode::FORBIDDEN, "{scope} {path}");
                assert_eq!(read_problem(response).await.kind, problem::SCOPE);
            }
        }
    }
}

#[tokio::test]
async fn machine_bound_ingest_token_needs_the_header_of_its_machine() {
    let server = TrustServer::start(TrustLevel::Shared).await;
    let machine = Some("büro 7".to_owned());
    let new = NewToken { scopes: [Scope::Ingest].into(), machine, ..NewToken::default() };
    let token = server.token(new);
    std::fs::write(server.data().join("config.json"), r#"{"version":1}"#).unwrap();
    for (named, status) in
        [(None, 403), (Some("m-1"), 403), (Some("%FF"), 403), (Some("b%C3%BCro%207"), 200)]
    {
        let mut request = server.get("/config", &token);
        if let Some(named) = named {
            request = request.header(header::MACHINE_ID, named);
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{named:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_devices_enroll_at_once() {
    let server = TrustServer::start(TrustLevel::FirstUse).await;
    let requests: Vec<_> = (0..1000)
        .map(|n| {
            let mut one = enrollment(n);
            one.machine = format!("m-{n}");
            server.post_enroll(TOKEN, signed(&one, &[n]))
        })
        .collect();
    let start = std::time::Instant::now();
    let tasks: Vec<_> = requests.into_iter().map(|one| tokio::spawn(one.send())).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().status(), 200);
    }
    eprintln!("1000 devices enrolled in {:?}", start.elapsed());
    assert_eq!(server.registry().devices().len(), 1000);
    assert_eq!(device(1).key().name(), siem_server::trust::DEVICE_KEY_NAME);
}
