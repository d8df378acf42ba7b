//! Runs an agent inside the process of the test.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use siem_protocol::agent_event::DeviceKeyReason;
use siem_server::{FileStore, Keys, Receiver, Secret, ServeOptions};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::{Agent, AgentError, ConfigFileWatch, ConfigSources, RunMode, startable};
use crate::{
    platform::{Environment, LockRole, Sandbox, StateLock, Timestamp},
    siem::device::Replacement,
};

const TOKEN: &str = "the token of the fleet";
const SECRET: &str = "correct horse battery staple";
const RECORD: &str = "{\"type\":\"user\",\"uuid\":\"one\"}";
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a receiver on loopback, which runs until the runtime ends.
async fn start_receiver(data: &Path) -> SocketAddr {
    let keys = Keys::new(Secret::new(TOKEN).unwrap(), Secret::new(SECRET).unwrap());
    let receiver = Receiver::new(keys, Arc::new(FileStore::open(data).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let forever = std::future::pending();
    tokio::spawn(siem_server::serve(listener, receiver.router(), ServeOptions::default(), forever));
    address
}

/// An agent with this home directory, which ships to `receiver`.
fn agent(home: &Path, receiver: SocketAddr, mode: RunMode) -> Result<Agent, AgentError> {
    let home = home.to_str().unwrap();
    let endpoint = format!("http://{receiver}");
    let environment = Environment::from_iter([
        ("HOME", home),
        ("USERPROFILE", home),
        ("CLAUDE_SIEM_ENDPOINT", &endpoint),
        ("CLAUDE_SIEM_TOKEN", TOKEN),
        ("CLAUDE_SIEM_HMAC_SECRET", SECRET),
    ]);
    let sources = ConfigSources::new(environment, None)?;
    let watch = ConfigFileWatch::before_reading(sources.layer_files());
    let startable = startable::check(&sources).startable().unwrap();
    let state_dir = &startable.loaded().settings.agent.state_dir;
    let lock = StateLock::acquire(state_dir, LockRole::Agent).unwrap();
    Agent::new(sources, startable, watch, Arc::new(lock), Sandbox::default(), mode)
}

fn home_with_record() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".claude/projects/-work");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("session.jsonl"), format!("{RECORD}\n")).unwrap();
    home
}

/// Returns true if a file of the receiver contains the record.
fn is_received(data: &Path) -> bool {
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if String::from_utf8_lossy(&fs::read(path).unwrap()).contains(RECORD) {
                return true;
            }
        }
    }
    false
}

async fn wait_until_received(data: &Path) {
    while !is_received(data) {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_ships_a_record_and_stops_within_a_test() {
    let (home, data) = (home_with_record(), tempfile::tempdir().unwrap());
    let receiver = start_receiver(data.path()).await;
    let agent = agent(home.path(), receiver, RunMode::Forever).unwrap();
    let handle = agent.handle();
    let use_it = async {
        let pipeline = handle.running_pipeline(PATIENCE).await.unwrap();
        while pipeline.flush(PATIENCE).await.unwrap() == 0 {}
        wait_until_received(data.path()).await;
        handle.stop();
    };
    let (ended, ()) = timeout(PATIENCE, async { tokio::join!(agent.run(), use_it) }).await.unwrap();
    ended.unwrap();
    assert!(handle.pipeline().is_err());
}

/// As after the receiver's verdict that the key was cloned.
#[tokio::test(flavor = "multi_thread")]
async fn requested_key_restarts_delivery_in_a_new_epoch() {
    let (home, data) = (home_with_record(), tempfile::tempdir().unwrap());
    let receiver = start_receiver(data.path()).await;
    let agent = agent(home.path(), receiver, RunMode::Forever).unwrap();
    let handle = agent.handle();
    let use_it = async {
        let epoch = async || {
            let pipeline = handle.running_pipeline(PATIENCE).await.unwrap();
            pipeline.outbox().epoch()
        };
        let first = epoch().await;
        let device = handle.in_force().1.device;
        let key = device.stored_keys().unwrap().public();
        let requested = device.replace(DeviceKeyReason::Cloned, Timestamp(0));
        assert_eq!(requested, Replacement::Requested);
        while epoch().await == first {
            sleep(Duration::from_millis(20)).await;
        }
        assert_ne!(device.stored_keys().unwrap().public(), key);
        let pipeline = handle.running_pipeline(PATIENCE).await.unwrap();
        while pipeline.flush(PATIENCE).await.unwrap() == 0 {}
        wait_until_received(data.path()).await;
        handle.stop();
    };
    let (ended, ()) = timeout(PATIENCE, async { tokio::join!(agent.run(), use_it) }).await.unwrap();
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_with_once_delivers_everything_and_returns() {
    let (home, data) = (home_with_record(), tempfile::tempdir().unwrap());
    let receiver = start_receiver(data.path()).await;
    let mode = RunMode::Once(Box::new(|| Box::new(|_| ())));
    let agent = agent(home.path(), receiver, mode).unwrap();
    timeout(PATIENCE, agent.run()).await.unwrap().unwrap();
    timeout(PATIENCE, wait_until_received(data.path())).await.unwrap();
}
