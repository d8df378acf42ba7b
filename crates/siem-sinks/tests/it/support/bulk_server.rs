//! A scripted Elasticsearch with one data stream, which follows the documentation of `_bulk`.
//!
//! The file has no dependency on this crate: tests of other packages include it by its path.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::http_server::{HttpServer, Reply, Request};

/// Name of the data stream.
pub(crate) const DATA_STREAM: &str = "logs-claude_code.session-default";

/// What the server does with the next documents, and what it has stored.
#[derive(Default)]
pub(crate) struct State {
    /// Backing indices, the last one is written: source of each document by its `_id`.
    pub(crate) backing: Vec<BTreeMap<String, Value>>,
    /// Failure store.
    pub(crate) failed: BTreeMap<String, Value>,
    /// Errors for the next documents whose record contains a text: status, type and how often.
    pub(crate) errors: Vec<(String, u16, String, usize)>,
    /// True if documents with an error 400 go to the failure store.
    pub(crate) has_failure_store: bool,
    /// Number of times that the reason of an error quotes the document.
    pub(crate) quotations: usize,
    /// Largest request body in bytes; 0 for no limit.
    pub(crate) max_body: usize,
}

impl State {
    /// Returns all documents, those stored in several backing indices several times.
    pub(crate) fn documents(&self) -> Vec<(String, Value)> {
        self.backing.iter().flatten().map(|(id, source)| (id.clone(), source.clone())).collect()
    }

    /// Starts another backing index.
    pub(crate) fn roll_over(&mut self) {
        self.backing.push(BTreeMap::new());
    }

    fn create(&mut self, id: &str, source: &str) -> Value {
        let reason = format!("scripted{}", format!(" '{source}'").repeat(self.quotations));
        let refused = |status: u16, kind: &str| json!({ "status": status, "error": { "type": kind, "reason": reason } });
        for (text, status, kind, count) in &mut self.errors {
            if *count > 0 && source.contains(text.as_str()) {
                *count -= 1;
                if *status == 400 && self.has_failure_store {
                    self.failed.insert(id.to_owned(), serde_json::from_str(source).unwrap());
                    return json!({ "status": 201, "failure_store": "used", "result": "created" });
                }
                return refused(*status, kind);
            }
        }
        let current = self.backing.last_mut().unwrap();
        if current.contains_key(id) {
            return refused(409, "version_conflict_engine_exception");
        }
        match serde_json::from_str::<HashMap<String, Value>>(source) {
            Ok(members) if members.contains_key("@timestamp") => {
                let source = serde_json::from_str(source).unwrap();
                current.insert(id.to_owned(), source);
                json!({ "status": 201, "result": "created", "_index": ".ds-x-000001" })
            }
            _ => refused(400, "document_parsing_exception"),
        }
    }
}

/// The server.
pub(crate) struct BulkServer {
    pub(crate) http: HttpServer,
    state: Arc<Mutex<State>>,
}

impl BulkServer {
    /// Starts a server with an empty data stream.
    pub(crate) fn start() -> Self {
        let state =
            Arc::new(Mutex::new(State { backing: vec![BTreeMap::new()], ..State::default() }));
        let shared = Arc::clone(&state);
        let http = HttpServer::start(move |request| {
            process(&mut shared.lock().unwrap_or_else(PoisonError::into_inner), request)
        });
        Self { http, state }
    }

    /// Passes the state to a function.
    pub(crate) fn with<T>(&self, then: impl FnOnce(&mut State) -> T) -> T {
        then(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn error(status: u16, kind: &str) -> Reply {
    Reply::json(
        status,
        &json!({ "error": { "type": kind, "reason": "scripted" }, "status": status }),
    )
}

fn process(state: &mut State, request: &Request) -> Reply {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => Reply::json(200, &json!({ "version": { "number": "9.1.0" } })),
        ("POST", "/_security/user/_has_privileges") => {
            Reply::json(200, &json!({ "has_all_requested": true }))
        }
        ("POST", path) if path == format!("/{DATA_STREAM}/_bulk") => bulk(state, request),
        _ => error(404, "index_not_found_exception"),
    }
}

fn bulk(state: &mut State, request: &Request) -> Reply {
    if state.max_body > 0 && request.body.len() > state.max_body {
        return Reply::new(413, "<html>too large</html>");
    }
    assert_eq!(request.header("content-type"), "application/x-ndjson");
    let text = std::str::from_utf8(&request.body).unwrap();
    let Some(text) = text.strip_suffix('\n') else {
        return error(400, "illegal_argument_exception");
    };
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!(lines.len() % 2, 0, "an action for each document");
    let mut items = Vec::new();
    for pair in lines.chunks(2) {
        let action: Value = serde_json::from_str(pair[0]).unwrap();
        let Some(create) = action.get("create") else {
            // A data stream accepts no other action.
            return error(400, "illegal_argument_exception");
        };
        let id = create["_id"].as_str().unwrap();
        assert!(id.len() <= 512);
        items.push(json!({ "create": state.create(id, pair[1]) }));
    }
    // The flag is wrong on purpose.
    Reply::json(200, &json!({ "errors": false, "items": items }))
}
