//! `GET /config` and the routes beside it, over HTTP.

use crate::common::{SECRET, Server, TOKEN, problem};
use siem_protocol::{Digest, names::header, verify_answer};

const NONCE: &str = "00112233445566778899aabbccddeeff";
const BODY: &str = r#"{"version":1,"filters":{"ignore_types":["progress"]}}"#;

fn get(server: &Server, path: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new().get(server.url(path)).bearer_auth(TOKEN)
}

fn write(server: &Server, text: &str) {
    std::fs::write(server.data.path().join("config.json"), text).unwrap();
}

#[tokio::test]
async fn config_signature_over_the_nonce_matches_the_vectors() {
    let server = Server::start().await;
    write(&server, BODY);
    let response = get(&server, "/config").header(header::NONCE, NONCE).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["etag"].to_str().unwrap(), format!("\"{}\"", Digest::of(BODY.as_bytes())));
    assert_eq!(
        headers[header::SIGNATURE],
        "7a398ff917bc5eb9c89ea9240580f87028883476a854b82b2251f7e3ecebabfd"
    );
    assert_eq!(response.text().await.unwrap(), BODY);
    let unsigned = get(&server, "/config").send().await.unwrap();
    assert!(!unsigned.headers().contains_key(header::SIGNATURE));
}

#[tokio::test]
async fn unchanged_config_is_304_signed_over_an_empty_body() {
    let server = Server::start().await;
    write(&server, BODY);
    let etag = get(&server, "/config").send().await.unwrap().headers()["etag"].clone();
    let request = get(&server, "/config").header(header::NONCE, NONCE);
    let response = request.header("if-none-match", etag.clone()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["etag"]), (304, &etag));
    let signature = response.headers()[header::SIGNATURE].to_str().unwrap();
    assert!(verify_answer(SECRET.as_bytes(), NONCE, b"", signature));
    write(&server, r#"{"version":1}"#);
    let response = get(&server, "/config").header("if-none-match", etag).send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.text().await.unwrap().as_str()),
        (200, r#"{"version":1}"#)
    );
}

#[tokio::test]
async fn minisig_beside_the_config_is_a_header() {
    let server = Server::start().await;
    write(&server, BODY);
    let response = get(&server, "/config").send().await.unwrap();
    assert!(!response.headers().contains_key(header::POLICY_SIGNATURE));
    let minisig = server.data.path().join("config.json.minisig");
    std::fs::write(&minisig, "untrusted comment: c\nRUQ=\n").unwrap();
    let response = get(&server, "/config").send().await.unwrap();
    assert_eq!(
        response.headers()[header::POLICY_SIGNATURE],
        "dW50cnVzdGVkIGNvbW1lbnQ6IGMKUlVRPQo="
    );
    assert_eq!(response.text().await.unwrap(), BODY);
    // A file that cannot be a signature does not remove the one before.
    std::fs::write(&minisig, "x".repeat(5000)).unwrap();
    let response = get(&server, "/config").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()[header::POLICY_SIGNATURE],
        "dW50cnVzdGVkIGNvbW1lbnQ6IGMKUlVRPQo="
    );
}

#[tokio::test]
async fn config_missing_is_404_and_invalid_is_500() {
    let server = Server::start().await;
    assert_eq!(problem(get(&server, "/config").send().await.unwrap()).await.status, 404);
    for wrong in ["", "{", r#"{"version":2}"#, r#"{"version":1,"shipping":{"batch_size":0}}"#] {
        write(&server, wrong);
        let problem = problem(get(&server, "/config").send().await.unwrap()).await;
        assert_eq!(problem.status, 500, "{wrong}");
    }
}

/// So that an agent can tell the receiver from any other server with status 404.
#[tokio::test]
async fn missing_config_is_signed_over_the_nonce() {
    let server = Server::start().await;
    let response = get(&server, "/config").header(header::NONCE, NONCE).send().await.unwrap();
    assert_eq!(response.status(), 404);
    let signature = response.headers()[header::SIGNATURE].to_str().unwrap().to_owned();
    let body = response.bytes().await.unwrap();
    assert!(verify_answer(SECRET.as_bytes(), NONCE, &body, &signature));
    let wrong_path = get(&server, "/conf").header(header::NONCE, NONCE).send().await.unwrap();
    assert!(!wrong_path.headers().contains_key(header::SIGNATURE));
    let no_token = reqwest::Client::new().get(server.url("/config")).header(header::NONCE, NONCE);
    assert!(!no_token.send().await.unwrap().headers().contains_key(header::SIGNATURE));
}

/// With an arbitrary nonce, the signature of a 304 could be that of a batch.
#[tokio::test]
async fn invalid_nonce_is_400() {
    let server = Server::start().await;
    write(&server, BODY);
    for nonce in ["", "00", "x0112233445566778899aabbccddeeff", r#"{"kind":"batch"}"#] {
        let response = get(&server, "/config").header(header::NONCE, nonce).send().await.unwrap();
        assert!(!response.headers().contains_key(header::SIGNATURE));
        assert_eq!(problem(response).await.status, 400, "{nonce}");
    }
}

#[tokio::test]
async fn config_and_stats_require_the_token_but_health_does_not() {
    let server = Server::start().await;
    write(&server, BODY);
    for path in ["/config", "/stats"] {
        let response = reqwest::get(server.url(path)).await.unwrap();
        assert_eq!(problem(response).await.status, 401, "{path}");
    }
    for path in ["/healthz", "/openapi.json"] {
        let response = reqwest::get(server.url(path)).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}

#[tokio::test]
async fn every_route_accepts_only_its_method() {
    let server = Server::start().await;
    for (method, path) in siem_server::ROUTES {
        for (asked, request) in [
            ("get", reqwest::Client::new().get(server.url(path))),
            ("post", reqwest::Client::new().post(server.url(path))),
        ] {
            let status = request.send().await.unwrap().status();
            assert_eq!(status == 405, asked != method, "{asked} {path}: {status}");
            assert_ne!(status, 404, "{asked} {path}");
        }
    }
}
