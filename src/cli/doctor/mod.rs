//! `ai-agent doctor`.

mod agent_checks;
mod check_result;
mod machine_checks;
mod receiver_checks;
mod sink_checks;

use std::{path::Path, sync::Arc};

use clap::Args;
use serde_json::{Value, json};

use self::check_result::{CheckOutcome, CheckResult, Checkup};
use super::{
    context::CliContext,
    failure::Failure,
    output::{JSON_VERSION, print},
    terminal::{Colours, short_hash, stdout_width},
};
use crate::{
    agent::{
        startable::{self, Checked, StartError},
        unusable_paths::UnusablePaths,
    },
    config::{ConfigError, ConfigWarning, LoadedConfig},
    pipeline::validate::ValidationError,
    platform::{Clock as _, Paths, SystemClock, bounded::BoundedCalls, is_root},
    siem::SignedConfig,
    text::{causes, counted},
};

/// Subject of the checks of the configuration.
const CONFIGURATION: &str = "configuration";

/// Check this machine for everything that can keep the agent from working
///
/// Exits 1 if a check failed.
#[derive(Args)]
pub(super) struct Arguments {
    /// Have the running agent deliver a test event, and wait for its acknowledgement
    #[arg(long)]
    canary: bool,
    /// Print one JSON object, as described in docs/scripts.md
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = CliContext::new(explicit)?;
        let failed = match self.json {
            true => self.print_json(&context)?,
            false => self.print_text(&context)?,
        };
        match failed {
            0 => Ok(()),
            count => Err(Failure::failed(format!("{} failed", counted(count, "check", "checks")))),
        }
    }

    /// Prints each result at once, since some checks take long. Returns the number of failed checks.
    fn print_text(&self, context: &CliContext) -> Result<u64, Failure> {
        let (colours, width) = (Colours::of_stdout(), stdout_width());
        let (mut failed, mut warnings) = (0, 0);
        examine(context, self.canary, &mut |result| {
            failed += u64::from(result.outcome == CheckOutcome::Fail);
            warnings += u64::from(result.outcome == CheckOutcome::Warn);
            print(format_args!("{}", result.render(colours, width)))
        })?;
        match (failed, warnings) {
            (0, 0) => print(format_args!("all checks passed"))?,
            (0, _) => {
                let warnings = counted(warnings, "warning", "warnings");
                print(format_args!("no check failed, {warnings}"))?;
            }
            _ => {}
        }
        Ok(failed)
    }

    fn print_json(&self, context: &CliContext) -> Result<u64, Failure> {
        let results = collect(context, self.canary);
        print(format_args!("{:#}", as_json(&results)))?;
        let failed = results.iter().filter(|result| result.outcome == CheckOutcome::Fail);
        Ok(failed.count() as u64)
    }
}

/// Checks everything, and collects the results.
pub(super) fn collect(context: &CliContext, canary: bool) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let collected = examine(context, canary, &mut |result| {
        results.push(result);
        Ok(())
    });
    // Nothing is printed that could fail.
    drop(collected);
    results
}

/// Returns the results as `--json` prints them.
pub(super) fn as_json(results: &[CheckResult]) -> Value {
    let worst = results.iter().map(|result| result.outcome).max().unwrap_or(CheckOutcome::Ok);
    json!({
        "version": JSON_VERSION,
        "at": SystemClock.now().to_string(),
        "outcome": worst.name(),
        "checks": results.iter().map(CheckResult::json).collect::<Vec<_>>(),
    })
}

/// Passes the result of each check to `report`.
///
/// # Errors
/// Errors of `report`.
fn examine(
    context: &CliContext,
    canary: bool,
    report: &mut dyn FnMut(CheckResult) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // What hangs is reported, and does not keep doctor from checking the rest.
    let calls = BoundedCalls::new(Arc::new(SystemClock));
    calls.scope(|| examine_with(&calls, context, canary, report))
}

