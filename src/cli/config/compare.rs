//! `ai-agent config try`: compares a configuration with the one in force, on the session logs of this
//! machine.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    cli::{
        context::{CliContext, read_managed},
        failure::Failure,
        output::{JSON_VERSION, note, print},
        progress_bar::ProgressBar,
    },
    config::{HiddenValue, LayerOrigin, LoadedConfig},
    pipeline::{
        accounting::{Count, Share},
        assembly,
        dry_run::DryRun,
        filter_chain::{Edited, FilterChain, Outcome},
        group_life_cycle::GroupChange,
        record_stages::{Disposition, Observation},
        validate,
    },
};
use config_text::Size;

#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration to compare: a file for `--config`, or one that ends in `.json` with a managed
    /// configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        let in_force = cli.load_in_force()?;
        let context = cli.stage_context(&in_force);
        let candidate = self.candidate(&cli)?;
        let accepted = validate::validate(&candidate, &context, validate::TestScope::Managed)
            .map_err(Failure::failed)?;
        if candidate.settings.pipeline.sources != in_force.settings.pipeline.sources {
            note("the candidate has other sources: the sources in force are read");
        }
        let mut found = compare(&cli, &in_force, accepted.filters)?;
        found.hidden = candidate.hidden_values(|origin| match origin {
            LayerOrigin::Explicit(path) => *path == self.file,
            LayerOrigin::Managed(_) => self.is_managed(),
            _ => false,
        });
        if self.json { found.as_json() } else { found.as_text() }
    }

    fn is_managed(&self) -> bool {
        self.file.extension().is_some_and(|it| it == "json")
    }

    fn candidate(&self, cli: &CliContext) -> Result<LoadedConfig, Failure> {
        if self.is_managed() {
            let managed = read_managed(&self.file)?;
            return cli.sources.load_with(Some(&managed)).map_err(Failure::failed);
        }
        let candidate = CliContext { sources: cli.sources.with_explicit(&self.file) };
        candidate.load_in_force().map_err(Failure::into_failed)
    }
}

/// Reads all session logs once, and runs both configurations on each record.
fn compare(
    cli: &CliContext,
    in_force: &LoadedConfig,
    candidate: FilterChain,
) -> Result<Comparison, Failure> {
    let context = cli.stage_context(in_force);
    let waker: Arc<dyn Fn() + Send + Sync> = Arc::new(|| ());
    let sources = assembly::sources(in_force, &context, &waker).map_err(Failure::usage)?;
    let mut stages = assembly::stages(in_force, &context).map_err(Failure::usage)?;
    let both = Arc::new(Mutex::new((candidate, Comparison::default())));
    let observer = Arc::clone(&both);
    stages.observer = Some(Box::new(move |seen| {
        let (candidate, comparison) = &mut *observer.lock().unwrap_or_else(PoisonError::into_inner);
        comparison.add(seen, candidate);
    }));
    let config = in_force.settings.config_hash();
    let clock = Arc::clone(&context.clock);
    let bar = ProgressBar::new();
    let ran = DryRun { sources, stages, config, clock }.run(|_, totals, survey| {
        bar.show(Share::from(totals).read().bytes, survey.bytes_unread, survey.files);
        // As the pipeline does after it has stored a group.
        let (filters, _) = &mut *both.lock().unwrap_or_else(PoisonError::into_inner);
        filters.on_group_change(GroupChange::Stored { all: true });
        Ok(())
    });
    ran.map_err(Failure::failed)?;
    let mut both = both.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut both.1))
}

/// A filter, its reason, and the `type` of the records that it dropped.
type Cause = (String, String, String);

/// Result of both configurations.
#[derive(Default)]
struct Comparison {
    read: Count,
    shipped: Count,
    would_ship: Count,
    /// Shipped now, and dropped by the candidate.
    more: BTreeMap<Cause, Count>,
    /// Dropped now, and shipped by the candidate.
    less: BTreeMap<Cause, Count>,
    /// Bytes cut out, now and by the candidate, by filter.
    cut: BTreeMap<String, [u64; 2]>,
    /// Number of masked strings, now and by the candidate, by filter and pattern.
    masked: BTreeMap<(String, String), [u64; 2]>,
    /// Values of the candidate that have no effect on this machine.
    hidden: Vec<HiddenValue>,
}

