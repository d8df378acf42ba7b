//! Expressions of the Common Expression Language, compiled once and evaluated on records.
//!
//! The one place that knows the crate `cel`. What an expression may cost is bounded here: its
//! length and depth, the functions that it may call, the values that a record is read into, and
//! the turns that its loops take.

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
use crate::stages::Record;

/// The longest expression, in bytes.
const MAX_LENGTH: usize = 8 << 10;

/// Enough for the longest.
const PARSER_STACK: usize = 64 << 20;

/// How deep parentheses, calls and lists may be nested as they are parsed.
const MAX_PARSE_DEPTH: u16 = 48;

/// Turns that all loops together may take for one record.
const MAX_TURNS: u64 = 100_000;

/// Each turn may look at the whole record: this many bytes are looked at, at most.
const MAX_LOOKED_AT: u64 = 16 << 30;

/// An expression that is true or false of a record.
pub(super) struct Program {
    expression: Expression,
    /// The members of the record that it names; `None` when it may look at any.
    members: Option<BTreeSet<String>>,
    names_path: bool,
    /// Functions; a record's variables are in a scope of its own.
    functions: Context<'static, 'static>,
    /// Turns that are left to the loops.
    turns: Arc<AtomicU64>,
}

impl Program {
    /// Compiles `source`, or says what is wrong with it, and where.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_LENGTH {
            return Err(format!("is {} bytes long, at most {MAX_LENGTH} are read", source.len()));
        }
        let (expression, checked) = on_a_large_stack(|| {
            let parser = Parser::default().max_recursion_depth(MAX_PARSE_DEPTH);
            let parsed = parser.parse_with_source_info(source);
            let (mut expression, places) = parsed.map_err(|errors| check::syntax(&errors))?;
            let checked = check::check(&mut expression, &places, source)?;
            Ok((expression, checked))
        })?;

        let turns = Arc::new(AtomicU64::new(0));
        let mut functions = Context::default();
        let left = Arc::clone(&turns);
        let turn =
            move || left.fetch_update(Relaxed, Relaxed, |turns| turns.checked_sub(1)).is_ok();
        let patterns = checked.patterns;
        let matches = move |This(text): This<Arc<String>>, index: i64| {
            let pattern = usize::try_from(index).ok().and_then(|index| patterns.get(index));
            pattern.is_some_and(|pattern| pattern.is_match(text.as_str()))
        };
        functions
            .add_function(check::TURN, turn)
            .and_then(|()| functions.add_function(check::MATCHES, matches))
            .expect("no function of the language has such a name");
        let members = checked.members;
        Ok(Self { expression, members, names_path: checked.names_path, functions, turns })
    }

    /// Evaluates it on `record`, a JSON object; `None` when that fails or is no truth value.
    pub(super) fn is_true_of(&self, record: &Record<'_>) -> Option<bool> {
        let object = self.read(record)?;
        let path: Option<Box<dyn Val>> = self.names_path.then(|| {
            let path = record.origin().path.to_string_lossy().into_owned();
            Box::new(CelString::from(path)) as _
        });
        // One turn is always left over: without it all were taken, and the result is none.
        let length = record.line().len() as u64;
        self.turns.store(MAX_TURNS.min(MAX_LOOKED_AT / length.max(1)) + 1, Relaxed);
        // A panic would hold the file until the next start; a record that can't be judged is what
        // `on_error` is for. Nothing is changed that could be left half done.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut scope = self.functions.new_inner_scope();
            scope.add_variable_as_val(check::RECORD, object);
            if let Some(path) = path {
                scope.add_variable_as_val(check::PATH, path);
            }
            Value::resolve(&self.expression, &scope)
        }));
        match result {
            Ok(Ok(Value::Bool(result))) if self.turns.load(Relaxed) > 0 => Some(result),
            _ => None,
        }
    }

    /// Reads what the expression names of a record.
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

/// Runs the parser, which takes stack for each operator of a chain; only once the expression is
/// checked it is known to be shallow. It is generated code besides, made for expressions that are
/// well meant: a panic is one more thing that is wrong with this one.
fn on_a_large_stack<T: Send>(
    compile: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, compile);
        let thread = thread.map_err(|error| format!("can't be read: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("can't be read: make it simpler".to_owned()))
    })
}
