//! `ai-agent run --test`: prints the records that would be shipped, and the reasons for the others.

use std::{
    io::{self, BufWriter, Write as _},
    mem,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::{context::CliContext, failure::Failure, progress_bar::ProgressBar};
use crate::{
    agent::config_sources::check_switched_off,
    pipeline::{
        accounting::{Count, Share},
        assembly,
        dry_run::{DryRun, Summary},
        record_stages::{Disposition, Observation},
    },
};
use config_text::Size;

/// Prints the entries to standard output and the summary to standard error; with `json`, prints the
/// verdicts to standard output, and the summary as the last line.
pub(super) fn execute(explicit: Option<&Path>, json: bool) -> Result<(), Failure> {
    let cli = CliContext::new(explicit)?;
    let loaded = cli.load()?;
    let context = cli.stage_context(&loaded);
    let waker: Arc<dyn Fn() + Send + Sync> = Arc::new(|| ());
    let sources = assembly::sources(&loaded, &context, &waker).map_err(Failure::usage)?;
    let mut stages = assembly::stages(&loaded, &context).map_err(Failure::usage)?;
    assembly::check_sinks(&loaded).map_err(Failure::usage)?;
    check_switched_off(&loaded, &context).map_err(Failure::usage)?;
    let verdicts = Arc::new(Mutex::new(Vec::new()));
    if json {
        let verdicts = Arc::clone(&verdicts);
        stages.observer = Some(Box::new(move |seen| {
            let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
            verdicts.extend_from_slice(verdict(seen).to_string().as_bytes());
            verdicts.push(b'\n');
        }));
    }
    let config = loaded.settings.config_hash();
    let dry_run = DryRun { sources, stages, config, clock: Arc::clone(&context.clock) };
    let mut out = BufWriter::new(io::stdout().lock());
    let ran = {
        let bar = ProgressBar::new();
        dry_run.run(|entries, totals, survey| {
            bar.show(Share::from(totals).read().bytes, survey.bytes_unread, survey.files);
            let mut seen = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
            let lines = if json { &mem::take(&mut *seen) } else { entries };
            if lines.is_empty() { Ok(()) } else { bar.above(|| out.write_all(lines)) }
        })
    };
    let written = ran.and_then(|found| {
        if json {
            let mut summary = json!(found.totals);
            summary["unfinished_bytes"] = json!(found.unfinished_bytes);
            writeln!(out, "{}", json!({ "summary": summary }))?;
        }
        out.flush()?;
        if json { Ok(()) } else { summary(&found) }
    });
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

fn verdict(seen: &Observation<'_, '_>) -> Value {
    let record = seen.record;
    let (verdict, stage, reason) = match seen.disposition {
        Disposition::Blank => ("blank", None, None),
        Disposition::Shipped(None) => ("keep", None, None),
        Disposition::Shipped(Some(edited)) => ("edit", Some(&*edited.by), None),
        Disposition::Dropped(stage, reason) => ("drop", Some(stage), Some(reason)),
    };
    let edited = match seen.disposition {
        Disposition::Shipped(edited) => edited,
        _ => None,
    };
    let cut: u64 = edited.iter().flat_map(|edited| &edited.cut).map(|cut| cut.bytes).sum();
    let masked: u64 = edited.iter().flat_map(|edited| &edited.masked).map(|it| it.count).sum();
    json!({
        "path": record.origin().path.to_string_lossy(),
        "offset": record.offset(),
        "length": record.line().len(),
        "part": record.is_partial(),
        "type": record.kind(),
        "uuid": record.uuid(),
        "verdict": verdict,
        "stage": stage,
        "reason": reason,
        "cut_bytes": cut,
        "masked": masked,
    })
}

fn summary(found: &Summary) -> io::Result<()> {
    let Summary { totals, unfinished_bytes } = found;
    let mut err = io::stderr().lock();
    let mut row = |what: &str, count: Count| {
        let size = Size(count.bytes).to_string();
        writeln!(err, "{what:<40} {:>9} lines  {size:>10}", count.lines)
    };
    let all = Share::from(totals);
    row("read", all.read())?;
    for (stage, reasons) in &totals.filtered {
        for (reason, count) in reasons {
            row(&format!("dropped by {stage}: {reason}"), *count)?;
        }
    }
    row("blank", totals.blank)?;
    row("would be shipped", all.sent())?;
    if *unfinished_bytes > 0 {
        let size = Size(*unfinished_bytes).to_string();
        writeln!(err, "{:<40} {size:>27}", "not read: no newline yet")?;
    }
    for (stage, bytes) in &totals.cut {
        writeln!(err, "{:<40} {:>27}", format!("cut by {stage}"), Size(*bytes).to_string())?;
    }
    Ok(())
}
