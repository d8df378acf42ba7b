//! Limited time for calls of file systems in functions that know nothing of it: a configuration is read
//! at many places, some of them in stages of other crates.

use std::{
    cell::RefCell,
    io,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

/// Runs a call about a place with a limited time.
pub type Runner = Rc<dyn Fn(&Path, Box<dyn FnOnce() + Send>) -> io::Result<()>>;

thread_local! {
    static RUNNER: RefCell<Option<Runner>> = const { RefCell::new(None) };
}

/// Restores the runner of before.
struct Restore(Option<Runner>);

impl Drop for Restore {
    fn drop(&mut self) {
        RUNNER.set(self.0.take());
    }
}

/// Runs `action` on this thread; `runner` runs the calls that it makes with [`in_scope`].
pub fn with<T>(runner: Runner, action: impl FnOnce() -> T) -> T {
    let _restore = Restore(RUNNER.replace(Some(runner)));
    action()
}

/// Runs `call` about `place` with a limited time if this thread is in a scope, or else without a limit.
///
/// # Errors
/// The error of the runner if the call does not return in time, or that of the call.
pub fn in_scope<T: Send + 'static>(
    place: &Path,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(runner) = RUNNER.with_borrow(Clone::clone) else { return call() };
    let result = Arc::new(Mutex::new(None));
    let of_call = Arc::clone(&result);
    let run = move || {
        let returned = call();
        *of_call.lock().unwrap_or_else(PoisonError::into_inner) = Some(returned);
    };
    runner(place, Box::new(run))?;
    let returned = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    returned.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}
