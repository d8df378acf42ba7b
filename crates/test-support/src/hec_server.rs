//! An HTTP Event Collector that behaves as Splunk 10.4 does, or as LogScale is documented.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};

use crate::http_server::{HttpServer, Reply, Request};

/// Token that the server accepts.
pub const HEC_TOKEN: &str = "11111111-2222-3333-4444-555555555555";
/// Path of the collector.
const COLLECTOR: &str = "/services/collector";
/// Keys of an envelope.
const KEYS: [&str; 7] = ["time", "host", "source", "sourcetype", "index", "event", "fields"];

/// State of the collector, which survives a restart of its server.
#[derive(Default)]
pub struct Collector {
    /// Objects in the order of their storage.
    pub stored: Vec<Value>,
    /// True if the token requires a channel and gives ids.
    pub uses_ack: bool,
    /// Number of polls after which a request is indexed; `None` for never.
    pub polls_until_indexed: Option<u32>,
    /// Requests that are not indexed, by channel and id, with the number of polls they have had. A
    /// request that was reported as indexed is removed.
    pub pending: BTreeMap<(String, u64), u32>,
    /// Requests that another indexer behind the load balancer has indexed, by channel and id. It answers
    /// the polls for them.
    pub elsewhere: BTreeSet<(String, u64)>,
    /// Next id of each channel.
    pub next_ids: BTreeMap<String, u64>,
    /// Indexes that the token allows; empty for any.
    pub indexes: Vec<String>,
    /// Maximum size of a request, answered with 413.
    pub max_request_bytes: Option<usize>,
    /// Size above which Splunk Cloud answers with code 6 for the first object.
    pub cloud_max_request_bytes: Option<usize>,
    /// An event that contains this text is refused with the code.
    pub poison: Option<(String, u16)>,
    /// Number of objects after which the next request is answered with code 9.
    pub busy_after: Option<usize>,
    /// True if the receiver is LogScale.
    pub is_logscale: bool,
    /// Ids that were polled, in their order.
    pub polled: Vec<Vec<u64>>,
}

/// The server.
pub struct HecServer {
    http: Option<HttpServer>,
    collector: Arc<Mutex<Collector>>,
}

impl HecServer {
    /// Starts a server.
    pub fn start(collector: Collector) -> Self {
        let collector = Arc::new(Mutex::new(collector));
        let http = HttpServer::start(process(&collector));
        Self { http: Some(http), collector }
    }

    pub fn http(&self) -> &HttpServer {
        self.http.as_ref().expect("the server runs")
    }

    pub fn collector(&self) -> MutexGuard<'_, Collector> {
        self.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the indexer by another one behind the same load balancer. The first one has indexed its
    /// requests in the meantime, and still answers polls for them.
    pub fn change_indexer(&self) {
        let mut collector = self.collector();
        let indexed = std::mem::take(&mut collector.pending);
        collector.elsewhere.extend(indexed.into_keys());
        collector.next_ids.clear();
    }

    /// Stops the server, calls `meanwhile`, and starts it again at the same address. What it has stored is
    /// still there, and its acknowledgements are forgotten.
    pub fn restart(&mut self, meanwhile: impl FnOnce()) {
        let address: SocketAddr = self.http().address();
        self.http = None;
        meanwhile();
        {
            let mut collector = self.collector();
            collector.pending.clear();
            collector.next_ids.clear();
        }
        self.http = Some(HttpServer::on(address, process(&self.collector)));
    }
}

fn process(collector: &Arc<Mutex<Collector>>) -> impl FnMut(&Request) -> Reply + Send + 'static {
    let collector = Arc::clone(collector);
    move |request| collector.lock().unwrap_or_else(PoisonError::into_inner).process(request)
}

fn coded(status: u16, code: u16, text: &str) -> Reply {
    Reply::json(status, &json!({ "text": text, "code": code }))
}

