//! Where control sockets are, and who owns which name.
//!
//! Invariants:
//! S1  the directory belongs to this user and nobody else can enter it;
//! S2  a name belongs to the process that holds the lock on NAME.lock; the lock dies with the
//!     process, so a socket without a locked file is stale and is replaced;
//! S3  the owner removes both files when it ends.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags};
use thiserror::Error;

/// Longest path of a Unix socket, bytes (Linux: `sockaddr_un.sun_path` with its terminator has 108).
const PATH_MAX: usize = 107;
/// Longest name of a guest.
const NAME_MAX: usize = 48;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Not a name.
    #[error(
        "{0:?} cannot name a guest: use 1 to 48 of A-Z a-z 0-9 . _ - and do not begin with a dot or dash"
    )]
    BadName(String),
    /// The name is taken.
    #[error("a guest named {0:?} is running: choose another with --name, or stop it")]
    Taken(String),
    /// The directory's name leaves no room.
    #[error("the control socket {} has {} bytes in its path, at most {PATH_MAX} fit: set XDG_RUNTIME_DIR to a shorter directory, or choose a shorter --name", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// The directory is not ours alone.
    #[error("{} must be a directory of this user with mode 0700: remove it, or set XDG_RUNTIME_DIR", .0.display())]
    UnsafeDirectory(PathBuf),
    /// The host refused.
    #[error("cannot {step} {}", path.display())]
    Host {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// Directory of control sockets: `$XDG_RUNTIME_DIR/memvisor`, else `/tmp/memvisor-UID`.
pub fn runtime_dir() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("memvisor"),
        None => PathBuf::from(format!("/tmp/memvisor-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Accepts `name` as a guest's.
///
/// # Errors
/// [`SocketError::BadName`].
pub fn check_name(name: &str) -> Result<(), SocketError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let good = plain && !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with(['.', '-']);
    good.then_some(()).ok_or_else(|| SocketError::BadName(name.to_owned()))
}

/// The socket of the guest `name`.
///
/// # Errors
/// [`SocketError::BadName`].
pub fn socket_path(name: &str) -> Result<PathBuf, SocketError> {
    check_name(name)?;
    Ok(runtime_dir().join(format!("{name}.sock")))
}

/// A name that this process owns, and its socket. Dropping it gives both up.
#[derive(Debug)]
pub struct Claim {
    name: String,
    listener: UnixListener,
    socket: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Claims `name` in [`runtime_dir`].
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn new(name: &str) -> Result<Claim, SocketError> {
        Claim::in_dir(&runtime_dir(), name)
    }

    /// Claims `name` in `dir`.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn in_dir(dir: &Path, name: &str) -> Result<Claim, SocketError> {
        check_name(name)?;
        let socket = dir.join(format!("{name}.sock"));
        if socket.as_os_str().len() > PATH_MAX {
            return Err(SocketError::PathTooLong(socket));
        }
        make_private_dir(dir)?;
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = lock_file(&lock_path, name)?;
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SocketError::Host {
                    step: "remove the stale socket",
                    path: socket,
                    source: error,
                });
            }
            _ => {}
        }
        let listener = UnixListener::bind(&socket)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| {
                // Nobody drops a claim that was never made.
                let _ = fs::remove_file(&lock_path);
                SocketError::Host { step: "listen on", path: socket.clone(), source }
            })?;
        Ok(Claim { name: name.to_owned(), listener, socket, lock_path, _lock: lock })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The listening socket; it does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.socket
    }

    /// Removes the files, for an end that runs no destructors.
    pub fn remove_files(&self) {
        // The lock is still held, so the name is free only when both are gone.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock_path);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.remove_files();
    }
}

fn make_private_dir(dir: &Path) -> Result<(), SocketError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SocketError::Host { step: "create", path: dir.to_owned(), source: error });
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).map_err(|source| SocketError::Host {
        step: "look at",
        path: dir.to_owned(),
        source,
    })?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    ours.then_some(()).ok_or_else(|| SocketError::UnsafeDirectory(dir.to_owned()))
}

/// Opens and locks; a file that its owner removed meanwhile is tried again.
fn lock_file(path: &Path, name: &str) -> Result<File, SocketError> {
    let fail = |step, source| SocketError::Host { step, path: path.to_owned(), source };
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| fail("open", errno.into()))?;
        let file = File::from(fd);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::Taken(name.to_owned())),
            Err(errno) => return Err(fail("lock", errno.into())),
        }
        let ours = file.metadata().map_err(|source| fail("look at", source))?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_live_name_is_refused_and_a_dead_one_taken_over() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("run");
        let first = Claim::in_dir(&dir, "vm").expect("free");
        assert!(matches!(Claim::in_dir(&dir, "vm"), Err(SocketError::Taken(_))));
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
        // What a killed process leaves behind: files without a lock.
        drop(UnixListener::bind(&path).expect("bind"));
        fs::write(dir.join("vm.lock"), "").expect("write");
        assert!(path.exists());
        let second = Claim::in_dir(&dir, "vm").expect("stale");
        assert!(std::os::unix::net::UnixStream::connect(second.path()).is_ok());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(Claim::in_dir(dir.path(), "vm"), Err(SocketError::UnsafeDirectory(_))));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let deep = dir.path().join("d".repeat(PATH_MAX));
        let error = Claim::in_dir(&deep, "vm").expect_err("too long").to_string();
        assert!(error.contains("XDG_RUNTIME_DIR") && error.contains("107"), "{error}");
        assert!(!deep.exists());
    }

    #[test]
    fn names_stay_inside_the_directory() {
        for bad in ["", ".hidden", "-x", "a/b", "../x", "a b", "a\0b", &"x".repeat(49)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["default", "numa4-2", "a.b_c"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
