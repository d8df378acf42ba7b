//! Position of an entry's line in its file.

use std::collections::HashMap;

use siem_protocol::json;

/// Position of an entry's line in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinePosition {
    /// Generation of the file: an index into [`Batch::generations`](super::Batch::generations).
    pub generation: u32,
    /// Offset of the line in the file.
    pub offset: u64,
    /// Number of the part, from 1; 0 for a line in one entry.
    pub part: u32,
}

/// Generations of the files in a batch. There are few, and most lines have the same one as the line
/// before.
#[derive(Debug, Default)]
pub(super) struct Generations {
    names: Vec<String>,
    places: HashMap<String, u32>,
    /// The last generation, as written in its line.
    last: Option<(String, u32)>,
}

impl Generations {
    /// Stores the generation, a JSON string, and returns the origin.
    pub(super) fn origin(&mut self, (raw, offset, part): (&str, u64, u32)) -> Option<LinePosition> {
        let generation = match &self.last {
            Some((last, place)) if last == raw => *place,
            _ => self.place(raw)?,
        };
        Some(LinePosition { generation, offset, part })
    }

    fn place(&mut self, raw: &str) -> Option<u32> {
        let name = json::string(raw)?;
        let place = match self.places.get(name.as_ref()) {
            Some(place) => *place,
            None => {
                let place = u32::try_from(self.names.len()).ok()?;
                self.names.push(name.clone().into_owned());
                self.places.insert(name.into_owned(), place);
                place
            }
        };
        self.last = Some((raw.to_owned(), place));
        Some(place)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Approximate memory size in bytes.
    pub(super) fn size(&self) -> usize {
        let names: usize = self.names.iter().map(String::len).sum();
        2 * names + self.names.len() * 64
    }
}
