//! Commands that query and control a running agent: status, flush, reload, log level, outbox.

use std::{fs, path::PathBuf};

use crate::support::{
    agent::{Agent, AgentCommand},
    entries, eventually,
    home::Home,
    receiver::{Receiver, settle},
};
use ai_agent::internals::platform::{LockRole, StateLock};
use serde_json::{Value, json};

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"";
const TOMORROW: &str = "[shipping]\nflush_interval = \"86400s\"";

fn state_dir(home: &Home) -> PathBuf {
    home.path().join("state")
}

/// The agent's command line with a known state directory.
fn agent(home: &Home, receiver: &Receiver, config: &str, arguments: &[&str]) -> AgentCommand {
    let state_dir = state_dir(home);
    let config = format!("agent.state_dir = '{}'\n{config}", state_dir.display());
    home.agent(arguments).config(&config).ships_to(&receiver.url())
}

fn status(home: &Home, receiver: &Receiver, config: &str) -> Value {
    let ended = agent(home, receiver, config, &["status", "--json"]).run();
    serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", ended.stderr))
}

/// Starts an agent and waits until its only record has arrived.
fn delivered(home: &Home, receiver: &Receiver) -> Agent {
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    let running = agent(home, receiver, AT_ONCE, &["run"]).start_and_wait();
    settle(receiver, 1);
    running
}

#[test]
fn status_shows_queue_and_delivery_with_and_without_an_agent() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let running = delivered(&home, &receiver);
    let seen = eventually("everything is acknowledged", || {
        let seen = status(&home, &receiver, AT_ONCE);
        (seen["outbox"]["entries"] == 0 && seen["sinks"][0]["acknowledged"] != 0).then_some(seen)
    });
    assert_eq!((&seen["version"], &seen["state"]), (&json!(1), &json!("running")), "{seen:#}");
    assert_eq!(seen["pid"], running.pid());
    assert_eq!(seen["problems"], json!([]));
    assert_eq!(seen["agent"]["phase"], "running");
    assert!(seen["agent"]["memory_bytes"].as_u64().is_none_or(|bytes| bytes > 1 << 20));
    assert_eq!(seen["agent"]["log_level"], "ai_agent=info,warn");
    let sink = &seen["sinks"][0];
    assert_eq!((&sink["name"], &sink["configured"]), (&json!("siem"), &json!(true)));
    assert_eq!(sink["acknowledged"], seen["outbox"]["last_seq"]);
    assert!(sink["last_acknowledgement"].is_string() && sink["trouble"].is_null(), "{sink:#}");
    let reading = &seen["reading"];
    assert_eq!((&reading["files"], &reading["unread_bytes"]), (&json!(1), &json!(0)));
    assert!(seen["config"]["applied"]["hash"].is_string());

    let shown = agent(&home, &receiver, AT_ONCE, &["status"]).succeed();
    let shown = shown.text();
    let first = shown.lines().next().unwrap();
    for fact in [env!("CARGO_PKG_VERSION"), &running.pid().to_string()] {
        assert!(first.contains(fact), "{fact}: {shown}");
    }
    assert!(!shown.contains('\x1b'), "no colours but on a terminal: {shown}");
    for word in ["outbox", "siem", "reading"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    agent(&home, &receiver, AT_ONCE, &["check", "--strict"]).succeed();
    running.stop();

    let seen = status(&home, &receiver, AT_ONCE);
    assert_eq!((&seen["state"], &seen["agent"]), (&json!("stopped"), &Value::Null), "{seen:#}");
    assert_eq!(seen["sinks"][0]["name"], "siem");
    assert!(seen["outbox"]["last_seq"].as_u64().unwrap() > 0);
    assert!(seen["config"]["applied"]["hash"].is_string(), "what was in force last: {seen:#}");
    assert_eq!(seen["problems"][0]["level"], "failing");
    agent(&home, &receiver, AT_ONCE, &["check", "--strict"]).fail(1);
}

