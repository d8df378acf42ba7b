//! What can be known without the agent: from its files, the store of one that does not run, and the
//! client's settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    super::{hooks, setup::Surroundings, store::Store},
    report::{Account, Compliance, Hook, Seen},
};
use crate::{
    compliance::{
        Account as SignedIn, account, client_files::ClientSettingsFiles, desktop, policy,
        policy_file::StoredPolicy,
    },
    config::LoadedConfig,
    platform::{Clock as _, Environment, Paths, SystemClock},
    text::causes,
};

/// What an agent that does not run has left.
pub(super) fn left(
    surroundings: &Surroundings,
    state_dir: &Path,
    loaded: Option<LoadedConfig>,
) -> Seen {
    let mut seen = Seen { config: config(state_dir), ..Seen::default() };
    let Some(loaded) = loaded else { return seen };
    if !state_dir.join("outbox.redb").is_file() {
        return seen;
    }
    let looked = Store::open(surroundings, loaded).and_then(|store| {
        let waiting = store.outbox.stats().map_err(super::Failure::failed)?;
        seen.take_outbox(waiting, &store.loaded, SystemClock.now());
        Ok(())
    });
    if let Err(super::Failure::Usage(error) | super::Failure::Failed(error)) = looked {
        seen.outbox_error = Some(causes(&*error));
    }
    seen
}

/// What the agent before said of configurations.
pub(super) fn config(state_dir: &Path) -> Value {
    let status = fs::read(state_dir.join("status.json")).ok();
    let status: Option<Value> = status.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    status.map(|status| status["config"].clone()).unwrap_or_default()
}

/// Who is signed in, and what the policy says of it; `client_dirs` are those of the client that
/// hooks have named.
pub(crate) fn compliance(
    state_dir: &Path,
    paths: &Paths,
    environment: &Environment,
    client_dirs: &[PathBuf],
) -> Compliance {
    let kept = match StoredPolicy::read(state_dir) {
        Ok(Some(kept)) => kept,
        Ok(None) => return Compliance::default(),
        Err(error) => return Compliance { error: Some(causes(&error)), ..Compliance::default() },
    };
    let code = SignedIn::of_claude_code_with(&paths.home, environment, account::read_sign_in_state);
    let others = account::other_claude_code_files(&paths.home, environment, client_dirs);
    let others = others.iter().map(|file| SignedIn::of_claude_code_in(file));
    let desktop = desktop::folders(paths);
    let desktop = desktop.iter().filter_map(|folder| SignedIn::of_claude_desktop(folder));
    let judged = |SignedIn { source, path: place, state: standing }: SignedIn| {
        let verdict = policy::evaluate(&standing, &kept.compliance);
        Account {
            program: source.to_owned(),
            place: place.display().to_string(),
            standing,
            violations: verdict.violations,
            remarks: verdict.remarks,
            unknown: verdict.unknown,
        }
    };
    let policy = &kept.compliance;
    Compliance {
        policy_since: Some(kept.at.to_string()),
        restricts: policy.permitted_email_domains.is_some()
            || policy.permitted_org_ids.is_some()
            || policy.require_account == Some(true),
        action: policy.action,
        needs_hooks: policy.action.is_some() || policy.banner.is_some(),
        accounts: [code].into_iter().chain(others).chain(desktop).map(judged).collect(),
        error: None,
    }
}

/// The hooks that settings name.
pub(super) fn hooks(surroundings: &Surroundings) -> Vec<Hook> {
    let (paths, environment) = (surroundings.paths(), surroundings.environment());
    let named = hooks::named(&ClientSettingsFiles::new(environment, paths).read_all(), &paths.home);
    let shown = |(path, hook, trouble): hooks::Named| Hook {
        name: hook.name().to_owned(),
        path: path.display().to_string(),
        trouble,
    };
    named.into_iter().map(shown).collect()
}
