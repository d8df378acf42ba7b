//! Definition of the service: a systemd unit, a property list, or a scheduled task.

use super::{
    super::os::Os,
    user_service::{NAME, Service},
    xml::{self, utf16},
};

/// Description of the scheduled task.
const DESCRIPTION: &str = "Ships Claude Code session logs to the SIEM";

impl Service {
    /// Returns the definition of the service that runs `program`.
    #[must_use]
    pub fn definition(&self, program: &str) -> String {
        match self.os {
            Os::Linux => unit(program),
            Os::Macos => agent_property_list(program),
            Os::Windows => xml::task(NAME, DESCRIPTION, &self.user, &[program, "run"]),
        }
    }

    /// Returns the definition as written to its file.
    ///
    /// # Errors
    /// `NotText` if no definition can contain the path of the program.
    pub fn definition_file(&self) -> Result<Vec<u8>, NotText> {
        let path = &self.installed.program;
        let program = path.to_str().filter(|text| !text.contains(char::is_control));
        let program = program.ok_or_else(|| NotText { path: path.clone() })?;
        let text = self.definition(program);
        Ok(match self.os {
            Os::Linux | Os::Macos => text.into_bytes(),
            // The task scheduler requires UTF-16 with a byte order mark.
            Os::Windows => utf16(&text),
        })
    }
}

/// Path that no definition can contain.
#[derive(Debug, thiserror::Error)]
#[error(
    "the program would be installed at `{}`, which is not plain text: a service needs a home \
     directory whose path is valid UTF-8",
    path.display()
)]
pub struct NotText {
    /// Path of the program.
    pub path: std::path::PathBuf,
}

/// Uses only those hardening options that need no user namespace, since many systems do not permit
/// one: <https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html>.
fn unit(program: &str) -> String {
    let guard = unit_guard(program);
    let program = unit_word(program);
    format!(
        "# Written by `ai-agent install`, removed by `ai-agent uninstall`.

[Unit]
Description=Ships Claude Code session logs to the SIEM
StartLimitIntervalSec=0

[Service]
Type=notify
{guard}ExecStart={program} run
ExecReload=/bin/kill -HUP $MAINPID
# Restarts after a clean exit too, for example if a user kills the process.
Restart=always
RestartSec=2s
# After a power cut a large outbox is checked first.
TimeoutStartSec=5min
# The agent stops within 5 s.
TimeoutStopSec=15s
# The agent feeds the watchdog only while it makes progress.
WatchdogSec=5min
# A core file would contain secrets and session content.
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
# The agent restricts its own writes, where the kernel has Landlock.
SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
# Several times the memory that any backlog needs.
MemoryMax=512M

[Install]
WantedBy=default.target
"
    )
}

/// Returns the lines that run the guard of the previous program before each start, while the record of an
/// update says that the new program has not proved that it runs. The shell tests that without a process,
/// except for a symlink.
fn unit_guard(program: &str) -> String {
    // The files of an update are beside the program to which a symlink leads.
    const SCRIPT: &str = r#"p=$$0; [ ! -L "$$p" ] || p=$$(readlink -f "$$p"); read -r line 2>/dev/null <"$$p.update.json" || exit 0; case $$line in *unconfirmed*|*rolling-back*) exec "$$p.previous" guard-update "$$p";; esac"#;

    let program = unit_word(program);
    format!(
        "# After an update that is not confirmed, the previous program counts the starts of the new one.
ExecStartPre=-/bin/sh -c '{SCRIPT}' {program}
"
    )
}

/// Quotes an argument of `ExecStart=`, and escapes characters that systemd would expand.
fn unit_word(text: &str) -> String {
    let escaped =
        text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte);
    if text.bytes().all(is_plain) { escaped } else { format!("\"{escaped}\"") }
}

