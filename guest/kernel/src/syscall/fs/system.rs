//! mount, sync, swapon, reboot (Linux: fs/namespace.c, fs/sync.c, mm/swapfile.c, kernel/reboot.c).

use alloc::vec::Vec;

use guest_fs::{Follow, MountRequest};
use mm_vma::Errno;

use super::{AT_FDCWD, Target, done, ints, path_at};
use crate::arch::trap::TrapFrame;
use crate::drivers::power;
use crate::fs::{sync, with_vfs};
use crate::init;
use crate::mm::swap;
use crate::syscall::int;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, e, _], _) = ints(frame);
    Some(match number {
        162 => {
            // sync(2) tells of no error.
            let _ = sync::all();
            Ok(0)
        }
        165 => mount(a, b, c, d, e),
        167 => swapon(a, int(b)),
        168 => swapoff(a),
        166 => umount(a, int(b)),
        169 => reboot(int(a), int(b), int(c)),
        _ => return None,
    })
}

/// A text at an address, or none at address 0.
fn text(address: u64) -> Result<Vec<u8>, Errno> {
    if address == 0 { Ok(Vec::new()) } else { path_at(address) }
}

fn mount(source: u64, target: u64, kind: u64, flags: u64, options: u64) -> Result<u64, Errno> {
    let (source, kind, options) = (text(source)?, text(kind)?, text(options)?);
    let target = Target::new(AT_FDCWD, target)?;
    let request = MountRequest { source: &source, kind: &kind, flags, options: &options };
    done(with_vfs(|vfs| {
        let place = vfs.lookup(&target.context, target.base, &target.path, Follow::Yes)?;
        vfs.mount(&target.context, place, &request)
    }))
}

fn umount(target: u64, flags: u32) -> Result<u64, Errno> {
    const NOFOLLOW: u32 = 8;
    let target = Target::new(AT_FDCWD, target)?;
    let follow = if flags & NOFOLLOW == 0 { Follow::Yes } else { Follow::No };
    done(with_vfs(|vfs| {
        let place = vfs.lookup(&target.context, target.base, &target.path, follow)?;
        vfs.umount(&target.context, place, flags)
    }))
}

/// Differs from Linux: whoever calls it has the right, as there are no users.
fn swapon(path: u64, flags: u32) -> Result<u64, Errno> {
    let target = Target::new(AT_FDCWD, path)?;
    done(swap::swapon(target.base, &target.path, flags))
}

fn swapoff(path: u64) -> Result<u64, Errno> {
    let target = Target::new(AT_FDCWD, path)?;
    done(swap::swapoff(target.base, &target.path))
}

/// reboot: every end is the machine's end; it is the VMM's part to start it again.
fn reboot(magic: u32, magic2: u32, command: u32) -> Result<u64, Errno> {
    const MAGIC: u32 = 0xfee1_dead;
    const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    const RESTART: u32 = 0x0123_4567;
    const HALT: u32 = 0xcdef_0123;
    const POWER_OFF: u32 = 0x4321_fedc;
    const CAD_ON: u32 = 0x89ab_cdef;
    const CAD_OFF: u32 = 0;
    if magic != MAGIC || !MAGIC2.contains(&magic2) {
        return Err(Errno::Einval);
    }
    match command {
        CAD_ON | CAD_OFF => Ok(0),
        RESTART | HALT | POWER_OFF => {
            // Differs from Linux: nothing that was written is lost, whether or not the caller thought of it.
            let _ = sync::all();
            // Who is alive, for whoever looks at the machine that is left.
            init::checkpoint(1, c"reboot");
            power::power_off()
        }
        _ => Err(Errno::Einval),
    }
}
