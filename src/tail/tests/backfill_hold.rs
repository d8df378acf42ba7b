//! FileTable that wait while somebody outside says so.

use std::{
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use super::*;

/// What is answered, for a test to change.
type Answer = Arc<Mutex<BackfillHold>>;

const DAY: Duration = Duration::from_secs(86_400);

fn world(answer: BackfillHold) -> (World, Answer) {
    let mut world = World::new();
    let answer = Arc::new(Mutex::new(answer));
    let asked = Arc::clone(&answer);
    let new_id = Box::new(fresh_generation);
    let tail = Tail::new(world.options.clone(), world.clock.clone(), new_id, Arc::new(|| {}));
    world.tail = tail.with_hold_query(Arc::new(move || *asked.lock().unwrap()));
    (world, answer)
}

fn write_old(world: &World, name: &str, age: Duration) {
    world.write(name, format!("{name}\n"));
    let now = UNIX_EPOCH + Duration::from_millis(world.clock.now().0);
    let file = fs::File::options().append(true).open(world.path(name)).unwrap();
    let modified: SystemTime = now - age;
    file.set_modified(modified).unwrap();
}

/// On battery what is old waits, and what is written is shipped; so is what would be deleted before
/// long.
#[test]
fn what_is_young_waits_and_what_is_old_or_grows_does_not() {
    let (mut world, answer) = world(BackfillHold::YoungerThan(15 * DAY));
    write_old(&world, "a.jsonl", 20 * DAY);
    write_old(&world, "b.jsonl", 10 * DAY);
    write_old(&world, "c.jsonl", 2 * DAY);
    world.write("live.jsonl", "live\n");
    assert_eq!(world.next(), lines(["a.jsonl", "live"]));
    assert_eq!(world.next(), lines([]));
    world.append("live.jsonl", "more\n");
    assert_eq!(world.next(), lines(["more"]));
    assert_eq!(world.tail.survey().files_unread, 2);
    // One that waits and grows is read whole.
    world.append("c.jsonl", "again\n");
    assert_eq!(world.next(), lines(["c.jsonl", "again"]));
    *answer.lock().unwrap() = BackfillHold::Off;
    assert_eq!(world.next(), lines(["b.jsonl"]));
}

/// Nothing wakes it when the mains are back.
#[test]
fn it_is_asked_again_before_long() {
    let (mut world, answer) = world(BackfillHold::YoungerThan(15 * DAY));
    write_old(&world, "b.jsonl", 10 * DAY);
    world.pass(Duration::from_secs(400));
    world.read_on();
    let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("it waits") };
    assert!(next <= Duration::from_secs(30), "{next:?}");
    *answer.lock().unwrap() = BackfillHold::Off;
    world.pass(Duration::from_secs(30));
    world.read_on();
    assert_eq!(world.take(), lines(["b.jsonl"]));
}