/// A running process was reported as working, though nothing ever arrived from it.
#[test]
fn refused_token_fails_the_strict_check_with_the_reason() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    let run = agent(&home, &receiver, AT_ONCE, &["run"]);
    let mut running = run.env("CLAUDE_SIEM_TOKEN", "another-token-entirely").start();
    running.wait_for_line("delivery_held", "401");
    let seen = eventually("status reports it", || {
        let seen = status(&home, &receiver, AT_ONCE);
        (seen["sinks"][0]["held"] == true).then_some(seen)
    });
    let sink = &seen["sinks"][0];
    assert!(sink["trouble"].as_str().unwrap().contains("401"), "{sink:#}");
    assert!(sink["last_error"]["at"].is_string() && sink["retry_at"].is_string(), "{sink:#}");
    assert!(sink["entries"].as_u64().unwrap() > 0);
    assert_eq!(seen["problems"][0]["level"], "failing");
    agent(&home, &receiver, AT_ONCE, &["check"]).succeed();
    let error = agent(&home, &receiver, AT_ONCE, &["check", "--strict"]).fail(1);
    assert!(error.contains("401"), "{error}");
    let shown = agent(&home, &receiver, AT_ONCE, &["status"]).succeed();
    let (problem, outbox) = (shown.text().find("401"), shown.text().find("\noutbox"));
    assert!(problem.unwrap() < outbox.unwrap(), "problems come first: {}", shown.text());
}

#[test]
fn flush_delivers_before_the_flush_interval() {
    let (home, mut receiver) = (Home::new(), Receiver::start());
    let running = agent(&home, &receiver, TOMORROW, &["run"]).start_and_wait();
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    let listed = |receiver: &Receiver| {
        let listed = agent(&home, receiver, TOMORROW, &["outbox", "list", "--json"]).succeed();
        listed.text().contains("\"record\"").then_some(())
    };
    eventually("the record waits", || listed(&receiver));
    assert_eq!(receiver.count(), 0, "{:?}", receiver.entries());
    agent(&home, &receiver, TOMORROW, &["flush"]).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    agent(&home, &receiver, TOMORROW, &["flush"]).succeed();

    receiver.kill();
    home.write("-work/two.jsonl", "{\"n\":2}\n");
    eventually("another record waits", || {
        let listed = agent(&home, &receiver, TOMORROW, &["outbox", "list"]).succeed();
        listed.text().contains("two.jsonl").then_some(())
    });
    let error = agent(&home, &receiver, TOMORROW, &["flush", "--within", "1s"]).fail(1);
    assert!(error.contains("`siem`"), "{error}");
    receiver.restart();
    agent(&home, &receiver, TOMORROW, &["flush"]).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 2);
    running.stop();
    receiver.assert_complete();
    agent(&home, &receiver, TOMORROW, &["flush"]).fail(1);
}

#[test]
fn reload_reports_applied_and_refused_configs() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let running = agent(&home, &receiver, AT_ONCE, &["run"]).start_and_wait();
    agent(&home, &receiver, AT_ONCE, &["reload"]).succeed();

    // The file keeps the configuration that was reloaded last: the agent notices any other change.
    let hash = |config: &str| status(&home, &receiver, config)["config"]["applied"]["hash"].clone();
    let before = hash(AT_ONCE);
    let another = format!("{AT_ONCE}\nfilter.meta.enabled = true");
    let another = another.replace("[shipping]\n", "shipping.");
    agent(&home, &receiver, &another, &["reload"]).succeed();
    let applied = hash(&another);
    assert_ne!(applied, before);

    let wrong = another.replace("true", "\"perhaps\"");
    let error = agent(&home, &receiver, &wrong, &["reload"]).fail(1);
    assert!(error.contains("filter.meta"), "{error}");
    assert_eq!(hash(&wrong), applied);
    let seen = status(&home, &receiver, &wrong);
    assert!(seen["config"]["refused"]["reason"].is_string(), "{seen:#}");
    running.stop();
}

#[test]
fn log_level_changes_while_running() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let mut running = delivered(&home, &receiver);
    let level = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["log-level"].iter().chain(arguments).copied().collect();
        agent(&home, &receiver, AT_ONCE, &arguments).succeed().text().to_owned()
    };
    assert_eq!(level(&[]), "ai_agent=info,warn\n");
    assert!(!running.log().contains("DEBUG"));
    assert!(level(&["debug"]).contains("ai_agent=debug,warn"));
    home.append("-work/one.jsonl", "{\"n\":2}\n");
    running.wait_until_logged("a line of level DEBUG", |log| log.contains("DEBUG"));
    level(&["info"]);
    assert_eq!(level(&[]), "ai_agent=info,warn\n");
    let error = agent(&home, &receiver, AT_ONCE, &["log-level", "loud"]).fail(2);
    assert!(error.contains("loud"), "{error}");
}

