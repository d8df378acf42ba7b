//! Checks an expression once, when it is compiled: mistakes are reported before the first record, and
//! the cost of an evaluation is bounded.

use std::collections::BTreeSet;

use cel::{
    common::ast::{
        CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators,
    },
    parser::ParseErrors,
};
use regex_automata::meta::Regex;

use ai_agent_stage::did_you_mean;

use crate::pattern;

/// Variable that holds the record.
pub(super) const RECORD: &str = "record";
/// Variable that holds the path of the session file.
pub(super) const PATH: &str = "path";
/// Function that no expression can name: returns true while iterations are left.
pub(super) const ITERATE: &str = "@iterate";
/// Function that no expression can name: searches for a compiled pattern by its index.
pub(super) const MATCHES: &str = "@matches";

/// Functions that can be called. The time of each grows only with its arguments.
const FUNCTIONS: [&str; 8] =
    ["size", "contains", "startsWith", "endsWith", "matches", "string", "int", "double"];
/// Macros that expand to loops.
const LOOPS: [&str; 4] = ["all", "exists", "exists_one", "filter"];

/// Maximum nesting: an evaluation needs stack for each level.
const MAX_DEPTH: usize = 100;
const TOO_DEEP: &str = "the expression is nested too deep";
/// Maximum number of `+`: each can double the length of a text.
const MAX_ADDITIONS: usize = 16;

/// Result of the check.
#[derive(Default)]
pub(super) struct Checked {
    /// Members of the record that the expression names; `None` if it can access any.
    pub(super) members: Option<BTreeSet<String>>,
    /// True if the expression names the session file.
    pub(super) names_path: bool,
    /// Patterns of `matches`, by index.
    pub(super) patterns: Vec<Regex>,
}

/// Describes the first syntax error.
pub(super) fn syntax(errors: &ParseErrors) -> String {
    let Some(error) = errors.errors.first() else { return "is not an expression".to_owned() };
    let message = shorten(&error.msg);
    match error.pos {
        (line, column) if line > 0 => {
            wrong_at((line.unsigned_abs(), column.unsigned_abs()), &message)
        }
        _ => format!("is not an expression: {message}"),
    }
}

/// Shortens a message of the parser.
fn shorten(message: &str) -> String {
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    if message.contains("'<EOF>'") {
        "it ends too early".to_owned()
    } else if message.contains("Recursion limit") {
        TOO_DEEP.to_owned()
    } else if message.starts_with("token recognition error at: '=") {
        "expected `==`".to_owned()
    } else if message.contains("Context") {
        "it is not complete".to_owned()
    } else {
        // The list of expected tokens is long and does not help; nor do internal errors.
        let end = [" expecting {", ": Invalid"].iter().filter_map(|end| message.find(end)).min();
        message[..end.unwrap_or(message.len())].replace('\n', " ")
    }
}

fn wrong_at((line, column): (usize, usize), problem: &str) -> String {
    format!("is wrong in line {line}, column {column}: {problem}")
}

/// Checks an expression and makes its loops count their iterations.
pub(super) fn check(
    expression: &mut IdedExpr,
    places: &SourceInfo,
    source: &str,
) -> Result<Checked, String> {
    let mut checker = Checker {
        checked: Checked { members: Some(BTreeSet::new()), ..Checked::default() },
        variables: Vec::new(),
        additions: 0,
    };
    match checker.expression(expression, 0) {
        Ok(()) => Ok(checker.checked),
        Err(Mistake { id, problem }) => Err(match places.offset_for(id) {
            Some((start, _)) => wrong_at(place(source, start as usize), &problem),
            None => format!("is wrong: {problem}"),
        }),
    }
}

/// Returns line and column of a byte offset, from 1; columns count characters.
fn place(source: &str, at: usize) -> (usize, usize) {
    let mut place = (1, 1);
    for (_, character) in source.char_indices().take_while(|(index, _)| *index < at) {
        place = if character == '\n' { (place.0 + 1, 1) } else { (place.0, place.1 + 1) };
    }
    place
}

/// A mistake, and the id of the part of the expression that contains it.
struct Mistake {
    id: u64,
    problem: String,
}

struct Checker {
    checked: Checked,
    /// Variables of the enclosing loops.
    variables: Vec<String>,
    additions: usize,
}