/// Definitions for one user and for all users differ in the program only.
fn agent_property_list(program: &str) -> String {
    const COMMENT: &str = "\
<!-- One agent for each user who logs in, with that user's rights: ~/Library/LaunchAgents/ai-agent.plist,
     written by `ai-agent install`, or /Library/LaunchAgents/ai-agent.plist, root:wheel 0644. -->
";
    const SETTINGS: &str = "\
\t<!-- Restarts the agent if a user kills it. -->
\t<key>KeepAlive</key>
\t<true/>
\t<key>ThrottleInterval</key>
\t<integer>5</integer>
\t<!-- The agent lowers the priority of background work itself; new records need the standard one. -->
\t<key>ProcessType</key>
\t<string>Standard</string>
\t<key>Umask</key>
\t<string>077</string>
";
    xml::property_list(NAME, &[program, "run"], COMMENT, SETTINGS)
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{Environment, Paths},
        *,
    };

    fn service(os: Os, home: &str) -> Service {
        let variables = [("HOME", home), ("USERPROFILE", home)];
        let paths = Paths::on(os, &Environment::from_iter(variables)).unwrap();
        Service::on(os, &paths.installed, r"CORP\You & me")
    }

    fn written(os: Os, home: &str) -> String {
        let bytes = service(os, home).definition_file().unwrap();
        match os {
            Os::Linux | Os::Macos => String::from_utf8(bytes).unwrap(),
            Os::Windows => {
                let (units, rest) = bytes.as_chunks();
                assert!(rest.is_empty());
                let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
                let text = String::from_utf16(&units).unwrap();
                let text = text.strip_prefix('\u{feff}').unwrap();
                assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
                text.replace("\r\n", "\n")
            }
        }
    }

    #[test]
    fn definition_file_of_each_system() {
        for (os, home, expected) in [
            (Os::Linux, "/home/u", include_str!("cases/ai-agent.service")),
            (Os::Macos, "/Users/u", include_str!("cases/ai-agent.plist")),
            (Os::Windows, r"C:\Users\u", include_str!("cases/task.xml")),
        ] {
            assert_eq!(written(os, home), expected, "{os:?}");
        }
    }

    /// Administrators copy the samples: they must define the same service as `install`.
    #[test]
    fn mdm_samples_define_the_same_service() {
        const PROGRAM: &str = "/usr/local/bin/ai-agent";
        const FIRST_LINE: &str =
            "# Written by `ai-agent install`, removed by `ai-agent uninstall`.\n";
        const FIRST_LINES_OF_SAMPLE: &str = "\
# /etc/systemd/user/ai-agent.service: one agent for each user who logs in, with that user's rights.
# `systemctl --global enable ai-agent.service` makes it start at the next login of every user.
";
        const LIMIT: &str = "StartLimitIntervalSec=";
        const CONDITION: &str = "\
# Root and service users may have a user manager too, but no sessions to ship.
ConditionUser=!@system
";
        let unit = service(Os::Linux, "/home/u").definition(PROGRAM);
        let unit = unit.replace(FIRST_LINE, FIRST_LINES_OF_SAMPLE);
        let unit = unit.replace(LIMIT, &[CONDITION, LIMIT].concat());
        // The program of the machine is not updated by the agent.
        let unit = unit.replace(&unit_guard(PROGRAM), "");
        assert_eq!(unit, include_str!("../../../config/mdm/ai-agent.service"));
        let list = service(Os::Macos, "/home/u").definition(PROGRAM);
        assert_eq!(list, include_str!("../../../config/mdm/ai-agent.plist"));
    }

    /// Regression: the guard did not run if the program was a symlink.
    #[cfg(unix)]
    #[test]
    fn guard_finds_an_update_behind_a_symlink() {
        use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

        let dir = tempfile::tempdir().unwrap();
        let [program, link, previous] =
            ["a b", "link", "a b.previous"].map(|name| dir.path().join(name));
        fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink("a b", &link).unwrap();
        fs::write(&previous, "#!/bin/sh\necho \"$@\"").unwrap();
        fs::set_permissions(&previous, fs::Permissions::from_mode(0o755)).unwrap();
        let line = unit_guard("/b");
        let script = line.split('\'').nth(1).unwrap().replace("$$", "$");
        let printed = |started: &std::path::Path| {
            let output = Command::new("/bin/sh").arg("-c").arg(&script).arg(started).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let real = dir.path().canonicalize().unwrap().join("a b");
        let expected = format!("guard-update {}\n", real.display());
        for (state, expected) in [("unconfirmed", &*expected), ("confirmed\"", "")] {
            fs::write(dir.path().join("a b.update.json"), format!("\"{state}\n")).unwrap();
            assert_eq!([printed(&program), printed(&link)], [expected; 2], "{state}");
        }
    }

    #[test]
    fn special_characters_in_home_are_escaped() {
        let unit = written(Os::Linux, "/home/a b\"%h$x");
        let expected = "\nExecStart=\"/home/a b\\\"%%h$$x/.local/bin/ai-agent\" run\n";
        assert!(unit.contains(expected), "{unit}");
        let list = written(Os::Macos, "/Users/a&b <c>");
        assert!(list.contains("<string>/Users/a&amp;b &lt;c&gt;/Library/"), "{list}");
        let task = written(Os::Windows, r"C:\Users\a & b");
        assert!(task.contains(r#"--headless "C:\Users\a &amp; b\AppData\"#), "{task}");
        assert!(task.contains(r"<UserId>CORP\You &amp; me</UserId>"), "{task}");
    }

    #[test]
    fn home_that_is_not_text_is_refused() {
        let error = service(Os::Linux, "/home/a\nb").definition_file().unwrap_err();
        assert!(error.to_string().contains("not plain text"), "{error}");
    }
}
