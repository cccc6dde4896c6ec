//! /proc/sysvipc/shm (Linux: ipc/shm.c, `sysvipc_shm_proc_show`).

use core::fmt::{self, Write};

use crate::shm::{Shm, Usage};

/// The file's text.
///
/// # Errors
/// Those of `out`.
pub fn show<H>(shm: &Shm<H>, usage: impl Fn(&H) -> Usage, out: &mut dyn Write) -> fmt::Result {
    out.write_str(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid",
    )?;
    out.write_str("      atime      dtime      ctime                   rss                  swap\n")?;
    for (id, it) in shm.iter() {
        let (perm, usage) = (&it.perm, usage(&it.handle));
        write!(out, "{:>10} {id:>10}  {:>4o} {:>21} ", perm.key, perm.mode, it.size)?;
        write!(out, "{:>5} {:>5}  {:>5} ", it.cpid, usage.lpid, usage.nattch)?;
        write!(out, "{:>5} {:>5} {:>5} {:>5} ", perm.uid, perm.gid, perm.cuid, perm.cgid)?;
        write!(out, "{:>10} {:>10} {:>10} ", usage.atime, usage.dtime, it.ctime)?;
        writeln!(out, "{:>21} {:>21}", usage.rss * 4096, 0)?;
    }
    Ok(())
}
