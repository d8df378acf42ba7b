//! A machine's file to begin with.

use super::read_layers::DEFAULTS;

const HEADER: &str = "\
# The configuration of ai-agent on this machine.
#
# Every option stands here as a comment, with its default. Take the `# ` away from what you want to
# change, and leave the rest: what a file leaves out keeps its default, also in versions to come.
# `ai-agent config check FILE` says what is wrong with a file, `ai-agent config show --origin` what is
# in force.
";

/// The built-in configuration with each value as a comment, for an administrator to edit.
#[must_use]
pub fn template() -> String {
    // The header of the defaults ends with the first empty line after the paragraph on units.
    let units = DEFAULTS.find("# Durations are written").expect("the defaults say so");
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
