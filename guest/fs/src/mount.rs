//! mount, umount2, chroot, /proc/mounts (Linux: fs/namespace.c, fs/proc_namespace.c).

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::dir::copy;
use crate::proc::Processes;
use crate::vfs::{Context, FsKind, Mount, MountId, Place, ROOT_MOUNT, SHM_MOUNT, Vfs};
use crate::walk::PathState;
use crate::{Data, Errno, no_memory};

const MS_RDONLY: u64 = 1;
const MS_REMOUNT: u64 = 1 << 5;
const MS_BIND: u64 = 1 << 12;
const MS_MOVE: u64 = 1 << 13;
/// MS_UNBINDABLE, PRIVATE, SLAVE, SHARED: how mounts of copies are shared; there are no copies.
const MS_PROPAGATION: u64 = 0xf << 17;
const MS_REC: u64 = 1 << 14;
/// MS_RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, NODIRATIME, RELATIME.
const KEPT: u64 = 0xf | 1 << 10 | 1 << 11 | 1 << 21;
const MNT_FORCE: u32 = 1;
const MNT_DETACH: u32 = 2;
const MNT_EXPIRE: u32 = 4;
const UMOUNT_NOFOLLOW: u32 = 8;

/// What mount(2) asks for.
#[derive(Clone, Copy, Debug)]
pub struct MountRequest<'a> {
    /// What the user calls the file system.
    pub source: &'a [u8],
    /// The kind: `proc`, `tmpfs`, `devtmpfs`.
    pub kind: &'a [u8],
    /// `MS_` flags.
    pub flags: u64,
    /// `mode=755` and so on, with commas between.
    pub options: &'a [u8],
}

impl<D: Data, P: Processes> Vfs<D, P> {
    /// mount onto `target`.
    ///
    /// Differs from Linux: read-only mounts of what is on no disk are refused (`EINVAL`), as are bind mounts; of a tmpfs's options only the mode is
    /// obeyed; limits of its size are accepted, and memory is the only limit.
    ///
    /// # Errors
    /// `ENODEV` for an unknown kind, `ENOTDIR`, `EBUSY`, `EINVAL`; `ENOTBLK`, `ENXIO`, `EIO` of a disk.
    pub fn mount(
        &mut self,
        context: &Context,
        target: Place,
        request: &MountRequest<'_>,
    ) -> Result<(), Errno> {
        let flags = request.flags & 0xffff_ffff;
        // Old C libraries put a mark into the upper half (Linux: MS_MGC_VAL).
        let flags = if flags & 0xffff_0000 == 0xc0ed_0000 { flags & 0xffff } else { flags };
        if flags & MS_REMOUNT != 0 {
            return self.remount(target, flags);
        }
        if flags & MS_PROPAGATION != 0 {
            let ours = self.mount_of(target.mount).is_some_and(|mount| mount.root == target.node);
            return if ours && flags & !(MS_PROPAGATION | MS_REC | 1 << 15) == 0 {
                Ok(())
            } else {
                Err(Errno::Einval)
            };
        }
        let kind = FsKind::of(request.kind);
        let read_only = flags & MS_RDONLY != 0;
        if flags & (MS_BIND | MS_MOVE) != 0 || (read_only && kind != Some(FsKind::Ext2)) {
            return Err(Errno::Einval);
        }
        if !self.is_dir(target) {
            return Err(Errno::Enotdir);
        }
        let kind = kind.ok_or(Errno::Enodev)?;
        if kind == FsKind::Ext2 {
            return self.mount_ext2(context, target, request, flags);
        }
        let same = self.fs_of(target.mount).is_some_and(|fs| fs.kind == kind && kind != FsKind::Tmpfs);
        if same && self.mount_of(target.mount).is_some_and(|mount| mount.root == target.node) {
            return Err(Errno::Ebusy);
        }
        let permissions =
            mode_option(request.options)?.unwrap_or(if kind == FsKind::Tmpfs { 0o1777 } else { 0o755 });
        // All see the same devices and processes (Linux: one super block).
        let shared = self.supers.iter().position(|fs| fs.as_ref().is_some_and(|fs| fs.kind == kind));
        let fs = match shared.filter(|_| kind != FsKind::Tmpfs) {
            Some(fs) => u32::try_from(fs).map_err(|_| Errno::Enospc)?,
            None => self.new_fs(kind, permissions, context.now)?,
        };
        self.new_mount(fs, Some(target), request.source, flags & KEPT).map(drop)
    }

    fn mount_ext2(
        &mut self,
        context: &Context,
        target: Place,
        request: &MountRequest<'_>,
        flags: u64,
    ) -> Result<(), Errno> {
        let fs = self.new_disk_fs(context, request.source, flags & MS_RDONLY != 0)?;
        let fresh = self.supers.get(fs as usize).and_then(Option::as_ref).is_some_and(|fs| fs.mounts == 0);
        let read_only = self.disk_is_read_only(fs);
        let flags = flags & KEPT & !MS_RDONLY | if read_only { MS_RDONLY } else { 0 };
        let result = self.new_mount(fs, Some(target), request.source, flags);
        if result.is_err() && fresh {
            if let Some(slot) = self.supers.get_mut(fs as usize) {
                *slot = None;
            }
            let _ = self.unmount_disk(fs);
        }
        result.map(drop)
    }

