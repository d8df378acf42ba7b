use std::{
    sync::atomic::AtomicUsize,
    sync::mpsc::{self, Receiver, Sender},
};

use super::*;
use crate::platform::{SystemClock, call_scope::in_scope};

const SHORT: Duration = Duration::from_millis(50);

fn runner() -> BoundedCalls {
    BoundedCalls::with_limit(Arc::new(SystemClock), SHORT)
}

/// A call that returns when the sender is dropped or sends.
fn hanging() -> (Sender<()>, impl FnOnce() -> io::Result<u8> + Send + 'static) {
    let (release, released) = mpsc::channel();
    let call = move || {
        released.recv().unwrap_or_default();
        Ok(7)
    };
    (release, call)
}

fn silent(calls: &BoundedCalls) -> Vec<PathBuf> {
    calls.silent().into_iter().map(|(path, _)| path).collect()
}

#[track_caller]
fn wait_until(mut is_reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_reached() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not reached");
        thread::sleep(Duration::from_millis(1));
    }
}

fn changes(calls: &BoundedCalls) -> Receiver<(bool, PathBuf)> {
    let (sender, changes) = mpsc::channel();
    calls.listen(move |change| {
        let (is_silent, place) = match change {
            PlaceChange::Silent(place) => (true, place),
            PlaceChange::Answers(place) => (false, place),
        };
        sender.send((is_silent, place.path.clone())).unwrap();
    });
    changes
}

#[test]
fn call_that_hangs_makes_its_place_silent_until_it_returns() {
    let calls = BoundedCalls::with_limit(Arc::new(SystemClock), 20 * SHORT);
    let (one, other) = (Path::new("/one"), Path::new("/other"));
    calls.run(other, || Ok(())).unwrap();
    let (release, call) = hanging();
    let error = calls.run(one, call).unwrap_err();
    let changes = changes(&calls);
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(DoesNotAnswer::of(&error), Some(&DoesNotAnswer { place: one.to_owned() }));
    assert_eq!(silent(&calls), [one]);
    let is_called = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&is_called);
    let again = calls.run(&one.join("below"), move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    assert!(DoesNotAnswer::of(&again.unwrap_err()).is_some());
    assert_eq!(is_called.load(Ordering::Relaxed), 0);
    assert_eq!(calls.run(other, || Ok(1)).unwrap(), 1, "other places answer");

    drop(release);
    wait_until(|| silent(&calls).is_empty());
    wait_until(|| calls.revived() == 1);
    assert_eq!(calls.run(one, || Ok(2)).unwrap(), 2);
    assert_eq!(changes.recv().unwrap(), (true, one.to_owned()));
    assert_eq!(changes.recv().unwrap(), (false, one.to_owned()));
    assert!(changes.try_recv().is_err());
}

