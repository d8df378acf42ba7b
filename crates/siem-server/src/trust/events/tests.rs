use super::*;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + WINDOW * 500_000
}

fn event(machine: &str) -> Event {
    Event::new(EventKind::Impersonation, machine)
}

fn accept(limiter: &mut EventLimiter, machine: &str, number: u64) -> usize {
    (0..number).map(|_| limiter.accept(event(machine), now()).len()).sum()
}

#[test]
fn repeats_of_a_machine_are_counted() {
    let mut limiter = EventLimiter::default();
    assert_eq!(accept(&mut limiter, "m-1", 1000) as u64, LINES_PER_MACHINE);
    assert_eq!(accept(&mut limiter, "m-2", 3), 3);
    let mut counts = EventCounts::default();
    limiter.add_suppressed(&mut counts);
    assert_eq!(counts.impersonation, 1000 - LINES_PER_MACHINE);
}

#[test]
fn made_up_machines_do_not_fill_the_disk() {
    let mut limiter = EventLimiter::default();
    let written: usize = (0..100_000).map(|n| accept(&mut limiter, &format!("m-{n}"), 1)).sum();
    assert_eq!(written as u64, LINES_PER_KIND);
    let window = &limiter.kinds[&EventKind::Impersonation];
    assert!(window.machines.len() as u64 <= LINES_PER_KIND);
    let other = Event::new(EventKind::Clone, "m-1");
    assert_eq!(limiter.accept(other, now()).len(), 1, "another kind has its own limit");
}

#[test]
fn counted_events_become_one_line_after_the_hour() {
    let mut limiter = EventLimiter::default();
    accept(&mut limiter, "m-1", LINES_PER_MACHINE + 7);
    let lines = limiter.accept(event("m-2"), now() + WINDOW);
    let found: Vec<_> =
        lines.iter().map(|line| (line.event.machine.as_str(), line.repeated)).collect();
    assert_eq!(found, [("m-1", Some(7)), ("m-2", None)]);
    let mut counts = EventCounts::default();
    limiter.add_suppressed(&mut counts);
    assert_eq!(counts, EventCounts::default());
    lines.into_iter().for_each(|line| counts.apply(line));
    assert_eq!(counts.impersonation, 8);
}

#[test]
fn clock_that_was_set_back_starts_another_hour() {
    let mut limiter = EventLimiter::default();
    accept(&mut limiter, "m-1", LINES_PER_MACHINE + 1);
    assert_eq!(limiter.accept(event("m-1"), now() - WINDOW * 9000).len(), 2);
}

#[test]
fn long_claims_are_shortened() {
    let mut long = event(&"m".repeat(100_000));
    long.detail = Some("ä".repeat(100_000));
    let lines = EventLimiter::default().accept(long, now());
    assert_eq!(lines[0].event.machine.chars().count(), KEPT + 1);
    assert!(serde_json::to_string(&lines[0]).unwrap().len() < 4 * KEPT);
}

#[test]
fn names_are_those_of_the_protocol() {
    for kind in EventKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
}
