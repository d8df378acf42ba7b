use super::*;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + WINDOW * 500_000
}

fn event(machine: &str) -> Event {
    Event::new(EventKind::Impersonation, machine)
}

fn accept(limiter: &mut EventLimiter, machine: &str, number: u64) -> usize {
    (0..number).map(|_| limiter.accept(event(machine), Standing::Claimed, now()).len()).sum()
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
    let window = &limiter.kinds[&(EventKind::Impersonation, Standing::Claimed)];
    assert!(window.machines.len() as u64 <= LINES_PER_KIND);
    let other = Event::new(EventKind::Clone, "m-1");
    assert_eq!(limiter.accept(other, Standing::Claimed, now()).len(), 1, "a kind has its own");
}

/// Events about made-up machines used to use up the lines of the real ones.
#[test]
fn false_events_hide_none_about_a_confirmed_machine() {
    let mut limiter = EventLimiter::default();
    accept(&mut limiter, "m-0", 1);
    (0..10_000).for_each(|n| assert!(accept(&mut limiter, &format!("false-{n}"), 1) <= 1));
    let mut real = |machine: &str, number: u64| -> usize {
        let accept = |_| limiter.accept(event(machine), Standing::Confirmed, now()).len();
        (0..number).map(accept).sum()
    };
    assert_eq!(real("m-1", 1000) as u64, LINES_PER_MACHINE);
    let others = (0..1000).map(|n| real(&format!("real-{n}"), 1)).sum::<usize>();
    assert_eq!(others, 1000, "the first one about each");
    assert_eq!(real("real-1", 5), 0);
}

#[test]
fn one_address_gets_a_part_of_the_lines() {
    let mut limiter = EventLimiter::default();
    let mut from = |last: u8, n: u64| {
        let peer = Some(IpAddr::from([192, 0, 2, last]));
        let event = Event { peer, ..event(&format!("m-{last}-{n}")) };
        limiter.accept(event, Standing::Claimed, now()).len() as u64
    };
    assert_eq!((0..10_000).map(|n| from(1, n)).sum::<u64>(), LINES_PER_PEER);
    assert_eq!(from(2, 0), 1);
}

#[test]
fn counted_events_become_one_line_after_the_hour() {
    let mut limiter = EventLimiter::default();
    accept(&mut limiter, "m-1", LINES_PER_MACHINE + 7);
    let lines = limiter.accept(event("m-2"), Standing::Claimed, now() + WINDOW);
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
    assert_eq!(limiter.accept(event("m-1"), Standing::Claimed, now() - WINDOW * 9000).len(), 2);
}

#[test]
fn long_claims_are_shortened() {
    let mut long = event(&"m".repeat(100_000));
    long.detail = Some("ä".repeat(100_000));
    let lines = EventLimiter::default().accept(long, Standing::Claimed, now());
    assert_eq!(lines[0].event.machine.chars().count(), KEPT + 1);
    assert!(serde_json::to_string(&lines[0]).unwrap().len() < 4 * KEPT);
}

#[test]
fn names_are_those_of_the_protocol() {
    for kind in EventKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
}
