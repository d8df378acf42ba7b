//! What an expression may be: checked once, so that its mistakes show before a record comes, and
//! its cost is bounded.

use std::collections::BTreeSet;

use cel::{
    common::ast::{
        CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators,
    },
    parser::ParseErrors,
};
use regex_automata::meta::Regex;

use crate::{config::did_you_mean, stages::filter::pattern};

/// The record's variable.
pub(super) const RECORD: &str = "record";
/// The session file's.
pub(super) const PATH: &str = "path";
/// A function that no expression can name: whether a loop may take another turn.
pub(super) const TURN: &str = "@turn";
/// And one that searches for a pattern by its number.
pub(super) const MATCHES: &str = "@matches";

/// What may be called. Each takes time that grows with its arguments only.
const FUNCTIONS: [&str; 8] =
    ["size", "contains", "startsWith", "endsWith", "matches", "string", "int", "double"];
/// What the language makes loops of.
const LOOPS: [&str; 4] = ["all", "exists", "exists_one", "filter"];

/// How deep an expression may be nested: evaluating it takes stack for each level.
const MAX_DEPTH: usize = 100;
const TOO_DEEP: &str = "the expression is nested too deep";
/// How many `+` there may be: each may make a text twice as long as the record.
const MAX_ADDITIONS: usize = 16;

/// What was learned about an expression.
#[derive(Default)]
pub(super) struct Checked {
    /// The record's members that it names; `None` when it may look at any.
    pub(super) members: Option<BTreeSet<String>>,
    /// Whether it names the session file.
    pub(super) names_path: bool,
    /// What it searches for.
    pub(super) patterns: Vec<Regex>,
}

/// Says what is wrong with the syntax.
pub(super) fn syntax(errors: &ParseErrors) -> String {
    let Some(error) = errors.errors.first() else { return "is no expression".to_owned() };
    let message = plain(&error.msg);
    match error.pos {
        (line, column) if line > 0 => {
            wrong_at((line.unsigned_abs(), column.unsigned_abs()), &message)
        }
        _ => format!("is no expression: {message}"),
    }
}

/// The parser's message for people.
fn plain(message: &str) -> String {
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
        // The list of all that would be right is long, and no help; nor is what is inside an error.
        let end = [" expecting {", ": Invalid"].iter().filter_map(|end| message.find(end)).min();
        message[..end.unwrap_or(message.len())].replace('\n', " ")
    }
}

fn wrong_at((line, column): (usize, usize), problem: &str) -> String {
    format!("is wrong in line {line}, column {column}: {problem}")
}

/// Checks an expression, and puts a count of turns into its loops.
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
        Err(Wrong { id, problem }) => Err(match places.offset_for(id) {
            Some((start, _)) => wrong_at(place(source, start as usize), &problem),
            None => format!("is wrong: {problem}"),
        }),
    }
}

/// Line and column of a byte, from 1; columns are characters.
fn place(source: &str, at: usize) -> (usize, usize) {
    let mut place = (1, 1);
    for (_, character) in source.char_indices().take_while(|(index, _)| *index < at) {
        place = if character == '\n' { (place.0 + 1, 1) } else { (place.0, place.1 + 1) };
    }
    place
}

/// A mistake, and the part of the expression where it is.
struct Wrong {
    id: u64,
    problem: String,
}

struct Checker {
    checked: Checked,
    /// Those of the loops that are open.
    variables: Vec<String>,
    additions: usize,
}

impl Checker {
    fn expression(&mut self, part: &mut IdedExpr, depth: usize) -> Result<(), Wrong> {
        let id = part.id;
        let wrong = |problem: &str| Err(Wrong { id, problem: problem.to_owned() });
        if depth > MAX_DEPTH {
            return wrong(TOO_DEEP);
        }
        match &mut part.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                let problem = self.name(name);
                problem.map_or(Ok(()), |problem| Err(Wrong { id, problem }))
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

    /// Takes note of a name; says what is wrong with it.
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

    fn call(&mut self, call: &mut CallExpr, id: u64, depth: usize) -> Result<(), Wrong> {
        let wrong = |problem: String| Err(Wrong { id, problem });
        let name = call.func_name.clone();
        let is_word = name.starts_with(|first: char| first.is_alphabetic() || first == '_')
            && name.chars().all(|one| one.is_alphanumeric() || one == '_')
            && name.chars().any(char::is_alphanumeric);
        if is_word && !FUNCTIONS.contains(&&*name) {
            let known: Vec<_> = FUNCTIONS.iter().chain(&LOOPS).chain(&["has"]).copied().collect();
            return wrong(match did_you_mean(&name, &known) {
                // Its name is right, so the rest is not.
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

    /// Compiles the pattern of a `matches`, so that it is a mistake now and no cost later.
    fn pattern(&mut self, call: &mut CallExpr, id: u64) -> Result<(), Wrong> {
        let count = call.args.len() + usize::from(call.target.is_some());
        let (Some(part), 2) = (call.args.last_mut(), count) else {
            let problem = "expected `text.matches('pattern')`".to_owned();
            return Err(Wrong { id, problem });
        };
        let wrong = |problem| Err(Wrong { id: part.id, problem });
        let Expr::Literal(LiteralValue::String(text)) = &part.expr else {
            return wrong("expected the pattern of `matches` in quotes".to_owned());
        };
        match pattern::compile(&[text.inner()]) {
            Ok(regex) => {
                let index = self.checked.patterns.len() as i64;
                part.expr = Expr::Literal(LiteralValue::Int(index.into()));
                MATCHES.clone_into(&mut call.func_name);
                self.checked.patterns.push(regex);
                Ok(())
            }
            Err((_, problem)) => wrong(format!("the pattern is wrong: {problem}")),
        }
    }

    fn comprehension(
        &mut self,
        it: &mut ComprehensionExpr,
        id: u64,
        depth: usize,
    ) -> Result<(), Wrong> {
        self.expression(&mut it.iter_range, depth + 1)?;
        if [RECORD, PATH].contains(&&*it.iter_var) {
            let problem = format!("a loop has a variable `{}`, which has a meaning", it.iter_var);
            return Err(Wrong { id, problem });
        }
        let before = self.variables.len();
        self.variables.extend([it.iter_var.clone(), it.accu_var.clone()]);
        self.expression(&mut it.loop_step, depth + 1)?;
        self.variables.truncate(before);
        // The loop itself has its own form, which the interpreter knows: what is asked in each
        // turn is where a turn is counted.
        if let Expr::Call(step) = &mut it.loop_step.expr {
            let asked = match step.func_name.as_str() {
                operators::LOGICAL_AND | operators::LOGICAL_OR => step.args.get_mut(1),
                operators::CONDITIONAL => step.args.first_mut(),
                _ => None,
            };
            if let Some(asked) = asked {
                let call = |name: &str, args| {
                    Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args })
                };
                let turn = IdedExpr { id, expr: call(TURN, Vec::new()) };
                let question = std::mem::take(asked);
                *asked = IdedExpr { id, expr: call(operators::LOGICAL_AND, vec![turn, question]) };
            }
        }
        Ok(())
    }
}
