//! Answers a hook of Claude Code, in a process of its own for each call.
//!
//! A hook is called for each prompt and must be quick: no runtime, no outbox, no network, no daemon.
//! No failure in here may block a user's work unless the policy demands it: Claude Code blocks the
//! prompt on exit code 2, and lets it through on every other.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{self, Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use siem_protocol::{agent_event::PolicySource, managed::OnError};

use super::{failure::Failure, hook_policy::HookPolicy, output::print};
use crate::{
    compliance::{
        Account, Evaluation, SignInState,
        cache::read_sign_in_state_cached,
        hook_input::HookInput,
        hook_response::{Decision, Hook, HookResponse},
        policy,
        spool::{Spool, SpooledReport},
    },
    config::MachinePolicy,
    platform::{
        Clock as _, Environment, Os, Paths, SystemClock,
        bounded::{self, DoesNotAnswer},
        input,
    },
};

/// Largest part of the input that is read: a prompt may be megabytes long, and comes last.
const MAX_INPUT: usize = 256 << 10;
/// Longest time that Claude Code may take to send the input.
const INPUT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time that the files of the policy may take to be read; then the machine's policy counts
/// alone. All times together are less than the 10 s after which Claude Code lets a prompt through.
const POLICY_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time that the machine's policy may take then.
const MACHINE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time that the file with the account may take to be read; its account is then unknown.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that the report may take to be written; the hook then ends without it.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);

/// The hook of a command line that `hooks install` writes, recognised without the argument parser.
pub(super) fn plain_hook(arguments: impl IntoIterator<Item = OsString>) -> Option<String> {
    let mut arguments = arguments.into_iter().skip(1);
    let is_plain = arguments.next()? == "check" && arguments.next()? == "--hook";
    let hook = arguments.next().filter(|_| is_plain)?.into_string().ok()?;
    (arguments.next().is_none() && Hook::named(&hook).is_some()).then_some(hook)
}

/// Returns true if a command line is that of a hook, even a malformed one: exit code 2, which is
/// used for wrong arguments, would block every prompt.
pub(super) fn is_hook(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut arguments = arguments.into_iter().skip(1);
    let is_check = arguments.by_ref().any(|argument| argument == "check");
    is_check && arguments.any(|argument| argument.to_string_lossy().starts_with("--hook"))
}

/// Policy and account, which determine the response.
struct Knowledge {
    policy: HookPolicy,
    account: Account,
    verdict: Evaluation,
}

impl Knowledge {
    /// Reads the policy and the signed-in account; `None` when there was never a policy.
    fn gather(environment: &Environment, paths: &Paths) -> Option<Self> {
        let policy = find_policy(paths)?;
        let account = Account::of_claude_code_with(&paths.home, environment, |path| {
            let (its_path, state_dir) = (path.to_owned(), policy.state_dir.clone());
            let read = move || read_sign_in_state_cached(&its_path, &state_dir, SystemClock.now());
            within(path, ACCOUNT_TIMEOUT, read).unwrap_or_else(|silent| {
                SignInState::Unknown(format!("`{}` {silent}", path.display()))
            })
        });
        let verdict = policy::evaluate(&account.state, &policy.compliance);
        Some(Self { policy, account, verdict })
    }

    fn answer(&self, hook: Hook) -> HookResponse {
        HookResponse::new(hook, &self.verdict, &self.policy.compliance)
    }

    fn report(
        &self,
        hook: Hook,
        answer: &HookResponse,
        call: HookInput,
        latency: Duration,
    ) -> SpooledReport {
        let who = match &self.account.state {
            SignInState::SignedIn(who) => Some(who.clone()),
            _ => None,
        };
        // The permitted values are in the configuration, and may be long.
        let mut violations = self.verdict.violations.clone();
        violations.iter_mut().for_each(|finding| finding.permitted.clear());
        SpooledReport {
            at: SystemClock.now(),
            hook: hook.name().to_owned(),
            decision: answer.decision.as_str().to_owned(),
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
            session_id: call.session_id,
            transcript_path: call.transcript_path,
            cwd: call.cwd,
            source: call.source,
            who,
            violations,
            unknown: self.verdict.unknown.clone(),
            config_hash: self.policy.stored.map(|(hash, _)| hash),
            policy_hash: self.policy.hash(),
            policy_source: Some(self.policy.source),
            policy_problem: self.policy.problem.clone(),
        }
    }
}

