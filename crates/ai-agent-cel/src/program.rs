//! CEL expressions, compiled once and evaluated on records.
//!
//! The cost of an expression is bounded: its length and nesting, the functions that it can call, the
//! number of values read from a record, and the iterations of its loops.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{self, AssertUnwindSafe},
    str,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use cel::{
    Context, Value,
    common::{types::CelString, value::Val},
    extractors::This,
    parser::{Expression, Parser},
};
use siem_protocol::json;

use super::{check, value};
use ai_agent_stage::Record;

/// Maximum length of an expression in bytes.
const MAX_LENGTH: usize = 8 << 10;

/// Stack of the parser; enough for an expression of the maximum length.
const PARSER_STACK: usize = 64 << 20;

/// Maximum nesting of parentheses, calls and lists for the parser.
const MAX_PARSE_DEPTH: u16 = 48;

/// Maximum number of iterations of all loops together for one record.
const MAX_ITERATIONS: u64 = 100_000;

/// Each iteration can scan the whole record; this limits the bytes scanned for one record.
const MAX_SCANNED_BYTES: u64 = 16 << 30;

/// A compiled expression.
pub(super) struct Program {
    expression: Expression,
    /// Members of the record that the expression names; `None` if it can access any.
    members: Option<BTreeSet<String>>,
    names_path: bool,
    /// Functions. Each record gets an inner scope for its variables.
    functions: Context<'static, 'static>,
    /// Iterations that the loops have left.
    iterations: Arc<AtomicU64>,
}

impl Program {
    /// Compiles `source`, or returns the error and its position.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_LENGTH {
            return Err(format!("is {} bytes long, the maximum is {MAX_LENGTH}", source.len()));
        }
        let (expression, checked) = on_a_large_stack(|| {
            let parser = Parser::default().max_recursion_depth(MAX_PARSE_DEPTH);
            let parsed = parser.parse_with_source_info(source);
            let (mut expression, places) = parsed.map_err(|errors| check::syntax(&errors))?;
            let checked = check::check(&mut expression, &places, source)?;
            Ok((expression, checked))
        })?;

        let iterations = Arc::new(AtomicU64::new(0));
        let mut functions = Context::default();
        let left = Arc::clone(&iterations);
        let iterate =
            move || left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        let patterns = checked.patterns;
        let matches = move |This(text): This<Arc<String>>, index: i64| {
            let pattern = usize::try_from(index).ok().and_then(|index| patterns.get(index));
            pattern.is_some_and(|pattern| pattern.is_match(text.as_str()))
        };
        functions
            .add_function(check::ITERATE, iterate)
            .and_then(|()| functions.add_function(check::MATCHES, matches))
            .expect("CEL has no functions with these names");
        let members = checked.members;
        Ok(Self { expression, members, names_path: checked.names_path, functions, iterations })
    }

    /// Evaluates the expression on `record`, a JSON object. Returns `None` if that fails or the result
    /// is not a boolean.
    pub(super) fn matches(&self, record: &Record<'_>) -> Option<bool> {
        let object = self.read(record)?;
        let path: Option<Box<dyn Val>> = self.names_path.then(|| {
            let path = record.origin().path.to_string_lossy().into_owned();
            Box::new(CelString::from(path)) as _
        });
        // At least one iteration must be left: if none is, the limit was reached.
        let length = record.line().len() as u64;
        self.iterations.store(MAX_ITERATIONS.min(MAX_SCANNED_BYTES / length.max(1)) + 1, Relaxed);
        // A panic would block the file until the next start, so it is treated like any other failed
        // evaluation. No state is left half changed.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut scope = self.functions.new_inner_scope();
            scope.add_variable_as_val(check::RECORD, object);
            if let Some(path) = path {
                scope.add_variable_as_val(check::PATH, path);
            }
            Value::resolve(&self.expression, &scope)
        }));
        match result {
            Ok(Ok(Value::Bool(result))) if self.iterations.load(Relaxed) > 0 => Some(result),
            _ => None,
        }
    }

    /// Reads the members that the expression names.
    fn read(&self, record: &Record<'_>) -> Option<Box<dyn Val>> {
        let text = str::from_utf8(record.line()).ok()?;
        let mut texts = HashMap::new();
        json::members(text, |member| {
            let Some(key) = json::unescape(member.key) else { return };
            if self.members.as_ref().is_none_or(|members| members.contains(&*key)) {
                texts.insert(key, member.value);
            }
        })?;
        value::object(texts)
    }
}

/// Runs the parser on a thread with a large stack: it recurses for each operator of a chain, and only
/// the check afterwards limits the nesting. The parser is generated code that can panic on malformed
/// input; a panic is reported as a wrong expression.
fn on_a_large_stack<T: Send>(
    compile: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, compile);
        let thread = thread.map_err(|error| format!("cannot be parsed: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("cannot be parsed: make it simpler".to_owned()))
    })
}
