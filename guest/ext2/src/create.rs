//! New files: create, mkdir, mknod, symlink (Linux: fs/ext2/namei.c).

use crate::Errno;
use crate::blocks::Create;
use crate::buffers::Buffers;
use crate::inode::{Ino, Inode};
use crate::layout::{FAST_SYMLINK, LINK_MAX, NAME_LEN, mode};
use crate::mount::Ext2;

/// For whom, and when.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Owner of new files.
    pub uid: u32,
    /// Group of new files.
    pub gid: u32,
    /// May use the blocks reserved for root (Linux: `CAP_SYS_RESOURCE`).
    pub privileged: bool,
    /// Seconds since 1970.
    pub now: i64,
}

/// Number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Driver, below 4096.
    pub major: u32,
    /// Which of its devices, below 2^20.
    pub minor: u32,
}

impl Device {
    pub(crate) const fn decode_old(raw: u32) -> Device {
        Device { major: raw >> 8 & 0xff, minor: raw & 0xff }
    }

    pub(crate) const fn decode_new(raw: u32) -> Device {
        Device { major: (raw & 0xf_ff00) >> 8, minor: raw & 0xff | raw >> 12 & 0xf_ff00 }
    }

    /// The first two pointers of its inode.
    const fn encode(self) -> (u32, u32) {
        if self.major < 256 && self.minor < 256 {
            return (self.major << 8 | self.minor, 0);
        }
        (0, self.minor & 0xff | (self.major & 0xfff) << 8 | (self.minor & 0xf_ff00) << 12)
    }
}

/// `ENAMETOOLONG`, or `EINVAL` for what no name can be.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_LEN {
        return Err(Errno::Enametoolong);
    }
    let none = name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0);
    if none { Err(Errno::Einval) } else { Ok(()) }
}

impl<B: Buffers> Ext2<B> {
    /// A directory that shall get a name (Linux: `may_create`).
    pub(crate) fn dir_to_add(&mut self, dir: Ino, name: &[u8]) -> Result<Inode, Errno> {
        let dir = self.dir(dir)?;
        check_name(name)?;
        self.check_writable()?;
        if dir.nlink() == 0 {
            return Err(Errno::Enoent);
        }
        if dir.is_immutable() { Err(Errno::Eperm) } else { Ok(dir) }
    }

    /// A new inode with a name; `start` gives it what it has beyond its mode, and changes only it.
    fn make(
        &mut self,
        caller: &Caller,
        (dir, name): (Ino, &[u8]),
        mode: u32,
        start: impl FnOnce(&mut Self, &mut Inode, &Inode) -> Result<(), Errno>,
    ) -> Result<Inode, Errno> {
        let mut dir = self.dir_to_add(dir, name)?;
        if self.find_entry(&dir, name)?.is_some() {
            return Err(Errno::Eexist);
        }
        let mut inode = self.new_inode(caller, &dir, mode)?;
        let started = start(self, &mut inode, &dir);
        let result = started.and_then(|()| self.add_entry(caller, &mut dir, name, &inode));
        if let Err(error) = result {
            // The first error is the one to tell.
            let _ = self.delete_inode(inode, caller.now);
            return Err(error);
        }
        Ok(inode)
    }

    /// A regular file without bytes. `mode` has the permissions, from which the umask was taken already.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `ENOTDIR`, `ENOENT` in a removed directory, `ENAMETOOLONG`, `EINVAL` for a name that is none, `EPERM`,
    /// `EROFS`, `EIO`, `EUCLEAN`.
    pub fn create(&mut self, caller: &Caller, dir: Ino, name: &[u8], mode: u32) -> Result<Inode, Errno> {
        let bits = mode::S_IFREG | mode & mode::PERMISSIONS;
        self.make(caller, (dir, name), bits, |_, _, _| Ok(()))
    }

    /// A device, pipe or socket, by the type in `mode`; a regular file as well.
    ///
    /// # Errors
    /// Those of [`Ext2::create`]; `EINVAL` for another type.
    pub fn mknod(
        &mut self,
        caller: &Caller,
        (dir, name): (Ino, &[u8]),
        mode: u32,
        device: Device,
    ) -> Result<Inode, Errno> {
        let kind = mode & mode::S_IFMT;
        let is_device = matches!(kind, mode::S_IFCHR | mode::S_IFBLK);
        if !is_device && !matches!(kind, mode::S_IFIFO | mode::S_IFSOCK | mode::S_IFREG) {
            return Err(Errno::Einval);
        }
        self.make(caller, (dir, name), kind | mode & mode::PERMISSIONS, |fs, inode, _| {
            if !is_device {
                return Ok(());
            }
            let (old, new) = device.encode();
            inode.set_pointer(0, crate::Block(old));
            inode.set_pointer(1, crate::Block(new));
            fs.write_inode(inode)
        })
    }

