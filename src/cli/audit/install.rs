//! `ai-agent audit install` and `uninstall`: audit rules.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use ai_agent_auditd::KEY;
use clap::Args;

use super::tools::{RULES, RULES_FOLDER, Root, command_text, find, find_docker, output_line};
use crate::{
    cli::{failure::Failure, output::print},
    platform::{Environment, user_id},
};

/// Rules with two placeholders.
const TEMPLATE: &str = include_str!("../../../config/audit/claude-hooks-docker.rules");
/// Default operator: the first user on most systems.
const DEFAULT_OPERATOR: u32 = 1000;

/// Options of `audit install`.
#[derive(Args)]
pub(super) struct Install {
    /// User id of the operator, whose docker commands are recorded besides root's; by default the user
    /// who runs this command, also with sudo, and 1000 for root itself
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Print the rules and the commands that would be run, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Options of `audit uninstall`.
#[derive(Args)]
pub(super) struct Uninstall {
    /// Print the commands that would be run, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Programs that the installation needs.
struct Tools {
    auditctl: PathBuf,
    augenrules: PathBuf,
    install: PathBuf,
    /// Path without symlinks.
    docker: String,
}

impl Install {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let tools = Tools::find(&environment)?;
        let rules = render(&tools.docker, self.operator(&environment));
        let root = Root::get()?;
        if self.dry_run {
            print(format_args!("{}", rules.trim_end()))?;
            let steps = [tools.place(), tools.load(), tools.list()];
            return steps.into_iter().try_for_each(|(program, arguments)| {
                print(format_args!("# {}", command_text(&root.line(program, &arguments))))
            });
        }
        let (program, arguments) = tools.place();
        root.run_with_input(program, &arguments, rules.as_bytes())?;
        print(format_args!("The rules are in `{RULES}`."))?;
        let (program, arguments) = tools.load();
        let loaded = root.run(program, &arguments)?;
        let (program, arguments) = tools.list();
        let list = root.run_checked(program, &arguments)?;
        let wanted = rules.lines().filter(|line| line.starts_with("-a ")).count();
        let ours =
            list.lines().filter(|line| is_ours(line) && line.contains(&tools.docker)).count();
        if ours < wanted || !loaded.status.success() {
            return Err(Failure::failed(format!(
                "the rules are in `{RULES}`, but only {ours} of {wanted} are loaded; output of \
                 `augenrules --load`: {}. If another file in `{RULES_FOLDER}` sets `-e 2`, rules \
                 change only when the machine restarts",
                output_line(&loaded)
            )));
        }
        print(format_args!(
            "The kernel records every run of `{}` by root and by the operator. Show the records:\n  \
             sudo ausearch -k {KEY} -i --start today\nShow who stopped containers:\n  sudo ai-agent audit tail",
            tools.docker
        ))
    }

    /// User whose commands are recorded besides root's.
    fn operator(&self, environment: &Environment) -> u32 {
        let by_sudo = environment.get("SUDO_UID").and_then(|uid| uid.to_str()?.parse().ok());
        // For a user who is not root, sudo would report the same id.
        let own = user_id().filter(|uid| *uid != 0);
        self.uid.or(own).or(by_sudo.filter(|uid| *uid != 0)).unwrap_or(DEFAULT_OPERATOR)
    }
}

impl Tools {
    fn find(environment: &Environment) -> Result<Self, Failure> {
        let mut missing = Vec::new();
        let mut get = |name: &'static str, found: Option<PathBuf>| {
            if found.is_none() {
                missing.push(name);
            }
            found.unwrap_or_default()
        };
        let auditctl = get("auditctl", find("auditctl")?);
        let augenrules = get("augenrules", find("augenrules")?);
        let _ausearch = get("ausearch", find("ausearch")?);
        let install = get("install", find("install")?);
        let docker = get("docker", find_docker(environment)?);
        if !missing.is_empty() {
            let has_audit = !missing.iter().any(|name| name.starts_with("au"));
            let audit = "; `apt-get install auditd` (Debian, Ubuntu) or `dnf install audit` \
                         (Fedora, RHEL) has auditctl, augenrules and ausearch";
            let docker = "; docker must be on the PATH: \
                          https://docs.docker.com/engine/install/ installs it";
            return Err(Failure::usage(format!(
                "not installed: {}{}{}",
                missing.join(", "),
                if has_audit { "" } else { audit },
                if missing.contains(&"docker") { docker } else { "" }
            )));
        }
        if is_absent(Path::new(RULES_FOLDER)) {
            let problem = format!("there is no `{RULES_FOLDER}`: reinstall auditd");
            return Err(Failure::usage(problem));
        }
        // The rules' grammar has no quotes.
        let is_plain = |path: &&str| !path.contains(|c: char| c.is_whitespace() || c.is_control());
        let docker = docker.to_str().filter(is_plain).ok_or_else(|| {
            Failure::usage(format!("no rule can name `{}`: it has a space", docker.display()))
        })?;
        Ok(Self { auditctl, augenrules, install, docker: docker.to_owned() })
    }

