//! State and programs of release 0.1.

use super::*;
use std::path::{Path, PathBuf};
use test_requires::requires;

/// Epoch of the stored state, whose first ten entries its receiver has.
const EPOCH: &str = "01a227dd-518c-73d4-83ac-f6f0f5ccac58";
const MACHINE: &str = "11112222333344445555666677778888";
const HELD: u64 = 10;
const UNSENT: usize = 3;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A home with the state that release 0.1 left: six entries were not sent.
fn home_of_release_0_1() -> Home {
    let home = Home::new();
    copy_tree(&data("tests/data/release-0.1/state"), &home.state_dir());
    let packed = home.state_dir().join("outbox.redb.zst");
    let store = zstd::decode_all(&*fs::read(&packed).unwrap()).unwrap();
    fs::write(home.state_dir().join("outbox.redb"), store).unwrap();
    fs::remove_file(packed).unwrap();
    home
}

/// The entries that its receiver has.
fn held() -> Vec<String> {
    let folder = data("crates/siem-server/tests/data/release-0.1/data/machines");
    let file = folder.join(format!("{MACHINE}/{EPOCH}.ndjson"));
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Identity of agents on this machine.
fn own_identity() -> Identity {
    let (home, receiver) = (Home::new(), Receiver::start());
    line(&home, 1);
    ship(&home, &receiver.url());
    identity_of(&receiver)
}

/// A receiver that got the first entries from an agent of release 0.1 on this machine, and a
/// client without a key in the place of that agent.
fn updated_receiver() -> (Receiver, Forger, ForgedBatch) {
    let receiver = Receiver::at_level("shared");
    let identity = Identity { agent_version: "0.1.0".into(), ..own_identity() };
    let old = Forger::new(&receiver.url(), NAME, &identity, 0);
    let batch = old.batch_of(EPOCH, (0, Digest::ZERO), held());
    let reply = old.send(&batch);
    assert_eq!(reply.status, 200, "{}", reply.body);
    (receiver, old, batch)
}

#[test]
fn outbox_of_release_0_1_continues_its_epoch() {
    let (receiver, old, batch) = updated_receiver();
    let home = home_of_release_0_1();
    ship(&home, &receiver.url());
    let device = &receiver.devices()[0];
    assert_eq!(
        (&device["state"], &device["confirmed_by"]),
        (&"confirmed".into(), &"continuity".into())
    );
    let stats = receiver.stats();
    let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
    assert_eq!((epochs.len(), &epochs[0]["epoch"]), (1, &EPOCH.into()), "{stats:#}");
    assert_eq!(epochs[0]["device"]["adopted_at"], HELD + 1, "{stats:#}");
    machine_is_undisturbed(&receiver, lines_in(&held()) + UNSENT);
    // The ratchet: what release 0.1 sent is refused now, unless an operator allows it.
    refused(&old.send(&batch), 403, problem::EPOCH_OWNED);
}

fn lines_in(entries: &[String]) -> usize {
    let ndjson = entries.join("\n");
    entries::lines(&entries::parse(ndjson.as_bytes())).len()
}

/// An agent of release 0.1 holds after 403, and starts a new epoch after 409.
#[test]
fn agent_is_rolled_back_with_permission() {
    let (receiver, old, _) = updated_receiver();
    let home = home_of_release_0_1();
    ship(&home, &receiver.url());
    let (epoch, last, chain) = head(&receiver);
    let next = old.batch(&epoch, (last, chain), 2);
    refused(&old.send(&next), 403, problem::EPOCH_OWNED);
    receiver.administer(&["devices", "allow-shared", &old.identity.machine_id]);
    refused(&old.send(&next), 409, problem::CONFLICT);
    let mut renumbered = old.batch("epoch-after-the-roll-back", (0, Digest::ZERO), 2);
    renumbered.header.previous_epoch = Some(epoch.clone());
    assert_eq!(old.send(&renumbered).status, 200);
    receiver.administer(&["devices", "allow-shared", &old.identity.machine_id, "--undo"]);
    let after = (2, renumbered.header.chain.unwrap().after);
    let later = old.batch("epoch-after-the-roll-back", after, 1);
    refused(&old.send(&later), 403, problem::IMPERSONATION);
    assert_eq!(head(&receiver), (epoch, last, chain));
}

/// The same with the program of release 0.1 itself.
#[requires(release_0_1)]
#[test]
fn program_of_release_0_1_opens_the_updated_store() {
    let folder = PathBuf::from(std::env::var_os("AI_AGENT_RELEASE_0_1").unwrap());
    let program = folder.join(format!("ai-agent{}", std::env::consts::EXE_SUFFIX));
    let (home, receiver) = (Home::new(), Receiver::at_level("shared"));
    let old = |arguments: &[&str]| {
        AgentCommand::of(&program, home.path(), arguments).config(CONFIG).ships_to(&receiver.url())
    };
    line(&home, 1);
    old(&["run", "--once"]).succeed();
    line(&home, 2);
    ship(&home, &receiver.url());
    assert_eq!(receiver.devices()[0]["confirmed_by"], "continuity");
    machine_is_undisturbed(&receiver, 2);
    line(&home, 3);
    let machine = identity_of(&receiver).machine_id;
    receiver.administer(&["devices", "allow-shared", &machine]);
    old(&["run", "--once"]).succeed();
    line(&home, 4);
    old(&["run", "--once"]).succeed();
    let text = stored_text(&receiver);
    for n in 1..=4 {
        assert_eq!(text.matches(&format!("{{\"n\":{n}}}")).count(), 1, "{n}");
    }
    // And forth again.
    receiver.administer(&["devices", "allow-shared", &machine, "--undo"]);
    line(&home, 5);
    ship(&home, &receiver.url());
    assert_eq!(stored_text(&receiver).matches("{\"n\":5}").count(), 1);
}