    fn remount(&mut self, target: Place, flags: u64) -> Result<(), Errno> {
        let mount =
            self.mount_mut(target.mount).filter(|mount| mount.root == target.node).ok_or(Errno::Einval)?;
        if flags & 1 != 0 {
            return Err(Errno::Einval);
        }
        mount.flags = flags & KEPT;
        Ok(())
    }

    /// umount2 of what `target` is the root of. `UMOUNT_NOFOLLOW` is the caller's.
    ///
    /// # Errors
    /// `EINVAL`, `EBUSY`.
    pub fn umount(&mut self, context: &Context, target: Place, flags: u32) -> Result<(), Errno> {
        if flags & !(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0 || flags & MNT_EXPIRE != 0 {
            return Err(Errno::Einval);
        }
        let id = target.mount;
        let mount = self.mount_of(id).filter(|mount| mount.root == target.node).ok_or(Errno::Einval)?;
        if mount.at.is_none() {
            return Err(Errno::Einval);
        }
        let holds = mount.holds;
        let kind = self.fs_of(id).map(|fs| fs.kind);
        if id == ROOT_MOUNT || target == context.root {
            return Err(if id == ROOT_MOUNT { Errno::Einval } else { Errno::Ebusy });
        }
        let covered = self.mounts.iter().flatten().any(|mount| mount.at.is_some_and(|at| at.mount == id));
        if flags & MNT_DETACH == 0 && (holds > 0 || covered) {
            return Err(Errno::Ebusy);
        }
        // While it can still be told.
        let synced = if kind == Some(FsKind::Ext2) { self.sync() } else { Ok(()) };
        self.detach(id)?;
        synced
    }

    /// Takes the mount and what lies on it out of the tree; each is freed once nothing is in it.
    fn detach(&mut self, id: MountId) -> Result<(), Errno> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.mounts.len()).map_err(no_memory)?;
        all.push(id);
        let mut next = 0;
        while let Some(&below) = all.get(next) {
            next += 1;
            let on = |mount: &&Mount| mount.at.is_some_and(|at| at.mount == below);
            let ids = (0..).map(MountId).zip(&self.mounts);
            all.extend(ids.filter(|(_, mount)| mount.as_ref().is_some_and(|m| on(&m))).map(|(id, _)| id));
        }
        // From the top down: what lies on a mount holds a place in it.
        for id in all.into_iter().rev() {
            let Some(mount) = self.mount_mut(id) else { continue };
            let at = mount.at.take();
            if mount.holds == 0 {
                self.drop_mount(id);
            }
            if let Some(at) = at {
                self.put(at);
            }
        }
        Ok(())
    }

    /// /proc/mounts as seen from the process's root.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn show_mounts(&self, context: &Context, out: &mut dyn Write) -> fmt::Result {
        for (index, mount) in self.mounts.iter().enumerate() {
            let Some(mount) = mount else { continue };
            let Ok(id) = u32::try_from(index).map(MountId) else { continue };
            if mount.at.is_none() && id != ROOT_MOUNT || id > ROOT_MOUNT && id <= SHM_MOUNT {
                continue;
            }
            let Some(kind) = self.fs_of(id).map(|fs| fs.kind) else { continue };
            let Ok(found) = self.path_of(context, Place { mount: id, node: mount.root }) else { continue };
            if found.state != PathState::Reachable {
                continue;
            }
            escape(out, if mount.source.is_empty() { b"none" } else { &mount.source })?;
            out.write_char(' ')?;
            escape(out, &found.path)?;
            let access = if mount.flags & MS_RDONLY != 0 { "ro" } else { "rw" };
            write!(out, " {} {access}", kind.name())?;
            for (bit, word) in [(2, ",nosuid"), (4, ",nodev"), (8, ",noexec"), (1 << 10, ",noatime")] {
                if mount.flags & bit != 0 {
                    out.write_str(word)?;
                }
            }
            if mount.flags & (1 << 10) == 0 && kind != FsKind::Rootfs {
                out.write_str(",relatime")?;
            }
            out.write_str(" 0 0\n")?;
        }
        Ok(())
    }

    /// The mount's name for mount(2), for tests.
    pub fn mounted(&self, place: Place) -> Option<Vec<u8>> {
        copy(&self.mount_of(place.mount)?.source).ok()
    }

    /// The kind of the file system that the place is in.
    pub fn kind_of(&self, place: Place) -> Option<FsKind> {
        self.fs_of(place.mount).map(|fs| fs.kind)
    }
}

/// `mode=` of a tmpfs's options.
fn mode_option(options: &[u8]) -> Result<Option<u32>, Errno> {
    let mut mode = None;
    for word in options.split(|byte| *byte == b',') {
        if let Some(digits) = word.strip_prefix(b"mode=") {
            let text = core::str::from_utf8(digits).map_err(|_| Errno::Einval)?;
            mode = Some(u32::from_str_radix(text, 8).map_err(|_| Errno::Einval)? & 0o7777);
        }
    }
    Ok(mode)
}

/// Linux: `mangle_path` with the characters of fs/proc_namespace.c.
fn escape(out: &mut dyn Write, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => write!(out, "\\{byte:03o}")?,
            _ => out.write_char(char::from(byte))?,
        }
    }
    Ok(())
}