    /// Copies the standard input, which no other user can replace, unlike a temporary file.
    fn place(&self) -> (&Path, Vec<&OsStr>) {
        let owner = ["-m", "0640", "-o", "root", "-g", "root"];
        (&self.install, words(&[&owner[..], &["/dev/stdin", RULES]].concat()))
    }

    fn load(&self) -> (&Path, Vec<&OsStr>) {
        (&self.augenrules, words(&["--load"]))
    }

    fn list(&self) -> (&Path, Vec<&OsStr>) {
        (&self.auditctl, words(&["-l"]))
    }
}

impl Uninstall {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let (auditctl, augenrules) = (find("auditctl")?, find("augenrules")?);
        if auditctl.is_none() && is_absent(Path::new(RULES_FOLDER)) {
            return print(format_args!("auditd is not installed: there is nothing to remove"));
        }
        let root = Root::get()?;
        let remove = find("rm")?.map(|rm| (rm, words(&["-f", RULES])));
        let load = augenrules.map(|program| (program, words(&["--load"])));
        // Loading the remaining files does not necessarily delete loaded rules.
        let delete = auditctl.clone().map(|program| (program, words(&["-D", "-k", KEY])));
        if self.dry_run {
            let steps = [remove, load, delete].into_iter().flatten();
            return steps
                .map(|(program, arguments)| command_text(&root.line(&program, &arguments)))
                .try_for_each(|line| print(format_args!("# {line}")));
        }
        if let Some((program, arguments)) = remove {
            root.run_checked(&program, &arguments)?;
        }
        print(format_args!("Removed `{RULES}`."))?;
        // Failures are reported only if the list still has our rules.
        let mut failures = Vec::new();
        for (program, arguments) in [load, delete].into_iter().flatten() {
            let output = root.run(&program, &arguments)?;
            if !output.status.success() {
                failures.push(format!("`{}`: {}", program.display(), output_line(&output)));
            }
        }
        let Some(auditctl) = auditctl else { return Ok(()) };
        let list = root.run(&auditctl, &words(&["-l"]))?;
        let text = String::from_utf8_lossy(&list.stdout);
        if text.lines().any(is_ours) {
            return Err(Failure::failed(format!(
                "the rules stay loaded until the machine restarts: {}",
                failures.join("; ")
            )));
        }
        if list.status.success() {
            print(format_args!("None of the rules is loaded."))
        } else {
            print(format_args!("Cannot list the loaded rules: {}.", output_line(&list)))
        }
    }
}

/// Returns true if there is no file at a path, as far as this user can see.
fn is_absent(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Returns true if a line of `auditctl -l` is one of our rules.
pub(super) fn is_ours(line: &str) -> bool {
    line.split([' ', '=']).any(|word| word == KEY)
}

fn words<'a>(words: &[&'a str]) -> Vec<&'a OsStr> {
    words.iter().copied().map(OsStr::new).collect()
}

/// Rules for a program and an operator; a single one if the operator is root.
fn render(docker: &str, operator: u32) -> String {
    let is_double = |line: &&str| operator == 0 && line.contains("uid=@@OPERATOR_UID@@");
    let lines = TEMPLATE.lines().filter(|line| !is_double(line));
    let fill = |line: &str| {
        line.replace("@@DOCKER_PATH@@", docker).replace("@@OPERATOR_UID@@", &operator.to_string())
    };
    lines.map(|line| fill(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn rules_name_the_program_and_both_users() {
        let text = render("/usr/bin/docker", 1001);
        let expected = [
            "-a always,exit -F path=/usr/bin/docker -F perm=x -F uid=0 -F key=claude-hooks-docker",
            "-a always,exit -F path=/usr/bin/docker -F perm=x -F uid=1001 -F key=claude-hooks-docker",
        ];
        assert_eq!(rules(&text), expected);
        assert_eq!(
            rules(&render("/usr/bin/docker", 0)),
            expected[..1],
            "the kernel refuses duplicates"
        );
    }

    #[test]
    fn operator_is_the_user_of_the_command() {
        let operator = |uid, sudo: &str| {
            let environment = Environment::from_iter([("SUDO_UID", sudo)]);
            Install { uid, dry_run: true }.operator(&environment)
        };
        assert_eq!(operator(Some(7), "1001"), 7);
        if crate::platform::is_root() {
            assert_eq!(
                (operator(None, "1001"), operator(None, "0"), operator(None, "x")),
                (1001, 1000, 1000)
            );
        }
    }

    #[test]
    fn our_rules_are_recognised() {
        let ours = "-a always,exit -S all -F path=/usr/bin/docker -F perm=x -F uid=0 -F key=claude-hooks-docker";
        assert!(is_ours(ours));
        assert!(is_ours("-w /usr/bin/docker -p x -k claude-hooks-docker"));
        assert!(!is_ours("-w /usr/bin/docker -p x -k claude-hooks-docker-2"));
        assert!(!is_ours("No rules"));
    }
}
