//! Reads the signed-in accounts and compares them with the policy file.

use std::path::{Path, PathBuf};

use super::status::{AccountStatus, ComplianceStatus};
use crate::{
    compliance::{Account, account_files, policy, policy_file::StoredPolicy},
    platform::{Environment, Paths, bounded::BoundedCalls},
    text::causes,
};

/// Compares the signed-in accounts with the policy in `state_dir`. `client_dirs` are configuration
/// directories of Claude Code that hooks have reported.
pub(crate) fn compliance_status(
    state_dir: &Path,
    calls: &BoundedCalls,
    paths: &Paths,
    environment: &Environment,
    client_dirs: &[PathBuf],
) -> ComplianceStatus {
    let kept = match StoredPolicy::read(state_dir) {
        Ok(Some(kept)) => kept,
        Ok(None) => return ComplianceStatus::default(),
        Err(error) => {
            let error = Some(causes(&error));
            return ComplianceStatus { error, ..ComplianceStatus::default() };
        }
    };
    let accounts = account_files::read_accounts(calls, paths, environment, client_dirs);
    let compare = |Account { source, path, state }: Account| {
        let verdict = policy::evaluate(&state, &kept.compliance);
        AccountStatus {
            program: source.to_owned(),
            place: path.display().to_string(),
            standing: state,
            violations: verdict.violations,
            remarks: verdict.remarks,
            unknown: verdict.unknown,
        }
    };
    let policy = &kept.compliance;
    ComplianceStatus {
        policy_since: Some(kept.at.to_string()),
        restricts: policy.permitted_email_domains.is_some()
            || policy.permitted_org_ids.is_some()
            || policy.require_account == Some(true),
        action: policy.action,
        needs_hooks: policy.action.is_some() || policy.banner.is_some(),
        accounts: accounts.into_iter().map(compare).collect(),
        error: None,
    }
}
