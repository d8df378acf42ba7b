//! Owner and access list of files on Windows.

use std::{
    ffi::c_void,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::windows::{fs::OpenOptionsExt as _, io::AsRawHandle as _},
    path::Path,
    ptr,
};

use windows_sys::Win32::{
    Foundation::{ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, GENERIC_WRITE},
    Security::{
        ACCESS_ALLOWED_ACE, ACL,
        Authorization::{GetSecurityInfo, SE_FILE_OBJECT},
        DACL_SECURITY_INFORMATION, GetAce, INHERIT_ONLY_ACE, OBJECT_SECURITY_INFORMATION,
        OWNER_SECURITY_INFORMATION, PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
        PSID, SetKernelObjectSecurity,
    },
    Storage::FileSystem::{FILE_FLAG_BACKUP_SEMANTICS, READ_CONTROL, WRITE_DAC},
};

use super::{
    access::{self, ADMINISTRATORS, Access, Rule, SYSTEM},
    error::SecretFileError,
};
use crate::platform::security::{Descriptor, name_of, this_user};

/// `ACCESS_ALLOWED_ACE_TYPE` and `ACCESS_ALLOWED_CALLBACK_ACE_TYPE`; the condition of the latter is
/// ignored.
const ALLOWS: [u8; 2] = [0, 9];
/// `ACCESS_DENIED_ACE_TYPE` and `ACCESS_DENIED_CALLBACK_ACE_TYPE`.
const FORBIDS: [u8; 2] = [1, 10];

/// The access list, without inherited entries.
const RULES: OBJECT_SECURITY_INFORMATION =
    DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;

/// New files inherit the rules of their directory.
pub(super) fn for_owner_only(_: &mut OpenOptions) {}

/// Only administrators may create symlinks by default.
pub(super) fn without_traps(_: &mut OpenOptions) {}

pub(super) fn is_symlink(_: &io::Error) -> bool {
    false
}

pub(super) fn is_fifo_or_socket(_: &io::Error) -> bool {
    false
}

pub(super) fn create_new(path: &Path) -> io::Result<File> {
    // No other process can open the file before its rules are set.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .access_mode(GENERIC_WRITE | READ_CONTROL | WRITE_DAC)
        .share_mode(0)
        .open(path)?;
    match restrict_to_user(&file, "") {
        Ok(()) => Ok(file),
        Err(error) => {
            drop(file);
            drop(fs::remove_file(path));
            Err(error)
        }
    }
}

pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() || dir.as_os_str().is_empty() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        create_dir(above)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {
            // The content inherits the same rules.
            let restricted = open_for(dir, READ_CONTROL | WRITE_DAC)
                .and_then(|dir| restrict_to_user(&dir, "OICI"));
            restricted.inspect_err(|_| drop(fs::remove_dir(dir)))
        }
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Grants full control to the user, the system and the administrators only.
fn restrict_to_user(file: &File, inherited: &str) -> io::Result<()> {
    let everything = |who: &str| format!("(A;{inherited};FA;;;{who})");
    let each = [&this_user()?, SYSTEM, ADMINISTRATORS].map(everything);
    match set(file, RULES, &format!("D:P{}", each.concat())) {
        // A drive with FAT has no access rules.
        Err(error) if is_without_rules(&error) => Ok(()),
        set => set,
    }
}

fn is_without_rules(error: &io::Error) -> bool {
    let without = [ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED].map(u32::cast_signed);
    error.raw_os_error().is_some_and(|code| without.contains(&code))
}

