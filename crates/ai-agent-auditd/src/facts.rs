//! Facts of an event, extracted from its lines.

use std::collections::BTreeMap;

use serde::Serialize;

use super::line::Line;
use ai_agent_stage::Timestamp;

/// Login id and session of a process that no login started, such as a service.
const UNSET: u32 = u32::MAX;
/// More arguments than the kernel accepts.
const MAX_ARGUMENTS: usize = 1 << 20;

/// Facts of one event. Facts that its lines do not contain are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Time of the event, RFC 3339 in UTC.
    pub time: String,
    /// Time of the event in milliseconds since 1970.
    #[serde(skip)]
    pub at: Timestamp,
    /// Number of the event since the kernel started.
    pub serial: u64,
    /// Name of the machine, in a log of several machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Keys of the audit rules that the event matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// System call: its name if auditd appends it, otherwise its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syscall: Option<String>,
    /// True if the call succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// Process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Process id of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// User id of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Name of the user, if auditd appends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// User id of the login; absent if no login started the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Name of the user who logged in, if auditd appends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_user: Option<String>,
    /// Session of the login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// Terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<String>,
    /// Name of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Executable; the interpreter of a script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Arguments, starting with the name of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// True if the log lacks some of the arguments.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub argv_incomplete: bool,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Files of the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Title of the process: the first bytes of its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proctitle: Option<Vec<String>>,
}

impl Facts {
    /// Extracts the facts from the lines of one event, given without their endings.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut facts = Self::default();
        let mut arguments = Arguments::default();
        for line in lines.into_iter().filter_map(Line::parse) {
            facts.at = Timestamp(line.id.millis);
            facts.serial = line.id.serial;
            facts.node = (!line.id.node.is_empty()).then(|| text(&line.id.node));
            match line.kind {
                b"SYSCALL" => facts.take_syscall(&line),
                b"EXECVE" => arguments.take(&line),
                b"CWD" => facts.cwd = string(&line, b"cwd"),
                b"PATH" => facts.paths.extend(string(&line, b"name")),
                b"PROCTITLE" => facts.proctitle = words(&line),
                _ => {}
            }
        }
        facts.time = facts.at.to_string();
        (facts.argv, facts.argv_incomplete) = arguments.all();
        facts
    }

    /// The facts as a JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("facts have only strings as keys")
    }

    fn take_syscall(&mut self, line: &Line<'_>) {
        let set = |id: Option<u32>| id.filter(|id| *id != UNSET);
        for (key, value) in line.fields() {
            let string = || value.decoded().map(|bytes| text(&bytes));
            // Values that are never in hex, even if they resemble it.
            let word = || Some(text(value.word())).filter(|it| it != "?" && it != "(none)");
            match key {
                b"syscall" => self.syscall = self.syscall.take().or_else(word),
                b"SYSCALL" => self.syscall = word(),
                b"success" => self.success = Some(value.word() == b"yes"),
                b"pid" => self.pid = value.number(),
                b"ppid" => self.ppid = value.number(),
                b"uid" => self.uid = value.number(),
                b"UID" => self.user = word(),
                b"auid" => self.login_uid = set(value.number()),
                b"AUID" => self.login_user = word().filter(|name| name != "unset"),
                b"ses" => self.session = set(value.number()),
                b"tty" => self.tty = word(),
                b"comm" => self.comm = string(),
                b"exe" => self.exe = string(),
                // One field holds several keys, separated by a byte 1.
                b"key" => {
                    let keys = string().unwrap_or_default();
                    self.keys
                        .extend(keys.split('\u{1}').filter(|it| !it.is_empty()).map(Into::into));
                }
                _ => {}
            }
        }
    }
}

/// Arguments of `EXECVE` lines: `a1="stop"`, or in pieces if they are too long for one line:
/// `a2_len=100000 a2[0]=…`, and `a2[1]=…` in the next line.
#[derive(Default)]
struct Arguments {
    count: Option<usize>,
    pieces: BTreeMap<(usize, usize), Vec<u8>>,
    lengths: BTreeMap<usize, usize>,
}

impl Arguments {
    fn take(&mut self, line: &Line<'_>) {
        for (key, value) in line.fields() {
            if key == b"argc" {
                self.count = value.number();
                continue;
            }
            let Some(name) = key.strip_prefix(b"a").and_then(|it| std::str::from_utf8(it).ok())
            else {
                continue;
            };
            if let Some(argument) = name.strip_suffix("_len") {
                // In hex, each byte counts as two.
                if let (Ok(argument), Some(length)) = (argument.parse(), value.number()) {
                    self.lengths.insert(argument, length);
                }
                continue;
            }
            let (argument, piece) = match name.strip_suffix(']').and_then(|it| it.split_once('[')) {
                Some((argument, piece)) => (argument.parse(), piece.parse()),
                None => (name.parse(), Ok(0)),
            };
            if let (Ok(argument), Ok(piece)) = (argument, piece)
                && argument < MAX_ARGUMENTS
            {
                let bytes = value.decoded().unwrap_or_default().into_owned();
                self.pieces.insert((argument, piece), bytes);
            }
        }
    }

