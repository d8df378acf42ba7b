//! Limit of open files of the process.

/// Open files that are not connections: those of the store, the logs and the runtime.
const RESERVED: usize = 128;

/// Raises the limit of open files to the highest that the system permits, and returns how many
/// connections fit into it; `usize::MAX` without a limit.
#[cfg(unix)]
#[must_use]
pub fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // macOS refuses more than `OPEN_MAX`, even where it reports no maximum.
    let highest = if cfg!(target_os = "macos") { Some(10_240) } else { maximum };
    let wanted = [highest, maximum].into_iter().flatten().min();
    let raised = Rlimit { current: wanted, maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => current,
    };
    current.map_or(usize::MAX, |files| connections(usize::try_from(files).unwrap_or(usize::MAX)))
}

/// Returns how many connections the process can have: Windows has no limit of open files.
#[cfg(not(unix))]
#[must_use]
pub fn raise_open_files() -> usize {
    usize::MAX
}

/// Returns how many connections fit into a limit of open files: a quarter of a small limit stays free.
#[cfg_attr(not(unix), allow(dead_code, reason = "Windows has no limit of open files"))]
fn connections(files: usize) -> usize {
    files.saturating_sub(RESERVED.min(files / 4)).max(1)
}

/// Most open files for which there is room from the start.
#[cfg(unix)]
const ROOM: usize = 1 << 16;

/// Makes room for the files and connections of a receiver with so many connections and open epochs. Linux enlarges
/// the table of a process's open files as it fills up: each time all threads that open a file or accept a connection
/// wait until no thread reads the old table. While a process has only one thread, it waits for nothing.
#[cfg(unix)]
pub(crate) fn make_room_for_files(connections: usize, epochs: usize) {
    let files = connections.saturating_add(2 * epochs).saturating_add(RESERVED).min(ROOM);
    // The table keeps its size after the highest file is closed. It is enlarged later if this fails.
    let highest = i32::try_from(files - 1).unwrap_or_default();
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), highest));
}

/// Makes room for open files: Windows has no table that must be enlarged.
#[cfg(not(unix))]
pub(crate) fn make_room_for_files(_connections: usize, _epochs: usize) {}

/// Most epochs whose files stay open.
const MOST_EPOCHS: usize = 4096;

/// Returns the number of epochs whose files, two for each, stay open beside so many connections, of as many as
/// [`raise_open_files`] returned.
pub(crate) fn open_epochs(most: usize, connections: usize) -> usize {
    (most.saturating_sub(connections) / 2).clamp(RESERVED / 2, MOST_EPOCHS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_open_only_beside_all_connections() {
        assert_eq!(open_epochs(896, 896), 64);
        assert_eq!(open_epochs(10_112, 8192), 960);
        assert_eq!(open_epochs(usize::MAX, 8192), 4096);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn room_for_files_is_there_and_no_file_stays_open() {
        let line = |name: &str| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
            line.unwrap().trim().parse::<usize>().unwrap()
        };
        let most = raise_open_files();
        let room = most.min(2000);
        make_room_for_files(room, 0);
        assert!(line("FDSize") >= room, "{}", line("FDSize"));
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let highest: usize = numbers.max().unwrap();
        assert!(highest < room);
    }

    #[test]
    fn some_files_are_left_for_the_store() {
        assert_eq!(connections(1024), 896);
        assert_eq!(connections(100), 75);
        assert_eq!(connections(0), 1);
    }
}