/// Sets parts of the security descriptor of a file or an empty directory.
#[expect(unsafe_code, reason = "a system call")]
fn set(file: &File, parts: OBJECT_SECURITY_INFORMATION, rules: &str) -> io::Result<()> {
    let rules = Descriptor::new(rules)?;
    // `SetSecurityInfo` would add inherited entries under wine.
    // SAFETY: the file is open, and the rules outlive the call.
    let set = unsafe { SetKernelObjectSecurity(file.as_raw_handle(), parts, rules.as_ptr()) };
    if set == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn open_own(path: &Path) -> io::Result<File> {
    open(path)
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// Opens a file or a directory with no more rights than `access`.
fn open_for(path: &Path, access: u32) -> io::Result<File> {
    OpenOptions::new().access_mode(access).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)
}

/// Directories cannot be synced on Windows.
pub(super) fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(super) fn check(path: &Path, file: &File) -> Result<(), SecretFileError> {
    let known = access(file).and_then(|access| Ok((access, this_user()?)));
    let (access, me) =
        known.map_err(|source| SecretFileError::Read { path: path.to_owned(), source })?;
    access.check_secret(path, &me)
}

pub(super) fn is_ours(file: &File) -> io::Result<bool> {
    Ok(access(file)?.is_ours(&this_user()?))
}

pub(super) fn is_trusted_dir(dir: &Path) -> io::Result<bool> {
    is_ours(&open_for(dir, READ_CONTROL)?)
}

pub(super) fn access_by_others(dir: &Path) -> io::Result<Option<String>> {
    Ok(access(&open_for(dir, READ_CONTROL)?)?.unwanted_access(&this_user()?))
}

pub(super) fn is_readable_by_all(path: &Path) -> io::Result<bool> {
    Ok(access(&open_for(path, READ_CONTROL)?)?.is_readable_by_all())
}

/// Windows decides by the extension.
pub(super) fn is_runnable(_: &Metadata) -> bool {
    true
}

pub(super) fn restrict_command(path: &Path) -> String {
    let me = this_user().unwrap_or_else(|_| ADMINISTRATORS.to_owned());
    access::remedy(path, &me, false, &[])
}

/// Reads owner and access list of an open file.
#[expect(unsafe_code, reason = "system calls")]
fn access(file: &File) -> io::Result<Access> {
    let mut owner: PSID = ptr::null_mut();
    let mut list: *mut ACL = ptr::null_mut();
    let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
    // SAFETY: the file is open; owner and list point into the descriptor, which outlives them and
    // is freed once.
    unsafe {
        let failure = GetSecurityInfo(
            file.as_raw_handle(),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
            &raw mut owner,
            ptr::null_mut(),
            &raw mut list,
            ptr::null_mut(),
            &raw mut descriptor,
        );
        if failure != ERROR_SUCCESS {
            return Err(io::Error::from_raw_os_error(failure.cast_signed()));
        }
        let _descriptor = Descriptor::from_raw(descriptor);
        let rules = if list.is_null() { None } else { Some(rules(list)?) };
        Ok(Access { owner: name_of(owner)?, rules })
    }
}

/// # Safety
/// `list` must be a valid access list.
#[expect(unsafe_code, reason = "system calls")]
unsafe fn rules(list: *const ACL) -> io::Result<Vec<Rule>> {
    // SAFETY: guaranteed by the caller.
    let count = u32::from(unsafe { (*list).AceCount });
    let rule = |at| {
        let mut entry: *mut c_void = ptr::null_mut();
        // SAFETY: entries of these types have the same layout, and the id is their last part.
        unsafe {
            if GetAce(list, at, &raw mut entry) == 0 {
                return Err(io::Error::last_os_error());
            }
            let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
            let header = (*entry).Header;
            let allows = ALLOWS.contains(&header.AceType);
            if !allows && !FORBIDS.contains(&header.AceType) {
                let kind = header.AceType;
                return Err(io::Error::other(format!(
                    "its access list has an entry of unknown type {kind}: replace it with a plain one \
                     with `icacls`"
                )));
            }
            Ok(Rule {
                who: name_of((&raw mut (*entry).SidStart).cast::<c_void>())?,
                what: (*entry).Mask,
                allows,
                is_inherited_only: u32::from(header.AceFlags) & INHERIT_ONLY_ACE != 0,
            })
        }
    };
    (0..count).map(rule).collect()
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::Storage::FileSystem::WRITE_OWNER;

    use super::{
        super::{create_dir, has_trusted_owner, is_readable_by_all, is_trusted_dir, read, replace},
        *,
    };

    const ALL: &str = "S-1-1-0";
    const USERS: &str = "S-1-5-32-545";

    /// Creates a file of this user with these rules; a file created by an administrator may belong
    /// to the system.
    fn file(path: &Path, rules: &str) {
        fs::write(path, "s3cr3t\n").unwrap();
        let file = open_for(path, READ_CONTROL | WRITE_DAC | WRITE_OWNER).unwrap();
        let me = this_user().unwrap();
        let parts = RULES | OWNER_SECURITY_INFORMATION;
        set(&file, parts, &format!("O:{me}D:P(A;;FA;;;{me}){rules}")).unwrap();
    }

    fn refusal(path: &Path) -> Option<String> {
        read(path).err().map(|error| error.to_string())
    }

    #[test]
    fn secret_of_user_or_system_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        file(&path, "");
        assert_eq!(refusal(&path), None);
        file(&path, &format!("(A;;FA;;;{SYSTEM})(A;;FA;;;{ADMINISTRATORS})"));
        assert_eq!(refusal(&path), None);
        assert!(!is_readable_by_all(&path));
        assert!(has_trusted_owner(&File::open(&path).unwrap()).unwrap());

        file(&path, &format!("(A;;FR;;;{ALL})"));
        let refused = refusal(&path).unwrap();
        assert!(
            refused.contains("lets Everyone (S-1-1-0) read it: fix it with `icacls"),
            "{refused}"
        );
        assert!(is_readable_by_all(&path));
        file(&path, &format!("(A;;FA;;;{ALL})"));
        let refused = refusal(&path).unwrap();
        assert!(refused.contains("Everyone (S-1-1-0) read and change it"), "{refused}");
    }

    #[test_requires::requires(not_wine)]
    #[test]
    fn secret_readable_by_users_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        file(&path, &format!("(A;;FR;;;{USERS})"));
        let refused = refusal(&path).unwrap();
        assert!(refused.contains("lets Users (S-1-5-32-545) read it"), "{refused}");
        assert!(is_readable_by_all(&path));
        file(&path, &format!("(D;;FR;;;{USERS})"));
        assert_eq!(refusal(&path), None);
        // No access list at all.
        let open = open_for(&path, READ_CONTROL | WRITE_DAC).unwrap();
        set(&open, RULES, "D:NO_ACCESS_CONTROL").unwrap();
        let refused = refusal(&path).unwrap();
        assert!(refused.contains("has no access list"), "{refused}");
    }

    #[test]
    fn created_files_and_directories_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let open = open_for(dir.path(), READ_CONTROL | WRITE_DAC).unwrap();
        let me = this_user().unwrap();
        set(&open, RULES, &format!("D:P(A;OICI;FA;;;{me})(A;OICI;FA;;;{ALL})")).unwrap();
        assert!(access_by_others(dir.path()).unwrap().is_some());

        // In a directory that is open to all.
        let path = dir.path().join("token");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(*read(&path).unwrap(), text);
        }
        let below = dir.path().join("a").join("b");
        create_dir(&below).unwrap();
        create_dir(&below).unwrap();
        for dir in [&below, &dir.path().join("a")] {
            assert_eq!(access_by_others(dir).unwrap(), None);
            assert!(is_trusted_dir(dir));
        }
    }

    /// Under wine files do not inherit the rules of their directory.
    #[test_requires::requires(not_wine)]
    #[test]
    fn file_inherits_the_rules_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a");
        create_dir(&below).unwrap();
        fs::write(below.join("key"), "k").unwrap();
        assert_eq!(*read(&below.join("key")).unwrap(), "k");
    }

    #[test]
    fn create_new_refuses_an_existing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        file(&path, "");
        let error = create_new(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(*read(&path).unwrap(), "s3cr3t\n");
    }
}
