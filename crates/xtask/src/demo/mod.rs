//! `cargo xtask demo`: the agent and a receiver at work on sessions.
//!
//! All files are in `target/demo`, accessible to their owner only. The agent's home is there too,
//! so that neither configuration nor state of an agent in real use is touched.

mod child;
mod sessions;
mod stats;
mod tally;
mod update;

use std::{
    collections::hash_map::RandomState,
    fs::{self, File, TryLockError},
    hash::{BuildHasher as _, Hasher as _},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use child::Child;
use clap::Args;
use sessions::{Player, Sessions};
use stats::{Health, Receiver};
use tally::Tally;
use update::Update;

use crate::{Failure, sh};

/// Interval of checks of the children.
const TICK: Duration = Duration::from_millis(100);
/// Interval of requests to the receiver.
const POLL: Duration = Duration::from_millis(500);
/// Interval of lines appended to the samples.
const PLAY: Duration = Duration::from_secs(1);
/// Time for the agent to deliver the rest: it promises 5 s.
const AGENT_ENDS: Duration = Duration::from_secs(8);
/// Time for the agent to update itself. The new program has 2 minutes to prove that it makes progress.
const UPDATE: Duration = Duration::from_secs(180);
/// Time for the receiver to bring its files up to date.
const RECEIVER_ENDS: Duration = Duration::from_secs(10);

/// Run the agent and a receiver on the sessions of this machine, or on samples if there are none.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Stop once everything has arrived
    #[arg(long)]
    once: bool,
    /// Read the sessions below this directory
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Continue with the data of the last demo
    #[arg(long)]
    keep: bool,
    /// Build with optimisation: takes minutes, but reads gigabytes in seconds
    #[arg(long)]
    release: bool,
    /// Let the agent update itself to a newer release, and stop once it works
    #[arg(long, conflicts_with = "once")]
    update: bool,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let packages = ["ai-agent", "siem-server"];
        let built = sh::build(packages, ["ai-agent", "demo-server"], self.release)?;
        let stage = Stage::prepare(&sh::target_directory()?.join("demo"), self.keep)?;
        let sessions = Sessions::choose(self.root.as_deref(), &stage.home())?;
        println!("reading {sessions}");
        let interrupted = Interrupted::listen()?;
        let [mut agent, receiver] = built;
        let update = match self.update {
            true => Some(stage.prepare_update(&agent)?),
            false => None,
        };
        if let Some(update) = &update {
            println!("updating {update}");
            agent.clone_from(&update.program);
        }
        let secrets = [secret(), secret()];
        let (mut receiver, address) = stage.start_receiver(&receiver, &secrets)?;
        let hint = if self.once { "" } else { ", until Ctrl-C" };
        println!("receiver at http://{address}{hint}");
        let sections = update.as_ref().map_or("", |update| &update.configuration);
        let config = stage.configure(&sessions, sections)?;
        let agent = stage.start_agent(&agent, &address, &secrets, &config, self.once)?;
        let client = Receiver::new(address, &secrets[0]);
        let player = if self.once { None } else { sessions.player() };
        let health = watch(agent, &mut receiver, &client, player, update.as_ref(), &interrupted)?;
        receiver.end(RECEIVER_ENDS)?;
        if let Some(update) = update.as_ref().filter(|_| !interrupted.yes()) {
            update.check_event()?;
        }
        // Beside them are files of the receiver itself.
        let tally = Tally::of(&stage.stored().join("machines"))?;
        println!("\n{}", tally.table());
        println!("{health}");
        println!("{}", stage.places(&tally));
        match tally.complaint() {
            None => Ok(ExitCode::SUCCESS),
            Some(complaint) => Err(complaint.into()),
        }
    }
}

/// Shows the progress until the agent exits, on its own or because the user stops it.
fn watch(
    mut agent: Child,
    receiver: &mut Child,
    client: &Receiver,
    mut player: Option<Player>,
    update: Option<&Update>,
    interrupted: &Interrupted,
) -> Result<Health, Failure> {
    let mut status = StatusLine::new();
    let mut health = Health::default();
    let started = Instant::now();
    let (mut polled, mut played) = (None, started);
    let by_itself = loop {
        receiver.must_run()?;
        if let Some(ended) = agent.ended()? {
            break ended;
        }
        if polled.is_none_or(|at: Instant| at.elapsed() >= POLL) {
            polled = Some(Instant::now());
            // A busy receiver is queried again soon.
            if let Ok(now) = client.health() {
                health = now;
                status.show(&health);
            }
        }
        if let Some(player) = &mut player
            && played.elapsed() >= PLAY
        {
            played = Instant::now();
            player.play()?;
        }
        let is_updated = match update {
            Some(update) if started.elapsed() < UPDATE => update.is_confirmed()?,
            Some(update) => {
                return Err(agent.complaint(&format!("did not update itself from {update}")));
            }
            None => false,
        };
        if is_updated || interrupted.yes() {
            status.finish();
            println!("{}", if is_updated { "updated, ending" } else { "ending" });
            break agent.end(AGENT_ENDS)?;
        }
        thread::sleep(TICK);
    };
    status.finish();
    // Stopped before it handled signals, the agent had not read anything yet.
    let ended = by_itself.success() || (interrupted.yes() && is_terminated(by_itself));
    if !ended {
        return Err(agent.obituary(by_itself));
    }
    Ok(client.health().unwrap_or(health))
}

/// Reports whether a process was ended by the signal for termination.
#[cfg(unix)]
fn is_terminated(status: ExitStatus) -> bool {
    // SIGTERM, on every Unix.
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(15)
}

#[cfg(not(unix))]
fn is_terminated(_: ExitStatus) -> bool {
    false
}

/// Paths of the demo.
struct Stage {
    directory: PathBuf,
    /// Locked while this demo runs.
    _lock: File,
}