impl Checker {
    fn expression(&mut self, part: &mut IdedExpr, depth: usize) -> Result<(), Mistake> {
        let id = part.id;
        let wrong = |problem: &str| Err(Mistake { id, problem: problem.to_owned() });
        if depth > MAX_DEPTH {
            return wrong(TOO_DEEP);
        }
        match &mut part.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                let problem = self.name(name);
                problem.map_or(Ok(()), |problem| Err(Mistake { id, problem }))
            }
            Expr::Select(select) => {
                if matches!(&select.operand.expr, Expr::Ident(name) if name == RECORD) {
                    if let Some(members) = &mut self.checked.members {
                        members.insert(select.field.clone());
                    }
                    return Ok(());
                }
                self.expression(&mut select.operand, depth + 1)
            }
            Expr::Call(call) => self.call(call, id, depth),
            Expr::List(list) => {
                let is_small = |part: &IdedExpr| match &part.expr {
                    Expr::Literal(_) => true,
                    Expr::Ident(name) => self.variables.contains(name),
                    _ => false,
                };
                match list.elements.iter().find(|element| !is_small(element)) {
                    Some(_) => wrong("expected a list of constants (there is no `map`)"),
                    None => Ok(()),
                }
            }
            Expr::Comprehension(it) => self.comprehension(it, id, depth),
            Expr::Map(_) | Expr::Struct(_) => wrong("expected no `{`: objects can't be made"),
            Expr::Unspecified => wrong("expected an expression"),
        }
    }

    /// Records the use of a variable, or returns an error if it is not allowed.
    fn name(&mut self, name: &str) -> Option<String> {
        match name {
            RECORD => self.checked.members = None,
            PATH => self.checked.names_path = true,
            _ if self.variables.iter().any(|known| known == name) => {}
            _ => {
                let help = match did_you_mean(name, &[RECORD, PATH]) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are `{RECORD}` and `{PATH}`; text stands in quotes"),
                };
                return Some(format!("there is no `{name}`, {help}"));
            }
        }
        None
    }

    fn call(&mut self, call: &mut CallExpr, id: u64, depth: usize) -> Result<(), Mistake> {
        let wrong = |problem: String| Err(Mistake { id, problem });
        let name = call.func_name.clone();
        let is_word = name.starts_with(|first: char| first.is_alphabetic() || first == '_')
            && name.chars().all(|one| one.is_alphanumeric() || one == '_')
            && name.chars().any(char::is_alphanumeric);
        if is_word && !FUNCTIONS.contains(&&*name) {
            let known: Vec<_> = FUNCTIONS.iter().chain(&LOOPS).chain(&["has"]).copied().collect();
            return wrong(match did_you_mean(&name, &known) {
                // The name is known, so the arguments are wrong.
                Some(near) if near == name => format!("`{name}` takes other arguments"),
                Some(near) => format!("there is no function `{name}`, did you mean `{near}`?"),
                None => format!("there is no function `{name}`, there are {}", known.join(", ")),
            });
        }
        if name == operators::ADD {
            self.additions += 1;
            if self.additions > MAX_ADDITIONS {
                return wrong(format!("there are more than {MAX_ADDITIONS} `+`"));
            }
        }
        if name == "matches" {
            self.pattern(call, id)?;
        }
        for part in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
            self.expression(part, depth + 1)?;
        }
        Ok(())
    }

    /// Compiles the pattern of a `matches`: a mistake is reported now, and evaluations are cheaper.
    fn pattern(&mut self, call: &mut CallExpr, id: u64) -> Result<(), Mistake> {
        let count = call.args.len() + usize::from(call.target.is_some());
        let (Some(part), 2) = (call.args.last_mut(), count) else {
            let problem = "expected `text.matches('pattern')`".to_owned();
            return Err(Mistake { id, problem });
        };
        let wrong = |problem| Err(Mistake { id: part.id, problem });
        let Expr::Literal(LiteralValue::String(text)) = &part.expr else {
            return wrong("expected the pattern of `matches` in quotes".to_owned());
        };
        match pattern::compile(text.inner()) {
            Ok(regex) => {
                let index = self.checked.patterns.len() as i64;
                part.expr = Expr::Literal(LiteralValue::Int(index.into()));
                MATCHES.clone_into(&mut call.func_name);
                self.checked.patterns.push(regex);
                Ok(())
            }
            Err(problem) => wrong(format!("the pattern is wrong: {problem}")),
        }
    }

    fn comprehension(
        &mut self,
        it: &mut ComprehensionExpr,
        id: u64,
        depth: usize,
    ) -> Result<(), Mistake> {
        self.expression(&mut it.iter_range, depth + 1)?;
        if [RECORD, PATH].contains(&&*it.iter_var) {
            let problem = format!("a loop has a variable `{}`, which has a meaning", it.iter_var);
            return Err(Mistake { id, problem });
        }
        let before = self.variables.len();
        self.variables.extend([it.iter_var.clone(), it.accu_var.clone()]);
        self.expression(&mut it.loop_step, depth + 1)?;
        self.variables.truncate(before);
        // The interpreter recognizes loops by their form, so the iterations are counted in the
        // condition that is evaluated in each one.
        if let Expr::Call(step) = &mut it.loop_step.expr {
            let target = match step.func_name.as_str() {
                operators::LOGICAL_AND | operators::LOGICAL_OR => step.args.get_mut(1),
                operators::CONDITIONAL => step.args.first_mut(),
                _ => None,
            };
            if let Some(target) = target {
                let call = |name: &str, args| {
                    Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args })
                };
                let iterate = IdedExpr { id, expr: call(ITERATE, Vec::new()) };
                let condition = std::mem::take(target);
                *target =
                    IdedExpr { id, expr: call(operators::LOGICAL_AND, vec![iterate, condition]) };
            }
        }
        Ok(())
    }
}
