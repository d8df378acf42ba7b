//! Rotation and loss of the receiver's key.

use super::*;
use crate::support::minisign::Minisign;

#[test]
fn rotation_reaches_agents_that_were_offline() {
    let (home, receiver, _) = confirmed("first-use");
    for n in 2..5 {
        receiver.administer(&["keys", "rotate"]);
        receiver.administer(&["keys", "rotate"]);
        line(&home, n);
        ship(&home, &receiver.url());
    }
    machine_is_undisturbed(&receiver, 4);
    assert_eq!(state(&home, &receiver.url()), "confirmed");
}

/// The organisation signs the list of the new key with minisign.
#[test]
fn lost_key_is_recovered_by_the_organisation() {
    let (home, mut receiver, _) = confirmed("first-use");
    let organisation = Minisign::new(3);
    let config = format!("{CONFIG}\n[managed]\nkeys = [\"{}\"]\n", organisation.public());
    let run = |arguments: &[&str]| home.agent(arguments).config(&config).ships_to(&receiver.url());
    run(&["run", "--once"]).succeed();
    fs::remove_dir_all(receiver.data().join("trust/keys")).unwrap();
    receiver.kill();
    receiver.administer(&["keys", "new", "--name", NAME]);
    receiver.restart();

    let run = |arguments: &[&str]| home.agent(arguments).config(&config).ships_to(&receiver.url());
    line(&home, 2);
    let mut running = run(&["run"]).start_and_wait();
    eventually("the agent does not trust the new key", || {
        (state(&home, &receiver.url()) == "receipt_untrusted").then_some(())
    });
    assert!(running.runs());
    running.stop();
    let list = receiver.data().join("trust/keys/keys.txt");
    let text = fs::read(&list).unwrap();
    // Another organisation's signature changes nothing.
    let signature = list.with_extension("txt.minisig");
    fs::write(&signature, Minisign::new(4).sign(&text, "")).unwrap();
    let mut running = run(&["run"]).start_and_wait();
    running.wait_for_code("delivery_held");
    running.stop();
    fs::write(&signature, organisation.sign(&text, "")).unwrap();
    run(&["run", "--once"]).succeed();
    machine_is_undisturbed(&receiver, 2);
}

/// The sink kept the keys of the organisation with which the agent had started.
#[test]
fn organisation_key_added_while_running_recovers_a_lost_key() {
    let (home, mut receiver, _) = confirmed("first-use");
    let organisation = Minisign::new(3);
    let mut running = agent(&home, &receiver.url(), &["run"]).start_and_wait();
    line(&home, 2);
    wait_for_lines(&receiver, 2);
    fs::remove_dir_all(receiver.data().join("trust/keys")).unwrap();
    receiver.kill();
    receiver.administer(&["keys", "new", "--name", NAME]);
    let list = receiver.data().join("trust/keys/keys.txt");
    let signature = organisation.sign(&fs::read(&list).unwrap(), "");
    fs::write(list.with_extension("txt.minisig"), signature).unwrap();
    receiver.restart();
    line(&home, 3);
    running.wait_for_code("delivery_held");
    let config = format!("{CONFIG}\n[managed]\nkeys = [\"{}\"]\n", organisation.public());
    crate::support::replace_file(&home.path().join("agent.toml"), &config);
    eventually("the agent trusts the new key", || {
        let shown = home.agent(&["status", "--json"]).config(&config).ships_to(&receiver.url());
        let status: Value = serde_json::from_slice(&shown.run().stdout).unwrap();
        (status["sinks"][0]["trust"]["state"] == "confirmed").then_some(())
    });
    assert!(running.runs());
    running.stop();
    machine_is_undisturbed(&receiver, 3);
}