fn numbered(status: u16, code: u16, text: &str, number: usize) -> Reply {
    let body = json!({ "text": text, "code": code, "invalid-event-number": number });
    Reply::json(status, &body)
}

impl Collector {
    /// Processes a request.
    pub fn process(&mut self, request: &Request) -> Reply {
        if self.is_logscale {
            return self.logscale(request);
        }
        let missing = || coded(404, 404, "The requested URL was not found on this server.");
        let endpoint = request.path.strip_prefix(COLLECTOR).unwrap_or("?");
        match (&*request.method, endpoint) {
            ("OPTIONS", _) => Reply::new(200, "").header("Allow", "POST,OPTIONS"),
            ("GET", "/health" | "/health/1.0") => coded(200, 17, "HEC is healthy"),
            ("POST", "" | "/event" | "/event/1.0") => match self.authorize(request) {
                Ok(channel) => self.events(request, channel),
                Err(reply) => reply,
            },
            ("POST", "/ack") => match self.authorize(request) {
                Ok(Some(channel)) => self.acks(request, &channel),
                Ok(None) if self.uses_ack => coded(400, 10, "Data channel is missing"),
                Ok(None) => coded(400, 14, "ACK is disabled"),
                Err(reply) => reply,
            },
            (_, "" | "/event" | "/ack") => {
                coded(405, 404, "The requested URL was not found on this server.")
            }
            _ => missing(),
        }
    }

    /// Checks the token, and returns the channel.
    fn authorize(&self, request: &Request) -> Result<Option<String>, Reply> {
        let authorization = request.header("authorization");
        if authorization.is_empty() {
            return Err(coded(401, 2, "Token is required"));
        }
        match authorization.strip_prefix("Splunk ") {
            None => return Err(coded(401, 3, "Invalid authorization")),
            Some(HEC_TOKEN) => {}
            Some("disabled") => return Err(coded(403, 1, "Token disabled")),
            Some(_) => return Err(coded(403, 4, "Invalid token")),
        }
        let channel = request.header("x-splunk-request-channel");
        if channel.is_empty() {
            return Ok(None);
        }
        let is_guid = channel.len() == 36
            && channel.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !is_guid {
            return Err(coded(400, 11, "Invalid data channel"));
        }
        Ok(Some(channel.to_owned()))
    }

    fn events(&mut self, request: &Request, channel: Option<String>) -> Reply {
        if !matches!(request.header("content-encoding"), "" | "gzip") {
            return Reply::new(415, "<html><title>Unsupported Media Type</title></html>");
        }
        if self.uses_ack && channel.is_none() {
            return coded(400, 10, "Data channel is missing");
        }
        if self.max_request_bytes.is_some_and(|max| request.body.len() > max) {
            return Reply::new(413, "<html><title>Content-Length too large</title></html>");
        }
        if self.cloud_max_request_bytes.is_some_and(|max| request.body.len() > max) {
            return numbered(400, 6, "Invalid data format", 0);
        }
        if request.body.iter().all(u8::is_ascii_whitespace) {
            return coded(400, 5, "No data");
        }
        let busy_after = self.busy_after.take();
        let mut stored = 0;
        let objects = serde_json::Deserializer::from_slice(&request.body).into_iter::<Value>();
        for (number, object) in objects.enumerate() {
            if busy_after == Some(number) {
                return numbered(503, 9, "Server is busy", number);
            }
            match object.ok().map_or(Object::Invalid(6), |object| self.check(object)) {
                Object::Event(object) => {
                    self.stored.push(object);
                    stored += 1;
                }
                Object::Skipped => stored += 1,
                // The objects after one with an unknown key are dropped in silence.
                Object::Unknown if stored == 0 => return coded(400, 5, "No data"),
                Object::Unknown => break,
                Object::Invalid(7) => return numbered(400, 7, "Incorrect index", number + 1),
                Object::Invalid(code) => return numbered(400, code, text_of(code), number),
            }
        }
        let mut body = json!({ "text": "Success", "code": 0 });
        if self.uses_ack
            && let Some(channel) = channel
        {
            let id = self.next_ids.entry(channel.clone()).or_default();
            body["ackId"] = (*id).into();
            self.pending.insert((channel, *id), 0);
            *id += 1;
        }
        Reply::json(200, &body).header("Set-Cookie", "indexer=a1; Path=/; HttpOnly")
    }

