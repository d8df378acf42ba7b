//! `openapi.json` matches the types of the handlers.
//!
//! After a change of types or routes: `UPDATE_OPENAPI=1 cargo test -p siem-server --test it openapi`.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Value, json};
use siem_protocol::{
    BatchHeader, EnrollAnswer, EnrollRequest, KeysAnswer, ManagedConfig, Problem, Receipt,
    update::UpdateManifest,
};
use siem_server::{
    OPENAPI, ROUTES,
    fleet::{FleetProblem, StatsQuery},
    stats::Stats,
};

fn document() -> Value {
    let mut schemas = SchemaSettings::openapi3().into_generator();
    let header = schema::<BatchHeader>(&mut schemas);
    let receipt = schema::<Receipt>(&mut schemas);
    let config = schema::<ManagedConfig>(&mut schemas);
    let stats = schema::<Stats>(&mut schemas);
    let keys_answer = schema::<KeysAnswer>(&mut schemas);
    let enroll_request = schema::<EnrollRequest>(&mut schemas);
    let enroll_answer = schema::<EnrollAnswer>(&mut schemas);
    let manifest = schema::<UpdateManifest>(&mut schemas);
    schema::<Problem>(&mut schemas);
    let problems = |codes: &[(&str, &str)]| -> serde_json::Map<String, Value> {
        codes.iter().map(|(code, text)| ((*code).to_owned(), problem(text))).collect()
    };
    let mut ingest = problems(&[
        (
            "400",
            "Malformed: in its encoding, its lines, its header line, or contradicted by identity headers.",
        ),
        ("401", "The bearer token is missing or wrong."),
        (
            "403",
            "The signature is missing or wrong, the token does not permit it, or the epoch, the machine or the level of the receiver needs the seal of another device.",
        ),
        ("408", "The body took too long to arrive."),
        (
            "409",
            "A number that is held came with another chain value, or a batch of an epoch without a device does not continue it; `expected_seq` says what comes next.",
        ),
        ("413", "More than 16 MiB compressed or 64 MiB decoded, or too many entries."),
        (
            "415",
            "The content encoding is not zstd, gzip or identity, or the content type is another.",
        ),
        ("422", "One entry is no JSON object."),
        ("429", "Over a quota; `Retry-After` says when to come again."),
        ("431", "The headers have more than 64 KiB."),
        ("503", "Not available now; `Retry-After` says when to come again."),
        ("507", "No space; nothing of the batch is stored."),
    ]);
    ingest.insert("200".into(), answer("On stable storage.", receipt));
    let mut managed = problems(&[
        ("400", "The nonce is not 32 hexadecimal digits."),
        ("401", "The bearer token is missing or wrong."),
        ("403", "The token does not permit it."),
        ("404", "There is no managed configuration; signed like one."),
        ("500", "The configuration's file cannot be read, or agents would refuse it."),
    ]);
    let mut found = answer("The managed configuration, its bytes as they are in the file.", config);
    found["headers"] = found_headers();
    managed.insert("200".into(), found);
    managed.insert("304".into(), json!({ "description": "Unchanged; signed over an empty body." }));
    let mut held = problems(&[
        ("400", "A parameter is unknown or has no valid value."),
        ("401", "The bearer token is missing or wrong."),
        ("403", "The token does not permit it."),
        ("503", "Not available now."),
    ]);
    held.insert("200".into(), answer("What is held.", stats));
    let mut keys = problems(&[
        ("401", "The bearer token is missing or wrong."),
        ("403", "The token does not permit it."),
        ("404", "The receiver has no key."),
    ]);
    keys.insert("200".into(), answer("The receiver's keys.", keys_answer));
    let mut enroll = problems(&[
        ("400", "Malformed, not signed by its keys, or for another receiver."),
        ("401", "The bearer token is missing or wrong, or enrolled another device."),
        ("403", "The token does not permit it, or the previous key of the device is revoked."),
        ("404", "The receiver has no key."),
        ("408", "The body took too long to arrive."),
        ("413", "More than 32 KiB."),
        ("429", "Too many unconfirmed keys; `Retry-After` says when to come again."),
        ("503", "Not available now; `Retry-After` says when to come again."),
    ]);
    enroll.insert("200".into(), answer("What is known of the device.", enroll_answer));
    let mut updates = problems(&[
        ("400", "`os`, `arch` or `version` is missing or wrong, or the nonce is."),
        ("401", "The bearer token is missing or wrong."),
        ("403", "The token does not permit it."),
        ("404", "There is no release for the platform."),
        ("500", "The releases cannot be read."),
    ]);
    let mut listed = answer("The releases newer than `version`, the newest first.", manifest);
    listed["headers"] = found_headers();
    updates.insert("200".into(), listed);
    updates.insert("304".into(), json!({ "description": "Unchanged; signed over an empty body." }));
    let mut artifact = problems(&[
        ("401", "The bearer token is missing or wrong."),
        ("403", "The token does not permit it."),
        ("404", "The manifest lists no such artifact."),
        ("416", "The range is beyond the end; `Content-Range` names the size."),
        ("500", "The artifact is not a regular file, or not as listed."),
        ("503", "Too many artifacts are sent; `Retry-After` says when to come again."),
    ]);
    for (code, what) in [("200", "The program."), ("206", "A part of the program.")] {
        let content = json!({ "application/octet-stream": {
            "schema": { "type": "string", "format": "binary" },
        } });
        artifact.insert(code.into(), json!({ "description": what, "content": content }));
    }
    artifact.insert("304".into(), json!({ "description": "Unchanged." }));
    let text = |name: &str, required: bool, what: &str| json!({ "name": name, "in": "header", "required": required, "description": what, "schema": { "type": "string" } });
    let query = |name: &str, required: bool, what: &str| json!({ "name": name, "in": "query", "required": required, "description": what, "schema": { "type": "string" } });
    let identity: Vec<Value> = [
        "X-Siem-Machine-Id",
        "X-Siem-Hostname",
        "X-Siem-User",
        "X-Siem-Os",
        "X-Siem-Arch",
        "X-Siem-Agent-Version",
    ]
    .map(|name| text(name, false, "Percent-encoded; must not contradict the batch's header line."))
    .to_vec();
    let mut parameters = vec![
        text("X-Siem-Signature", true, "Lower-case hex of HMAC-SHA256 over the body as sent."),
        text(
            "X-Siem-Batch-Id",
            false,
            "`<epoch>-<first_seq>-<last_seq>`, a redelivery `<epoch>-r-<lowest>-<highest>`.",
        ),
        text("Content-Encoding", false, "`zstd`, `gzip` or `identity`."),
    ];
    parameters.extend(identity);
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Receiver of ai-agent",
            "description": "Takes signed batches of session records and keeps each record once, byte for byte.",
            "version": siem_protocol::PROTOCOL.to_string(),
            "license": { "name": "MIT" },
        },
        "security": [{ "bearer": [] }],
        "paths": {
            "/ingest": { "post": {
                "operationId": "ingest",
                "summary": "Takes a batch",
                "parameters": parameters,
                "requestBody": {
                    "required": true,
                    "description": "A header line, then one line for each entry.",
                    "content": { "application/x-ndjson": { "schema": header } },
                },
                "responses": ingest,
            } },
            "/config": { "get": {
                "operationId": "config",
                "summary": "Gives the managed configuration",
                "parameters": [
                    text("X-Siem-Nonce", false, "16 random bytes in hex; the answer is then signed."),
                    text("If-None-Match", false, "The ETag of what the agent has."),
                ],
                "responses": managed,
            } },
            "/keys": { "get": {
                "operationId": "keys", "summary": "Returns the keys of the receiver", "responses": keys,
            } },
            "/enroll": { "post": {
                "operationId": "enroll",
                "summary": "Receives the key of a device",
                "requestBody": {
                    "required": true,
                    "content": { "application/json": { "schema": enroll_request } },
                },
                "responses": enroll,
            } },
            "/update/manifest.json": { "get": {
                "operationId": "update_manifest",
                "summary": "Lists the releases of the agent for a platform",
                "parameters": [
                    query("os", true, "`linux`, `macos` or `windows`."),
                    query("arch", true, "`x86_64` or `aarch64`."),
                    query("version", false, "Version of the agent; absent for all releases."),
                    text("X-Siem-Nonce", false, "16 random bytes in hex; the answer is then signed."),
                    text("If-None-Match", false, "The ETag of what the agent has."),
                ],
                "responses": updates,
            } },
            "/update/{artifact}": { "get": {
                "operationId": "update_artifact",
                "summary": "Returns a program of a release",
                "parameters": [
                    json!({
                        "name": "artifact", "in": "path", "required": true,
                        "description": "Its name in the manifest.", "schema": { "type": "string" },
                    }),
                    text("Range", false, "One range of bytes; several are ignored."),
                    text("If-Range", false, "The ETag of the part that the agent has."),
                    text("If-None-Match", false, "The ETag of what the agent has."),
                ],
                "responses": artifact,
            } },
            "/stats": { "get": {
                "operationId": "stats",
                "summary": "Tells what is held, and who is quiet, behind or has gaps",
                "parameters": stats_parameters(),
                "responses": held,
            } },
            "/healthz": { "get": {
                "operationId": "healthz", "summary": "Tells that the server runs", "security": [],
                "responses": { "200": answer("It runs.", json!({ "type": "object" })) },
            } },
            "/readyz": { "get": {
                "operationId": "readyz", "summary": "Reports whether the server is ready for requests", "security": [],
                "responses": {
                    "200": answer("It is ready.", json!({ "type": "object" })),
                    "503": answer("It is not ready, with the reasons.", json!({ "type": "object" })),
                },
            } },
            "/openapi.json": { "get": {
                "operationId": "openapi", "summary": "Gives this document", "security": [],
                "responses": { "200": answer("This document.", json!({ "type": "object" })) },
            } },
        },
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas.take_definitions(true),
        },
    })
}

