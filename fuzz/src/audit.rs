//! Lines of the audit log: any bytes, in any order.
//!
//! Lines are parsed and grouped into events, facts are derived from the events, and calls are matched.

use std::time::Duration;

use ai_agent::audit::{facts::Facts, group::Groups, line::Line, wanted::Wanted};

/// Fails if a line is lost, or if facts are not JSON.
pub fn run(data: &[u8]) {
    let mut groups = Groups::default();
    let mut ended = Vec::new();
    let mut expected = Vec::new();
    for (place, bytes) in data.split(|byte| *byte == b'\n').enumerate() {
        let Some(line) = Line::parse(bytes) else { continue };
        for (key, value) in line.fields() {
            assert!(!key.contains(&b' ') && value.word().len() <= bytes.len());
            std::hint::black_box((value.decoded(), value.number::<u64>()));
        }
        expected.push(place);
        ended.extend(groups.push(place, bytes, &line, Duration::ZERO));
    }
    ended.extend(groups.silent(Duration::from_secs(60)));
    assert_eq!(groups.open().count(), 0);

    let mut places = Vec::new();
    let wanted = Wanted::default();
    for group in &ended {
        places.extend(group.lines.iter().map(|(place, _)| *place));
        let facts = Facts::of(group.lines.iter().map(|(_, line)| line.as_slice()));
        assert_eq!((facts.serial, facts.at.0), (group.id.serial, group.id.millis));
        std::hint::black_box(wanted.takes(&facts));
        let json: serde_json::Value = serde_json::from_str(&facts.to_json()).unwrap();
        assert!(json.is_object());
    }
    places.sort_unstable();
    assert_eq!(places, expected, "each line is returned once");
}
