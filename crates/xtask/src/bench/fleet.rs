//! The receiver with a large fleet: start, memory and `/stats` as machines, epochs and gaps grow,
//! and 2,000 agents at once.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::receiver;
use crate::{Failure, sh};

/// Number of machines of the targets.
const MACHINES: u64 = 20_000;
/// Number of machines, of epochs of each, and of gaps in each epoch.
type Size = (u64, u64, u64);
/// Sizes that are measured. On each axis one is twice the one before.
const SIZES: [(&str, [Size; 3]); 3] = [
    ("machines", [(5000, 1, 0), (10_000, 1, 0), (MACHINES, 1, 0)]),
    ("epochs", [(1000, 5, 0), (1000, 10, 0), (1000, 20, 0)]),
    ("gaps", [(1000, 1, 25), (1000, 1, 50), (1000, 1, 100)]),
];

/// Most milliseconds until the server with 20,000 machines listens.
const START_MS: f64 = 2000.0;
/// Most megabytes of its memory.
const RSS_MB: f64 = 200.0;
/// Most milliseconds of the first page.
const PAGE_MS: f64 = 50.0;
/// Most milliseconds of the response to the 99th percentile of the batches of 2,000 agents.
const P99_MS: f64 = 50.0;
/// Number of runs with 2,000 agents.
const P99_RUNS: usize = 3;
/// Most by which a figure may grow when the size doubles: linear, with room for noise.
const DOUBLED: f64 = 2.4;
/// Milliseconds and megabytes below which the growth of a figure is noise.
const NOISE: f64 = 20.0;

/// Figures of one size.
#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    #[serde(default)]
    axis: String,
    machines: u64,
    epochs: u64,
    gaps: u64,
    /// Time of each start.
    starts_ms: Vec<f64>,
    /// Medians of the starts, which must meet the targets.
    medians: Figures,
    /// Least figures of the starts, which must not grow faster than the data: other load on the
    /// computer only adds to a time, and would be taken for growth.
    least: Figures,
    files: u64,
    data_mb: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Figures {
    start_ms: f64,
    /// Peak memory, in both the most.
    rss_mb: f64,
    /// The first request after a start.
    first_request_ms: f64,
    first_page_ms: f64,
    default_page_ms: f64,
    filtered_page_ms: f64,
}

/// Figures of all sizes, and the 99th percentile with 2,000 agents.
#[derive(Serialize)]
pub(super) struct Fleet {
    rows: Vec<Row>,
    p99_ms: f64,
    /// Each run, of which `p99_ms` is the median.
    p99s_ms: Vec<f64>,
    /// Targets that are missed.
    missed: Vec<String>,
}

/// Builds the server and its tools, and measures.
pub(super) fn measure(folder: &Path) -> Result<Fleet, Failure> {
    let mut build = sh::cargo(["build", "--release", "--package", "siem-server"]);
    build.args(["--bin", "demo-server", "--example", "fleet", "--example", "load"]);
    if !build.stdin(Stdio::null()).status()?.success() {
        return Err("cannot build the receiver and its tools".into());
    }
    let tools = sh::target_directory()?.join("release/examples");
    let (fleet_data, load_data) = (folder.join("fleet"), folder.join("load"));
    for left_over in [&fleet_data, &load_data] {
        if left_over.try_exists()? {
            fs::remove_dir_all(left_over)?;
        }
    }
    // Before the others: a file system that has just deleted their many files creates new ones slowly.
    println!("── receiver, 2,000 agents");
    let mut p99s_ms = Vec::new();
    for run in 0..P99_RUNS {
        let data = load_data.join(run.to_string());
        p99s_ms.push(receiver::fleet_p99(&tools.join("load"), &data)?);
    }
    let p99_ms = receiver::median(p99s_ms.clone());
    let mut rows = Vec::new();
    for (axis, sizes) in SIZES {
        for (machines, epochs, gaps) in sizes {
            println!("── receiver, {machines} machines, {epochs} epochs each, {gaps} gaps each");
        }
        let found = run(&tools.join("fleet"), &sizes, &fleet_data)?;
        rows.extend(found.into_iter().map(|row| Row { axis: axis.into(), ..row }));
    }
    let mut missed = missed(&rows);
    if p99_ms > P99_MS {
        missed.push(format!("2,000 agents: p99 is {p99_ms} ms, target {P99_MS} ms"));
    }
    Ok(Fleet { rows, p99_ms, p99s_ms, missed })
}

