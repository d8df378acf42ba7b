//! Conversions of compliance types into event data.

use siem_protocol::agent_event::{AccountIdentity, HookReport, RuleViolation, UncheckedRule};

use super::{
    account::SignedInAccount,
    policy::{PolicyFinding, UndecidedRule},
    spool::SpooledReport,
};

impl From<&SignedInAccount> for AccountIdentity {
    fn from(who: &SignedInAccount) -> Self {
        let SignedInAccount { email, organization, account } = who.clone();
        Self { email, organization, account }
    }
}

impl From<&PolicyFinding> for RuleViolation {
    fn from(finding: &PolicyFinding) -> Self {
        let PolicyFinding { rule, found, permitted } = finding.clone();
        Self { violation: rule, found, permitted }
    }
}

impl From<&UndecidedRule> for UncheckedRule {
    fn from(unknown: &UndecidedRule) -> Self {
        let UndecidedRule { rule, why } = unknown.clone();
        Self { rule, why }
    }
}

impl From<&SpooledReport> for HookReport {
    fn from(report: &SpooledReport) -> Self {
        let transcript_path = report.transcript_path.as_ref();
        Self {
            at: report.at.0,
            hook: report.hook.clone(),
            decision: report.decision.clone(),
            latency_us: report.latency_us,
            session_id: report.session_id.clone(),
            transcript_path: transcript_path.map(|path| path.to_string_lossy().into_owned()),
            cwd: report.cwd.clone(),
            source: report.source.clone(),
            who: report.who.as_ref().map(AccountIdentity::from),
            violations: report.violations.iter().map(RuleViolation::from).collect(),
            unknown: report.unknown.iter().map(UncheckedRule::from).collect(),
            config_hash: report.config_hash,
            policy_hash: report.policy_hash,
            policy_source: report.policy_source,
            policy_problem: report.policy_problem.clone(),
        }
    }
}
