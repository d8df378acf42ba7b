//! Special, huge and unreadable files in all places that the agent reads.

use std::time::Duration;

use super::{LiveRecords, Plan, Report, peak, reset_peak};
use crate::support::{
    home::Home,
    hostile_files::{HostileFile, KINDS, Place},
    receiver::Receiver,
};
/// Number of cases in a short run.
const CASES: usize = 24;
/// Number of files that exist at the same time.
const AT_ONCE: usize = 6;
/// Time that a reload or a hook may take.
const REACTION: Duration = Duration::from_secs(10);
const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"\n[compliance]\n\
                      permitted_email_domains = [\"company.com\"]\n";

#[test]
fn live_records_arrive_beside_hostile_files() {
    let plan = Plan::new(KINDS.len() * Place::ALL.len(), CASES);
    let (home, receiver) = (Home::new(), Receiver::start());
    let mut agent = home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url()).start_and_wait();
    let mut live = LiveRecords::default();
    let (mut report, mut existing) = (Report::new("files"), Vec::<HostileFile>::new());
    for (case, index, mut random) in plan.cases() {
        let (kind, place) = (KINDS[index % KINDS.len()], Place::ALL[index / KINDS.len()]);
        let what = format!("{} {}", kind.name, place.name());
        plan.announce(case, &what);
        reset_peak(&agent);
        existing.truncate(AT_ONCE - 1);
        match kind.create(place, &home, &mut random) {
            Ok(file) => existing.insert(0, file),
            Err(error) => {
                eprintln!("not possible here: {error}");
                continue;
            }
        }
        if matches!(place, Place::Account | Place::State | Place::Config) {
            // Waits until the files were read. A configuration that is wrong is refused.
            let reload = home.agent(&["reload"]).config(CONFIG).ships_to(&receiver.url()).run();
            assert!(reload.after < REACTION, "{what}: a reload took {:?}", reload.after);
        }
        let number = live.write(&home);
        live.wait_for(number, &receiver, &what);
        assert!(agent.runs(), "{what}: {}", agent.log());
        if matches!(place, Place::Account | Place::State) {
            let hook = home.agent(&["check", "--hook", "UserPromptSubmit"]).run();
            assert!(hook.after < REACTION, "{what}: a hook took {:?}", hook.after);
        }
        let peak = peak(&agent);
        report.add(kind.name, peak);
        report.add(place.name(), peak);
    }
    drop(existing);
    let number = live.write(&home);
    live.wait_for(number, &receiver, "the last record");
    live.assert_complete(&receiver);
    agent.stop();
    report.finish();
}
