//! Conversions of the compliance types to the data of events.

use siem_protocol::event::{AccountIdentity, HookReport, RuleViolation, UncheckedRule};

use super::{
    account::Who,
    policy::{Finding, Unknown},
    spool::Report,
};

impl From<&Who> for AccountIdentity {
    fn from(who: &Who) -> Self {
        let Who { email, organization, account } = who.clone();
        Self { email, organization, account }
    }
}

impl From<&Finding> for RuleViolation {
    fn from(finding: &Finding) -> Self {
        let Finding { rule, found, permitted } = finding.clone();
        Self { violation: rule, found, permitted }
    }
}

impl From<&Unknown> for UncheckedRule {
    fn from(unknown: &Unknown) -> Self {
        let Unknown { rule, why } = unknown.clone();
        Self { rule, why }
    }
}

impl From<&Report> for HookReport {
    fn from(report: &Report) -> Self {
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
        }
    }
}
