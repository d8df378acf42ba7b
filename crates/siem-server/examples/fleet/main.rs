//! A receiver that knows a large fleet: makes data directories, starts the server on them, and prints the
//! time of the start, its memory and the time of the first page of `/stats` as lines of JSON.
//!
//! Several fleets are measured in turn, so that a slow minute of the computer slows all of them, and not
//! what one of them is compared with.
//!
//! ```text
//! cargo build --release -p siem-server --bin demo-server --example fleet
//! target/release/examples/fleet 20000
//! target/release/examples/fleet 5000 10000 20000 1000,20,50
//! ```
#![allow(clippy::print_stdout, reason = "a tool to measure by hand")]

mod made;
mod measured;

use std::{
    error::Error,
    fs,
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Parser;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Make the data directories of fleets, start a receiver on each, and print the figures as lines of JSON
#[derive(Parser)]
struct Args {
    /// Fleets: number of machines, each with a user and a device, of epochs of each, and of gaps in each epoch
    #[arg(value_name = "MACHINES[,EPOCHS[,GAPS]]", default_value = "20000")]
    sizes: Vec<Size>,
    /// Number of requests of each kind
    #[arg(long, default_value_t = 21)]
    requests: usize,
    /// Number of times that the server is started on each fleet and asked; memory is the maximum of them
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..))]
    starts: u8,
    /// Program to start [default: the one built beside this one]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// Core that the server may use; needs taskset [default: any]
    #[arg(long, value_name = "NUMBER")]
    core: Option<usize>,
    /// Directory of the data directories; must not exist, and is removed
    #[arg(long, value_name = "DIR", default_value = "target/fleet")]
    data: PathBuf,
}

/// Size of a fleet.
#[derive(Clone, Copy)]
struct Size {
    machines: usize,
    epochs: u64,
    gaps: u64,
}

impl FromStr for Size {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut numbers = text.splitn(3, ',');
        let machines = numbers.next().unwrap_or_default().parse()?;
        let epochs = numbers.next().map_or(Ok(1), str::parse)?;
        let gaps = numbers.next().map_or(Ok(0), str::parse)?;
        Ok(Self { machines, epochs, gaps })
    }
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    if args.data.try_exists()? {
        return Err(format!("`{}` exists", args.data.display()).into());
    }
    let figures = measure(&args);
    fs::remove_dir_all(&args.data)?;
    for line in figures? {
        println!("{line}");
    }
    Ok(())
}

fn measure(args: &Args) -> Outcome<Vec<serde_json::Value>> {
    let mut fleets = Vec::new();
    for (at, size) in args.sizes.iter().enumerate() {
        let data = args.data.join(at.to_string());
        made::make(&data, size.machines, size.epochs, size.gaps)?;
        fleets.push(Fleet { size: *size, data, runs: Vec::new() });
    }
    let program = match &args.server {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("../demo-server"),
    };
    for _ in 0..args.starts {
        for fleet in &mut fleets {
            fleet.runs.push(run(args, &program, fleet)?);
        }
    }
    fleets.iter().map(Fleet::figures).collect()
}

/// A fleet, and what was measured with it.
struct Fleet {
    size: Size,
    data: PathBuf,
    runs: Vec<Run>,
}

impl Fleet {
    fn figures(&self) -> Outcome<serde_json::Value> {
        let Size { machines, epochs, gaps } = self.size;
        let (files, bytes) = measured::size(&self.data)?;
        Ok(serde_json::json!({
            "machines": machines,
            "epochs": machines as u64 * epochs,
            "gaps": machines as u64 * epochs * gaps,
            "starts_ms": self.all(|run| run.start_ms),
            "medians": self.summary(measured::median),
            "least": self.summary(measured::least),
            "files": files,
            "data_mb": bytes / 1_000_000,
        }))
    }

    fn summary(&self, of: fn(Vec<f64>) -> f64) -> serde_json::Value {
        serde_json::json!({
            "start_ms": of(self.all(|run| run.start_ms)),
            "rss_mb": self.all(|run| run.rss_mb).into_iter().fold(0.0, f64::max),
            "first_request_ms": of(self.all(|run| run.first_request_ms)),
            "first_page_ms": of(self.all(|run| run.first_page_ms)),
            "default_page_ms": of(self.all(|run| run.default_page_ms)),
            "filtered_page_ms": of(self.all(|run| run.filtered_page_ms)),
        })
    }

    fn all(&self, figure: fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(figure).collect()
    }
}

/// Figures of one start of the server.
struct Run {
    start_ms: f64,
    rss_mb: f64,
    /// The first page once, right after the start: the server has no figures of the fleet yet.
    first_request_ms: f64,
    first_page_ms: f64,
    default_page_ms: f64,
    filtered_page_ms: f64,
}

fn run(args: &Args, program: &Path, fleet: &Fleet) -> Outcome<Run> {
    let mut server = measured::Server::start(program, args.core, &fleet.data)?;
    let mut page = |target, requests| server.pages(target, requests);
    let first_request = page("/stats?limit=100", 1)?;
    let first = page("/stats?limit=100", args.requests)?;
    let default = page("/stats", args.requests)?;
    let filtered = page("/stats?limit=100&problem=gap", args.requests)?;
    let rows = server.rows()?;
    if rows != fleet.size.machines as u64 {
        return Err(format!("the server shows {rows} rows").into());
    }
    Ok(Run {
        start_ms: server.start_ms,
        rss_mb: server.peak_rss()?,
        first_request_ms: first_request,
        first_page_ms: first,
        default_page_ms: default,
        filtered_page_ms: filtered,
    })
}
