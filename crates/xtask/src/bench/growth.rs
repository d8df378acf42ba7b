//! Figures that grow with the data, and those that do not: a line for each size.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Measured, data::Data, runner::AGENT};
use crate::Failure;

/// Results of one size, with the default agent.
#[derive(Serialize)]
pub(super) struct Row {
    data: &'static str,
    megabytes: f64,
    files: f64,
    wall_s: f64,
    cpu_s_per_gb: f64,
    cpu_ms_per_file: f64,
    peak_rss_mb: f64,
}

pub(super) fn rows(measured: &Measured, data: &Data) -> Result<Vec<Row>, Failure> {
    let sizes = [
        ("small", &measured.small),
        ("medium", &measured.medium),
        ("large", &measured.large),
        ("many100", &measured.many100),
        ("many10k", &measured.many10k),
        ("many", &measured.many[0]),
    ];
    let mut rows = Vec::new();
    for (name, runs) in sizes {
        let Some(manifest) = data.manifest(name)? else { continue };
        let figure = |figure| runs.median(AGENT, figure);
        let (Some(wall_s), Some(cpu)) = (figure("wall_s"), figure("cpu_s")) else { continue };
        rows.push(Row {
            data: name,
            megabytes: manifest.bytes / 1e6,
            files: manifest.files,
            wall_s,
            cpu_s_per_gb: cpu * 1e9 / manifest.bytes,
            cpu_ms_per_file: cpu * 1e3 / manifest.files,
            peak_rss_mb: runs.most(AGENT, "peak_rss_mb").unwrap_or_default(),
        });
    }
    Ok(rows)
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut table = "\
| data | MB | files | wall s | CPU s/GB | CPU ms/file | peak RSS MB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"
    .to_owned();
    for row in rows {
        let Row { data, megabytes, files, wall_s, cpu_s_per_gb, cpu_ms_per_file, peak_rss_mb } =
            row;
        writeln!(
            table,
            "| {data} | {megabytes:.1} | {files} | {wall_s:.2} | {cpu_s_per_gb:.2} | \
             {cpu_ms_per_file:.2} | {peak_rss_mb:.1} |"
        )
        .expect("a string takes every write");
    }
    table
}
