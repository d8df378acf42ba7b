//! `cargo xtask demo`: the agent and a receiver, at work on sessions.
//!
//! Everything lies in `target/demo`, for its owner only. The agent's home is in there too, so that
//! neither the configuration nor the state of an agent in real use is touched.

mod child;
mod sessions;
mod stats;
mod tally;

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

use crate::{Failure, sh};

/// How often the children are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the receiver is asked.
const POLL: Duration = Duration::from_millis(500);
/// How often a line is appended to the samples.
const PLAY: Duration = Duration::from_secs(1);
/// How long the agent may take to deliver what is left: it promises 5 s.
const AGENT_ENDS: Duration = Duration::from_secs(8);
/// How long the receiver may take to bring its files up to date.
const RECEIVER_ENDS: Duration = Duration::from_secs(10);

/// Runs the agent and a receiver on this machine's sessions, or on samples where there are none.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Ends when everything there is has arrived.
    #[arg(long)]
    once: bool,
    /// Reads the sessions below this directory.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Goes on with what the last demo stored, instead of beginning anew.
    #[arg(long)]
    keep: bool,
    /// Builds with optimisation: takes minutes, and reads gigabytes in seconds.
    #[arg(long)]
    release: bool,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let packages = ["ai-agent", "siem-server"];
        let built = sh::build(packages, ["ai-agent", "demo-server"], self.release)?;
        let stage = Stage::prepare(&sh::target_directory()?.join("demo"), self.keep)?;
        let sessions = Sessions::choose(self.root.as_deref(), &stage.home())?;
        println!("reading {sessions}");
        let interrupted = Interrupted::listen()?;
        let [agent, receiver] = built;
        let secrets = [secret(), secret()];
        let (mut receiver, address) = stage.start_receiver(&receiver, &secrets)?;
        println!("receiver at http://{address}");
        let agent = stage.start_agent(&agent, &address, &secrets, &sessions, self.once)?;
        let asked = Receiver::new(address, &secrets[0]);
        let player = if self.once { None } else { sessions.player() };
        let health = watch(agent, &mut receiver, &asked, player, &interrupted)?;
        receiver.end(RECEIVER_ENDS)?;
        let tally = Tally::of(&stage.stored())?;
        println!("\n{}", tally.table());
        println!("{health}");
        println!("{}", stage.places(&tally));
        match tally.complaint() {
            None => Ok(ExitCode::SUCCESS),
            Some(complaint) => Err(complaint.into()),
        }
    }
}

/// Shows how it goes until the agent has ended, by itself or because somebody wants to.
fn watch(
    mut agent: Child,
    receiver: &mut Child,
    asked: &Receiver,
    mut player: Option<Player>,
    interrupted: &Interrupted,
) -> Result<Health, Failure> {
    let mut status = StatusLine::new();
    let mut health = Health::default();
    let (mut polled, mut played) = (None, Instant::now());
    let by_itself = loop {
        receiver.must_run()?;
        if let Some(ended) = agent.ended()? {
            break ended;
        }
        if polled.is_none_or(|at: Instant| at.elapsed() >= POLL) {
            polled = Some(Instant::now());
            // A receiver that is busy is asked again soon.
            if let Ok(now) = asked.health() {
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
        if interrupted.yes() {
            status.finish();
            println!("ending");
            break agent.end(AGENT_ENDS)?;
        }
        thread::sleep(TICK);
    };
    status.finish();
    // Ended before it could listen to signals, it had read nothing yet.
    let ended = by_itself.success() || (interrupted.yes() && is_terminated(by_itself));
    if !ended {
        return Err(agent.obituary(by_itself));
    }
    Ok(asked.health().unwrap_or(health))
}

/// Whether a process died of the signal that asks it to end.
#[cfg(unix)]
fn is_terminated(status: ExitStatus) -> bool {
    // SIGTERM, on every Unix.
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(15)
}

#[cfg(not(unix))]
fn is_terminated(_: ExitStatus) -> bool {
    false
}

/// Where everything lies.
struct Stage {
    directory: PathBuf,
    /// Held as long as this demo runs.
    _lock: File,
}

impl Stage {
    /// Makes room, or with `keep` takes what is there.
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

    fn start_agent(
        &self,
        binary: &Path,
        address: &str,
        [token, secret]: &[String; 2],
        sessions: &Sessions,
        once: bool,
    ) -> Result<Child, Failure> {
        let config = self.path("agent.toml");
        fs::write(&config, configuration(&self.path("state"), sessions.root()))?;
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

    /// Tells where to look.
    fn places(&self, tally: &Tally) -> String {
        let mut places: Vec<_> = tally.files().map(|path| ("records", path.to_owned())).collect();
        places.push(("agent's log", self.path("agent.log")));
        places.push(("receiver's log", self.path("receiver.log")));
        let lines = places.iter().map(|(what, path)| format!("{what:<15} {}", path.display()));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What the agent is to do here. Strings in JSON are strings in TOML.
fn configuration(state: &Path, root: Option<&Path>) -> String {
    let text = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let roots = root.map(text).unwrap_or_default();
    let state = text(state);
    format!(
        "[agent]\nstate_dir = {state}\n\n[shipping]\nflush_interval = \"1s\"\n\n\
         [pipeline]\nsinks = [\"siem\"]\n\n[source.claude-sessions]\nroots = [{roots}]\n"
    )
}

/// Variables that would change what the agent reads, or where it sends it.
fn is_of_an_agent(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["CLAUDE_", "XDG_"].iter().any(|prefix| name.starts_with(prefix)) || name == "NO_PROXY"
}

/// A secret for one demo. The keys of a [`RandomState`] come from the system's randomness.
fn secret() -> String {
    let word = |_| format!("{:016x}", RandomState::new().build_hasher().finish());
    (0..4).map(word).collect()
}

/// Makes a directory that only its owner may read.
fn private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Whether somebody asked this program to end.
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

/// One line that is written over and over, on a terminal; elsewhere a line for each change.
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
            // Without a terminal any more, there is nobody to tell.
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
    fn the_configuration_names_the_root_only_where_there_is_one() {
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
    fn a_running_agents_variables_stay_outside() {
        assert!(is_of_an_agent("CLAUDE_SIEM_ENDPOINT"));
        assert!(is_of_an_agent("XDG_CONFIG_HOME"));
        assert!(!is_of_an_agent("PATH"));
    }
}
