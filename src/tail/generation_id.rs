//! Creation of generation ids.

use ai_agent_stage::GenerationId;

/// Creates the ids of generations.
pub type NewGeneration = Box<dyn FnMut() -> GenerationId + Send>;

/// Creates an id that no other generation of a file has, from the time and random bytes. Later ids
/// sort after earlier ones, so that rows written together are neighbours in the store.
#[must_use]
pub fn fresh_generation() -> GenerationId {
    let (seconds, nanos) = uuid::Timestamp::now(uuid::NoContext).to_unix();
    let millis = seconds * 1000 + u64::from(nanos) / 1_000_000;
    // Not from the operating system: there may be one id for each of 50,000 files.
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
    GenerationId(id.simple().to_string())
}
