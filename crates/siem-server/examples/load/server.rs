//! The measured server, as a separate process.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use super::Outcome;

pub(crate) const TOKEN: &str = "0123456789abcdef";
pub(crate) const SECRET: &str = "fedcba9876543210";
/// Name of the receiver in seals.
pub(crate) const RECEIVER: &str = "load";

pub(crate) struct Server {
    pub(crate) address: String,
    child: Child,
    /// Number of syncs in the log.
    log: Option<thread::JoinHandle<u64>>,
}

/// Resources that the server used.
pub(crate) struct Used {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_megabytes: f64,
    pub(crate) syncs: u64,
}

impl Server {
    pub(crate) fn start(
        program: Option<PathBuf>,
        core: Option<usize>,
        data: &Path,
        sealed: bool,
    ) -> Outcome<Self> {
        if data.try_exists()? {
            return Err(format!("`{}` exists", data.display()).into());
        }
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("../demo-server"),
        };
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(core.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        if sealed {
            command.args(["--trust", "first-use", "--receiver-name", RECEIVER]);
        }
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("CLAUDE_SIEM_TOKEN", TOKEN)
            .env("CLAUDE_SIEM_HMAC_SECRET", SECRET)
            .env("RUST_LOG", "warn,siem_server::store::journal=debug")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (output, log) = (child.stdout.take(), child.stderr.take());
        let mut server = Self { address: String::new(), child, log: None };
        let (output, log) = output.zip(log).ok_or("a pipe is missing")?;
        server.log = Some(thread::spawn(move || {
            let mut syncs = 0;
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                match line.contains("synced the journal") {
                    true => syncs += 1,
                    false => eprintln!("{line}"),
                }
            }
            syncs
        }));
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on http://");
        server.address = address.ok_or_else(|| format!("the server said {line:?}"))?.to_owned();
        Ok(server)
    }

    /// Stops the server and returns the resources that it used.
    pub(crate) fn end(mut self) -> Outcome<Used> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let stat = std::fs::read_to_string(process.join("stat"))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let field = |at| after_name.split_whitespace().nth(at)?.parse::<f64>().ok();
        // User and system time, in hundredths of a second, on systems with such a file.
        let ticks: f64 = [11, 12].into_iter().filter_map(field).sum();
        let status = std::fs::read_to_string(process.join("status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches("kB").trim().parse().ok());
        self.child.kill()?;
        self.child.wait()?;
        let log = self.log.take().map(thread::JoinHandle::join);
        Ok(Used {
            cpu_seconds: ticks / 100.0,
            peak_rss_megabytes: (peak.unwrap_or(0.0_f64) / 1000.0).round(),
            syncs: log.transpose().map_err(|_| "the log's reader panicked")?.unwrap_or_default(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
