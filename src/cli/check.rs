//! `ai-agent check`: whether the agent runs; with `--hook`, what a hook of Claude Code answers.
//!
//! A hook is called for each prompt and must be quick: no runtime, no store, no network, no daemon.
//! Whatever goes wrong in here must not block anybody's work unless the policy says so: the client
//! takes exit 2 for a block, and lets a prompt through for all else.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use siem_protocol::managed::OnError;

use super::{Failure, print, setup::Surroundings, status};
use crate::{
    compliance::{
        Account, Evaluation, SignInState,
        cache::read_sign_in_state_cached,
        hook_input::HookInput,
        hook_response::{Decision, Hook, HookResponse},
        policy,
        policy_file::{self, LocatedPolicy, PolicyFileError},
        spool::{Spool, SpooledReport},
    },
    platform::{Clock as _, Environment, LockRole, Os, Paths, StateLock, SystemClock, input},
    text::causes,
};

/// More of a call is not read: a prompt may be megabytes long, and comes last.
const MOST_INPUT: usize = 256 << 10;
/// How long the client may take to say why it calls.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether the agent runs; with `--hook`, what a hook of Claude Code answers.
#[derive(Args)]
pub(super) struct Arguments {
    /// Answers Claude Code's hook of this name: `SessionStart` or `UserPromptSubmit`.
    #[arg(long, value_name = "EVENT")]
    hook: Option<String>,
    /// With `--hook`: says in plain words what would be answered, and why. Reads no call, and
    /// reports nothing.
    #[arg(long, requires = "hook")]
    explain: bool,
    /// Fails too when the agent runs and does not get on: delivery or reading stands still.
    #[arg(long, conflicts_with = "hook")]
    strict: bool,
}

impl Arguments {
    /// The hook that this is a call of.
    pub(super) fn hook(&self) -> Option<&str> {
        self.hook.as_deref().filter(|_| !self.explain)
    }

    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        match &self.hook {
            Some(name) => explain(name),
            None if self.strict => status::check(explicit),
            None => is_running(explicit),
        }
    }
}

/// The hook of the command line that `hooks install` writes.
pub(super) fn plain_hook(arguments: impl IntoIterator<Item = OsString>) -> Option<String> {
    let mut arguments = arguments.into_iter().skip(1);
    let is_plain = arguments.next()? == "check" && arguments.next()? == "--hook";
    let hook = arguments.next().filter(|_| is_plain)?.into_string().ok()?;
    (arguments.next().is_none() && Hook::named(&hook).is_some()).then_some(hook)
}

/// Whether a command line is that of a hook, even one that makes no sense: it must not be answered
/// with exit 2, which blocks every prompt.
pub(super) fn is_hook(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut arguments = arguments.into_iter().skip(1);
    let is_check = arguments.by_ref().any(|argument| argument == "check");
    is_check && arguments.any(|argument| argument.to_string_lossy().starts_with("--hook"))
}

fn is_running(explicit: Option<&Path>) -> Result<(), Failure> {
    let state_dir = Surroundings::look()?.state_dir(explicit);
    match StateLock::current_holder(&state_dir) {
        Ok(Some(holder)) if holder.role == LockRole::Command => Err(Failure::failed(format!(
            "ai-agent is not running: a command of it{holder} is at work on `{}`",
            state_dir.display()
        ))),
        Ok(Some(holder)) => print(format_args!("ai-agent is running{holder}")),
        Ok(None) => Err(Failure::failed(format!(
            "ai-agent is not running: nobody holds `{}`",
            state_dir.display()
        ))),
        Err(error) => Err(Failure::failed(error)),
    }
}

/// What a hook knows when it answers.
struct Knowledge {
    found: LocatedPolicy,
    account: Account,
    verdict: Evaluation,
}