/// Headers of a signed response.
fn found_headers() -> Value {
    json!({
        "ETag": { "schema": { "type": "string" } },
        "X-Siem-Signature": {
            "description": "HMAC-SHA256 over nonce, newline and body, when the request has a nonce.",
            "schema": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
        },
    })
}

fn stats_parameters() -> Value {
    let parameter = |name: &str, what: &str, schema: Value| json!({ "name": name, "in": "query", "required": false, "description": what, "schema": schema });
    let text = || json!({ "type": "string" });
    let (least, most) = (1, StatsQuery::MAX_LIMIT);
    json!([
        parameter("machine", "Only rows of this machine.", text()),
        parameter("user", "Only rows of this user.", text()),
        parameter(
            "problem",
            "Only rows with this problem.",
            json!({ "type": "string", "enum": FleetProblem::ALL.map(FleetProblem::as_str) }),
        ),
        parameter(
            "limit",
            "Number of rows on a page.",
            json!({ "type": "integer", "minimum": least, "maximum": most, "default": StatsQuery::LIMIT }),
        ),
        parameter("cursor", "`next` of the page before, with the same conditions.", text()),
    ])
}

fn schema<T: schemars::JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

fn answer(description: &str, schema: Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn problem(description: &str) -> Value {
    json!({ "description": description, "content": { "application/problem+json": {
        "schema": { "$ref": "#/components/schemas/Problem" }
    } } })
}

#[test]
fn openapi_document_matches_the_types_of_the_handlers() {
    let document = document();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        std::fs::write(path, serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
        return;
    }
    let served: Value = serde_json::from_str(OPENAPI).unwrap();
    assert_eq!(served, document, "run this test with UPDATE_OPENAPI=1");
}

#[test]
fn openapi_document_lists_exactly_the_routes() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut described: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.as_str(), path.as_str()))
        })
        .collect();
    let mut routes = ROUTES.to_vec();
    described.sort_unstable();
    routes.sort_unstable();
    assert_eq!(described, routes);
}

#[test]
fn openapi_references_all_resolve() {
    fn check(value: &Value, document: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(members) => members.values().for_each(|value| check(value, document)),
            Value::Array(elements) => elements.iter().for_each(|value| check(value, document)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    check(&document, &document);
}
