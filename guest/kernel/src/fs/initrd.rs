//! The archive that the boot loader brought becomes the root, and a program in it the first process (Linux: init/initramfs.c,
//! init/main.c `kernel_init`).

use alloc::vec::Vec;

use guest_fs::{At, Context, Device, Follow, unpack};
use guest_process::stack::Strings;
use mm_core::PhysAddr;
use mm_vma::Errno;

use super::program;
use super::{FileSystems, console, context, now, open_exec, with_vfs};
use crate::arch::trap::TrapFrame;
use crate::mm::phys;
use crate::sync::Lock;
use crate::syscall::open_console;
use crate::task::{self, End, current};
use crate::{cmdline, pr_err, pr_info};

/// Where the archive is: address and bytes.
static ARCHIVE: Lock<(u64, u64)> = Lock::new((0, 0));

/// Keeps what the boot loader said.
pub fn remember(archive: (u64, u64)) {
    *ARCHIVE.lock() = archive;
}

/// Unpacks the archive. `None` if there is none, or no program to begin with.
pub fn load() -> Option<Vec<u8>> {
    let archive = archive()?;
    let result = with_vfs(|vfs| {
        let context = vfs.kernel_context(now());
        make_defaults(vfs, &context)?;
        Ok(unpack(vfs, &context, archive))
    });
    let result = match result {
        Ok(result) => result,
        Err(error) => {
            pr_err!("initramfs: {error}");
            return None;
        }
    };
    pr_info!("initramfs: {} entries, {} KiB of files", result.entries, result.bytes / 1024);
    if let Some((count, error)) = result.failed {
        pr_err!("initramfs: {count} entries could not be made, the last one because: {error}");
    }
    if let Some(error) = result.error {
        pr_err!("initramfs: {error}");
    }
    first_program()
}

/// What is there before the archive (Linux: usr/default_cpio_list).
fn make_defaults(vfs: &mut FileSystems, context: &Context) -> Result<(), guest_fs::Errno> {
    const S_IFCHR: u32 = 0o2_0000;
    let at = |path| At { base: context.root, path };
    vfs.mkdir(context, at(b"dev"), 0o755)?;
    // Where shm_open looks, whether or not somebody mounts something on /dev.
    vfs.mkdir(context, at(b"dev/shm"), 0o1777)?;
    vfs.mknod(context, at(b"dev/console"), S_IFCHR | 0o600, Device { major: 5, minor: 1 })?;
    vfs.mkdir(context, at(b"root"), 0o700)
}

static PROGRAM: Lock<Vec<u8>> = Lock::new(Vec::new());
/// Number of the first process.
const INIT: u32 = 1;

/// Runs the first process to its end.
///
/// # Errors
/// `ENOMEM`.
pub fn run(path: Vec<u8>) -> Result<End, Errno> {
    pr_info!("Run {} as init process", core::str::from_utf8(&path).unwrap_or("?"));
    *PROGRAM.lock() = path;
    console::start()?;
    let process = task::run_file(INIT, start)?;
    Ok(task::wait_init(&process))
}

/// On the new thread.
fn start(_: u64) {
    task::enter(begin());
}

fn begin() -> Result<TrapFrame, Errno> {
    const ENVIRONMENT: [&[u8]; 4] = [
        b"HOME=/",
        b"TERM=linux",
        b"PATH=/sbin:/bin:/usr/sbin:/usr/bin",
        // The kernel saves no registers beyond SSE, and a CPU may say that it has more whatever CR4 says: the C library must not
        // choose by that.
        b"GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM",
    ];
    let task = current().ok_or(Errno::Esrch)?;
    task.files.begin()?;
    open_console()?;
    let path = PROGRAM.lock().clone();
    let mut strings = Strings::new(task.limits().stack);
    strings.set_path(&path)?;
    strings.push_arg(&path)?;
    ENVIRONMENT.iter().try_for_each(|text| strings.push_env(text))?;
    program::run(&task, context()?.root, strings)
}

/// The archive's bytes, where the loader put them.
fn archive() -> Option<&'static [u8]> {
    let (addr, len) = *ARCHIVE.lock();
    if len == 0 {
        return None;
    }
    // SAFETY: `init` reserved the archive's frames in memblock before there was an allocator, and nobody gives them back.
    let bytes = unsafe { phys::reserved_bytes(PhysAddr::new(addr), len) };
    if bytes.is_none() {
        pr_err!("initramfs: {len} bytes at {addr:#x} are outside the direct map");
    }
    bytes
}

/// `rdinit=`, else /init, else `init=`, else what Linux tries.
fn first_program() -> Option<Vec<u8>> {
    let asked = |name| cmdline::value(name, |text| text.as_bytes().to_vec());
    let usual = [&b"/init"[..], b"/sbin/init", b"/etc/init", b"/bin/init", b"/bin/sh"];
    if let Some(path) = asked("rdinit").or_else(|| asked("init")) {
        if is_program(&path).is_ok() {
            return Some(path);
        }
        pr_err!("init: {} cannot be run", core::str::from_utf8(&path).unwrap_or("?"));
    }
    let found = usual.iter().find(|path| is_program(path).is_ok());
    if found.is_none() {
        pr_err!("init: no program in the initramfs; tried /init, /sbin/init, /etc/init, /bin/init, /bin/sh");
    }
    found.map(|path| path.to_vec())
}

fn is_program(path: &[u8]) -> Result<(), Errno> {
    let root = context()?.root;
    open_exec(root, path, Follow::Yes).map(drop)
}
