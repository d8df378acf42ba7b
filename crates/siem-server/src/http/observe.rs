//! `GET /stats`, `/healthz` and `/openapi.json`.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use siem_protocol::names::content_type;
use tokio::time::timeout;

use super::{Shared, managed_config, problem::Rejection, stats_query};
use crate::{stats::Stats, store::StoreError, trust::Scope};

/// OpenAPI document, as served.
pub const OPENAPI: &str = include_str!("../../openapi.json");

pub(super) async fn stats(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    match read_stats(&shared, query.as_deref(), &headers).await {
        Ok(stats) => json(&stats),
        Err(rejection) => rejection.into_response(),
    }
}

async fn read_stats(
    shared: &Arc<Shared>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Stats, Rejection> {
    shared.authorize(headers, &[Scope::Read]).await?;
    let mut wanted = stats_query::parse(query.unwrap_or_default(), shared.clock.now())?;
    wanted.thresholds = shared.fleet;
    let is_first_page = wanted.after.is_none();
    // Batches wait while the store counts: for one request, not for all that ask at the same time.
    let waiting = timeout(shared.limits.patience, shared.stats_turn.acquire());
    let Ok(Ok(_turn)) = waiting.await else {
        return Err(StoreError::Busy { retry_after: shared.limits.patience }.into());
    };
    let stats = shared.storage.stats(wanted).await?;
    Ok(Stats { config: managed_config::stats(shared, is_first_page).await, ..stats })
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