/// Answers a hook. This is all that such a process does.
pub(super) fn answer_hook(name: &str) -> ExitCode {
    let begun = Instant::now();
    let Some(hook) = Hook::named(name) else {
        let known = Hook::ALL.map(Hook::name).join("` and `");
        write_stderr(&format!("ai-agent does not support the hook `{name}`: use `{known}`"));
        return ExitCode::SUCCESS;
    };
    // Claude Code shows the output of a hook that blocks, which must not contain a panic message.
    std::panic::set_hook(Box::new(|_| ()));
    let environment = Environment::from_process();
    let Some((environment, paths)) = home(environment) else {
        return ExitCode::SUCCESS;
    };
    let gathered = catch_unwind(AssertUnwindSafe(|| Knowledge::gather(&environment, &paths)));
    let knowledge = match gathered {
        Ok(Some(knowledge)) => knowledge,
        Ok(None) => return ExitCode::SUCCESS,
        Err(_) => return failed(&paths),
    };
    let Ok(answer) = catch_unwind(AssertUnwindSafe(|| knowledge.answer(hook))) else {
        return failed(&paths);
    };
    send(&answer);
    // The user sees the error output of a hook that blocks, which is the message.
    if let (false, Some(problem)) =
        (answer.decision == Decision::Blocked, &knowledge.policy.problem)
    {
        write_stderr(problem);
    }
    let latency = begun.elapsed();
    let reported = catch_unwind(AssertUnwindSafe(|| {
        let call = HookInput::read(&input::first_line(MAX_INPUT, INPUT_TIMEOUT));
        let report = knowledge.report(hook, &answer, call, latency);
        add_to_spool(knowledge.policy.state_dir.clone(), report);
    }));
    // The response is sent already; without the report, only an event is missing.
    drop(reported);
    ExitCode::from(answer.exit_code())
}

/// Answers each hook as a call of Claude Code would, without output and report: a test of a new program.
pub(super) fn answer_every_hook() {
    let Some((environment, paths)) = home(Environment::from_process()) else { return };
    if let Some(knowledge) = Knowledge::gather(&environment, &paths) {
        Hook::ALL.into_iter().for_each(|hook| drop(knowledge.answer(hook)));
    }
}

/// Finds the policy. If its files cannot be read in time, the machine's policy counts alone.
fn find_policy(paths: &Paths) -> Option<HookPolicy> {
    let of_call = paths.clone();
    let find = move || HookPolicy::find(&of_call);
    within(&paths.default_state_dir, POLICY_TIMEOUT, find)
        .unwrap_or_else(|_| Some(machine_policy(paths)))
}

/// Makes a call with a limited time. Where no thread can be started, as under `ulimit -u`, its time is
/// not limited: without the call, the limit would decide what the hook answers.
fn within<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    call: impl FnOnce() -> T + Clone + Send + 'static,
) -> Result<T, DoesNotAnswer> {
    match bounded::run_once(place, limit, call.clone()) {
        Ok(result) => Ok(result),
        Err(error) => match DoesNotAnswer::of(&error) {
            Some(silent) => Err(silent.clone()),
            None => Ok(call()),
        },
    }
}

/// Returns the policy of the machine alone; it is empty if it cannot be read either.
fn machine_policy(paths: &Paths) -> HookPolicy {
    let of_call = paths.clone();
    let read = move || MachinePolicy::read(&of_call).unwrap_or_default();
    let machine = within(&paths.machine_config, MACHINE_TIMEOUT, read).unwrap_or_default();
    let source = match machine.locks_policy() {
        true => PolicySource::MachineLocked,
        false => PolicySource::MachineFallback,
    };
    HookPolicy {
        compliance: machine.policy(),
        source,
        problem: Some("the files of the policy cannot be read in time".to_owned()),
        state_dir: paths.default_state_dir.clone(),
        stored: None,
    }
}

