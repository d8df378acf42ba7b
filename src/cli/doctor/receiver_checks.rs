//! Checks of the connection to the receiver of each sink of type `http-siem`: name, proxy, TLS, token,
//! secret and clock.

use std::{
    net::ToSocketAddrs as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::check_result::{CheckResult, Checkup};
use crate::{
    config::{HTTP_SIEM, StageTable},
    pipeline::assembly,
    platform::{Environment, Timestamp},
    siem::{Connection, Probe},
    text::causes,
};

/// Longest time that a receiver may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest tolerated difference of the clocks: beyond it, times in records are useless, and
/// certificates may be invalid.
const MAX_SKEW: Duration = Duration::from_secs(60);
/// Variables that set a proxy. Their values may contain credentials, and are not shown.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

pub(super) fn run(checkup: &Checkup) -> Vec<CheckResult> {
    let missing = checkup.loaded.missing_for_delivery();
    let mut results = Vec::new();
    let sinks = checkup.loaded.settings.pipeline.sinks.iter();
    let sinks: Vec<_> = sinks.filter(|sink| sink.stage == HTTP_SIEM).collect();
    for sink in &sinks {
        let now = checkup.context.clock.now();
        let of_sink = match assembly::connection(&checkup.loaded, sink, &checkup.context) {
            Ok(connection) => {
                let proxy = proxy_of(sink, checkup);
                let checked = check(&connection, proxy.as_ref(), now);
                proxy.map(|proxy| proxy.result()).into_iter().chain(checked).collect()
            }
            // A setting that is missing is reported with every way to set it.
            Err(_) if missing.is_some() => Vec::new(),
            Err(error) => vec![CheckResult::fail("receiver", causes(&error))],
        };
        let is_only = sinks.len() == 1;
        results.extend(of_sink.into_iter().map(|result| match is_only {
            true => result,
            false => CheckResult { text: format!("`{}`: {}", sink.name, result.text), ..result },
        }));
    }
    results.extend(missing.map(|missing| CheckResult::fail("receiver", missing.to_string())));
    results
}

/// Setting of the proxy that a sink may use.
enum ProxySetting {
    /// An option of the sink, which it always uses.
    Option(String),
    /// Variables of the environment, which do not count for every receiver.
    Variables(Vec<&'static str>),
}

impl ProxySetting {
    fn text(&self) -> String {
        match self {
            Self::Option(key) => format!("set by `{key}`"),
            Self::Variables(names) => format!("set by {}", names.join(" and ")),
        }
    }

    fn result(&self) -> CheckResult {
        match self {
            Self::Option(_) => CheckResult::ok("proxy", self.text()),
            Self::Variables(_) => CheckResult::warn("proxy", self.text()),
        }
    }
}

/// Returns how a proxy is set for a sink. Variables do not count if the machine's file locks the option.
fn proxy_of(sink: &StageTable, checkup: &Checkup) -> Option<ProxySetting> {
    if sink.options.get("proxy").is_some() {
        return Some(ProxySetting::Option(format!("sink.{}.proxy", sink.name)));
    }
    let ignored = checkup.loaded.ignored_variables(&sink.name);
    let names = proxies(&checkup.context.environment.clone().hide(&ignored));
    (!names.is_empty()).then_some(ProxySetting::Variables(names))
}

/// Checks the connection to one receiver, directly or through a proxy.
fn check(
    connection: &Connection,
    proxy: Option<&ProxySetting>,
    now: Timestamp,
) -> Vec<CheckResult> {
    let mut results = Vec::new();
    // A proxy resolves the name itself, which this machine may not be able to.
    if proxy.is_none() {
        results.push(host_name(connection));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let probe = match runtime {
        Ok(runtime) => runtime.block_on(connection.probe(TIMEOUT)),
        Err(error) => return vec![CheckResult::fail("receiver", error.to_string())],
    };
    match probe {
        Err(reason) if reason.contains("onnection refused") => {
            let hint = "check that a receiver listens there, and that no firewall blocks it";
            let hint = match proxy {
                None => hint.to_owned(),
                Some(ProxySetting::Option(_)) => "check the proxy".to_owned(),
                Some(ProxySetting::Variables(_)) => format!("{hint}; or check the proxy"),
            };
            results.push(CheckResult::fail("receiver", format!("{reason}; {hint}")));
        }
        Err(reason) => results.push(CheckResult::fail("receiver", reason)),
        Ok(probe) => results.extend(evaluate(&probe, now)),
    }
    results
}

fn proxies(environment: &Environment) -> Vec<&'static str> {
    let is_set = |name: &&str| {
        environment.get(name).is_some() || environment.get(&name.to_lowercase()).is_some()
    };
    PROXIES.into_iter().filter(is_set).collect()
}

/// Checks that the receiver's name can be resolved.
fn host_name(connection: &Connection) -> CheckResult {
    let Some((host, port)) = connection.host_and_port() else {
        return CheckResult::fail("name", format!("`{}` contains no host", connection.base()));
    };
    match (host.as_str(), port).to_socket_addrs() {
        Ok(found) => {
            let found: Vec<_> = found.map(|it| it.ip().to_string()).collect();
            CheckResult::ok("name", format!("`{host}` resolves to {}", found.join(", ")))
        }
        Err(error) => CheckResult::fail(
            "name",
            format!("cannot resolve `{host}`: {error}; check `endpoint`, DNS and the VPN"),
        ),
    }
}

/// Evaluates the receiver's response: endpoint, token, secret and clock.
///
/// Only a receiver signs its response, over the nonce of the request, and it accepts the token before.
/// Any other server, and any other path, may respond with the same status.
fn evaluate(probe: &Probe, now: Timestamp) -> Vec<CheckResult> {
    const CANARY: &str = "run `ai-agent doctor --canary`";

    let (status, took) = (probe.status, probe.took.as_millis());
    let not_verified = |subject, reason: &str| CheckResult::not_verified(subject, reason);
    let responded = CheckResult::ok("receiver", format!("responded within {took} ms"));
    let mut results = match (status, probe.is_signed) {
        (200 | 404, Some(true)) => vec![
            responded,
            CheckResult::ok("token", "accepted by the receiver"),
            CheckResult::ok("HMAC secret", "the same as the receiver's"),
        ],
        // Anything can send a wrong signature, such as a proxy with an old response.
        (200 | 404, Some(false)) => vec![
            not_verified("receiver", "the signature of its response is wrong"),
            not_verified("token", "the signature of the response is wrong"),
            CheckResult::fail(
                "HMAC secret",
                "the receiver signs with another secret, or something else responds in its place",
            ),
        ],
        (200, None) => vec![
            not_verified("receiver", "responded with 200, without a signature"),
            not_verified("token", "the response is not signed"),
            CheckResult::fail(
                "HMAC secret",
                "the response is not signed: a captive portal or a proxy may respond in place of the receiver",
            ),
        ],
        // A receiver without managed configuration may sign nothing, and so does a server that is none.
        (404, None) => vec![
            not_verified(
                "receiver",
                &format!(
                    "responded with 404, which may mean that `endpoint` has a wrong path, or that there \
                     is no managed configuration: {CANARY}"
                ),
            ),
            not_verified("token", &format!("the receiver signed nothing: {CANARY}")),
            not_verified("HMAC secret", &format!("the receiver signed nothing: {CANARY}")),
        ],
        (401, _) => {
            vec![CheckResult::fail("token", "the receiver responded with 401: check the token")]
        }
        (403, _) => vec![CheckResult::fail(
            "token",
            "the receiver responded with 403: check that this token may ship",
        )],
        (407, _) => vec![CheckResult::fail(
            "proxy",
            "responded with 407: set `proxy_user` and `proxy_password_file`",
        )],
        (300..=399, _) => vec![CheckResult::fail(
            "receiver",
            format!(
                "responded with {status}: redirects are not followed, set `endpoint` to their target"
            ),
        )],
        _ => vec![CheckResult::fail(
            "receiver",
            format!("responded with {status} after {took} ms: see the receiver's log"),
        )],
    };
    results.extend(probe.date.map(|date| clock(date, now)));
    results
}

fn clock(theirs: SystemTime, ours: Timestamp) -> CheckResult {
    let theirs = theirs.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ours = Duration::from_millis(ours.0);
    let skew = theirs.abs_diff(ours);
    if skew <= MAX_SKEW {
        return CheckResult::ok("clock", "within a minute of the receiver's");
    }
    let direction = if ours > theirs { "ahead of" } else { "behind" };
    CheckResult::fail(
        "clock",
        format!(
            "{} {direction} the receiver's: enable time synchronisation",
            humantime::format_duration(Duration::from_secs(skew.as_secs()))
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::check_result::CheckOutcome, *};

    fn probe(status: u16, is_signed: Option<bool>) -> Probe {
        Probe { status, is_signed, date: None, took: Duration::from_millis(7) }
    }

    fn found(probe: &Probe) -> Vec<(&'static str, CheckOutcome)> {
        evaluate(probe, Timestamp(0)).iter().map(|it| (it.subject, it.outcome)).collect()
    }

    #[test]
    fn only_a_signed_response_proves_anything() {
        use CheckOutcome::{Fail, Ok, Warn};

        let all = |outcomes: [CheckOutcome; 3]| {
            ["receiver", "token", "HMAC secret"].into_iter().zip(outcomes).collect::<Vec<_>>()
        };
        for status in [200, 404] {
            assert_eq!(found(&probe(status, Some(true))), all([Ok, Ok, Ok]));
            assert_eq!(found(&probe(status, Some(false))), all([Warn, Warn, Fail]));
        }
        assert_eq!(found(&probe(404, None)), all([Warn, Warn, Warn]));
        assert_eq!(found(&probe(200, None)), all([Warn, Warn, Fail]));
        assert!(evaluate(&probe(404, None), Timestamp(0))[0].text.starts_with("not verified: "));
        assert_eq!(found(&probe(401, None)), [("token", Fail)]);
        assert_eq!(found(&probe(301, None)), [("receiver", Fail)]);
        assert_eq!(found(&probe(304, None)), [("receiver", Fail)]);
        assert_eq!(found(&probe(407, None)), [("proxy", Fail)]);
        assert_eq!(found(&probe(503, None)), [("receiver", Fail)]);
    }

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let ours = Timestamp(1_000_000_000);
        assert_eq!(clock(at(1_000_060), ours).outcome, CheckOutcome::Ok);
        let behind = clock(at(1_003_661), ours);
        assert_eq!(behind.text, "1h 1m 1s behind the receiver's: enable time synchronisation");
        assert!(clock(at(999_000), ours).text.contains("ahead of"));
    }

    #[test]
    fn only_the_names_of_proxy_variables_are_shown() {
        let environment: Environment =
            [("https_proxy", "http://u:secret@p"), ("NO_PROXY", "x")].into_iter().collect();
        assert_eq!(proxies(&environment), ["HTTPS_PROXY", "NO_PROXY"]);
    }
}
