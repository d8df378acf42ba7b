//! Responses of every kind in the receiver's place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{LiveRecords, Plan, Report, peak, reset_peak};
use crate::support::{
    agent::AgentCommand, eventually, home::Home, hostile_answers::KINDS, middle::Middle,
    receiver::Receiver,
};
use rustix::process::Signal;

/// Number of cases in a short run.
const CASES: usize = 6;
/// Maximum number of requests that a response may cause before it ends.
const MAX_REQUESTS: usize = 40;
const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"\n[sink.siem]\ntimeout = \"1s\"\n";

fn agent(home: &Home, middle: &Middle, arguments: &[&str]) -> AgentCommand {
    home.agent(arguments).config(CONFIG).ships_to(&middle.url())
}

#[test]
fn live_records_arrive_after_hostile_responses() {
    let plan = Plan::new(KINDS.len(), CASES);
    let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
    let middle = Middle::to(&receiver.url());
    let mut running = agent(&home, &middle, &["run"]).start_and_wait();
    let mut live = LiveRecords::default();
    let number = live.write(&home);
    live.wait_for(number, &receiver, "the first record");
    let mut report = Report::new("servers");
    for (case, index, mut random) in plan.cases() {
        let kind = KINDS[index];
        // A request for the configuration that hangs would delay the next one for its whole timeout.
        let asks_for_config = !kind.is_early && !kind.is_slow && random.u8(..4) == 0;
        let target = if asks_for_config { "GET /config" } else { "POST /ingest" };
        plan.announce(case, &format!("{}, {target}", kind.name));
        reset_peak(&running);
        let is_over = Arc::new(AtomicBool::new(false));
        let takeover = kind.takeover(random.u64(..), &is_over);
        middle.take_over((!kind.is_early).then_some(target), takeover);
        if asks_for_config {
            running.signal(Signal::HUP);
        }
        let number = live.write(&home);
        // The second request shows how the agent treated the first response.
        let least = if asks_for_config { 1 } else { 2 };
        eventually(kind.name, || (middle.forged() >= least).then_some(()));
        let requests = middle.forged();
        assert!(requests < MAX_REQUESTS, "{}: {requests} requests", kind.name);
        is_over.store(true, Ordering::Relaxed);
        middle.release();
        assert!(running.runs(), "{}: {}", kind.name, running.log());
        agent(&home, &middle, &["flush", "--within", "30s"]).succeed();
        live.wait_for(number, &receiver, kind.name);
        report.add(kind.name, peak(&running));
    }
    live.assert_complete(&receiver);
    let letters = agent(&home, &middle, &["deadletter", "list"]).succeed();
    assert!(!letters.text().contains("siem"), "{}", letters.text());
    running.stop();
    report.finish();
}
