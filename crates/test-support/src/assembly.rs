//! Contents of entries as a server has them: parts are joined, hashes compared, repetitions counted.

use std::collections::BTreeMap;

use data_encoding::BASE64;

/// An event as a server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// `event.id`.
    pub id: String,
    /// `ai_agent.part.of`, with the number of the part from 1 and the number of parts.
    pub part: Option<(String, u64, u64)>,
    /// `event.hash`: SHA-256 of the whole content, in hexadecimal digits.
    pub hash: String,
    /// Content, after its encoding was undone.
    pub content: Vec<u8>,
}

/// Contents that a server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assembled {
    /// Content of each entry by its id.
    pub contents: BTreeMap<String, Vec<u8>>,
    /// Number of events that the server has more than once, each repetition counted.
    pub repetitions: usize,
    /// Ids of entries of which parts are missing.
    pub incomplete: Vec<String>,
}

/// Joins the parts of entries. Fails if two events with the same id differ, or if a content has another hash
/// than its events say.
#[track_caller]
pub fn assemble(events: impl IntoIterator<Item = ServerEvent>) -> Assembled {
    let mut assembled = Assembled::default();
    let mut by_id: BTreeMap<String, ServerEvent> = BTreeMap::new();
    for event in events {
        match by_id.get(&event.id) {
            Some(known) => {
                assert!(*known == event, "two events have the id {}", event.id);
                assembled.repetitions += 1;
            }
            None => drop(by_id.insert(event.id.clone(), event)),
        }
    }
    let mut parts: BTreeMap<(String, u64), BTreeMap<u64, ServerEvent>> = BTreeMap::new();
    for event in by_id.into_values() {
        let (of, index, total) = event.part.clone().unwrap_or((event.id.clone(), 1, 1));
        parts.entry((of, total)).or_default().insert(index, event);
    }
    for ((id, total), parts) in parts {
        if parts.len() as u64 != total {
            assembled.incomplete.push(id);
            continue;
        }
        let content: Vec<u8> = parts.values().flat_map(|part| part.content.clone()).collect();
        let hash = siem_protocol::Digest::of(&content).to_string();
        for part in parts.values() {
            assert_eq!(part.hash, hash, "hash of {id}");
        }
        assert!(assembled.contents.insert(id.clone(), content).is_none(), "{id} is there twice");
    }
    assembled.incomplete.retain(|id| !assembled.contents.contains_key(id));
    assembled
}

/// Undoes the encoding that `ai_agent.encoding` names; empty for text.
#[track_caller]
pub fn decode(content: &str, encoding: &str) -> Vec<u8> {
    match encoding {
        "" => content.as_bytes().to_vec(),
        "base64" => BASE64.decode(content.as_bytes()).unwrap(),
        "json" => serde_json::from_str::<String>(content).unwrap().into_bytes(),
        other => panic!("unknown encoding {other}"),
    }
}

#[test]
fn parts_are_joined_and_repetitions_counted() {
    let part = |index: u64, content: &[u8]| ServerEvent {
        id: format!("a.{index}"),
        part: Some(("a".to_owned(), index, 2)),
        hash: siem_protocol::Digest::of(b"onetwo").to_string(),
        content: content.to_vec(),
    };
    let lone = ServerEvent { part: Some(("b".to_owned(), 2, 3)), id: "b.2".into(), ..part(2, b"") };
    let assembled = assemble([part(2, b"two"), part(1, b"one"), part(2, b"two"), lone]);
    assert_eq!(assembled.contents["a"], b"onetwo");
    assert_eq!((assembled.repetitions, &*assembled.incomplete), (1, &["b".to_owned()][..]));
}
