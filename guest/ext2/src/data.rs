//! Bytes of regular files for who has no page cache: tests, images in memory, a kernel before it has one. Never together with a page
//! cache: each would not see what the other wrote.

use crate::Errno;
use crate::blocks::Create;
use crate::buffers::Buffers;
use crate::create::Caller;
use crate::inode::{Ino, Inode};
use crate::mount::Ext2;

impl<B: Buffers> Ext2<B> {
    /// Reads from `offset`; fewer bytes at the end of the file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` if it is no regular file, `EIO`, `EUCLEAN`.
    pub fn read(&mut self, ino: Ino, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let mut inode = self.file(ino)?;
        let left = inode.size().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let mut done = 0;
        while done < len {
            let (index, within, room) = self.place(offset + done as u64)?;
            let Some(part) = into.get_mut(done..len.min(done + room)) else { break };
            let count = part.len();
            match self.map_block(&mut inode, index, 1, Create::No)? {
                Some(mapped) => self.buffers.read(mapped.block, |bytes| {
                    part.copy_from_slice(bytes.get(within..within + part.len()).unwrap_or(&[]));
                })?,
                None => part.fill(0),
            }
            done += count;
        }
        Ok(len)
    }

    /// Writes at `offset`; how many bytes, fewer only if there was no room for all. Nothing written changes nothing (Linux:
    /// `generic_write_checks`).
    ///
    /// # Errors
    /// `ENOSPC` if there was room for none, `EFBIG`, `EISDIR`, `EINVAL`, `EPERM`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn write(&mut self, caller: &Caller, ino: Ino, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let mut inode = self.file(ino)?;
        self.check_writable()?;
        if inode.is_immutable() || (inode.is_append_only() && offset < inode.size()) {
            return Err(Errno::Eperm);
        }
        if from.is_empty() {
            return Ok(0);
        }
        let room = self.geometry.max_size.saturating_sub(offset);
        if room == 0 {
            return Err(Errno::Efbig);
        }
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(from.len());
        let mut done = 0;
        while done < len {
            let (index, within, room) = self.place(offset + done as u64)?;
            let Some(part) = from.get(done..len.min(done + room)) else { break };
            match self.write_part(caller, &mut inode, (index, within), part) {
                Ok(()) => done += part.len(),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        self.extend(ino, offset + done as u64)?;
        let now = Some(caller.now);
        self.update_time(ino, &crate::Times { mtime: now, ctime: now, atime: None })?;
        Ok(done)
    }

    /// Cuts or grows a file, the rest of its last block zeroed.
    ///
    /// # Errors
    /// Those of [`Ext2::set_size`].
    pub fn truncate(&mut self, ino: Ino, size: u64, now: i64) -> Result<(), Errno> {
        let mut inode = self.file(ino)?;
        self.check_writable()?;
        let (index, within, _) = self.place(size)?;
        if within > 0
            && size < inode.size()
            && let Some(mapped) = self.map_block(&mut inode, index, 1, Create::No)?
        {
            self.buffers.change(mapped.block, |bytes| {
                if let Some(rest) = bytes.get_mut(within..) {
                    rest.fill(0);
                }
            })?;
        }
        self.set_size(ino, size, now)
    }

    fn write_part(
        &mut self,
        caller: &Caller,
        inode: &mut Inode,
        (index, within): (u64, usize),
        part: &[u8],
    ) -> Result<(), Errno> {
        let mapped = self.map_block(inode, index, 1, Create::Yes(caller))?.ok_or(Errno::Eio)?;
        let copy = |bytes: &mut [u8]| {
            if let Some(place) = bytes.get_mut(within..within + part.len()) {
                place.copy_from_slice(part);
            }
        };
        if mapped.new {
            self.buffers.fill(mapped.block, copy)
        } else {
            self.buffers.change(mapped.block, copy)
        }
    }

    fn file(&mut self, ino: Ino) -> Result<Inode, Errno> {
        let inode = self.inode(ino)?;
        if inode.is_dir() {
            return Err(Errno::Eisdir);
        }
        if inode.is_file() { Ok(inode) } else { Err(Errno::Einval) }
    }

    /// The block of a file that a byte is in, where in it, and how many bytes there are from there.
    fn place(&self, offset: u64) -> Result<(u64, usize, usize), Errno> {
        let block = u64::from(self.geometry.block_size);
        let within = usize::try_from(offset % block).map_err(|_| Errno::Eio)?;
        Ok((offset / block, within, self.geometry.block_size as usize - within))
    }
}