fn examine_with(
    calls: &BoundedCalls,
    context: &CliContext,
    canary: bool,
    report: &mut dyn FnMut(CheckResult) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut checked = startable::check_in_force(&context.sources);
    let is_deliverable = checked.errors.iter().all(is_incomplete);
    if is_deliverable && !checked.errors.is_empty() {
        // Without the token, too, the managed configuration is in force.
        checked.loaded = context.load_in_force().ok().or(checked.loaded);
    }
    user().into_iter().chain(configuration(&checked)).try_for_each(&mut *report)?;
    let state_dir = context.sources.state_dir_of(checked.loaded.as_ref());
    if let Some(loaded) = checked.loaded {
        paths(&loaded, context.paths()).into_iter().try_for_each(&mut *report)?;
        let context = context.sources.stage_context(&loaded, Some(&state_dir), true);
        let checkup = Checkup { loaded, context };
        machine_checks::run(&checkup, calls).into_iter().try_for_each(&mut *report)?;
        // What is wrong with a sink whose settings are wrong would be reported twice.
        if is_deliverable {
            connections(&checkup).into_iter().try_for_each(&mut *report)?;
        }
    }
    agent_checks::run(context).into_iter().try_for_each(&mut *report)?;
    if canary {
        report(agent_checks::canary(&state_dir))?;
    }
    Ok(())
}

/// Returns whether an error is about settings without which nothing can be delivered. The checks of the
/// receivers report them.
fn is_incomplete(error: &StartError) -> bool {
    matches!(error, StartError::Invalid(ValidationError::Config(ConfigError::Incomplete(_))))
}

/// Checks of everything that the agent delivers to.
fn connections(checkup: &Checkup) -> Vec<CheckResult> {
    let mut results = receiver_checks::run(checkup);
    results.extend(sink_checks::run(checkup));
    if results.is_empty() {
        results.push(CheckResult::warn("receiver", "no sink delivers to a receiver"));
    }
    results
}

/// Warning about the rights of this process.
fn user() -> Option<CheckResult> {
    is_root().then(|| {
        let text = "running as root: the agent needs only the rights of the user";
        CheckResult::warn("user", text)
    })
}

/// Proof that a managed configuration needs.
fn managed(loaded: &LoadedConfig) -> Option<CheckResult> {
    const SUBJECT: &str = "managed";

    if !loaded.settings.managed_keys.is_empty() {
        let text = "a managed configuration must be signed by the organisation";
        return Some(CheckResult::ok(SUBJECT, text));
    }
    let stored = SignedConfig::load(&loaded.settings.agent.state_dir).ok().flatten();
    stored.map(|_| {
        CheckResult::warn(
            SUBJECT,
            "managed configuration is authenticated by the shared secret only: set `managed.keys`",
        )
    })
}

/// Warning about sinks that send unencrypted.
fn transport(loaded: &LoadedConfig) -> Option<CheckResult> {
    let sinks: Vec<String> = loaded.plain_sinks().map(|name| format!("`{name}`")).collect();
    (!sinks.is_empty()).then(|| {
        let text = format!("unencrypted to another machine: {}; use TLS", sinks.join(", "));
        CheckResult::warn("transport", text)
    })
}

/// Errors of the configuration, as `config check` reports them.
fn configuration(checked: &Checked) -> Vec<CheckResult> {
    let is_deliverable = checked.errors.iter().all(is_incomplete);
    let errors = checked.errors.iter().filter(|_| !is_deliverable);
    let mut results: Vec<CheckResult> =
        errors.map(|error| CheckResult::fail(CONFIGURATION, causes(error))).collect();
    let Some(loaded) = &checked.loaded else { return results };
    if results.is_empty() {
        let hash = short_hash(loaded.settings.config_hash());
        results.push(CheckResult::ok(CONFIGURATION, format!("no mistakes (hash {hash})")));
        results.extend(managed(loaded));
        results.extend(transport(loaded));
    }
    results.extend(warnings(loaded));
    results
}

/// Paths of the configuration that cannot be used on this machine, as `config check` reports them. The state
/// directory has a check of its own.
fn paths(loaded: &LoadedConfig, paths: &Paths) -> Vec<CheckResult> {
    const SUBJECT: &str = "paths";

    let found = UnusablePaths::outside_of_state_dir(loaded, paths);
    let errors = found.errors.iter().map(|it| CheckResult::fail(SUBJECT, causes(it)));
    let warnings = found.warnings.iter();
    let warnings = warnings.map(|it| CheckResult::warn(SUBJECT, it.to_string()));
    errors.chain(warnings).collect()
}

/// Warnings about the configuration; those about the transport are a check of their own.
fn warnings(loaded: &LoadedConfig) -> impl Iterator<Item = CheckResult> {
    let warnings = loaded.warnings.iter();
    let others = warnings.filter(|warning| warning.code != ConfigWarning::TRANSPORT_PLAIN);
    others.map(|warning| CheckResult::warn(CONFIGURATION, warning.to_string()))
}
