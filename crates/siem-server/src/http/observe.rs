//! `GET /stats`, `/healthz` and `/openapi.json`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use siem_protocol::names::content_type;

use super::{Shared, problem::Rejection};
use crate::trust::Scope;

/// OpenAPI document, as served.
pub const OPENAPI: &str = include_str!("../../openapi.json");

pub(super) async fn stats(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Err(rejection) = shared.authorize(&headers, &[Scope::Read]) {
        return rejection.into_response();
    }
    match shared.storage.stats().await {
        Ok(stats) => json(&stats),
        Err(error) => Rejection::from(error).into_response(),
    }
}

pub(super) async fn healthz() -> Response {
    json(&serde_json::json!({ "status": "ok" }))
}

pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, content_type::JSON)], OPENAPI).into_response()
}

/// Builds a JSON response.
pub(super) fn json<T: Serialize>(value: &T) -> Response {
    let body = serde_json::to_vec(value).expect("names and numbers can be written as JSON");
    ([(CONTENT_TYPE, content_type::JSON)], body).into_response()
}
