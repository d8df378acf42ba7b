//! Lines of the audit log: any bytes, in any order.
//!
//! Lines are parsed and grouped into events, facts are derived from the events, and calls are matched.

use std::time::Duration;

use ai_agent_auditd::{
    assembler::EventAssembler, call_filter::CallFilter, facts::Facts, line::Line,
};

/// Fails if a line is lost, or if facts are not JSON.
pub fn run(data: &[u8]) {
    let mut assembler = EventAssembler::default();
    let mut ended = Vec::new();
    let mut expected = Vec::new();
    for (place, bytes) in data.split(|byte| *byte == b'\n').enumerate() {
        let Some(line) = Line::parse(bytes) else { continue };
        for (key, value) in line.fields() {
            assert!(!key.contains(&b' ') && value.word().len() <= bytes.len());
            std::hint::black_box((value.decoded(), value.number::<u64>()));
        }
        expected.push(place);
        ended.extend(assembler.push(place, bytes, &line, Duration::ZERO));
    }
    ended.extend(assembler.silent(Duration::from_secs(60)));
    assert_eq!(assembler.open().count(), 0);

    let mut places = Vec::new();
    let filter = CallFilter::default();
    for event in &ended {
        places.extend(event.lines.iter().map(|(place, _)| *place));
        let facts = Facts::of(event.lines.iter().map(|(_, line)| line.as_slice()));
        assert_eq!((facts.serial, facts.at.0), (event.id.serial, event.id.millis));
        std::hint::black_box(filter.matches(&facts));
        let json: serde_json::Value = serde_json::from_str(&facts.to_json()).unwrap();
        assert!(json.is_object());
    }
    places.sort_unstable();
    assert_eq!(places, expected, "each line is returned once");
}