    /// A symbolic link that leads to `target`; one of less than 60 bytes takes no block.
    ///
    /// # Errors
    /// Those of [`Ext2::create`]; `ENAMETOOLONG` for a target that does not fit into a block, `ENOENT` for an empty one.
    pub fn symlink(&mut self, caller: &Caller, dir: Ino, name: &[u8], target: &[u8]) -> Result<Inode, Errno> {
        if target.is_empty() {
            return Err(Errno::Enoent);
        }
        if target.len() >= self.geometry.block_size as usize {
            return Err(Errno::Enametoolong);
        }
        self.make(caller, (dir, name), mode::S_IFLNK | 0o777, |fs, inode, _| {
            if target.len() < FAST_SYMLINK {
                inode.set_link_bytes(target);
            } else {
                let mapped = fs.map_block(inode, 0, 1, Create::Yes(caller))?.ok_or(Errno::Eio)?;
                fs.buffers.fill(mapped.block, |bytes| {
                    if let Some(place) = bytes.get_mut(..target.len()) {
                        place.copy_from_slice(target);
                    }
                })?;
            }
            inode.set_size(target.len() as u64);
            fs.write_inode(inode)
        })
    }

    /// A directory. `mode` has the permissions.
    ///
    /// # Errors
    /// Those of [`Ext2::create`]; `EMLINK` if `dir` has 31998 directories.
    pub fn mkdir(&mut self, caller: &Caller, dir: Ino, name: &[u8], mode: u32) -> Result<Inode, Errno> {
        let above = self.dir(dir)?;
        if above.nlink() >= LINK_MAX {
            return Err(Errno::Emlink);
        }
        let bits = mode::S_IFDIR | mode & mode::PERMISSIONS;
        let inode = self.make(caller, (dir, name), bits, |fs, inode, above| {
            inode.set_nlink(2);
            fs.make_empty(caller, inode, above)
        })?;
        let mut above = self.dir(dir)?;
        above.set_nlink(above.nlink().saturating_add(1));
        if let Err(error) = self.write_inode(&above) {
            // Before the name, so that the name never leads to nothing.
            above.set_nlink(above.nlink() - 1);
            if let Some(found) = self.find_entry(&above, name)? {
                self.delete_entry(&mut above, found, caller.now)?;
            }
            self.delete_inode(inode, caller.now)?;
            return Err(error);
        }
        Ok(inode)
    }

    /// Where a symbolic link leads, at most as many bytes as a block has.
    ///
    /// # Errors
    /// `EINVAL` if it is none, `EIO`, `EUCLEAN`, `ENOMEM`.
    pub fn read_link(&mut self, ino: Ino) -> Result<alloc::vec::Vec<u8>, Errno> {
        let mut inode = self.inode(ino)?;
        if !inode.is_symlink() {
            return Err(Errno::Einval);
        }
        let fast = inode.is_fast_symlink(self.geometry.sectors());
        let limit = if fast { FAST_SYMLINK } else { self.geometry.block_size as usize };
        let Some(len) = usize::try_from(inode.size()).ok().filter(|len| *len > 0 && *len < limit) else {
            return Err(self.corrupt(Errno::Euclean, "length of a symbolic link", u64::from(ino.0)));
        };
        let mut target = alloc::vec::Vec::new();
        target.try_reserve_exact(len).map_err(crate::no_memory)?;
        if fast {
            target.extend_from_slice(inode.link_bytes().get(..len).unwrap_or(&[]));
            return Ok(target);
        }
        match self.map_block(&mut inode, 0, 1, Create::No)? {
            Some(mapped) => self.buffers.read(mapped.block, |bytes| {
                target.extend_from_slice(bytes.get(..len).unwrap_or(&[]));
            })?,
            None => return Err(self.corrupt(Errno::Euclean, "symbolic link with a hole", u64::from(ino.0))),
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_of_both_forms_come_back() {
        for device in [
            Device { major: 4, minor: 64 },
            Device { major: 259, minor: 3 },
            Device { major: 8, minor: 0x12345 },
        ] {
            let back = match device.encode() {
                (0, new) => Device::decode_new(new),
                (old, _) => Device::decode_old(old),
            };
            assert_eq!(back, device);
        }
        assert_eq!(Device { major: 8, minor: 0x12345 }.encode(), (0, 0x1230_0845));
    }
}
