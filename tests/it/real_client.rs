//! The real Claude Code client, with a scripted model and without a network, while the agent reads
//! its home directory: every record arrives.
#![cfg(target_os = "linux")]

use crate::support::{
    claude_client::Client,
    entries, files_below,
    home::Home,
    receiver::{Receiver, settle},
    reference_reader::{self, Rules},
};
use test_requires::requires;

const SCENARIOS: [&str; 2] = ["text", "subagent"];

#[requires(client)]
#[test]
fn real_client_records_all_arrive() {
    let client = Client::new();
    let work = tempfile::tempdir().unwrap();
    let roots = SCENARIOS.map(|name| work.path().join(name).join("home/.claude/projects"));
    let (home, receiver) = (Home::new(), Receiver::start());
    let config =
        format!("[shipping]\nflush_interval = \"0s\"\n[source.claude-sessions]\nroots = {roots:?}");
    let agent = home.agent(&["run"]).config(&config).ships_to(&receiver.url()).start_and_wait();
    let scenarios = SCENARIOS.map(|name| client.scenario(name));
    client.run(&scenarios, work.path(), None);

    let rules = Rules::default();
    let expected: Vec<_> =
        roots.iter().flat_map(|root| reference_reader::read_tree(root, &rules)).collect();
    assert!(expected.len() >= 15, "the client wrote {} records", expected.len());
    let of_sub_agents = roots.iter().flat_map(|root| files_below(root));
    assert!(
        of_sub_agents
            .into_iter()
            .any(|path| path.components().any(|c| c.as_os_str() == "subagents"))
    );
    settle(&receiver, expected.len());
    agent.stop();
    reference_reader::assert_same(&expected, &entries::lines(&receiver.entries()));
    receiver.assert_complete();
}