#[test]
fn error_and_panic_of_a_call_are_those_of_its_caller() {
    let calls = BoundedCalls::new(Arc::new(SystemClock));
    let error = calls.run::<()>(Path::new("/a"), || Err(io::ErrorKind::NotFound.into()));
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    let run = || calls.run::<()>(Path::new("/a"), || panic!("oh"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    assert_eq!(calls.run(Path::new("/a"), || Ok(3)).unwrap(), 3);
}

#[test]
fn hanging_calls_of_one_place_occupy_one_thread() {
    let calls = BoundedCalls::with_limit(Arc::new(SystemClock), 20 * SHORT);
    calls.run(Path::new("/b"), || Ok(())).unwrap();
    let (_release, call) = hanging();
    calls.run(Path::new("/a"), call).unwrap_err();
    for _ in 0..100 {
        calls.run(Path::new("/a"), || Ok(())).unwrap_err();
        calls.discard(Path::new("/a"), String::new());
        calls.run(Path::new("/b"), || Ok(())).unwrap();
    }
    let state = calls.0.0.lock();
    assert_eq!((state.calls.len(), state.queue.len()), (1, 0));
    assert!(state.idle <= 3, "{}", state.idle);
}

#[test]
fn place_of_a_call_is_the_one_it_was_about() {
    let calls = runner();
    let (_release, released) = mpsc::channel::<()>();
    let mut pending = calls
        .begin(Path::new("/first"), move |current| {
            current.set(Path::new("/second"));
            released.recv().unwrap_or_default();
        })
        .unwrap();
    wait_until(|| calls.0.0.lock().calls.values().any(|call| call.place == Path::new("/second")));
    let second = DoesNotAnswer { place: "/second".into() };
    assert_eq!(pending.poll(SHORT), Polled::Overdue(second));
    assert_eq!(silent(&calls), [Path::new("/second")]);
}

/// While many links are silent, places that have never answered are refused. The files of a
/// configuration are all read by one call, of which only the first and last counted as answered.
#[test]
fn places_that_a_call_passes_have_answered() {
    let calls = runner();
    let files = ["/etc/one", "/etc/two", "/etc/three"].map(Path::new);
    let read = move |current: &CurrentPlace| {
        files.iter().for_each(|file| current.set(file));
        Ok(())
    };
    calls.run_with(files[0], read).unwrap();
    // The first place was not reached.
    let skip = |current: &CurrentPlace| {
        current.set(Path::new("/etc/four"));
        Ok(())
    };
    calls.run_with(Path::new("/skipped"), skip).unwrap();
    for n in 0..places::MAX_OVERDUE {
        let mut state = calls.0.0.lock();
        state.places.add_overdue(Path::new(&format!("/link/{n}")), Duration::ZERO);
    }
    for file in files {
        assert_eq!(calls.run(file, || Ok(1)).unwrap(), 1);
    }
    assert!(calls.run(Path::new("/skipped"), || Ok(1)).is_err());
}

#[test]
fn reads_in_a_scope_have_a_limited_time() {
    let calls = BoundedCalls::with_limit(Arc::new(SystemClock), 20 * SHORT);
    let (place, here) = (Path::new("/a"), thread::current().id());
    let thread = || in_scope(place, || Ok(thread::current().id())).unwrap();
    assert_eq!(thread(), here);
    assert_ne!(calls.scope(thread), here);
    assert_eq!(thread(), here, "the scope has ended");
    let (_release, call) = hanging();
    let error = calls.scope(|| in_scope(place, call)).unwrap_err();
    assert!(DoesNotAnswer::of(&error).is_some());
    assert_eq!(silent(&calls), [place]);
}

#[test]
fn result_that_is_late_is_kept_for_a_repeated_call() {
    let (calls, place) = (runner(), Path::new("/a"));
    let mut latest = Latest::default();
    assert!(latest.refresh(&calls, place, Duration::from_secs(60), |_| 1));
    let (release, call) = hanging();
    assert!(!latest.refresh(&calls, place, SHORT / 10, |_| call().unwrap()));
    wait_until(|| {
        assert!(!latest.refresh(&calls, place, SHORT / 10, |_| panic!("it has not returned")));
        silent(&calls) == [place]
    });
    let mut other = Latest::default();
    assert!(!other.refresh(&calls, place, SHORT / 10, |_| 2), "the place is busy");
    assert_eq!(latest.value(), Some(&1));
    drop(release);
    wait_until(|| calls.0.0.lock().calls.is_empty());
    assert!(latest.refresh(&calls, place, Duration::ZERO, |_| 3));
    assert_eq!(latest.value(), Some(&7));
}

/// Drops of a remote file: it sends when it is dropped.
struct OnDrop(Sender<thread::ThreadId>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap();
    }
}

#[test]
fn discarded_objects_are_dropped_once_the_place_answers() {
    let (calls, place) = (runner(), Path::new("/a"));
    let (sender, dropped) = mpsc::channel();
    calls.discard(place, OnDrop(sender.clone()));
    let dropped_by = dropped.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_ne!(dropped_by, thread::current().id());

    let (release, call) = hanging();
    calls.run(place, call).unwrap_err();
    calls.discard(place, OnDrop(sender.clone()));
    calls.discard(place, OnDrop(sender));
    assert!(dropped.try_recv().is_err());
    drop(release);
    for _ in 0..2 {
        dropped.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn leftovers_of_a_failed_start_are_dropped_with_the_next() {
    let (calls, place) = (runner(), Path::new("/a"));
    let (sender, dropped) = mpsc::channel();
    // As it is after a thread could not be started.
    let leftovers =
        Leftovers { objects: vec![Box::new(OnDrop(sender.clone()))], is_dropping: false };
    calls.0.0.lock().leftovers.insert(place.to_owned(), leftovers);
    calls.discard(place, OnDrop(sender));
    for _ in 0..2 {
        dropped.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    wait_until(|| calls.0.0.lock().leftovers.is_empty());
}

#[test]
fn stopping_agent_does_not_wait_for_the_limit() {
    let calls = BoundedCalls::with_limit(Arc::new(SystemClock), Duration::from_secs(3600));
    let (_release, call) = hanging();
    let stopper = calls.clone();
    let stop = thread::spawn(move || stopper.stop_waiting());
    let error = calls.run(Path::new("/a"), call).unwrap_err();
    assert!(DoesNotAnswer::of(&error).is_some());
    stop.join().unwrap();
    // Later calls there do not wait at all.
    calls.run::<()>(Path::new("/a"), || panic!("it is not called")).unwrap_err();
    assert_eq!(calls.run(Path::new("/b"), || Ok(5)).unwrap(), 5);
}

#[test]
fn single_call_is_given_up_after_the_limit() {
    let place = Path::new("/a");
    assert_eq!(run_once(place, Duration::from_secs(60), || 1).unwrap(), 1);
    let (_release, call) = hanging();
    let error = run_once(place, SHORT, call).unwrap_err();
    assert!(DoesNotAnswer::of(&error).is_some());
}

#[test]
fn helper_threads_end_with_the_runner() {
    let calls = BoundedCalls::new(Arc::new(SystemClock));
    calls.run(Path::new("/a"), || Ok(())).unwrap();
    let shared = Arc::downgrade(&calls.0.0);
    drop(calls);
    wait_until(|| shared.upgrade().is_none());
}