impl Stage {
    /// Deletes the data of the last demo, or keeps it with `keep`.
    fn prepare(directory: &Path, keep: bool) -> Result<Self, Failure> {
        private_directory(directory)?;
        let lock = File::create(directory.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err("another demo is running".into()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let stage = Self { directory: directory.to_owned(), _lock: lock };
        if !keep {
            for name in ["home", "state", "stored"] {
                match fs::remove_dir_all(stage.path(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        let path = stage.path(name);
                        return Err(format!("cannot remove `{}`: {error}", path.display()).into());
                    }
                    _ => {}
                }
            }
        }
        for name in ["home", "state", "stored"] {
            private_directory(&stage.path(name))?;
        }
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("home")
    }

    fn stored(&self) -> PathBuf {
        self.path("stored")
    }

    fn start_receiver(
        &self,
        binary: &Path,
        [token, secret]: &[String; 2],
    ) -> Result<(Child, String), Failure> {
        let mut command = Command::new(binary);
        command
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(self.stored())
            .env("CLAUDE_SIEM_TOKEN", token)
            .env("CLAUDE_SIEM_HMAC_SECRET", secret);
        let mut receiver = Child::start("receiver", command, self.path("receiver.log"))?;
        let address = receiver.first_line("listening on http://")?;
        Ok((receiver, address))
    }

    /// Publishes a release that is newer than the program.
    fn prepare_update(&self, agent: &Path) -> Result<Update, Failure> {
        Update::prepare(agent, &self.home(), &self.stored(), &self.directory)
    }

    /// Writes the configuration of the agent, which ends with `sections`, and returns its path.
    fn configure(&self, sessions: &Sessions, sections: &str) -> Result<PathBuf, Failure> {
        let config = self.path("agent.toml");
        let text = configuration(&self.path("state"), sessions.root());
        fs::write(&config, text + sections)?;
        Ok(config)
    }

    fn start_agent(
        &self,
        binary: &Path,
        address: &str,
        [token, secret]: &[String; 2],
        config: &Path,
        once: bool,
    ) -> Result<Child, Failure> {
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os() {
            if is_of_an_agent(&name.to_string_lossy()) {
                command.env_remove(&name);
            }
        }
        command
            .arg("run")
            .args(once.then_some("--once"))
            .arg("--config")
            .arg(config)
            .env("HOME", self.home())
            .env("USERPROFILE", self.home())
            .env("CLAUDE_SIEM_ENDPOINT", format!("http://{address}"))
            .env("CLAUDE_SIEM_TOKEN", token)
            .env("CLAUDE_SIEM_HMAC_SECRET", secret)
            .env("NO_PROXY", "127.0.0.1");
        Child::start("agent", command, self.path("agent.log"))
    }

    /// Prints where to look.
    fn places(&self, tally: &Tally) -> String {
        let mut places: Vec<_> = tally.files().map(|path| ("records", path.to_owned())).collect();
        places.push(("agent's log", self.path("agent.log")));
        places.push(("receiver's log", self.path("receiver.log")));
        let lines = places.iter().map(|(what, path)| format!("{what:<15} {}", path.display()));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Configuration of the agent. Strings in JSON are valid strings in TOML.
fn configuration(state: &Path, root: Option<&Path>) -> String {
    let text = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let roots = root.map(text).unwrap_or_default();
    let state = text(state);
    format!(
        "[agent]\nstate_dir = {state}\n\n[shipping]\nflush_interval = \"1s\"\n\n\
         [pipeline]\nsinks = [\"siem\"]\n\n[source.claude-sessions]\nroots = [{roots}]\n"
    )
}

/// Variables that would change what the agent reads, or its destination.
fn is_of_an_agent(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["CLAUDE_", "XDG_"].iter().any(|prefix| name.starts_with(prefix)) || name == "NO_PROXY"
}

/// A secret for one demo. The keys of a [`RandomState`] come from the system's randomness.
fn secret() -> String {
    let word = |_| format!("{:016x}", RandomState::new().build_hasher().finish());
    (0..4).map(word).collect()
}

/// Creates a directory that only its owner may read.
fn private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Reports whether the user stopped this program.
struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    fn listen() -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    fn yes(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A status line that is overwritten on a terminal, and elsewhere printed for each change.
struct StatusLine {
    terminal: bool,
    shown: String,
}

impl StatusLine {
    fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), shown: String::new() }
    }

    fn show(&mut self, health: &Health) {
        let text = health.to_string();
        if text == self.shown {
            return;
        }
        if self.terminal {
            print!("\r\x1b[K{text}  (Ctrl-C ends)");
            // The terminal may be closed: there is no reader then.
            drop(io::stdout().flush());
        } else {
            println!("{text}");
        }
        self.shown = text;
    }

    fn finish(&mut self) {
        if self.terminal && !self.shown.is_empty() {
            println!();
            self.shown.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_a_root_only_if_given() {
        let state = Path::new("/t/demo/state");
        let with = configuration(state, Some(Path::new("/home/\"dev\"/projects")));
        assert!(with.contains("state_dir = \"/t/demo/state\"\n"), "{with}");
        assert!(with.contains(r#"roots = ["/home/\"dev\"/projects"]"#), "{with}");
        assert!(configuration(state, None).contains("roots = []"));
    }

    #[test]
    fn secrets_are_long_and_differ() {
        assert_eq!(secret().len(), 64);
        assert_ne!(secret(), secret());
    }

    #[test]
    fn variables_of_a_running_agent_are_removed() {
        assert!(is_of_an_agent("CLAUDE_SIEM_ENDPOINT"));
        assert!(is_of_an_agent("XDG_CONFIG_HOME"));
        assert!(!is_of_an_agent("PATH"));
    }
}
