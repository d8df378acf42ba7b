//! The filter `expression`: drops records by an expression over their content.
//!
//! The language is [CEL](https://cel.dev), the Common Expression Language. `record` is the record,
//! `path` its session file. If an expression cannot be evaluated, for example because a member is
//! missing, `on_error` decides.

mod check;
mod pattern;
mod program;
mod value;

use ai_agent_stage::{BuildError, Fallback, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

use self::program::Program;

inventory::submit! {
    Plugin::filter::<Options>(
        "expression",
        "Drops records that match one CEL expression or fail another.",
        r#"
## Drop records that match this expression. `record` is the record, `path` its session file. Test
## members that may be missing: `has(record.cwd) && record.cwd == "/secret"`.
drop_when = 'record.type == "user" && record.cwd.startsWith("/secret")'
## Drop records that do not match this expression.
keep_when = 'record.type in ["user", "assistant"]'
## Action if an expression cannot be evaluated, because a member is missing or has another type:
## "keep" or "drop".
on_error = "keep"
## Action for a record that is too large to be held in memory: "keep" or "drop".
on_oversize = "keep"
"#,
    )
}

/// Options of the filter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Drop records that match this expression. `record` is the record, `path` its session file.
    drop_when: Option<String>,
    /// Drop records that do not match this expression.
    keep_when: Option<String>,
    /// Action if an expression cannot be evaluated: "keep" or "drop".
    #[serde(default)]
    on_error: Fallback,
    /// Action for a record that is too large to be held in memory: "keep" or "drop".
    #[serde(default)]
    on_oversize: Fallback,
}

/// The filter.
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
            program.map_err(|problem| BuildError::invalid(option, problem))
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
        let programs =
            [(&self.drop_when, true, "drop_when"), (&self.keep_when, false, "keep_when")];
        for (program, dropped, reason) in programs {
            let Some(program) = program else { continue };
            match program.matches(record) {
                Some(result) if result == dropped => return Verdict::Drop(reason),
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
