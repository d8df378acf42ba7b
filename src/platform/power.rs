//! Detection of battery power.

/// Source of the power state: the system, or a test.
pub trait Power: Send + Sync {
    /// Returns whether the machine runs on battery; false if unknown. May take some milliseconds.
    fn is_on_battery(&self) -> bool;
}

/// Power state of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemPower;

impl Power for SystemPower {
    fn is_on_battery(&self) -> bool {
        system::is_on_battery()
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs, path::Path};

    pub(super) fn is_on_battery() -> bool {
        is_on_battery_by(Path::new("/sys/class/power_supply"))
    }

    /// <https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power>
    pub(super) fn is_on_battery_by(supplies: &Path) -> bool {
        let mut discharges = false;
        for supply in fs::read_dir(supplies).into_iter().flatten().flatten() {
            let read =
                |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
            let is = |name: &str, value: &str| read(name).trim() == value;
            // Batteries of peripherals, such as a mouse.
            if is("scope", "Device") {
                continue;
            }
            match read("type").trim() {
                "Battery" | "UPS" => discharges |= is("status", "Discharging"),
                // Mains, USB, wireless: one source that supplies power is enough.
                _ if is("online", "1") => return false,
                _ => {}
            }
        }
        discharges
    }
}

#[cfg(target_os = "macos")]
mod system {
    use std::process::{Command, Stdio};

    /// The first line of the output contains `Now drawing from 'Battery Power'`.
    pub(super) fn is_on_battery() -> bool {
        let mut pmset = Command::new("/usr/bin/pmset");
        let output = pmset.args(["-g", "batt"]).stdin(Stdio::null()).output();
        output
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("'Battery Power'"))
    }
}

#[cfg(windows)]
mod system {
    use windows_sys::Win32::System::Power::{GetSystemPowerStatus, SYSTEM_POWER_STATUS};

    #[expect(unsafe_code, reason = "there is no safe wrapper")]
    pub(super) fn is_on_battery() -> bool {
        let mut status = SYSTEM_POWER_STATUS::default();
        // SAFETY: the call fills the given structure only.
        let is_known = unsafe { GetSystemPowerStatus(&raw mut status) } != 0;
        is_known && status.ACLineStatus == 0
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
mod system {
    pub(super) fn is_on_battery() -> bool {
        false
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::fs;

    use super::system::is_on_battery_by;

    /// Power supplies by name, each with its files.
    fn is_on_battery(supplies: &[(&str, &[(&str, &str)])]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        for (name, files) in supplies {
            fs::create_dir(dir.path().join(name)).unwrap();
            for (file, text) in *files {
                fs::write(dir.path().join(name).join(file), format!("{text}\n")).unwrap();
            }
        }
        is_on_battery_by(dir.path())
    }

    #[test]
    fn discharging_battery_counts_only_without_mains() {
        let discharges: &[_] = &[("type", "Battery"), ("status", "Discharging")];
        let charges: &[_] = &[("type", "Battery"), ("status", "Charging")];
        let off: &[_] = &[("type", "Mains"), ("online", "0")];
        let on: &[_] = &[("type", "Mains"), ("online", "1")];
        let usb: &[_] = &[("type", "USB"), ("online", "1")];
        let mouse: &[_] = &[("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];
        assert!(is_on_battery(&[("BAT0", discharges), ("AC", off)]));
        assert!(is_on_battery(&[("BAT0", discharges)]));
        assert!(!is_on_battery(&[("BAT0", discharges), ("AC", on)]));
        assert!(!is_on_battery(&[("BAT0", discharges), ("AC", off), ("ucsi", usb)]));
        assert!(!is_on_battery(&[("BAT0", charges), ("AC", on)]));
        assert!(!is_on_battery(&[("mouse", mouse)]));
        assert!(!is_on_battery(&[]));
    }
}
