//! A receiver that knows a large fleet: makes its data directory, starts the server on it, and
//! prints the time of the start, its memory and the time of the first page of `/stats` as a line
//! of JSON.
//!
//! ```text
//! cargo build --release -p siem-server --bin demo-server --example fleet
//! target/release/examples/fleet --machines 20000
//! target/release/examples/fleet --machines 1000 --epochs 20 --gaps 50
//! ```
#![allow(clippy::print_stdout, reason = "a tool to measure by hand")]

mod made;
mod measured;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Make the data directory of a fleet, start a receiver on it, and print the figures as JSON
#[derive(Parser)]
struct Args {
    /// Number of machines, each with a user and a device
    #[arg(long, default_value_t = 20_000)]
    machines: usize,
    /// Number of epochs of each machine
    #[arg(long, default_value_t = 1)]
    epochs: u64,
    /// Number of gaps in each epoch
    #[arg(long, default_value_t = 0)]
    gaps: u64,
    /// Number of requests of each kind
    #[arg(long, default_value_t = 21)]
    requests: usize,
    /// Number of times that the server is started and asked; times are medians, memory is the maximum
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    starts: u8,
    /// Program to start [default: the one built beside this one]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// Core that the server may use; needs taskset [default: any]
    #[arg(long, value_name = "NUMBER")]
    core: Option<usize>,
    /// Data directory of the server; must not exist, and is removed
    #[arg(long, value_name = "DIR", default_value = "target/fleet")]
    data: PathBuf,
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    if args.data.try_exists()? {
        return Err(format!("`{}` exists", args.data.display()).into());
    }
    let figures = measure(&args);
    fs::remove_dir_all(&args.data)?;
    println!("{}", figures?);
    Ok(())
}

fn measure(args: &Args) -> Outcome<serde_json::Value> {
    made::make(&args.data, args.machines, args.epochs, args.gaps)?;
    let program = match &args.server {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("../demo-server"),
    };
    let runs = (0..args.starts).map(|_| run(args, &program)).collect::<Outcome<Vec<_>>>()?;
    let median = |time: fn(&Run) -> f64| measured::median(runs.iter().map(time).collect());
    let (files, bytes) = measured::size(&args.data)?;
    Ok(serde_json::json!({
        "machines": args.machines,
        "epochs": args.machines as u64 * args.epochs,
        "gaps": args.machines as u64 * args.epochs * args.gaps,
        "start_ms": median(|run| run.start_ms),
        "rss_mb": runs.iter().map(|run| run.rss_mb).fold(0.0, f64::max),
        "first_page_ms": median(|run| run.first_page_ms),
        "default_page_ms": median(|run| run.default_page_ms),
        "filtered_page_ms": median(|run| run.filtered_page_ms),
        "files": files,
        "data_mb": bytes / 1_000_000,
    }))
}

/// Figures of one start of the server.
struct Run {
    start_ms: f64,
    rss_mb: f64,
    first_page_ms: f64,
    default_page_ms: f64,
    filtered_page_ms: f64,
}

fn run(args: &Args, program: &Path) -> Outcome<Run> {
    let mut server = measured::Server::start(program, args.core, &args.data)?;
    let mut page = |target| server.pages(target, args.requests);
    let (first, default) = (page("/stats?limit=100")?, page("/stats")?);
    let filtered = page("/stats?limit=100&problem=gap")?;
    let rows = server.rows()?;
    if rows != args.machines as u64 {
        return Err(format!("the server shows {rows} rows").into());
    }
    Ok(Run {
        start_ms: server.start_ms,
        rss_mb: server.peak_rss()?,
        first_page_ms: first,
        default_page_ms: default,
        filtered_page_ms: filtered,
    })
}
