//! Who may do what with an object (Linux: ipc/util.c, `ipcperms`).

use crate::Errno;
use crate::bytes::Bytes;

/// Bits of a mode.
pub mod mode {
    /// Rights of owner, group and others (Linux: `S_IRWXUGO`).
    pub const RIGHTS: u32 = 0o777;
    /// The segment goes with the last detachment.
    pub const SHM_DEST: u32 = 0o1000;
    /// Its pages are not to be swapped out.
    pub const SHM_LOCKED: u32 = 0o2000;
}

/// Who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Number of the process.
    pub pid: u32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Seconds since 1970.
    pub now: i64,
}

impl Caller {
    /// Whether rights do not matter (Linux: `CAP_IPC_OWNER`, `CAP_SYS_ADMIN`).
    const fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// Owner and rights of an object (Linux: `struct kern_ipc_perm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perm {
    /// What others find it by; 0 (IPC_PRIVATE) for one that nobody finds.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Who made it.
    pub cuid: u32,
    /// The maker's group.
    pub cgid: u32,
    /// See [`mode`].
    pub mode: u32,
    /// The upper part of the identifier.
    pub seq: u16,
}

impl Perm {
    /// Of a new object.
    pub(crate) fn new(caller: &Caller, key: i32, flags: u32) -> Perm {
        let (uid, gid) = (caller.uid, caller.gid);
        Perm { key, uid, gid, cuid: uid, cgid: gid, mode: flags & mode::RIGHTS, seq: 0 }
    }

    /// Whether `wanted`, rights in any of the three places, is allowed.
    ///
    /// # Errors
    /// `EACCES`.
    pub(crate) fn check(&self, caller: &Caller, wanted: u32) -> Result<(), Errno> {
        let wanted = (wanted >> 6 | wanted >> 3 | wanted) & 0o7;
        let granted = if caller.uid == self.cuid || caller.uid == self.uid {
            self.mode >> 6
        } else if caller.gid == self.cgid || caller.gid == self.gid {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted & 0o7 == 0 || caller.is_root() { Ok(()) } else { Err(Errno::Eacces) }
    }

    /// Whether the caller may change or remove it (Linux: `ipcctl_obtain_check`).
    ///
    /// # Errors
    /// `EPERM`.
    pub(crate) fn check_owner(&self, caller: &Caller) -> Result<(), Errno> {
        let owns = caller.uid == self.uid || caller.uid == self.cuid || caller.is_root();
        if owns { Ok(()) } else { Err(Errno::Eperm) }
    }

    /// Puts `struct ipc64_perm`, 48 bytes.
    pub(crate) fn put<const N: usize>(&self, out: &mut Bytes<N>) {
        out.u32(self.key.cast_unsigned()).u32(self.uid).u32(self.gid).u32(self.cuid).u32(self.cgid);
        out.u32(self.mode).u16(self.seq).skip(22);
    }
}