    fn check(&self, object: Value) -> Object {
        let Value::Object(members) = &object else { return Object::Invalid(6) };
        if members.keys().any(|key| !KEYS.contains(&key.as_str())) {
            return Object::Unknown;
        }
        let is_time = |time: &Value| match time {
            Value::Number(_) => true,
            Value::String(text) => text.parse::<f64>().is_ok(),
            _ => false,
        };
        let is_text = |key: &str| members.get(key).is_none_or(Value::is_string);
        let texts = ["host", "source", "sourcetype", "index"];
        if !members.get("time").is_none_or(is_time) || !texts.into_iter().all(is_text) {
            return Object::Invalid(6);
        }
        let is_flat = |fields: &Value| {
            let fields = fields.as_object();
            fields.is_some_and(|fields| fields.values().all(is_flat))
        };
        if !members.get("fields").is_none_or(is_flat) {
            return Object::Invalid(15);
        }
        if let Some(index) = members.get("index").and_then(Value::as_str)
            && !self.indexes.is_empty()
            && !self.indexes.iter().any(|allowed| allowed == index)
        {
            return Object::Invalid(7);
        }
        let event = match members.get("event") {
            None if members.contains_key("fields") => return Object::Skipped,
            None => return Object::Invalid(12),
            Some(Value::Null | Value::Bool(false)) => return Object::Invalid(6),
            Some(Value::String(text)) if is_blank(text) => return Object::Invalid(13),
            Some(event) => event,
        };
        match &self.poison {
            Some((poison, code)) if event.as_str().is_some_and(|text| text.contains(poison)) => {
                Object::Invalid(*code)
            }
            _ => Object::Event(object),
        }
    }

    fn acks(&mut self, request: &Request, channel: &str) -> Reply {
        if !self.uses_ack {
            return coded(400, 14, "ACK is disabled");
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let ids: Vec<u64> =
            body["acks"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let mut acks = serde_json::Map::new();
        for id in &ids {
            let key = (channel.to_owned(), *id);
            if self.elsewhere.remove(&key) {
                acks.insert(id.to_string(), true.into());
                continue;
            }
            let is_indexed = match (self.pending.get_mut(&key), self.polls_until_indexed) {
                (Some(polls), Some(needed)) => {
                    *polls += 1;
                    *polls > needed
                }
                _ => false,
            };
            if is_indexed {
                self.pending.remove(&key);
            }
            acks.insert(id.to_string(), is_indexed.into());
        }
        self.polled.push(ids);
        Reply::json(200, &json!({ "acks": acks }))
    }

    /// LogScale decides about the whole request, cuts large events, and drops fields that are objects.
    fn logscale(&mut self, request: &Request) -> Reply {
        const MAX_EVENT: usize = 1 << 20;
        if request.path != "/api/v1/ingest/hec" && !request.path.ends_with(COLLECTOR) {
            return Reply::new(404, "not found");
        }
        if request.header("authorization") != format!("Bearer {HEC_TOKEN}") {
            return Reply::new(401, "The supplied authentication is invalid");
        }
        if request.body.len() > self.max_request_bytes.unwrap_or(32 << 20) {
            return Reply::new(413, "Request is too large");
        }
        let objects = serde_json::Deserializer::from_slice(&request.body).into_iter::<Value>();
        let Ok(mut objects) = objects.collect::<Result<Vec<Value>, _>>() else {
            return Reply::new(400, "Could not parse the request");
        };
        let poison = self.poison.as_ref().map(|(text, _)| text.clone());
        for object in &mut objects {
            let Some(event) = object["event"].as_str() else {
                return Reply::new(400, "Could not parse the request");
            };
            if poison.as_ref().is_some_and(|poison| event.contains(poison)) {
                return Reply::new(400, "Could not parse the request");
            }
            if event.len() > MAX_EVENT {
                let end = (0..=MAX_EVENT).rev().find(|at| event.is_char_boundary(*at)).unwrap_or(0);
                object["event"] = format!("{}...", &event[..end]).into();
                object["fields"] = json!({});
            }
            if let Some(fields) = object["fields"].as_object_mut() {
                fields.retain(|_, value| !value.is_object() && !value.is_array());
            }
        }
        self.stored.append(&mut objects);
        coded(200, 0, "Success")
    }
}

/// An object of a request.
enum Object {
    Event(Value),
    /// It has `fields` and no `event`: it is neither stored nor refused.
    Skipped,
    /// It has an unknown key.
    Unknown,
    Invalid(u16),
}

fn is_flat(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().all(|value| !value.is_object() && !value.is_array()),
        value => !value.is_object(),
    }
}

fn is_blank(text: &str) -> bool {
    text.chars().all(|character| character.is_whitespace() || character.is_control())
}

fn text_of(code: u16) -> &'static str {
    match code {
        12 => "Event field is required",
        13 => "Event field cannot be blank",
        15 => "Error in handling indexed fields",
        _ => "Invalid data format",
    }
}

