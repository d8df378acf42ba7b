//! Many devices at once, and what a response proves.

use std::sync::Arc;

use siem_protocol::{
    Digest, Encoding, EnrollAnswer, EnrollRequest, Identity, Receipt, names,
    note::SigningKey,
    statement::{Device, DeviceState, Statement as _, StoredReceipt, TrustLevel, Verdict},
};
use siem_server::{
    Limits,
    trust::{NewToken, Scope, TokenText},
};
use tokio::sync::Semaphore;

use crate::common::{BatchText, RECEIVER, Server, TOKEN, TestDevice, chain, encoded, identity};

const AGENTS: usize = 1000;
/// Connections at a time: both ends of each are open files of this process.
const CONNECTIONS: usize = 400;

fn device(number: usize) -> TestDevice {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    TestDevice { key: SigningKey::from_seed("ai-agent-device", seed).unwrap() }
}

fn identity_of(number: usize) -> Identity {
    Identity { machine_id: format!("machine-{number}"), ..identity() }
}

/// Body of the enrollment of an agent.
fn enrollment(number: usize) -> Vec<u8> {
    let request = EnrollRequest {
        enroll: device(number).enrollment(&identity_of(number), None),
        instance: format!("i-{number}"),
        sent_at: "2026-11-29T12:00:00Z".into(),
    };
    serde_json::to_vec(&request).unwrap()
}

/// Enrolls, and sends two sealed batches.
async fn start(server: &Server, client: &reqwest::Client, number: usize) {
    let request = client.post(server.url("/enroll")).bearer_auth(TOKEN).body(enrollment(number));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200, "{number}");
    let answer: EnrollAnswer = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let keys = [server.registry().receiver_keys_view().unwrap().current];
    let own = Device::open(&answer.device, &keys).unwrap().statement;
    assert_eq!(own.state, DeviceState::Unconfirmed);
    for (first, last) in [(1, 2), (3, 5)] {
        let batch = BatchText::new(first, last).with(|header| {
            header.machine_id = format!("machine-{number}");
            header.epoch = format!("epoch-{number}");
            header.instance = Some(format!("i-{number}"));
        });
        let batch = batch.seal(&device(number));
        let request = server.request(&batch.text(), Encoding::Zstd);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{number}");
        let receipt: Receipt = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let receipt = StoredReceipt::open(&receipt.receipt.unwrap(), &keys).unwrap().statement;
        assert_eq!((receipt.last_seq, receipt.machine), (last, format!("machine-{number}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_agents_enroll_and_send_at_once() {
    let server = Arc::new(Server::with_devices(TrustLevel::FirstUse, Limits::default()).await);
    let (client, free) = (reqwest::Client::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    let started = tokio::time::Instant::now();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| {
            let (server, client, free) = (server.clone(), client.clone(), free.clone());
            tokio::spawn(async move {
                let _connection = free.acquire().await.unwrap();
                start(&server, &client, number).await;
            })
        })
        .collect();
    for agent in agents {
        agent.await.unwrap();
    }
    eprintln!("{AGENTS} agents enrolled and sent two batches in {:?}", started.elapsed());
    let devices = server.registry().devices();
    assert_eq!(devices.len(), AGENTS);
    assert!(devices.iter().all(|device| device.state == DeviceState::Unconfirmed));
    let stats = server.stats().await;
    assert_eq!(stats.machines.len(), AGENTS);
    for machine in &stats.machines {
        assert_eq!((machine.unconfirmed.len(), machine.unconfirmed[0].entries), (1, 5));
    }
    let counts = server.registry().event_counts();
    assert_eq!((counts.second_key, counts.clone, counts.impersonation), (0, 0, 0));
}

/// The receipt for a redelivery is the one of the head of the epoch, which others have seen before.
#[tokio::test]
async fn stored_redelivery_has_a_statement_about_its_body() {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let device = TestDevice::new(1);
    server.confirm(&device).await;
    let before = server.take(&BatchText::new(1, 4).dead(&[2, 3]).seal(&device)).await;
    assert_eq!(before.verdict, None);
    let keys = [server.registry().receiver_keys_view().unwrap().current];
    let head = Some((4, chain(4)));
    let redelivery = BatchText::redelivery(&[2]).seal_at(&device, head);
    let body = encoded(redelivery.text().as_bytes(), Encoding::Zstd);
    let answer = server.take(&redelivery).await;
    assert_eq!(answer.receipt, before.receipt);
    let verdict = Verdict::open(&answer.verdict.unwrap(), &keys).unwrap().statement;
    assert_eq!((verdict.status, &*verdict.kind), (200, names::verdict::STORED));
    assert!(verdict.is_about(RECEIVER, "m-1", Some("e-1"), Digest::of(&body)));
    // One of two lines is not the one that was missing.
    let partly = BatchText::redelivery(&[2, 3]).line(3, r#"{"seq":3,"kind":"event","x":1}"#);
    let answer = server.take(&partly.seal_at(&device, head)).await;
    assert_eq!((answer.accepted_seqs, answer.verdict), (Some(vec![2]), None));
}

/// Of all that present it at once, a single-use token enrolls and confirms one device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_use_token_in_a_rush_confirms_one_device() {
    let server = Arc::new(Server::with_devices(TrustLevel::Enrolled, Limits::default()).await);
    let token = TokenText::from_random(&[5; 32]);
    let new = NewToken { scopes: [Scope::Enroll].into(), single_use: true, ..NewToken::default() };
    server.registry().add_token(new, &token).unwrap();
    let (client, token) = (reqwest::Client::new(), Arc::new(token.reveal().to_owned()));
    let agents: Vec<_> = (0..100)
        .map(|number| {
            let (server, client, token) = (server.clone(), client.clone(), token.clone());
            tokio::spawn(async move {
                let request = client.post(server.url("/enroll")).bearer_auth(&*token);
                let answer = request.body(enrollment(number)).send().await.unwrap();
                answer.status().as_u16()
            })
        })
        .collect();
    let mut accepted = 0;
    for agent in agents {
        let status = agent.await.unwrap();
        assert!([200, 401].contains(&status), "{status}");
        accepted += usize::from(status == 200);
    }
    assert_eq!(accepted, 1);
    let devices = server.registry().devices();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].state, DeviceState::Confirmed);
}
