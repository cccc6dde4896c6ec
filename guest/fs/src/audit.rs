//! What must hold between calls; the numbers are those of `vfs.rs`, `inode.rs` and `dir.rs`.

use crate::Data;
use crate::inode::InodeId;
use crate::proc::Processes;
use crate::vfs::{MountId, Node, ROOT_MOUNT, SHM_MOUNT, Vfs};

impl<D: Data, P: Processes> Vfs<D, P> {
    /// Checks invariants; the first that does not hold, and the number of the inode or mount.
    ///
    /// # Errors
    /// What is broken.
    pub fn audit(&self) -> Result<(), (&'static str, u32)> {
        let ids =
            || (0..).map(InodeId).zip(&self.inodes).filter_map(|(id, inode)| Some((id, inode.as_ref()?)));
        for (id, inode) in ids() {
            let check = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err((what, id.0)) };
            check(inode.nlink > 0 || inode.holds > 0, "I1: neither named nor held")?;
            let is_root = self.supers.iter().flatten().any(|fs| fs.root == Node::Inode(id));
            let names: u32 = ids()
                .filter_map(|(_, dir)| dir.dir())
                .map(|dir| dir.from(0).iter().filter(|slot| slot.inode == id).map(|_| 1).sum::<u32>())
                .sum();
            let Some(directory) = inode.dir() else {
                check(names == inode.nlink, "F1: not as many names as links")?;
                continue;
            };
            let children = directory.from(0).iter().filter_map(|slot| self.inode(slot.inode));
            let dirs: u32 = children.map(|child| u32::from(child.is_dir())).sum();
            if inode.nlink == 0 {
                check(
                    names == 0 && directory.is_empty() && inode.orphan.is_some(),
                    "I2: a removed directory",
                )?;
            } else {
                check(names == u32::from(!is_root), "F1: a directory's names")?;
                check(inode.nlink == 2 + dirs, "I2: a directory's links")?;
            }
            for slot in directory.from(0) {
                let child = self.inode(slot.inode).ok_or(("F1: a name of nothing", id.0))?;
                check(child.fs == inode.fs, "F1: a name of another file system's")?;
                check(!child.is_dir() || child.parent == id, "I3: a directory's parent")?;
                check(directory.get(&slot.name) == Some(slot.inode), "D2: a name is not found")?;
            }
            let ascend = directory.from(0).windows(2).all(|pair| pair[0].number < pair[1].number);
            check(ascend, "D1: numbers do not ascend")?;
        }
        self.audit_mounts()
    }

    fn audit_mounts(&self) -> Result<(), (&'static str, u32)> {
        for (index, mount) in (0..).zip(&self.mounts) {
            let Some(mount) = mount else { continue };
            let id = MountId(index);
            let on = self
                .mounts
                .iter()
                .flatten()
                .filter(|other| other.at.is_some_and(|at| at.mount == id))
                .count();
            if (mount.holds as usize) < on {
                return Err(("F2: fewer holds than mounts on it", index));
            }
            if mount.at.is_none() && mount.holds == 0 && id > SHM_MOUNT {
                return Err(("F2: a detached mount that nobody is in", index));
            }
            let Some(at) = mount.at else { continue };
            if id == ROOT_MOUNT || self.mount_of(at.mount).is_none() || !self.is_dir(at) {
                return Err(("F3: mounted on nothing", index));
            }
            if self.mounts.iter().flatten().filter(|other| other.at == Some(at)).count() != 1 {
                return Err(("F3: two mounts on one place", index));
            }
        }
        Ok(())
    }
}
