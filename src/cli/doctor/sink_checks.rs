//! Checks of the sinks other than `http-siem`: each tests its own connection.

use super::{
    check_result::{CheckResult, Checkup},
    receiver_checks::TIMEOUT,
};
use crate::{
    config::{HTTP_SIEM, StageTable},
    pipeline::assembly,
    stages::sink::Sink,
    text::causes,
};

const SUBJECT: &str = "sink";

pub(super) fn run(checkup: &Checkup) -> Vec<CheckResult> {
    let sinks = checkup.loaded.settings.pipeline.sinks.iter();
    sinks.filter(|table| table.stage != HTTP_SIEM).filter_map(|it| check(it, checkup)).collect()
}

/// Tests the connection of a sink; returns `None` if it has none.
fn check(table: &StageTable, checkup: &Checkup) -> Option<CheckResult> {
    match assembly::sink(&checkup.loaded, table, &checkup.context) {
        Ok(mut sink) => probe(&table.name, &mut *sink),
        Err(error) => Some(CheckResult::fail(SUBJECT, causes(&error))),
    }
}

fn probe(name: &str, sink: &mut dyn Sink) -> Option<CheckResult> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Some(CheckResult::fail(SUBJECT, error.to_string())),
    };
    let probed = runtime.block_on(async {
        match sink.probe(TIMEOUT) {
            Some(probe) => Some(probe.await),
            None => None,
        }
    });
    Some(match probed? {
        Ok(receiver) if !sink.probe_is_proof() => CheckResult::not_verified(
            SUBJECT,
            format!("`{name}`: {receiver}; run `ai-agent doctor --canary`"),
        ),
        Ok(receiver) => CheckResult::ok(SUBJECT, format!("`{name}`: {receiver}")),
        Err(reason) => CheckResult::fail(SUBJECT, format!("`{name}`: {reason}")),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::check_result::CheckOutcome, *};
    use crate::stages::sink::{Batch, Delivery, DeliveryFuture, ProbeFuture};

    /// Responds to a probe as given.
    struct Probed(Option<Result<String, String>>, bool);

    impl Sink for Probed {
        fn deliver<'a>(&'a mut self, _: &'a Batch) -> DeliveryFuture<'a> {
            Box::pin(async { Delivery::Acknowledged })
        }

        fn probe<'a>(&'a mut self, _: Duration) -> Option<ProbeFuture<'a>> {
            let result = self.0.clone()?;
            Some(Box::pin(async { result }))
        }

        fn probe_is_proof(&self) -> bool {
            self.1
        }
    }

    #[test]
    fn probe_of_a_sink_is_a_check() {
        let check = |result| probe("splunk", &mut Probed(result, true));
        let ok = CheckResult::ok("sink", "`splunk`: Splunk 10.4.3");
        assert_eq!(check(Some(Ok("Splunk 10.4.3".into()))), Some(ok));
        let fail = CheckResult::fail("sink", "`splunk`: invalid token");
        assert_eq!(check(Some(Err("invalid token".into()))), Some(fail));
        assert_eq!(check(None), None);
        let unproven = probe("web", &mut Probed(Some(Ok("HTTP server".into())), false)).unwrap();
        assert_eq!(unproven.outcome, CheckOutcome::Warn);
        assert!(unproven.text.starts_with("not verified: `web`: HTTP server"), "{}", unproven.text);
    }
}
