//! Shared memory (Linux: ipc/shm.c).
//!
//! A segment is a mapping of the page cache, of which the table has one reference; every VMA that maps it has another, so attachments
//! are counted by what counts VMAs. The table's lock is below mmap_lock: the last detachment may end a segment.

use guest_ipc::{Caller, Errno, Removed, SetRequest, Shm, ShmFlags, Usage};
use mm_core::PAGE_SIZE;
use mm_vma::{Id, Kernel, MapFile, MapFlags, Mapping, MmapRequest, Populate, ProtFlags, Space, VmFlags};

use crate::fs::{self, Mutex};
use crate::mm::oom::promises;
use crate::mm::space::Spaces;
use crate::mm::space::cache::{self, Source};
use crate::{task, uaccess};

/// All segments.
static SEGMENTS: Mutex<Option<Shm<Id<Mapping>>>> = Mutex::new(None);

fn with<R>(f: impl FnOnce(&mut Shm<Id<Mapping>>) -> R) -> R {
    SEGMENTS.with(|table| f(table.get_or_insert_default()))
}

fn caller() -> Caller {
    let context = fs::context().ok();
    let (uid, gid) = context.map_or((0, 0), |context| (context.uid, context.gid));
    Caller { pid: task::current_pid(), uid, gid, now: fs::now().sec }
}

fn usage(mapping: &Id<Mapping>) -> Usage {
    cache::segment_usage(*mapping)
}

fn is_attached(mapping: &Id<Mapping>) -> bool {
    usage(mapping).nattch > 0
}

/// The last VMA that mapped the segment is gone.
pub fn detached(mapping: Id<Mapping>) {
    if let Some(gone) = with(|table| table.last_detach(|it| *it == mapping, is_attached)) {
        Spaces.mapping_put(gone);
    }
}

/// Key of a segment's name, and its identifier.
pub fn name_of(mapping: Id<Mapping>) -> Option<(i32, u32)> {
    let found = |table: &mut Shm<Id<Mapping>>| {
        table.iter().find(|(_, it)| it.handle == mapping).map(|(id, it)| (it.first_key, id))
    };
    with(found)
}

/// /proc/sysvipc/shm.
pub fn show(out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    with(|table| guest_ipc::show(table, usage, out))
}

/// Checks the table.
///
/// # Errors
/// What is broken.
pub fn audit() -> Result<(), &'static str> {
    with(|table| table.audit(usage))
}

/// shmget.
///
/// # Errors
/// Those of shmget(2).
pub fn shmget(key: i32, size: u64, flags: u32) -> Result<u64, Errno> {
    let flags = ShmFlags::from_bits_retain(flags);
    let make = |bytes| match flags.contains(ShmFlags::SHM_NORESERVE) && promises::overcommits() {
        true => cache::new_mapping(Source::SysV, bytes),
        false => cache::new_accounted(Source::SysV, bytes),
    };
    with(|table| table.get(&caller(), key, size, flags, make)).map(u64::from)
}

/// A segment that is kept while this is.
struct Held(Id<Mapping>);

impl Drop for Held {
    fn drop(&mut self) {
        Spaces.mapping_put(self.0);
    }
}

/// What shmat's arguments mean.
struct Attach {
    addr: u64,
    prot: ProtFlags,
    flags: ShmFlags,
    wanted: u32,
}

impl Attach {
    /// Linux: the begin of `do_shmat`.
    fn new(mut addr: u64, flags: u32) -> Result<Attach, Errno> {
        let flags = ShmFlags::from_bits_retain(flags);
        if addr == 0 && flags.contains(ShmFlags::SHM_REMAP) {
            return Err(Errno::Einval);
        }
        if !addr.is_multiple_of(PAGE_SIZE) {
            if !flags.contains(ShmFlags::SHM_RND) {
                return Err(Errno::Einval);
            }
            addr -= addr % PAGE_SIZE;
            if addr == 0 && flags.contains(ShmFlags::SHM_REMAP) {
                return Err(Errno::Einval);
            }
        }
        let (mut prot, mut wanted) = (ProtFlags::READ, 0o444);
        if !flags.contains(ShmFlags::SHM_RDONLY) {
            prot |= ProtFlags::WRITE;
            wanted |= 0o222;
        }
        if flags.contains(ShmFlags::SHM_EXEC) {
            prot |= ProtFlags::EXEC;
            wanted |= 0o111;
        }
        Ok(Attach { addr, prot, flags, wanted })
    }
}