/// Measures fleets in turn.
fn run(tool: &Path, sizes: &[Size], data: &Path) -> Result<Vec<Row>, Failure> {
    let mut command = Command::new(tool);
    command.args(["--core", "0", "--data"]).arg(data);
    for (machines, epochs, gaps) in sizes {
        command.arg(format!("{machines},{epochs},{gaps}"));
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the tool exited with {}", output.status).into());
    }
    let rows = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Figures {
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("start ms", self.start_ms),
            ("memory MB", self.rss_mb),
            ("first request ms", self.first_request_ms),
            ("first page ms", self.first_page_ms),
            ("page of 1,000 ms", self.default_page_ms),
            ("filtered page ms", self.filtered_page_ms),
        ]
    }
}

/// Returns the targets that are missed, and the figures that grow faster than the data.
fn missed(rows: &[Row]) -> Vec<String> {
    let mut missed = Vec::new();
    if let Some(row) = rows.iter().find(|row| row.machines == MACHINES) {
        let targets = [
            ("start ms", START_MS),
            ("memory MB", RSS_MB),
            ("first request ms", PAGE_MS),
            ("first page ms", PAGE_MS),
        ];
        for (name, target) in targets {
            let found = row.medians.named().into_iter().find(|(figure, _)| *figure == name);
            if let Some((_, found)) = found.filter(|(_, found)| *found > target) {
                missed.push(format!("{MACHINES} machines: {name} is {found}, target {target}"));
            }
        }
    }
    for pair in rows.windows(2) {
        let [half, whole] = pair else { continue };
        if half.axis != whole.axis {
            continue;
        }
        for ((name, before), (_, after)) in half.least.named().into_iter().zip(whole.least.named())
        {
            if after > NOISE && after > before * DOUBLED {
                let axis = &whole.axis;
                missed.push(format!("twice the {axis}: {name} grows from {before} to {after}"));
            }
        }
    }
    missed
}

impl Fleet {
    pub(super) fn is_missed(&self) -> bool {
        !self.missed.is_empty()
    }

    /// Formats the figures for people.
    pub(super) fn table(&self) -> String {
        let mut text = "\
| machines | epochs | gaps | start ms | memory MB | first request ms | first page ms | page of 1,000 ms | filtered page ms | files | data MB |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"
        .to_owned();
        for row in &self.rows {
            let Row { machines, epochs, gaps, files, data_mb, .. } = row;
            let figures = row.medians.named().map(|(_, figure)| format!("{figure:.1}")).join(" | ");
            writeln!(text, "| {machines} | {epochs} | {gaps} | {figures} | {files} | {data_mb} |")
                .expect("a string takes every write");
        }
        let runs = &self.p99s_ms;
        writeln!(text, "\n2,000 agents: p99 {} ms, median of {runs:?}", self.p99_ms)
            .expect("a string takes every write");
        for missed in &self.missed {
            writeln!(text, "missed: {missed}").expect("a string takes every write");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(axis: &str, machines: u64, start_ms: f64) -> Row {
        let figures = Figures {
            start_ms,
            rss_mb: 10.0,
            first_request_ms: 1.0,
            first_page_ms: 1.0,
            default_page_ms: 1.0,
            filtered_page_ms: 1.0,
        };
        Row {
            axis: axis.into(),
            machines,
            epochs: machines,
            gaps: 0,
            starts_ms: Vec::new(),
            medians: figures,
            least: figures,
            files: 0,
            data_mb: 0,
        }
    }

    #[test]
    fn growth_above_linear_and_missed_targets_are_found() {
        let rows = [row("machines", 10_000, 500.0), row("machines", MACHINES, 1000.0)];
        assert_eq!(missed(&rows), Vec::<String>::new());
        let rows = [row("machines", 10_000, 500.0), row("machines", MACHINES, 2001.0)];
        assert_eq!(missed(&rows).len(), 2);
        let disturbed = row("machines", MACHINES, 1100.0);
        let least = Figures { start_ms: 500.0, ..disturbed.least };
        let rows = [row("machines", 10_000, 250.0), Row { least, ..disturbed }];
        assert_eq!(missed(&rows), Vec::<String>::new());
        let rows = [row("epochs", 10, 1.0), row("gaps", 20, 100.0)];
        assert_eq!(missed(&rows), Vec::<String>::new());
    }
}