impl Comparison {
    fn add(&mut self, seen: &Observation<'_, '_>, candidate: &mut FilterChain) {
        if matches!(seen.disposition, Disposition::Blank) {
            return;
        }
        let record = seen.record;
        let count = Count::line(record.line().len() as u64);
        let kind = record.kind().map_or_else(|| "none".to_owned(), |kind| kind.into_owned());
        let cause = |by: &str, reason: &str| (by.to_owned(), reason.to_owned(), kind.clone());
        let would = candidate.check(record);
        self.read += count;
        match (&seen.disposition, &would) {
            (Disposition::Shipped(_), Outcome::Drop { stage, reason }) => {
                *self.more.entry(cause(candidate.name(*stage), reason)).or_default() += count;
            }
            (Disposition::Dropped(by, reason), Outcome::Keep(_)) => {
                *self.less.entry(cause(by, reason)).or_default() += count;
            }
            _ => {}
        }
        if let Disposition::Shipped(edited) = seen.disposition {
            self.shipped += count;
            self.add_edits(edited, 0);
        }
        if let Outcome::Keep(edited) = would {
            self.would_ship += count;
            self.add_edits(edited.as_ref(), 1);
        }
    }

    /// Counts the edits of one of both.
    fn add_edits(&mut self, edited: Option<&Edited>, side: usize) {
        for cut in edited.into_iter().flat_map(|edited| &edited.cut) {
            self.cut.entry(cut.by.clone()).or_default()[side] += cut.bytes;
        }
        for masked in edited.into_iter().flat_map(|edited| &edited.masked) {
            let what = (masked.by.clone(), masked.pattern.clone());
            self.masked.entry(what).or_default()[side] += masked.count;
        }
    }

    fn as_text(&self) -> Result<(), Failure> {
        let row = |what: &str, count: Count| {
            let size = Size(count.bytes).to_string();
            print(format_args!("{what:<56} {:>9} lines  {size:>10}", count.lines))
        };
        row("read", self.read)?;
        row("shipped now", self.shipped)?;
        row("shipped by the candidate", self.would_ship)?;
        let parts = [("dropped more", &self.more), ("dropped less", &self.less)];
        for (what, causes) in parts {
            for ((by, reason, kind), count) in causes {
                row(&format!("{what}: by {by} ({reason}), type {kind}"), *count)?;
            }
        }
        let changed = self.cut.iter().filter(|(_, [now, then])| now != then);
        for (by, [now, then]) in changed.clone() {
            let (now, then) = (Size(*now), Size(*then));
            print(format_args!("cut by {by}: {then} instead of {now}"))?;
        }
        let masked = self.masked.iter().filter(|(_, [now, then])| now != then);
        for ((by, pattern), [now, then]) in masked.clone() {
            print(format_args!("masked by {by} ({pattern}): {then} times instead of {now}"))?;
        }
        for HiddenValue { key, location, reason } in &self.hidden {
            print(format_args!("no effect: `{key}` in {location}, since {reason}"))?;
        }
        let edits = changed.count() + masked.count();
        if self.more.is_empty() && self.less.is_empty() && edits == 0 {
            print(format_args!("the candidate changes nothing for these session logs"))?;
        }
        Ok(())
    }

    fn as_json(&self) -> Result<(), Failure> {
        let causes = |causes: &BTreeMap<Cause, Count>| {
            let causes = causes.iter().map(|((stage, reason, kind), count)| {
                let (lines, bytes) = (count.lines, count.bytes);
                json!({ "stage": stage, "reason": reason, "type": kind, "lines": lines, "bytes": bytes })
            });
            causes.collect::<Vec<_>>()
        };
        let cut = self.cut.iter().map(|(stage, [now, then])| {
            json!({ "stage": stage, "bytes_now": now, "bytes_candidate": then })
        });
        let masked = self.masked.iter().map(|((stage, pattern), [now, then])| {
            json!({ "stage": stage, "pattern": pattern, "count_now": now, "count_candidate": then })
        });
        let hidden = |hidden: &HiddenValue| {
            let HiddenValue { key, location, reason } = hidden;
            let mut hidden = json!({ "key": key, "reason": reason });
            if let (Value::Object(hidden), Value::Object(place)) = (&mut hidden, location.to_json())
            {
                hidden.extend(place);
            }
            hidden
        };
        let found = json!({
            "version": JSON_VERSION, "read": self.read,
            "shipped_now": self.shipped, "shipped_candidate": self.would_ship,
            "dropped_more": causes(&self.more), "dropped_less": causes(&self.less),
            "cut": cut.collect::<Vec<_>>(), "masked": masked.collect::<Vec<_>>(),
            "without_effect": self.hidden.iter().map(hidden).collect::<Vec<_>>(),
        });
        print(format_args!("{found}"))
    }
}