impl Knowledge {
    /// Looks at the policy and at who is signed in; `None` when no policy was ever in force.
    fn gather(environment: &Environment, paths: &Paths) -> Result<Option<Self>, PolicyFileError> {
        let Some(found) = policy_file::find(paths)? else { return Ok(None) };
        let account = Account::of_claude_code_with(&paths.home, environment, |path| {
            read_sign_in_state_cached(path, &found.state_dir, SystemClock.now())
        });
        let verdict = policy::evaluate(&account.state, &found.policy.compliance);
        Ok(Some(Self { found, account, verdict }))
    }

    fn answer(&self, hook: Hook) -> HookResponse {
        HookResponse::new(hook, &self.verdict, &self.found.policy.compliance)
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
        // What is permitted stands in the configuration, and may be long.
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
            config_hash: Some(self.found.policy.config_hash),
        }
    }
}

/// Answers a hook: the whole life of such a process.
pub(super) fn answer_hook(name: &str) -> ExitCode {
    let begun = Instant::now();
    let Some(hook) = Hook::named(name) else {
        let known = Hook::ALL.map(Hook::name).join("` and `");
        say_on_stderr(&format!("`{name}` is no hook that ai-agent answers: it knows `{known}`"));
        return ExitCode::SUCCESS;
    };
    // The client shows what a hook that blocks says: nothing of ours may get in between.
    std::panic::set_hook(Box::new(|_| ()));
    let environment = Environment::from_process();
    let Some((environment, paths)) = home(environment) else {
        return ExitCode::SUCCESS;
    };
    let gathered = catch_unwind(AssertUnwindSafe(|| Knowledge::gather(&environment, &paths)));
    let knowledge = match gathered {
        Ok(Ok(Some(knowledge))) => knowledge,
        Ok(Ok(None)) => return ExitCode::SUCCESS,
        Ok(Err(error)) => {
            say_on_stderr(&causes(&error));
            return ExitCode::SUCCESS;
        }
        Err(_) => return failed(&paths),
    };
    let Ok(answer) = catch_unwind(AssertUnwindSafe(|| knowledge.answer(hook))) else {
        return failed(&paths);
    };
    say(&answer);
    let latency = begun.elapsed();
    let reported = catch_unwind(AssertUnwindSafe(|| {
        let call = HookInput::read(&input::first_line(MOST_INPUT, PATIENCE));
        let report = knowledge.report(hook, &answer, call, latency);
        Spool::of(&knowledge.found.state_dir).add(&report, random())
    }));
    // Who answers has done what it is there for; the daemon misses the report.
    drop(reported);
    ExitCode::from(answer.exit_code())
}

/// The paths of the user, who is asked of the system when no variable names the home directory.
fn home(environment: Environment) -> Option<(Environment, Paths)> {
    if let Ok(paths) = Paths::on(Os::CURRENT, &environment) {
        return Some((environment, paths));
    }
    let environment = environment.with_home(&std::env::home_dir()?);
    let paths = Paths::on(Os::CURRENT, &environment).ok()?;
    Some((environment, paths))
}

/// The check itself has failed: the policy says what is answered then.
fn failed(paths: &Paths) -> ExitCode {
    let policy = catch_unwind(AssertUnwindSafe(|| policy_file::find(paths)));
    let on_error = match policy {
        Ok(Ok(Some(found))) => found.policy.compliance.on_error,
        _ => None,
    };
    if on_error != Some(OnError::Block) {
        say_on_stderr("ai-agent could not check who is signed in, and lets the prompt through");
        return ExitCode::SUCCESS;
    }
    let answer = HookResponse::blocked(
        "Your organisation's policy asks who is signed in to Claude Code, and ai-agent could not find \
         out.\nRun `ai-agent check --hook UserPromptSubmit --explain` to see why, and show it to your \
         administrator."
            .to_owned(),
    );
    say(&answer);
    ExitCode::from(answer.exit_code())
}

