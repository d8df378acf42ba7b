//! Which line of which file an entry is.

use std::collections::HashMap;

use siem_protocol::json;

/// Which line of which file an entry is, or is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file's generation: its place in [`Batch::generations`](super::Batch::generations).
    pub generation: u32,
    /// Where the line begins in the file.
    pub offset: u64,
    /// Which part of the line it is, from 1; 0 for a line in one entry.
    pub part: u32,
}

/// The generations of a batch: few, and most lines have that of the line before.
#[derive(Debug, Default)]
pub(super) struct Generations {
    names: Vec<String>,
    places: HashMap<String, u32>,
    /// The last one, as its line has it.
    last: Option<(String, u32)>,
}

impl Generations {
    /// Takes up a line's generation, offset and part; the generation is a JSON string.
    pub(super) fn origin(&mut self, (raw, offset, part): (&str, u64, u32)) -> Option<Origin> {
        let generation = match &self.last {
            Some((last, place)) if last == raw => *place,
            _ => self.place(raw)?,
        };
        Some(Origin { generation, offset, part })
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

    /// How many bytes of memory they take, about.
    pub(super) fn size(&self) -> usize {
        let names: usize = self.names.iter().map(String::len).sum();
        2 * names + self.names.len() * 64
    }
}