    /// Returns the arguments, and true if some are missing.
    fn all(self) -> (Option<Vec<String>>, bool) {
        if self.pieces.is_empty() {
            return (None, self.count.is_some_and(|count| count > 0));
        }
        let mut whole: Vec<(usize, usize, Vec<u8>)> = Vec::new();
        let mut is_incomplete = false;
        for ((argument, piece), bytes) in self.pieces {
            match whole.last_mut().filter(|(last, ..)| *last == argument) {
                Some((_, next, known)) => {
                    is_incomplete |= *next != piece;
                    *next = piece + 1;
                    known.extend(bytes);
                }
                None => {
                    is_incomplete |= piece != 0 || argument != whole.len();
                    whole.push((argument, piece + 1, bytes));
                }
            }
        }
        is_incomplete |= self.count.is_some_and(|count| count != whole.len());
        is_incomplete |= whole.iter().any(|(argument, _, bytes)| {
            let length = self.lengths.get(argument);
            length.is_some_and(|length| *length != bytes.len() && *length != 2 * bytes.len())
        });
        (Some(whole.iter().map(|(.., bytes)| text(bytes)).collect()), is_incomplete)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn string(line: &Line<'_>, key: &[u8]) -> Option<String> {
    let (_, value) = line.fields().find(|(it, _)| *it == key)?;
    value.decoded().map(|bytes| text(&bytes))
}

/// Splits the title of a process into its words, which a byte 0 separates.
fn words(line: &Line<'_>) -> Option<Vec<String>> {
    let (_, value) = line.fields().find(|(key, _)| *key == b"proctitle")?;
    let title = value.decoded()?;
    Some(title.split(|byte| *byte == 0).map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "msg=audit(1763812345.007:4711):";

    fn facts(lines: &[String]) -> Facts {
        Facts::of(lines.iter().map(String::as_bytes))
    }

    fn execve(body: &str) -> String {
        format!("type=EXECVE {HEAD} {body}")
    }

    fn hex(text: &str) -> String {
        data_encoding::HEXUPPER.encode(text.as_bytes())
    }

    #[test]
    fn facts_contain_user_program_and_directory() {
        let lines = [
            format!(
                "type=SYSCALL {HEAD} arch=c000003e syscall=59 success=yes exit=0 a0=55 a1=56 items=2 \
                 ppid=100 pid=101 auid=1000 uid=0 gid=0 tty=pts0 ses=3 comm=\"docker\" \
                 exe=\"/usr/bin/docker\" subj=unconfined key=\"claude-hooks-docker\"\u{1d}ARCH=x86_64 \
                 SYSCALL=execve AUID=\"u\" UID=\"root\""
            ),
            execve(&format!("argc=3 a0=\"docker\" a1=\"stop\" a2={}", hex("ein Nämé"))),
            format!("type=CWD {HEAD} cwd={}", hex("/srv/my app")),
            format!("type=PATH {HEAD} item=0 name=\"/usr/bin/docker\" inode=5"),
            format!("type=PROCTITLE {HEAD} proctitle={}", hex("docker\0stop")),
        ];
        let text = |text: &str| Some(text.to_owned());
        let list = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let expected = Facts {
            time: "2025-11-22T11:52:25.007Z".into(),
            at: Timestamp(1_763_812_345_007),
            serial: 4711,
            node: None,
            keys: list(&["claude-hooks-docker"]),
            syscall: text("execve"),
            success: Some(true),
            pid: Some(101),
            ppid: Some(100),
            uid: Some(0),
            user: text("root"),
            login_uid: Some(1000),
            login_user: text("u"),
            session: Some(3),
            tty: text("pts0"),
            comm: text("docker"),
            exe: text("/usr/bin/docker"),
            argv: Some(list(&["docker", "stop", "ein Nämé"])),
            argv_incomplete: false,
            cwd: text("/srv/my app"),
            paths: list(&["/usr/bin/docker"]),
            proctitle: Some(list(&["docker", "stop"])),
        };
        assert_eq!(facts(&lines), expected);
    }

    #[test]
    fn unset_login_is_absent() {
        let line = format!(
            "type=SYSCALL {HEAD} auid=4294967295 ses=4294967295 tty=(none) \
             key=612D6B65790162\u{1d}AUID=\"unset\""
        );
        let found = facts(&[line]);
        assert_eq!(
            (found.login_uid, found.session, found.login_user, found.tty),
            Default::default()
        );
        assert_eq!(found.keys, ["a-key", "b"]);
        let found = facts(&[format!("type=SYSCALL {HEAD} syscall=59 tty=ce")]);
        assert_eq!((found.syscall.as_deref(), found.tty.as_deref()), (Some("59"), Some("ce")));
    }

    /// An argument of 100 KB is split over a dozen lines, quoted or in hex.
    #[test]
    fn argument_in_pieces_is_joined() {
        let long = "long argument ".repeat(7000);
        for in_hex in [false, true] {
            let long = if in_hex { long.clone() } else { long.replace(' ', "_") };
            let value = |text: &str| if in_hex { hex(text) } else { format!("\"{text}\"") };
            let length = if in_hex { 2 * long.len() } else { long.len() };
            let mut lines = vec![execve("argc=4 a0=\"docker\" a1=\"run\"")];
            for (index, piece) in long.as_bytes().chunks(3000).enumerate() {
                let text = value(std::str::from_utf8(piece).unwrap());
                let length = if index == 0 { format!("a2_len={length} ") } else { String::new() };
                lines.push(execve(&format!(" {length}a2[{index}]={text}")));
            }
            lines.push(execve(" a3=\"end\""));
            let found = facts(&lines);
            assert_eq!(found.argv.unwrap(), ["docker", "run", long.as_str(), "end"]);
            assert!(!found.argv_incomplete);

            lines.remove(4);
            assert!(facts(&lines).argv_incomplete, "a line is missing");
        }
    }

    #[test]
    fn missing_arguments_are_marked() {
        assert_eq!(facts(&[]).argv, None);
        let found = facts(&[execve("argc=3 a0=\"docker\" a2=\"x\"")]);
        assert_eq!((found.argv.unwrap().len(), found.argv_incomplete), (2, true));
        let found =
            facts(&[execve("argc=4294967295 a4294967295=\"x\" a1[99999999999999999999]=\"y\"")]);
        assert_eq!((found.argv, found.argv_incomplete), (None, true));
    }
}
