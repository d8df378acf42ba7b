//! Hashes of the blocks of files, by which altered bytes are found. Stored in the transaction that
//! moves the checkpoint; [`crate::tail`] defines their format.

use redb::{ReadableTable as _, WriteTransaction};

use super::{
    super::group::Group,
    Outbox, OutboxError,
    checksum::{protect, verify},
    tables::BLOCK_HASHES,
};
use crate::tail::{self, GenerationId};

/// Name of a row in errors.
const HASHES: &str = "a list of block hashes";

impl Outbox {
    /// Returns the hashes of a generation's blocks; for an empty id, the position of the verification.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the row is damaged.
    pub fn block_hashes(
        &self,
        source: &str,
        generation: &GenerationId,
    ) -> Result<Option<Vec<u8>>, OutboxError> {
        self.read("read", |transaction| {
            let table = transaction.open_table(BLOCK_HASHES)?;
            let key = (source, generation.0.as_str());
            let row = table.get(key)?;
            row.map(|row| verify(key, row.value(), HASHES).map(<[u8]>::to_vec)).transpose()
        })
    }
}

/// Updates the hashes of the group's generations, and deletes those of generations that end with it.
pub(super) fn store_block_hashes(
    transaction: &WriteTransaction,
    group: &Group,
) -> Result<(), redb::Error> {
    let mut ended = group.checkpoints.iter().filter(|(_, row)| row.is_none()).peekable();
    if group.blocks.is_empty() && group.verification.is_empty() && ended.peek().is_none() {
        return Ok(());
    }
    let mut table = transaction.open_table(BLOCK_HASHES)?;
    for ((source, generation), updates) in &group.blocks {
        let key = (source.as_str(), generation.0.as_str());
        let row = {
            let stored = table.get(key)?;
            let stored = stored.as_ref().map(|row| verify(key, row.value(), HASHES)).transpose()?;
            tail::updated_blocks(stored, updates)
        };
        table.insert(key, protect(key, &row).as_slice())?;
    }
    for (source, position) in &group.verification {
        let key = (source.as_str(), "");
        table.insert(key, protect(key, position).as_slice())?;
    }
    for ((source, generation), _) in ended {
        table.remove((source.as_str(), generation.0.as_str()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{group, store},
        *,
    };
    use crate::tail::BlockUpdate;

    #[test]
    fn hashes_last_as_long_as_the_checkpoint() {
        let store = store();
        let key = ("s".to_owned(), GenerationId("g".to_owned()));
        let hashes = || store.outbox.block_hashes("s", &key.1).unwrap();
        let append = |first| BlockUpdate::Append { first, hashes: vec![(7, 2)] };
        for first in [0, 2] {
            let mut group = group(&store.outbox, 1);
            group.blocks.insert(key.clone(), vec![append(first)]);
            store.outbox.commit(&group).unwrap();
        }
        let expected = tail::updated_blocks(None, &[append(0), append(2)]);
        assert_eq!(hashes(), Some(expected));
        let mut last = group(&store.outbox, 1);
        last.blocks.insert(key.clone(), vec![append(4)]);
        last.checkpoints.insert(key.clone(), None);
        store.outbox.commit(&last).unwrap();
        assert_eq!(hashes(), None);
    }
}
