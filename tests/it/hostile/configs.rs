//! Managed configurations of every kind, with valid signatures.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use super::{LIVE, LiveRecords, Plan, Report, number_of, peak, reset_peak};
use crate::support::{
    SECRET,
    agent::Agent,
    home::Home,
    hostile_configs::KINDS,
    scripted_receiver::{Answer, ConfigResponse, ScriptedReceiver},
    within,
};
use rustix::process::Signal;
use serde_json::Value;

/// Number of cases in a short run.
const CASES: usize = 10;
const CONFIG: &str =
    "[managed]\nallow = [\"filter.*\", \"enricher.*\"]\n[shipping]\nflush_interval = \"0s\"\n";

/// Waits until the agent has handled the configuration: a second request shows that.
fn poll(agent: &Agent, receiver: &ScriptedReceiver, what: &str) {
    for _ in 0..2 {
        let asked = receiver.config_requests();
        agent.signal(Signal::HUP);
        within(LIVE, what, || (receiver.config_requests() > asked).then_some(()));
    }
}

/// Revision in force, as the state directory shows it.
fn revision(home: &Home) -> Value {
    let text = fs::read_to_string(home.state_dir().join("status.json")).unwrap_or_default();
    serde_json::from_str::<Value>(&text).unwrap_or_default()["config"]["applied"]["revision"].take()
}

#[test]
fn live_records_arrive_after_hostile_managed_configs() {
    let plan = Plan::new(KINDS.len(), CASES);
    let home = Home::new();
    let arrived = Arc::new(Mutex::new(0));
    let last = Arc::clone(&arrived);
    let receiver = ScriptedReceiver::by_rule(move |batch| {
        let numbers = batch.lines.iter().filter_map(|(_, line)| {
            (line.len() < 4096).then(|| number_of(&String::from_utf8_lossy(line))).flatten()
        });
        let mut last = last.lock().unwrap();
        *last = numbers.max().unwrap_or_default().max(*last);
        Answer::Receipt
    });
    let mut agent = home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url()).start_and_wait();
    let (mut live, mut report) = (LiveRecords::default(), Report::new("configurations"));
    for (case, index, mut random) in plan.cases() {
        let kind = KINDS[index];
        plan.announce(case, kind.name);
        reset_peak(&agent);
        receiver.manage(ConfigResponse::SignedBytes((kind.write)(&mut random)));
        poll(&agent, &receiver, kind.name);
        assert!(agent.runs(), "{}: {}", kind.name, agent.log());

        let good = format!("good-{case}");
        let config = format!("{{\"version\":1,\"revision\":\"{good}\"}}");
        receiver.manage(ConfigResponse::Signed(config, SECRET));
        poll(&agent, &receiver, kind.name);
        within(LIVE, &format!("{}: the next one", kind.name), || {
            (revision(&home) == good).then_some(())
        });
        let number = live.write(&home);
        within(LIVE, &format!("{}: the live record", kind.name), || {
            (*arrived.lock().unwrap() >= number).then_some(())
        });
        report.add(kind.name, peak(&agent));
    }
    assert!(!fs::exists("/root/written-by-the-server").unwrap());
    agent.stop();
    report.finish();
}