/// The behaviour that was seen, request by request.
#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, authorization: &str, body: &str) -> Request {
        let headers = vec![("authorization".to_owned(), authorization.to_owned())];
        Request {
            method: "POST".into(),
            path: format!("{COLLECTOR}{path}"),
            headers,
            body: body.as_bytes().to_vec(),
            ..Request::default()
        }
    }

    fn post(collector: &mut Collector, body: &str) -> (u16, Value) {
        let authorization = format!("Splunk {HEC_TOKEN}");
        let mut request = request("/event", &authorization, body);
        if collector.uses_ack {
            request.headers.push(("x-splunk-request-channel".into(), CHANNEL.into()));
        }
        answer(&collector.process(&request))
    }

    const CHANNEL: &str = "0aeeac95-ac74-4aa9-b30d-6c4c0ac581ba";

    fn answer(reply: &Reply) -> (u16, Value) {
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    fn events(collector: &Collector) -> Vec<&str> {
        collector.stored.iter().map(|object| object["event"].as_str().unwrap()).collect()
    }

    #[test]
    fn objects_before_an_invalid_one_are_stored() {
        let rows = [
            (r#"{"event":"a"}{"event":}{"event":"c"}"#, 400, 6, Some(1), 1),
            (r#"{"event":}{"event":"b"}"#, 400, 6, Some(0), 0),
            (r#"{"event":"a"}{"event":" "}{"event":"c"}"#, 400, 13, Some(1), 1),
            (r#"{"event":"a"}{"event":""}"#, 400, 13, Some(1), 1),
            (r#"{"event":"a"}{"event":null}"#, 400, 6, Some(1), 1),
            (r#"{"event":"a"}{"event":"b","fields":{"x":{}}}{"event":"c"}"#, 400, 15, Some(1), 1),
            (r#"{"event":"a"}{"host":"h"}{"event":"c"}"#, 400, 12, Some(1), 1),
            (r#"{"event":"a"}{"event":"b","index":"no"}{"event":"c"}"#, 400, 7, Some(2), 1),
            (r#"{"event":"a"}{"event":"b","colour":1}{"event":"c"}"#, 200, 0, None, 1),
            (r#"{"event":"b","colour":1}"#, 400, 5, None, 0),
            (r#"{"event":"a"}{"fields":{"x":1}}{"event":"c"}"#, 200, 0, None, 2),
            (" \n", 400, 5, None, 0),
        ];
        for (body, status, code, number, stored) in rows {
            let indexes = vec!["main".to_owned()];
            let mut collector = Collector { indexes, ..Collector::default() };
            let (found, answer) = post(&mut collector, body);
            assert_eq!((found, answer["code"].as_u64()), (status, Some(code)), "{body}");
            assert_eq!(answer["invalid-event-number"].as_u64(), number, "{body}");
            assert_eq!(collector.stored.len(), stored, "{body}");
        }
    }

    #[test]
    fn token_and_path_are_checked_first() {
        let mut collector = Collector::default();
        let rows = [
            ("", "", 401, 2),
            ("", "Basic x", 401, 3),
            ("", "Splunk no", 403, 4),
            ("", "Splunk disabled", 403, 1),
            ("/other", "Splunk no", 404, 404),
        ];
        for (path, authorization, status, code) in rows {
            let (found, answer) = answer(&collector.process(&request(path, authorization, "{}")));
            assert_eq!((found, answer["code"].as_u64()), (status, Some(code)), "{authorization}");
        }
        let health = Request { method: "GET".into(), ..request("/health", "Splunk no", "") };
        assert_eq!(answer(&collector.process(&health)).1["code"], 17);
        let mut deflated = request("", &format!("Splunk {HEC_TOKEN}"), "x");
        deflated.headers.push(("content-encoding".into(), "deflate".into()));
        assert_eq!(collector.process(&deflated).status, 415);
    }

    #[test]
    fn large_and_early_requests_are_not_stored() {
        let body = r#"{"event":"a"}{"event":"b"}{"event":"c"}"#;
        let mut collector = Collector { max_request_bytes: Some(30), ..Collector::default() };
        assert_eq!(post(&mut collector, body).0, 413);
        assert!(collector.stored.is_empty());
        let mut collector = Collector { cloud_max_request_bytes: Some(30), ..Collector::default() };
        assert_eq!(post(&mut collector, body).1["invalid-event-number"], 0);
        assert!(collector.stored.is_empty());
        let mut collector = Collector { busy_after: Some(2), ..Collector::default() };
        let (status, answer) = post(&mut collector, body);
        assert_eq!((status, &answer["code"]), (503, &json!(9)));
        assert_eq!(answer["invalid-event-number"], 2);
        assert_eq!(events(&collector), ["a", "b"]);
    }

    #[test]
    fn acknowledgement_is_forgotten_once_it_was_read() {
        let mut collector =
            Collector { uses_ack: true, polls_until_indexed: Some(1), ..Collector::default() };
        let without = request("/event", &format!("Splunk {HEC_TOKEN}"), r#"{"event":"a"}"#);
        assert_eq!(answer(&collector.process(&without)).1["code"], 10);
        for id in 0..2 {
            assert_eq!(post(&mut collector, r#"{"event":"a"}"#).1["ackId"], id);
        }
        let poll = |collector: &mut Collector, channel: &str| {
            let mut request = request("/ack", &format!("Splunk {HEC_TOKEN}"), r#"{"acks":[0,9]}"#);
            request.headers.push(("x-splunk-request-channel".into(), channel.into()));
            answer(&collector.process(&request)).1
        };
        let no = json!({ "acks": { "0": false, "9": false } });
        assert_eq!(poll(&mut collector, &CHANNEL.replace('0', "1")), no);
        assert_eq!(poll(&mut collector, CHANNEL), no);
        let yes = json!({ "acks": { "0": true, "9": false } });
        assert_eq!(poll(&mut collector, CHANNEL), yes);
        assert_eq!(poll(&mut collector, CHANNEL), no);
        assert_eq!(poll(&mut collector, "no-guid")["code"], 11);
        collector.uses_ack = false;
        assert_eq!(poll(&mut collector, CHANNEL)["code"], 14);
    }
}