/// shmat: where the segment lies.
///
/// # Errors
/// Those of shmat(2).
pub fn shmat(id: i32, address: u64, flags: u32) -> Result<u64, Errno> {
    let number = u32::try_from(id).map_err(|_| Errno::Einval)?;
    let attach = Attach::new(address, flags)?;
    let found = with(|table| {
        let segment = table.attach(&caller(), number, attach.wanted)?;
        Spaces.mapping_get(segment.handle);
        Ok::<_, Errno>((Held(segment.handle), segment.size))
    })?;
    let (held, size) = found;
    let task = task::current().ok_or(Errno::Einval)?;
    let mm = task.mm().ok_or(Errno::Einval)?;
    let fixed = if address == 0 { MapFlags::empty() } else { MapFlags::FIXED };
    let file = MapFile {
        writable: !attach.flags.contains(ShmFlags::SHM_RDONLY),
        flags: VmFlags::COUNTED,
        ..MapFile::of(held.0)
    };
    let (addr, populate): (u64, Populate) = {
        let space = Space::lock(&Spaces, mm, task.limits());
        if address != 0 && !attach.flags.contains(ShmFlags::SHM_REMAP) {
            let end = attach.addr.checked_add(size).ok_or(Errno::Einval)?;
            let above = space.mm().find(&Spaces, attach.addr).map(|id| mm_vma::Arena::at(&Spaces, id));
            if above.is_some_and(|vma: &mm_vma::Vma| vma.start() < end) {
                return Err(Errno::Einval);
            }
        }
        space.mmap(&MmapRequest {
            addr: attach.addr,
            len: size,
            prot: attach.prot,
            flags: MapFlags::SHARED | fixed,
            file: Some(file),
            offset: 0,
        })?
    };
    mm_vma::populate(&Spaces, mm, &task.limits(), populate);
    Ok(addr)
}

/// shmdt.
///
/// # Errors
/// `EINVAL`.
pub fn shmdt(address: u64) -> Result<u64, Errno> {
    let task = task::current().ok_or(Errno::Einval)?;
    let mm = task.mm().ok_or(Errno::Einval)?;
    let size_of = |mapping| (cache::source(mapping) == Source::SysV).then(|| cache::size(mapping));
    Space::lock(&Spaces, mm, task.limits()).shmdt(address, size_of).map(|()| 0)
}

/// shmctl.
///
/// # Errors
/// Those of shmctl(2).
pub fn shmctl(id: i32, command: i32, buffer: u64) -> Result<u64, Errno> {
    const IPC_RMID: i32 = 0;
    const IPC_SET: i32 = 1;
    const IPC_STAT: i32 = 2;
    const IPC_INFO: i32 = 3;
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    const SHM_STAT: i32 = 13;
    const SHM_INFO: i32 = 14;
    const SHM_STAT_ANY: i32 = 15;
    let id = u32::try_from(id).map_err(|_| Errno::Einval)?;
    let caller = caller();
    match command {
        IPC_INFO => {
            let (info, highest) = with(|table| (table.info(), table.highest()));
            uaccess::write(buffer, &info)?;
            Ok(highest.into())
        }
        SHM_INFO => {
            let (summary, highest) = with(|table| (table.summary(usage), table.highest()));
            uaccess::write(buffer, &summary.to_bytes())?;
            Ok(highest.into())
        }
        IPC_STAT => {
            let bytes = with(|table| table.stat(&caller, id).map(|it| it.to_bytes(&usage(&it.handle))))?;
            uaccess::write(buffer, &bytes)?;
            Ok(0)
        }
        SHM_STAT | SHM_STAT_ANY => {
            let asks = (command == SHM_STAT).then_some(&caller);
            let (id, bytes) = with(|table| {
                table.stat_index(asks, id).map(|(id, it)| (id, it.to_bytes(&usage(&it.handle))))
            })?;
            uaccess::write(buffer, &bytes)?;
            Ok(id.into())
        }
        IPC_SET => {
            let mut bytes = [0; 24];
            uaccess::read(buffer, &mut bytes)?;
            with(|table| table.set(&caller, id, &SetRequest::from_bytes(&bytes))).map(|()| 0)
        }
        SHM_LOCK | SHM_UNLOCK => with(|table| table.lock(&caller, id, command == SHM_LOCK)).map(|()| 0),
        IPC_RMID => {
            // The bytes go outside of the table's lock.
            if let Removed::Gone(mapping) = with(|table| table.remove(&caller, id, is_attached))? {
                Spaces.mapping_put(mapping);
            }
            Ok(0)
        }
        _ => Err(Errno::Einval),
    }
}
