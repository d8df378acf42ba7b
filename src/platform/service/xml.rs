//! Property lists of launchd and tasks of the task scheduler of Windows, as XML.

/// Returns the definition of a launchd job that runs `words`, a program and its arguments, at login. `comment`
/// and `settings` are inserted as they are. See `man launchd.plist`.
pub(super) fn property_list(label: &str, words: &[&str], comment: &str, settings: &str) -> String {
    let words: String =
        words.iter().map(|word| format!("\t\t<string>{}</string>\n", escape(word))).collect();
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
{comment}<plist version="1.0">
<dict>
	<key>Label</key>
	<string>{label}</string>
	<key>ProgramArguments</key>
	<array>
{words}	</array>
	<key>RunAtLoad</key>
	<true/>
{settings}</dict>
</plist>
"#
    )
}

/// Returns the definition of a task that runs `words`, a program and its arguments, as `user` from login on.
///
/// See <https://learn.microsoft.com/en-us/windows/win32/taskschd/task-scheduler-schema>. The
/// trigger fires every five minutes and usually finds the task running: restarting on failure
/// covers a task that could not be started, not one that was ended. `conhost` hides the console
/// window.
pub(super) fn task(name: &str, description: &str, user: &str, words: &[&str]) -> String {
    let words: String = words.iter().map(|word| format!(" {}", escape(&task_word(word)))).collect();
    let user = escape(user);
    format!(
        r#"<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{description}</Description>
    <URI>\{name}</URI>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Repetition>
        <Interval>PT5M</Interval>
        <StopAtDurationEnd>false</StopAtDurationEnd>
      </Repetition>
      <Enabled>true</Enabled>
      <UserId>{user}</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{user}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>999</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>%SystemRoot%\System32\conhost.exe</Command>
      <Arguments>--headless{words}</Arguments>
    </Exec>
  </Actions>
</Task>
"#
    )
}

/// Quotes a word of a command line, which is a path or has only letters, digits and `-`. The prefix of a
/// canonical path is omitted: not every program accepts it on its command line.
fn task_word(word: &str) -> String {
    let is_path_of_drive = |path: &&str| path.as_bytes().get(1) == Some(&b':');
    let word = word.strip_prefix(r"\\?\").filter(is_path_of_drive).unwrap_or(word);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if word.bytes().all(is_plain) { word.to_owned() } else { format!("\"{word}\"") }
}

/// Encodes a text in UTF-16 with a byte order mark and the line endings of Windows.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    let text = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Escapes the text of an element.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_task_are_quoted_and_plain() {
        for (word, expected) in [
            ("run", "run"),
            ("150000", "150000"),
            (r"C:\a b\x.exe", r#""C:\a b\x.exe""#),
            (r"\\?\C:\b\x.exe", r#""C:\b\x.exe""#),
            (r"\\?\UNC\s\x.exe", r#""\\?\UNC\s\x.exe""#),
        ] {
            assert_eq!(task_word(word), expected);
        }
    }
}
