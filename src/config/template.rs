//! Template of the machine's file.

use super::read_layers::DEFAULTS;

const HEADER: &str = "\
# The configuration of ai-agent on this machine.
#
# Every option is listed as a comment, with its default. Remove the `# ` of the options that you
# change, and leave the rest: options that are not set follow the defaults of later versions.
# `ai-agent config check FILE` checks a file, `ai-agent config show --origin` prints the values in
# force.
";

/// Returns the built-in configuration with every value commented out.
#[must_use]
pub fn template() -> String {
    // The header of the defaults ends before the paragraph on units.
    let units = DEFAULTS.find("# Durations are written").expect("the defaults have this paragraph");
    let mut text = format!("{HEADER}#\n");
    for line in DEFAULTS[units..].lines() {
        if !(line.is_empty() || line.starts_with(['#', '['])) {
            text += "# ";
        }
        text += line;
        text.push('\n');
    }
    text
}
