//! Threads whose work no response waits for.

/// Lets the threads that responses wait for run first: from now on the calling thread gets about a tenth of their
/// share of a busy processor. With the same share, the files of 2,000 new epochs took up to 60 % of it for three seconds.
///
/// On other systems than Linux a priority is that of the whole process.
pub(crate) fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::nice(10) {
            tracing::debug!(%error, "cannot lower the priority of a thread");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn priority_of_the_calling_thread_only_is_lowered() {
        let before = getpriority_process(None).unwrap();
        let lowered = std::thread::spawn(|| {
            lower_priority();
            getpriority_process(None).unwrap()
        });
        assert_eq!(lowered.join().unwrap(), (before + 10).min(19));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