/// The output is the same from a running agent and from the store of a stopped one.
#[test]
fn outbox_commands_agree_with_and_without_an_agent() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let mut running = Some(agent(&home, &receiver, TOMORROW, &["run"]).start_and_wait());
    home.write("-work/one.jsonl", "{\"n\":\"\u{e9}\"}\nno json\n");
    let ask = |arguments: &[&str]| agent(&home, &receiver, TOMORROW, arguments);
    let list = || {
        let listed = ask(&["outbox", "list", "--json"]).succeed();
        let lines: Vec<Value> =
            listed.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines
    };
    eventually("both lines wait", || {
        (list().iter().filter(|entry| entry["kind"] == "record").count() == 2).then_some(())
    });
    // The agent is killed before the second round, so the store is unchanged.
    for is_running in [true, false] {
        if !is_running {
            running.take().unwrap().kill();
        }
        let listed = list();
        let record = listed.iter().find(|entry| entry["kind"] == "record").unwrap();
        assert_eq!((&record["offset"], &record["length"]), (&json!(0), &json!(10)), "{record}");
        let number = record["seq"].to_string();
        let shown = ask(&["outbox", "show", &number]).succeed();
        assert!(shown.text().contains("{\"n\":\"\u{e9}\"}"), "{}", shown.text());
        let error = ask(&["outbox", "show", "4711"]).fail(2);
        assert!(error.contains("4711"), "{error}");
        let file = home.path().join(format!("export-{is_running}.ndjson"));
        ask(&["outbox", "export", "--to", file.to_str().unwrap()]).succeed();
        let exported = entries::parse(&fs::read(&file).unwrap());
        assert_eq!(exported.len(), listed.len());
        assert_eq!(entries::lines(&exported)[1].bytes, b"no json");
        // An existing file is not overwritten.
        ask(&["outbox", "export", "--to", file.to_str().unwrap()]).fail(1);
        ask(&["outbox", "verify"]).succeed();
        let status = ask(&["outbox", "status", "--json"]).succeed();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["entries"], listed.len());
        assert_eq!(status["sinks"][0]["acknowledged"], 0);
        // A truncated list must not look complete.
        let limited = ask(&["outbox", "list", "--limit", "1"]).succeed();
        let limited: Vec<&str> = limited.text().lines().collect();
        assert!(limited.len() == 2 && limited[1].contains("--from 2"), "{limited:?}");
        assert_eq!(ask(&["outbox", "list"]).succeed().text().lines().count(), listed.len());
    }
}

/// Leftovers of a killed agent must not block the next one.
#[test]
fn agent_after_a_killed_one_answers_queries() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let first = delivered(&home, &receiver);
    let killed = first.pid();
    first.kill();
    let seen = status(&home, &receiver, AT_ONCE);
    assert_eq!(seen["state"], "stopped", "a PID file alone is not an agent: {seen:#}");
    let second = agent(&home, &receiver, AT_ONCE, &["run"]).start_and_wait();
    let seen = status(&home, &receiver, AT_ONCE);
    assert_eq!((&seen["state"], &seen["pid"]), (&json!("running"), &json!(second.pid())));
    assert_ne!(second.pid(), killed);
}

/// The process with the lock is the only one that opens the store.
#[test]
fn command_fails_at_once_while_another_process_has_the_lock() {
    let (home, receiver) = (Home::new(), Receiver::start());
    delivered(&home, &receiver).stop();
    let lock = StateLock::acquire(&state_dir(&home), LockRole::Agent).unwrap();
    let commands: [&[&str]; 4] =
        [&["outbox", "verify"], &["deadletter", "list"], &["flush"], &["outbox", "status"]];
    for command in commands {
        let error = agent(&home, &receiver, AT_ONCE, command).fail(1);
        let pid = format!("(PID {})", std::process::id());
        assert!(error.contains(&pid), "{command:?}: {error}");
    }
    let seen = status(&home, &receiver, AT_ONCE);
    assert_eq!((&seen["state"], &seen["pid"]), (&json!("silent"), &json!(std::process::id())));
    drop(lock);
    agent(&home, &receiver, AT_ONCE, &["outbox", "verify"]).succeed();
}

