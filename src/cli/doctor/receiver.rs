//! The way to the receiver: its name, the proxy, TLS, token, secret, and its clock.

use std::{
    net::ToSocketAddrs as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Finding, Patient};
use crate::{
    pipeline::assembly,
    platform::{Environment, Timestamp},
    siem::{Connection, Probe},
    text::causes,
};

/// How long the receiver may take.
const WITHIN: Duration = Duration::from_secs(15);
/// Clocks that are farther apart make times in the records useless, and certificates invalid.
const SKEW: Duration = Duration::from_secs(60);
/// What the HTTP client takes a proxy from. A value may hold credentials.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

pub(super) fn look(patient: &Patient) -> Vec<Finding> {
    if let Some(missing) = patient.loaded.missing_for_delivery() {
        return vec![Finding::wrong("receiver", missing.to_string())];
    }
    let connection = match assembly::manager(&patient.loaded, &patient.context) {
        Ok(Some(connection)) => connection,
        Ok(None) => {
            return vec![Finding::note("receiver", "no sink ships to a receiver")];
        }
        Err(error) => return vec![Finding::wrong("receiver", causes(&error))],
    };
    let mut findings = Vec::new();
    let proxies = proxies(&patient.context.environment);
    if proxies.is_empty() {
        findings.push(name(&connection));
    } else {
        findings.push(Finding::note("proxy", format!("{} is set", proxies.join(", "))));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let probe = match runtime {
        Ok(runtime) => runtime.block_on(connection.probe(WITHIN)),
        Err(error) => return vec![Finding::wrong("receiver", error.to_string())],
    };
    match probe {
        Err(reason) if reason.contains("onnection refused") => {
            let hint = "does a receiver listen there, and does a firewall let requests through?";
            findings.push(Finding::wrong("receiver", format!("{reason}; {hint}")));
        }
        Err(reason) => findings.push(Finding::wrong("receiver", reason)),
        Ok(probe) => findings.extend(judge(&probe, patient.context.clock.now())),
    }
    findings
}

fn proxies(environment: &Environment) -> Vec<&'static str> {
    let is_set = |name: &&str| {
        environment.get(name).is_some() || environment.get(&name.to_lowercase()).is_some()
    };
    PROXIES.into_iter().filter(is_set).collect()
}

/// Whether the receiver's name is known to this machine.
fn name(connection: &Connection) -> Finding {
    let Some((host, port)) = connection.host_and_port() else {
        return Finding::wrong("name", format!("`{}` names no host", connection.base()));
    };
    match (host.as_str(), port).to_socket_addrs() {
        Ok(found) => {
            let found: Vec<_> = found.map(|it| it.ip().to_string()).collect();
            Finding::well("name", format!("`{host}` is {}", found.join(", ")))
        }
        Err(error) => Finding::wrong(
            "name",
            format!(
                "`{host}` is not known here: {error}; is `endpoint` right, and DNS (or a VPN) up?"
            ),
        ),
    }
}

/// What the receiver's answer says of the endpoint, the token, the secret and the clocks.
fn judge(probe: &Probe, now: Timestamp) -> Vec<Finding> {
    let took = probe.took.as_millis();
    let mut findings = Vec::new();
    match probe.status {
        200 | 304 | 404 => {
            findings.push(Finding::well("receiver", format!("it answers, in {took} ms")));
            findings.push(Finding::well("token", "the receiver takes it"));
        }
        401 => {
            findings.push(Finding::wrong("token", "the receiver answers 401: is the token right?"))
        }
        403 => findings.push(Finding::wrong(
            "token",
            "the receiver answers 403: is this token allowed to ship?",
        )),
        407 => findings.push(Finding::wrong(
            "proxy",
            "it answers 407: give `proxy_user` and `proxy_password_file`",
        )),
        status @ 300..=399 => findings.push(Finding::wrong(
            "receiver",
            format!("it answers {status}: redirects are not followed, give the endpoint itself"),
        )),
        status => findings.push(Finding::wrong(
            "receiver",
            format!("it answers {status}, after {took} ms: its own log says why"),
        )),
    }
    findings.extend(match probe.is_signed {
        Some(true) => Some(Finding::well("HMAC secret", "the receiver has the same")),
        Some(false) => Some(Finding::wrong(
            "HMAC secret",
            "the receiver signs with another one, or something answers in its place",
        )),
        None if probe.status == 200 => Some(Finding::wrong(
            "HMAC secret",
            "the answer is not signed: does a captive portal or a proxy answer in the receiver's place?",
        )),
        // Nothing is managed there, so nothing is signed.
        None if probe.status == 404 => Some(Finding::note(
            "HMAC secret",
            "nothing that it signs shows whether it has the same: `ai-agent doctor --canary` does",
        )),
        None => None,
    });
    findings.extend(probe.date.map(|date| clock(date, now)));
    findings
}

fn clock(theirs: SystemTime, ours: Timestamp) -> Finding {
    let theirs = theirs.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ours = Duration::from_millis(ours.0);
    let apart = theirs.abs_diff(ours);
    if apart <= SKEW {
        return Finding::well("clock", "as the receiver's, within a minute");
    }
    let direction = if ours > theirs { "ahead of" } else { "behind" };
    Finding::wrong(
        "clock",
        format!(
            "{} {direction} the receiver's: switch time synchronisation on",
            humantime::format_duration(Duration::from_secs(apart.as_secs()))
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn probe(status: u16, is_signed: Option<bool>) -> Probe {
        Probe { status, is_signed, date: None, took: Duration::from_millis(7) }
    }

    fn found(probe: &Probe) -> Vec<(&'static str, State)> {
        judge(probe, Timestamp(0)).iter().map(|it| (it.about, it.state)).collect()
    }

    #[test]
    fn what_an_answer_says() {
        use State::{Note, Well, Wrong};

        let well = [("receiver", Well), ("token", Well), ("HMAC secret", Note)];
        assert_eq!(found(&probe(404, None)), well);
        assert_eq!(found(&probe(200, Some(true)))[2], ("HMAC secret", Well));
        assert_eq!(found(&probe(200, Some(false)))[2], ("HMAC secret", Wrong));
        assert_eq!(found(&probe(200, None))[2], ("HMAC secret", Wrong));
        assert_eq!(found(&probe(401, None)), [("token", Wrong)]);
        assert_eq!(found(&probe(301, None)), [("receiver", Wrong)]);
        assert_eq!(found(&probe(407, None)), [("proxy", Wrong)]);
        assert_eq!(found(&probe(503, None)), [("receiver", Wrong)]);
    }

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let ours = Timestamp(1_000_000_000);
        assert_eq!(clock(at(1_000_060), ours).state, State::Well);
        let behind = clock(at(1_003_661), ours);
        assert_eq!(behind.says, "1h 1m 1s behind the receiver's: switch time synchronisation on");
        assert!(clock(at(999_000), ours).says.contains("ahead of"));
    }

    #[test]
    fn only_the_names_of_proxies_are_told() {
        let environment: Environment =
            [("https_proxy", "http://u:secret@p"), ("NO_PROXY", "x")].into_iter().collect();
        assert_eq!(proxies(&environment), ["HTTPS_PROXY", "NO_PROXY"]);
    }
}
