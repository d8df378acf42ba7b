//! Files that are held back.

use std::{
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use super::*;

/// Result of the query, which a test can change.
type CurrentHold = Arc<Mutex<BackfillHold>>;

const DAY: Duration = Duration::from_secs(86_400);

fn world(hold: BackfillHold) -> (TailFixture, CurrentHold) {
    let mut world = TailFixture::new();
    let hold = Arc::new(Mutex::new(hold));
    let shared = Arc::clone(&hold);
    let new_id = Box::new(fresh_generation);
    let tail = Tail::new(world.options.clone(), world.clock.clone(), new_id, Arc::new(|| {}));
    world.tail = tail.with_hold_query(Arc::new(move || *shared.lock().unwrap()));
    (world, hold)
}

fn write_old(world: &TailFixture, name: &str, age: Duration) {
    world.write(name, format!("{name}\n"));
    let now = UNIX_EPOCH + Duration::from_millis(world.clock.now().0);
    let file = fs::File::options().append(true).open(world.path(name)).unwrap();
    let modified: SystemTime = now - age;
    file.set_modified(modified).unwrap();
}

/// On battery power, backfill is held, except files that the client will soon delete.
#[test]
fn young_backfill_is_held_but_old_and_live_files_are_not() {
    let (mut world, hold) = world(BackfillHold::YoungerThan(15 * DAY));
    write_old(&world, "a.jsonl", 20 * DAY);
    write_old(&world, "b.jsonl", 10 * DAY);
    write_old(&world, "c.jsonl", 2 * DAY);
    world.write("live.jsonl", "live\n");
    assert_eq!(world.next(), lines(["a.jsonl", "live"]));
    assert_eq!(world.next(), lines([]));
    world.append("live.jsonl", "more\n");
    assert_eq!(world.next(), lines(["more"]));
    assert_eq!(world.tail.survey().files_unread, 2);
    // A held file that grows is read completely.
    world.append("c.jsonl", "again\n");
    assert_eq!(world.next(), lines(["c.jsonl", "again"]));
    *hold.lock().unwrap() = BackfillHold::Off;
    assert_eq!(world.next(), lines(["b.jsonl"]));
}

/// Nothing wakes the tail when mains power returns.
#[test]
fn hold_query_is_repeated() {
    let (mut world, hold) = world(BackfillHold::YoungerThan(15 * DAY));
    write_old(&world, "b.jsonl", 10 * DAY);
    world.pass(Duration::from_secs(400));
    world.read_on();
    let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("not idle") };
    assert!(next <= Duration::from_secs(30), "{next:?}");
    *hold.lock().unwrap() = BackfillHold::Off;
    world.pass(Duration::from_secs(30));
    world.read_on();
    assert_eq!(world.take(), lines(["b.jsonl"]));
}

/// While much waits for delivery, a backlog waits in its files, except those that the client would
/// delete meanwhile.
#[test]
fn paced_backlog_waits_but_expiring_and_live_files_do_not() {
    let mut world = TailFixture::new();
    let new_id = Box::new(fresh_generation);
    let tail = Tail::new(world.options.clone(), world.clock.clone(), new_id, Arc::new(|| {}));
    world.tail = tail.with_expiry_query(Arc::new(|| 28 * DAY));
    world.store.is_paced = true;
    write_old(&world, "a.jsonl", 29 * DAY);
    write_old(&world, "b.jsonl", 27 * DAY);
    assert_eq!(world.next(), lines(["a.jsonl"]));
    world.append("a.jsonl", "live\n");
    assert_eq!(world.next(), lines(["live"]));
    world.pass(Duration::from_secs(400));
    world.read_on();
    let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("not idle") };
    assert!(next >= Duration::from_millis(500), "a paced backlog takes no time: {next:?}");
    world.store.is_paced = false;
    assert_eq!(world.next(), lines(["b.jsonl"]));
}

/// A sweep fills the group itself when it saves an incomplete line. The backlog that it found waited
/// for the next sweep, up to five minutes, as if it were paced.
#[test]
fn group_filled_by_a_sweep_does_not_delay_the_backlog() {
    let mut world = TailFixture::new();
    world.store.room = 1;
    world.write("partial.jsonl", "incomplete");
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.next(), lines([]));
    // The sweep that finds it saves the incomplete line, which did not change for ten minutes.
    write_old(&world, "old.jsonl", DAY);
    assert_eq!(world.next(), lines(["old.jsonl"]));
}