/// A command that read the store was reported as a running agent by `check`, and an agent started
/// at that moment exited.
#[test]
fn running_command_is_not_an_agent_and_delays_its_start() {
    let (home, receiver) = (Home::new(), Receiver::start());
    delivered(&home, &receiver).stop();
    let lock = StateLock::acquire(&state_dir(&home), LockRole::Command).unwrap();
    let pid = format!("(PID {})", std::process::id());
    for command in [&["check"][..], &["check", "--strict"], &["outbox", "status"]] {
        let error = agent(&home, &receiver, AT_ONCE, command).fail(1);
        assert!(error.contains(&pid), "{command:?}: {error}");
    }
    let mut starting = agent(&home, &receiver, AT_ONCE, &["run"]).start();
    starting.wait_for_code("state_dir_busy");
    drop(lock);
    starting.wait_for_code("agent_started");
    agent(&home, &receiver, AT_ONCE, &["check", "--strict"]).succeed();
}

#[test]
fn status_watch_refreshes_until_stopped() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let running = delivered(&home, &receiver);
    let watching = agent(&home, &receiver, AT_ONCE, &["status", "--json", "--watch"]).start();
    let states = || {
        let shown = String::from_utf8(watching.stdout()).unwrap();
        let whole = shown.rfind('\n').map_or("", |end| &shown[..end]);
        let states = whole.lines().map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["state"].as_str().unwrap().to_owned()
        });
        states.collect::<Vec<_>>()
    };
    eventually("it is seen to run", || {
        (states().iter().filter(|state| *state == "running").count() >= 2).then_some(())
    });
    running.stop();
    eventually("it is seen to have ended", || {
        states().last().is_some_and(|state| state == "stopped").then_some(())
    });
}

