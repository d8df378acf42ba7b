//! The agent itself: its service, whether it runs and gets on, and the hooks.

use std::{path::Path, time::Duration};

use super::{
    super::{
        Failure,
        control::{
            Reached, reach,
            wire::{Reply, Request},
        },
        hooks, service,
        setup::Surroundings,
        status,
    },
    Finding,
};
use crate::{
    compliance::{client_files::ClientSettingsFiles, hook_response::Hook},
    units::Time,
};

/// How long a marked event may be on its way.
const CANARY: Duration = Duration::from_secs(30);
/// So much longer than the agent itself an answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn look(surroundings: &Surroundings, explicit: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![service(surroundings)];
    match status::examine(surroundings, explicit) {
        Ok(examined) => findings.extend(agent(examined)),
        Err(failure) => findings.push(Finding::wrong("agent", failure.words())),
    }
    findings.push(hooks(surroundings));
    findings
}

fn service(surroundings: &Surroundings) -> Finding {
    const ABOUT: &str = "service";

    match service::standing(surroundings) {
        Ok(Some(standing)) if standing.is_active == Some(false) => Finding::wrong(
            ABOUT,
            format!(
                "{}: `ai-agent start` starts it, its log says why it ended",
                standing.summary()
            ),
        ),
        Ok(Some(standing)) => Finding::well(ABOUT, standing.summary()),
        Ok(None) => Finding::note(ABOUT, "not installed: `ai-agent install` does that"),
        Err(error) => Finding::note(ABOUT, format!("nobody knows: {error}")),
    }
}

fn agent(status::Examined { is_running, failing, warnings }: status::Examined) -> Vec<Finding> {
    let mut findings: Vec<_> =
        failing.into_iter().map(|says| Finding::wrong("agent", says)).collect();
    findings.extend(warnings.into_iter().map(|says| Finding::note("agent", says)));
    if findings.is_empty() && is_running {
        findings.push(Finding::well("agent", "it runs, and gets on"));
    }
    findings
}

fn hooks(surroundings: &Surroundings) -> Finding {
    const ABOUT: &str = "hooks";

    let (paths, environment) = (surroundings.paths(), surroundings.environment());
    let named = hooks::named(&ClientSettingsFiles::new(environment, paths).read_all(), &paths.home);
    let is_called = |hook: &Hook| named.iter().any(|(_, it, why)| it == hook && why.is_none());
    let missing: Vec<_> = Hook::ALL.into_iter().filter(|hook| !is_called(hook)).collect();
    if missing.is_empty() {
        return Finding::well(ABOUT, "Claude Code calls both");
    }
    if named.is_empty() {
        return Finding::note(
            ABOUT,
            "none are installed: `ai-agent hooks install` does that, where the policy wants them",
        );
    }
    let names = missing.into_iter().map(Hook::name).collect::<Vec<_>>().join(" and ");
    Finding::wrong(ABOUT, format!("{names} is not called: `ai-agent hooks status` says why"))
}

/// Sends a marked event the whole way, and says how long it took.
pub(super) fn canary(state_dir: &Path) -> Finding {
    const ABOUT: &str = "canary";

    let within_ms = u64::try_from(CANARY.as_millis()).unwrap_or(u64::MAX);
    let asked = reach(state_dir).and_then(|reached| match reached {
        Reached::Agent(client) => {
            let mut took = String::new();
            client.ask(&Request::Canary { within_ms }, CANARY + GRACE, &mut |reply| {
                if let Reply::Line(line) = reply {
                    took = line;
                }
                Ok(())
            })?;
            Ok(took)
        }
        Reached::Nobody => Err(Failure::failed("no agent runs that could send it")),
        Reached::Silent { why, .. } => Err(Failure::failed(format!("the agent is silent: {why}"))),
    });
    match asked {
        Ok(took) => Finding::well(ABOUT, took),
        Err(failure) => Finding::wrong(
            ABOUT,
            format!("not acknowledged within {}: {}", Time(CANARY), failure.words()),
        ),
    }
}
