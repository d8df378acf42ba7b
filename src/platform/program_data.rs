//! Directory with the data of all users on Windows.
//!
//! The variable `ProgramData` belongs to the process, and the known folder follows the variable
//! `SystemDrive`: a user who sets one of them would start an agent without the configuration of the machine.

use std::path::PathBuf;

/// Returns the directory, independent of the environment; on other systems that of a usual Windows.
pub(super) fn program_data() -> PathBuf {
    #[cfg(windows)]
    return windows::program_data().into();
    #[cfg(not(windows))]
    r"C:\ProgramData".into()
}

/// Returns a registered path, which may be below `%SystemDrive%`, on `drive`; `None` if it is not absolute or
/// needs another variable.
#[cfg(any(windows, test))]
fn expand(registered: &str, drive: &str) -> Option<String> {
    const VARIABLE: &str = "%SystemDrive%";

    let path = match registered.split_at_checked(VARIABLE.len()) {
        Some((variable, rest)) if variable.eq_ignore_ascii_case(VARIABLE) => {
            format!("{drive}{rest}")
        }
        _ => registered.to_owned(),
    };
    let is_absolute =
        matches!(path.as_bytes(), [letter, b':', b'\\', _, ..] if letter.is_ascii_alphabetic());
    (is_absolute && !path.contains('%')).then_some(path)
}

#[cfg(windows)]
mod windows {
    use std::ptr;

    use windows_sys::Win32::{
        Foundation::ERROR_SUCCESS,
        System::{
            Registry::{HKEY_LOCAL_MACHINE, RRF_NOEXPAND, RRF_RT_ANY, RegGetValueW},
            SystemInformation::GetSystemWindowsDirectoryW,
        },
    };

    const KEY: &str = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\ProfileList";
    const VALUE: &str = "ProgramData";
    /// Maximum length of a path, in UTF-16 code units.
    const MAX_PATH: usize = 260;

    pub(super) fn program_data() -> String {
        let drive = windows_drive().unwrap_or_else(|| "C:".to_owned());
        let registered = registered().and_then(|path| super::expand(&path, &drive));
        registered.unwrap_or_else(|| format!(r"{drive}\ProgramData"))
    }

    /// Returns the drive of Windows, as `C:`.
    #[expect(unsafe_code, reason = "a system call")]
    fn windows_drive() -> Option<String> {
        let mut buffer = [0_u16; MAX_PATH];
        // SAFETY: the buffer has the given length.
        let length =
            unsafe { GetSystemWindowsDirectoryW(buffer.as_mut_ptr(), buffer.len() as u32) };
        let path = String::from_utf16(buffer.get(..length as usize)?).ok()?;
        path.get(..2).filter(|drive| drive.ends_with(':')).map(str::to_owned)
    }

    /// Returns the path in the registry of the machine, with its variables.
    #[expect(unsafe_code, reason = "a system call")]
    fn registered() -> Option<String> {
        let [key, value] =
            [KEY, VALUE].map(|text| text.encode_utf16().chain([0]).collect::<Vec<u16>>());
        let mut buffer = [0_u16; MAX_PATH];
        let mut size = size_of_val(&buffer) as u32;
        // SAFETY: the texts are terminated by a zero, and the buffer has the given size.
        let status = unsafe {
            RegGetValueW(
                HKEY_LOCAL_MACHINE,
                key.as_ptr(),
                value.as_ptr(),
                RRF_RT_ANY | RRF_NOEXPAND,
                ptr::null_mut(),
                buffer.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if status != ERROR_SUCCESS {
            return None;
        }
        let text = buffer.split(|unit| *unit == 0).next()?;
        String::from_utf16(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_path_is_expanded_without_the_environment() {
        let on_d = |registered| expand(registered, "D:");
        let expected = Some(r"D:\ProgramData".to_owned());
        assert_eq!(on_d(r"%SystemDrive%\ProgramData"), expected);
        assert_eq!(on_d(r"%SYSTEMDRIVE%\ProgramData"), expected);
        assert_eq!(on_d(r"E:\Data"), Some(r"E:\Data".to_owned()));
        for other in [r"%USERPROFILE%\Data", r"Data", r"\Data", r"E:Data", r"E:\", r"E:\%X%", ""] {
            assert_eq!(on_d(other), None, "{other}");
        }
    }

    #[cfg(windows)]
    #[test]
    fn directory_is_that_of_the_machine() {
        // This process has the variables of the machine.
        let expected = std::env::var_os("ProgramData").unwrap();
        assert_eq!(program_data(), std::path::Path::new(&expected));
    }
}
