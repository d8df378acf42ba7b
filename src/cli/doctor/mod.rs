//! `ai-agent doctor`.

mod agent_checks;
mod check_result;
mod machine_checks;
mod receiver_checks;
mod sink_checks;

use std::path::Path;

use clap::Args;

use self::check_result::{CheckOutcome, CheckResult, Checkup};
use super::{
    context::CliContext,
    failure::Failure,
    output::print,
    terminal::{Colours, short_hash, stdout_width},
};
use crate::{
    config::{ConfigWarning, LoadedConfig},
    pipeline::assembly,
    platform::is_root,
    siem::SignedConfig,
    text::{causes, counted},
};

/// Check this machine for everything that can keep the agent from working
///
/// Exits 1 if a check failed.
#[derive(Args)]
pub(super) struct Arguments {
    /// Have the running agent deliver a test event, and wait for its acknowledgement
    #[arg(long)]
    canary: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = CliContext::new(explicit)?;
        // Without a configuration there is nothing to check.
        let loaded = context.load_in_force().map_err(Failure::into_failed)?;
        let state_dir = loaded.settings.agent.state_dir.clone();
        let stage_context = context.sources.stage_context(&loaded, Some(&state_dir), true);
        let checkup = Checkup { loaded, context: stage_context };
        let (colours, width) = (Colours::of_stdout(), stdout_width());
        let mut failed = 0;
        let mut show = |result: CheckResult| {
            failed += u64::from(result.outcome == CheckOutcome::Fail);
            print(format_args!("{}", result.render(colours, width)))
        };
        let results = user().into_iter().chain(configuration(&checkup));
        let results = results.chain(machine_checks::run(&checkup));
        let results = results.chain(connections(&checkup));
        for result in results.chain(agent_checks::run(&context)) {
            show(result)?;
        }
        if self.canary {
            show(agent_checks::canary(&state_dir))?;
        }
        match failed {
            0 => print(format_args!("all checks passed")),
            count => Err(Failure::failed(format!("{} failed", counted(count, "check", "checks")))),
        }
    }
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

/// Mistakes in the configuration.
fn configuration(checkup: &Checkup) -> Vec<CheckResult> {
    const SUBJECT: &str = "configuration";

    let Checkup { loaded, context } = checkup;
    let mistakes = assembly::check(loaded, context);
    if mistakes.is_empty() {
        let hash = short_hash(loaded.settings.config_hash());
        let mut results = vec![CheckResult::ok(SUBJECT, format!("no mistakes (hash {hash})"))];
        results.extend(managed(loaded));
        results.extend(transport(loaded));
        results.extend(warnings(loaded));
        return results;
    }
    mistakes.iter().map(|error| CheckResult::fail(SUBJECT, causes(error))).collect()
}

/// Warnings about the configuration; those about the transport are a check of their own.
fn warnings(loaded: &LoadedConfig) -> impl Iterator<Item = CheckResult> {
    let warnings = loaded.warnings.iter();
    let others = warnings.filter(|warning| warning.code != ConfigWarning::TRANSPORT_PLAIN);
    others.map(|warning| CheckResult::warn("configuration", warning.to_string()))
}
