use super::*;

#[test]
fn refusals_are_counted_by_status_and_reason() {
    let metrics = Metrics::default();
    metrics.count_refusal(403, "urn:ai-agent:problem:epoch-owned");
    metrics.count_refusal(403, "urn:ai-agent:problem:epoch-owned");
    let mut text = String::new();
    prometheus_text::encode(&mut text, &metrics.registry).unwrap();
    let line = "siem_server_refusals_total{status=\"403\",reason=\"epoch-owned\"} 2\n";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("siem_server_batches_total{outcome=\"refused\"} 0\n"), "{text}");
}

#[test]
fn paths_that_are_no_routes_share_a_label() {
    assert_eq!(path_of_route("/siem/ingest"), "/ingest");
    assert_eq!(path_of_route("/wp-login.php"), "other");
    let metrics = Metrics::default();
    (0..100).for_each(|n| metrics.count_request(&format!("/{n}"), Duration::from_millis(3)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &metrics.registry).unwrap();
    let line = "siem_server_request_duration_seconds_count{path=\"other\"} 100\n";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn figures_of_a_receiver_that_ended_are_missing() {
    let metrics = Metrics::default();
    let text = metrics.text().await;
    assert!(!text.contains("turns_waiting") && text.contains("siem_server_build_info"), "{text}");
}
