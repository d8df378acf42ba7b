//! A receiver of OTLP that keeps log records and responds by a script.

use std::{
    net::{Ipv4Addr, SocketAddr},
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
    },
    common::v1::{AnyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs},
};
use prost::Message as _;

use crate::{
    assembly::ServerEvent,
    http_server::{HttpServer, Reply, Request},
};

/// The receiver. It stops when dropped.
pub struct OtlpServer {
    http: HttpServer,
    stored: Arc<Mutex<Vec<ResourceLogs>>>,
}

impl OtlpServer {
    /// Starts a receiver that accepts everything.
    pub fn start() -> Self {
        Self::by_rule(|_| None)
    }

    /// Starts a receiver that stores no log record of a request for which `rule` returns a response.
    pub fn by_rule(mut rule: impl FnMut(&[LogRecord]) -> Option<Reply> + Send + 'static) -> Self {
        let stored = Arc::new(Mutex::new(Vec::new()));
        let storing = Arc::clone(&stored);
        let process = move |request: &Request| {
            if request.path != "/v1/logs" {
                return Reply::new(404, "");
            }
            let Ok(logs) = ExportLogsServiceRequest::decode(&*request.body) else {
                return Reply::new(400, "no valid protobuf");
            };
            let records: Vec<LogRecord> = log_records(&logs.resource_logs).cloned().collect();
            if let Some(reply) = rule(&records) {
                return reply;
            }
            storing.lock().unwrap_or_else(PoisonError::into_inner).extend(logs.resource_logs);
            accepted()
        };
        let http = HttpServer::on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), process);
        Self { http, stored }
    }

    /// The server, for faults and requests.
    pub fn http(&self) -> &HttpServer {
        &self.http
    }

    /// Log records that were stored, with their resources.
    pub fn stored(&self) -> Vec<ResourceLogs> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Log records that were stored, without their resources.
    pub fn log_records(&self) -> Vec<LogRecord> {
        log_records(&self.stored()).cloned().collect()
    }

    /// Log records that were stored, as events. Fails if one has no resource.
    #[track_caller]
    pub fn events(&self) -> Vec<ServerEvent> {
        let stored = self.stored();
        for logs in &stored {
            if log_records(slice::from_ref(logs)).next().is_none() {
                continue;
            }
            let resource = logs.resource.as_ref().expect("a resource");
            let service = resource.attributes.iter().find(|it| it.key == "service.name");
            let name = service.and_then(|service| text(service.value.as_ref()));
            assert_eq!(name.as_deref(), Some("ai-agent"));
        }
        log_records(&stored).map(event).collect()
    }
}

fn log_records(logs: &[ResourceLogs]) -> impl Iterator<Item = &LogRecord> {
    logs.iter().flat_map(|logs| &logs.scope_logs).flat_map(|logs| &logs.log_records)
}

/// Returns the response to a request whose log records were all accepted.
pub fn accepted() -> Reply {
    Reply::new(200, "").header("Content-Type", "application/x-protobuf")
}

/// Returns the response to a request of which `rejected` log records were refused.
pub fn rejected(rejected: i64, message: &str) -> Reply {
    let error_message = message.to_owned();
    let partial_success =
        ExportLogsPartialSuccess { rejected_log_records: rejected, error_message };
    let response = ExportLogsServiceResponse { partial_success: Some(partial_success) };
    Reply::new(200, response.encode_to_vec()).header("Content-Type", "application/x-protobuf")
}

/// Returns the text of an attribute.
pub fn attribute(record: &LogRecord, name: &str) -> Option<String> {
    let found = record.attributes.iter().find(|attribute| attribute.key == name)?;
    text(found.value.as_ref())
}

/// Returns the content of a log record.
#[track_caller]
pub fn content(record: &LogRecord) -> Vec<u8> {
    match record.body.as_ref().and_then(|body| body.value.as_ref()) {
        Some(Value::StringValue(text)) => text.as_bytes().to_vec(),
        Some(Value::BytesValue(bytes)) => bytes.clone(),
        other => panic!("a body that is {other:?}"),
    }
}

#[track_caller]
fn event(record: &LogRecord) -> ServerEvent {
    let value = |name: &str| {
        let mut found = record.attributes.iter().filter(|attribute| attribute.key == name);
        let value = found.next().and_then(|attribute| attribute.value.as_ref());
        assert!(found.next().is_none(), "two attributes {name}");
        value
    };
    let number = |name: &str| match value(name)?.value {
        Some(Value::IntValue(number)) => u64::try_from(number).ok(),
        _ => None,
    };
    assert!(record.time_unix_nano > 0 && record.observed_time_unix_nano > 0);
    let part = number("ai_agent.part.index").map(|index| {
        let total = number("ai_agent.part.total").unwrap();
        (text(value("ai_agent.part.of")).unwrap(), index, total)
    });
    ServerEvent {
        id: text(value("log.record.uid")).unwrap(),
        part,
        hash: text(value("ai_agent.sha256")).unwrap(),
        content: content(record),
    }
}

fn text(value: Option<&AnyValue>) -> Option<String> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}