/// Adds a report to the spool unless that takes too long. A failure only loses the report.
fn add_to_spool(state_dir: PathBuf, report: SpooledReport) {
    let place = state_dir.clone();
    let add = move || {
        // Where no agent has run, none will collect the report.
        state_dir.is_dir().then(|| Spool::of(&state_dir).add(&report, random()))
    };
    drop(within(&place, REPORT_TIMEOUT, add));
}

/// Paths of the user. The home directory comes from the system when no variable names it, and a
/// relative one is below the working directory, as for Claude Code. Without any, the machine's policy
/// counts nevertheless.
fn home(environment: Environment) -> Option<(Environment, Paths)> {
    if let Ok(paths) = Paths::on(Os::CURRENT, &environment) {
        return Some((environment, paths));
    }
    let known = [std::env::home_dir(), Some("/".into())].into_iter().flatten();
    let home = known.filter_map(|home| path::absolute(home).ok()).next()?;
    let environment = environment.with_home(&home);
    let paths = Paths::on(Os::CURRENT, &environment).ok()?;
    Some((environment, paths))
}

/// Responds when the check itself has failed, as the policy demands.
fn failed(paths: &Paths) -> ExitCode {
    let policy = catch_unwind(AssertUnwindSafe(|| find_policy(paths)));
    let on_error = policy.ok().flatten().and_then(|policy| policy.compliance.on_error);
    if on_error != Some(OnError::Block) {
        write_stderr("ai-agent could not check the signed-in account, and lets the prompt through");
        return ExitCode::SUCCESS;
    }
    let answer = HookResponse::blocked(
        "Your organisation's policy checks the account that is signed in to Claude Code, and ai-agent \
         could not determine it.\nRun `ai-agent check --hook UserPromptSubmit --explain` to see why, and show it to your \
         administrator."
            .to_owned(),
    );
    send(&answer);
    ExitCode::from(answer.exit_code())
}

fn send(answer: &HookResponse) {
    let mut stdout = io::stdout().lock();
    // Claude Code may have exited.
    drop(stdout.write_all(answer.stdout.as_bytes()).and_then(|()| stdout.flush()));
    if !answer.stderr.is_empty() {
        write_stderr(&answer.stderr);
    }
}

