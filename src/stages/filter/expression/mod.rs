//! Drops records by an expression over their content: a filter of one's own without a program.
//!
//! The language is CEL, the Common Expression Language. `record` is the record, `path` its session
//! file. An expression that cannot be evaluated, as when it names a member that is not there,
//! decides nothing unless `on_error` says otherwise.

mod check;
mod program;
mod value;

use schemars::JsonSchema;
use serde::Deserialize;

use self::program::Program;
use super::{Fallback, Filter, FilterOptions, FilterPlugin, Record, Verdict};
use crate::stages::BuildError;

inventory::submit! {
    FilterPlugin::new::<Options>(
        "expression",
        "Drops records of which an expression (CEL) is true, or another is not.",
        r#"
## Records of which this is true are dropped. `record` is the record, `path` its session file. A
## member that may be missing is asked for first: `has(record.cwd) && record.cwd == "/secret"`.
drop_when = 'record.type == "user" && record.cwd.startsWith("/secret")'
## Records of which this is false are dropped.
keep_when = 'record.type in ["user", "assistant"]'
## What becomes of a record of which neither can be told, since a member is missing or of another
## type: "keep" or "drop".
on_error = "keep"
## What becomes of a record that is too large to be looked at whole: "keep" or "drop".
on_oversize = "keep"
"#,
    )
}

/// Drops records of which an expression is true, or another is not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Records of which this is true are dropped. `record` is the record, `path` its session file.
    drop_when: Option<String>,
    /// Records of which this is false are dropped.
    keep_when: Option<String>,
    /// What becomes of a record of which an expression can't be told: "keep" or "drop".
    #[serde(default)]
    on_error: Fallback,
    /// What becomes of a record that is too large to be looked at whole: "keep" or "drop".
    #[serde(default)]
    on_oversize: Fallback,
}

/// Decides by expressions.
struct Expression {
    drop_when: Option<Program>,
    keep_when: Option<Program>,
    on_error: Fallback,
    on_oversize: Fallback,
}

impl FilterOptions for Options {
    type Filter = Expression;

    fn build(self) -> Result<Expression, BuildError> {
        let compile = |option, source: Option<String>| {
            let program = source.map(|source| Program::compile(&source)).transpose();
            program.map_err(|problem| BuildError::Invalid { option, problem })
        };
        Ok(Expression {
            drop_when: compile("drop_when", self.drop_when)?,
            keep_when: compile("keep_when", self.keep_when)?,
            on_error: self.on_error,
            on_oversize: self.on_oversize,
        })
    }
}

impl Filter for Expression {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_partial() {
            return self.on_oversize.verdict("oversized");
        }
        if !record.is_object() {
            return Verdict::Keep;
        }
        let questions =
            [(&self.drop_when, true, "drop_when"), (&self.keep_when, false, "keep_when")];
        for (program, dropped, reason) in questions {
            let Some(program) = program else { continue };
            match program.is_true_of(record) {
                Some(answer) if answer == dropped => return Verdict::Drop(reason),
                None if self.on_error == Fallback::Drop => {
                    return Verdict::Drop("expression_error");
                }
                _ => {}
            }
        }
        Verdict::Keep
    }
}

#[cfg(test)]
mod tests;