#[cfg(unix)]
mod socket {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        os::unix::{fs::PermissionsExt as _, net::UnixStream},
    };

    use super::*;
    use crate::support::{
        lines_with_code,
        receiver::wait_for,
        scripted_receiver::{Answer, ConfigResponse, ScriptedReceiver},
    };

    fn connect(home: &Home) -> UnixStream {
        UnixStream::connect(state_dir(home).join("agent.sock")).unwrap()
    }

    fn ask(home: &Home, line: &str) -> Value {
        let mut stream = connect(home);
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// An agent that was stopping reported the phase `starting`.
    #[test]
    fn stopping_agent_reports_its_phase() {
        let home = Home::new();
        let receiver = ScriptedReceiver::by_rule(|_| Answer::Hang);
        home.write("-work/one.jsonl", "{\"n\":1}\n");
        let config = format!("agent.state_dir = '{}'\n{AT_ONCE}", state_dir(&home).display());
        let run = home.agent(&["run"]).config(&config).ships_to(&receiver.url());
        let running = run.start_and_wait();
        eventually("a batch is on its way", || (receiver.requests() > 0).then_some(()));
        running.signal(rustix::process::Signal::TERM);
        eventually("it is seen to end", || {
            let seen = ask(&home, "{\"version\":1,\"ask\":\"status\"}\n");
            let phase = seen["status"]["agent"]["phase"].as_str().unwrap().to_owned();
            assert_ne!(phase, "starting");
            (phase == "stopping").then_some(())
        });
        let refused = ask(&home, "{\"version\":1,\"ask\":\"reload\"}\n");
        let flush = "{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":1}}}\n";
        let refused = [refused, ask(&home, flush)];
        for refused in refused {
            assert!(refused["failed"]["error"].is_string(), "{refused}");
        }
        assert_eq!(running.wait(crate::support::PATIENCE).code, Some(0));
    }

    /// `install` and `start` return as soon as the agent runs; queries at that moment were refused.
    #[test]
    fn early_query_waits_for_the_pipeline() {
        let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
        // The pipeline starts after the first response of the server, which never comes.
        receiver.manage(ConfigResponse::Hangs);
        let config = format!("agent.state_dir = '{}'", state_dir(&home).display());
        let asked =
            |arguments: &[&str]| home.agent(arguments).config(&config).ships_to(&receiver.url());
        let running = asked(&["run"]).start();
        eventually("it listens", || UnixStream::connect(state_dir(&home).join("agent.sock")).ok());
        let started = lines_with_code(&running.log(), "agent_started").len();
        assert_eq!(started, 0, "it was too quick for this test");
        assert!(asked(&["outbox", "status"]).succeed().text().contains("siem"));
        asked(&["flush"]).succeed();
    }

    #[test]
    fn silent_and_malformed_clients_do_not_affect_others() {
        let (home, receiver) = (Home::new(), Receiver::start());
        let running = delivered(&home, &receiver);
        let socket = state_dir(&home).join("agent.sock");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let error_for =
            |line: &str| ask(&home, line)["failed"]["error"].as_str().unwrap().to_owned();
        assert!(error_for("nonsense\n").contains("JSON"));
        assert!(error_for("{\"version\":7,\"ask\":\"status\"}\n").contains('7'));
        assert!(error_for("{\"version\":1,\"ask\":\"dance\"}\n").contains("`dance`"));
        assert!(!error_for(&"x".repeat(70_000)).is_empty());
        // More clients than are served at once, all silent: they are disconnected after a while.
        let hanging: Vec<UnixStream> = (0..20).map(|_| connect(&home)).collect();
        assert_eq!(status(&home, &receiver, AT_ONCE)["state"], "running");
        for mut stream in hanging {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "its time is over");
        }
        running.stop();
        assert!(!socket.try_exists().unwrap());
    }

    /// A socket path is limited to 108 bytes; a home directory may be longer.
    #[test]
    fn long_state_directory_path_still_has_a_control_socket() {
        let (home, receiver) = (Home::new(), Receiver::start());
        let state_dir = home.path().join("x".repeat(150));
        let config = format!("agent.state_dir = '{}'\n{AT_ONCE}", state_dir.display());
        let agent = |arguments: &[&str]| {
            let runtime = home.path().join("run");
            fs::create_dir_all(&runtime).unwrap();
            let agent = home.agent(arguments).config(&config).ships_to(&receiver.url());
            agent.env("XDG_RUNTIME_DIR", runtime)
        };
        let running = agent(&["run"]).start_and_wait();
        // The client finds the socket without that directory.
        agent(&["status"]).without("XDG_RUNTIME_DIR").succeed();
        running.stop();
        assert!(!state_dir.join("agent.sock.at").try_exists().unwrap());
        wait_for(&receiver, "the end arrived", |entries| {
            (!entries::events(entries, "agent_stopped").is_empty()).then_some(())
        });
    }
}

/// Clients that sent nothing, or waited for a delivery that never came, used all connections, and the
/// agent was reported as not responding.
#[cfg(unix)]
#[test]
fn idle_control_clients_do_not_block_status() {
    use crate::support::scripted_receiver::{Answer, ScriptedReceiver};
    use std::{io::Write as _, os::unix::net::UnixStream};

    let home = Home::new();
    let receiver = ScriptedReceiver::by_rule(|_| Answer::Hang);
    let config = format!("agent.state_dir = '{}'\n{AT_ONCE}", state_dir(&home).display());
    let agent =
        |arguments: &[&str]| home.agent(arguments).config(&config).ships_to(&receiver.url());
    let running = agent(&["run"]).start_and_wait();
    let socket = state_dir(&home).join("agent.sock");
    let flush = b"{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":600000}}}\n";
    for request in [&b""[..], flush] {
        let connect = || {
            let mut client = UnixStream::connect(&socket).unwrap();
            // It may have been dropped for the next one.
            drop(client.write_all(request));
            client
        };
        let clients: Vec<_> = (0..300).map(|_| connect()).collect();
        let begun = std::time::Instant::now();
        let seen = agent(&["status", "--json"]).run();
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
        assert_eq!(seen["state"], "running", "{seen:#}");
        assert!(begun.elapsed().as_secs() < 5, "it took {:?}", begun.elapsed());
        drop(clients);
    }
    drop(running);
}
