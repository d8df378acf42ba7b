//! Context of the unit tests of built-in stages.

use std::{sync::Arc, time::Duration};

use crate::{
    platform::{Environment, Os, Paths, SystemClock, SystemPower, bounded::BoundedCalls},
    stages::{AgentContext, Sessions},
};

/// Returns a context with a made-up identity and the system's clock.
pub(crate) fn context() -> AgentContext {
    let home = if cfg!(windows) { r"C:\Users\you" } else { "/home/you" };
    let environment = Environment::from_iter([("HOME", home), ("USERPROFILE", home)]);
    AgentContext {
        identity: ai_agent_stage::testing::context().identity,
        paths: Paths::on(Os::CURRENT, &environment).expect("a home is given"),
        environment,
        clock: Arc::new(SystemClock),
        calls: BoundedCalls::new(Arc::new(SystemClock)),
        power: Arc::new(SystemPower),
        revision: crate::siem::Revision::default(),
        device: crate::siem::Device::without_key("instance".to_owned()),
        trust: crate::siem::TrustStates::default(),
        organisation_keys: Vec::new(),
        state_dir: None,
        sandbox: crate::platform::Sandbox::default(),
        sessions: Sessions::default(),
        once: false,
        poll_interval: Duration::from_secs(300),
    }
}