fn write_stderr(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

fn random() -> u128 {
    fastrand::u128(..)
}

/// Prints the response of a hook, and its reason.
pub(super) fn explain(name: &str) -> Result<(), Failure> {
    let hook = Hook::named(name).ok_or_else(|| {
        let known = Hook::ALL.map(Hook::name).join("` or `");
        Failure::usage(format!("ai-agent does not support the hook `{name}`: use `{known}`"))
    })?;
    let (environment, paths) = home(Environment::from_process())
        .ok_or_else(|| Failure::usage("there is no home directory: set HOME"))?;
    let knowledge = match Knowledge::gather(&environment, &paths) {
        Some(knowledge) => knowledge,
        None => {
            return print(format_args!(
                "There is no policy yet: `ai-agent run` writes it to `{}`. The hook lets everything \
                 through without a message.",
                paths.default_state_dir.display()
            ));
        }
    };
    knowledge.print(hook)
}

impl Knowledge {
    fn print(&self, hook: Hook) -> Result<(), Failure> {
        let Self { policy, account, verdict } = self;
        print(format_args!("Policy:    {}", policy_text(policy)))?;
        if let Some(problem) = &policy.problem {
            print(format_args!("Problem:   {problem}"))?;
        }
        print(format_args!("Account:   {}", account_text(account)))?;
        for finding in &verdict.violations {
            let permitted = finding.permitted.join(", ");
            let permitted = if permitted.is_empty() { "an account" } else { permitted.as_str() };
            print(format_args!(
                "Violation: {} is {}, permitted: {permitted}",
                finding.rule, finding.found
            ))?;
        }
        for remark in &verdict.remarks {
            print(format_args!(
                "Reported:  {} is {}: without consequence",
                remark.rule, remark.found
            ))?;
        }
        for unknown in &verdict.unknown {
            print(format_args!("Unknown:   {}: {}", unknown.rule, unknown.why))?;
        }
        print(format_args!("Response:  {}", response_text(hook, &self.answer(hook))))
    }
}

fn policy_text(policy: &HookPolicy) -> String {
    let in_state_dir = |name| policy.state_dir.join(name).display().to_string();
    match (policy.source, policy.stored) {
        (PolicySource::Managed, _) => {
            format!("`{}`, signed by the organisation", in_state_dir("managed.json"))
        }
        (PolicySource::MachineLocked, _) => "the machine's file, which locks it".to_owned(),
        (PolicySource::MachineFallback, _) | (_, None) => {
            "the machine's file, since the policy file cannot be used".to_owned()
        }
        (PolicySource::PolicyFile, Some((hash, at))) => {
            format!("`{}`, in force since {at}, configuration {hash}", in_state_dir("policy.json"))
        }
    }
}

fn account_text(account: &Account) -> String {
    match &account.state {
        SignInState::SignedIn(who) => {
            let known = |text: &Option<String>| text.clone().unwrap_or("unknown".to_owned());
            format!(
                "{}, organisation {}, by `{}`",
                known(&who.email),
                known(&who.organization),
                account.path.display()
            )
        }
        SignInState::Key(name) => format!("none: {name} is used in place of an account"),
        SignInState::Unknown(reason) => format!("unknown: {reason}"),
    }
}

fn response_text(hook: Hook, response: &HookResponse) -> String {
    let HookResponse { stdout, stderr, .. } = response;
    let name = hook.name();
    match (response.decision, hook) {
        (Decision::Allowed, _) if stdout.is_empty() => {
            format!("{name} is let through without a message")
        }
        (Decision::Allowed, _) => format!("{name} is let through with the message: {stdout}"),
        (Decision::Warned, _) => format!("{name} is let through, with a warning: {stdout}"),
        (Decision::Blocked, Hook::SessionStart) => format!(
            "a session cannot be prevented from starting; the user sees the message, and each prompt \
             is blocked with it:\n{stderr}"
        ),
        (Decision::Blocked, Hook::UserPromptSubmit) => {
            format!("the prompt is blocked with the message:\n{stderr}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use siem_protocol::managed::Action;

    use super::*;

    #[test]
    fn machine_policy_counts_alone_if_the_others_hang() {
        let home = tempfile::tempdir().unwrap();
        let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let environment = Environment::from_iter([(variable, home.path().to_str().unwrap())]);
        let mut paths = Paths::on(Os::CURRENT, &environment).unwrap();
        paths.machine_config = home.path().join("machine.toml");
        paths.machine_config_dir = home.path().join("machine.d");
        let policy = machine_policy(&paths);
        assert_eq!(
            (policy.source, policy.compliance.action),
            (PolicySource::MachineFallback, None)
        );
        let text = "locked = ['compliance']\n[compliance]\naction = 'block'\n";
        fs::write(&paths.machine_config, text).unwrap();
        let policy = machine_policy(&paths);
        assert_eq!(policy.source, PolicySource::MachineLocked);
        assert_eq!(policy.compliance.action, Some(Action::Block));
        assert!(policy.problem.is_some());
    }

    /// Regression: wrong arguments caused exit code 2, which blocks every prompt.
    #[test]
    fn a_malformed_hook_command_is_recognised() {
        let is = |line: &str| is_hook(line.split(' ').map(Into::into));
        for line in [
            "ai-agent check --hook",
            "ai-agent check --hook=SessionStart --nonsense",
            "ai-agent --debug check --hooks X",
            "ai-agent --config c check --nonsense --hook X",
        ] {
            assert!(is(line), "{line}");
        }
        let plain = |line: &str| plain_hook(line.split(' ').map(Into::into));
        assert_eq!(plain("ai-agent check --hook SessionStart").as_deref(), Some("SessionStart"));
        for line in ["check --hook X", "check --hook SessionStart --explain", "check --hook"] {
            assert_eq!(plain(&format!("ai-agent {line}")), None, "{line}");
        }
        for line in ["ai-agent check", "ai-agent run --hook", "ai-agent hooks install"] {
            assert!(!is(line), "{line}");
        }
    }
}