fn say(answer: &HookResponse) {
    let mut stdout = io::stdout().lock();
    // Nobody is there to be told when the client has gone.
    drop(stdout.write_all(answer.stdout.as_bytes()).and_then(|()| stdout.flush()));
    if !answer.stderr.is_empty() {
        say_on_stderr(&answer.stderr);
    }
}

fn say_on_stderr(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

fn random() -> u128 {
    fastrand::u128(..)
}

/// Says in plain words what a hook would answer, and why.
fn explain(name: &str) -> Result<(), Failure> {
    let hook = Hook::named(name).ok_or_else(|| {
        let known = Hook::ALL.map(Hook::name).join("` or `");
        Failure::usage(format!("`{name}` is no hook that ai-agent answers: give `{known}`"))
    })?;
    let (environment, paths) = home(Environment::from_process())
        .ok_or_else(|| Failure::usage("nobody knows the home directory: set HOME"))?;
    let knowledge = match Knowledge::gather(&environment, &paths) {
        Ok(Some(knowledge)) => knowledge,
        Ok(None) => {
            return print(format_args!(
                "No policy is known: `ai-agent run` leaves it in `{}`. The hook lets everything \
                 through and says nothing.",
                paths.default_state_dir.display()
            ));
        }
        Err(error) => {
            return print(format_args!(
                "The policy is not taken: {}. The hook lets everything through.",
                causes(&error)
            ));
        }
    };
    knowledge.tell(hook)
}

impl Knowledge {
    fn tell(&self, hook: Hook) -> Result<(), Failure> {
        let Self { found, account, verdict } = self;
        print(format_args!(
            "Policy:  `{}`, in force since {}, configuration {}",
            found.state_dir.join("policy.json").display(),
            found.policy.at,
            found.policy.config_hash
        ))?;
        let who = match &account.state {
            SignInState::SignedIn(who) => {
                let known = |text: &Option<String>| text.clone().unwrap_or("unknown".to_owned());
                format!(
                    "{}, organisation {}, by `{}`",
                    known(&who.email),
                    known(&who.organization),
                    account.path.display()
                )
            }
            SignInState::Key(name) => format!("nobody: {name} is used in place of an account"),
            SignInState::Unknown(why) => format!("not known: {why}"),
        };
        print(format_args!("Account: {who}"))?;
        for finding in &verdict.violations {
            let permitted = finding.permitted.join(", ");
            let permitted = if permitted.is_empty() { "an account" } else { permitted.as_str() };
            print(format_args!(
                "Wrong:   {} is {}, permitted is {permitted}",
                finding.rule, finding.found
            ))?;
        }
        for remark in &verdict.remarks {
            print(format_args!(
                "Noted:   {} is {}: reported, not acted on",
                remark.rule, remark.found
            ))?;
        }
        for unknown in &verdict.unknown {
            print(format_args!("Unknown: {}: {}; that breaks no rule", unknown.rule, unknown.why))?;
        }
        let answer = self.answer(hook);
        let name = hook.name();
        match (answer.decision, hook) {
            (Decision::Allowed, _) if answer.stdout.is_empty() => {
                print(format_args!("Answer:  {name} is let through, and nothing is said"))
            }
            (Decision::Allowed, _) => {
                print(format_args!("Answer:  {name} is let through, with: {}", answer.stdout))
            }
            (Decision::Warned, _) => print(format_args!(
                "Answer:  {name} is let through, with a warning: {}",
                answer.stdout
            )),
            (Decision::Blocked, Hook::SessionStart) => print(format_args!(
                "Answer:  a session cannot be stopped from starting; the user sees, and each prompt is \
                 blocked with:\n{}",
                answer.stderr
            )),
            (Decision::Blocked, Hook::UserPromptSubmit) => print(format_args!(
                "Answer:  the prompt is blocked, and the user sees:\n{}",
                answer.stderr
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wrong usage ends with 2, which blocks every prompt when the client calls.
    #[test]
    fn a_hook_that_is_called_wrong_is_known_for_one() {
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
