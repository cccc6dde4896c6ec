//! Tests of what the comparison with Linux (`tests/linux`) does not reach: mounts, initramfs, descriptors, pipes against a model, the terminal.

mod cpio;
mod fd;
mod mount;
mod pipe;
mod tty;

use crate::proc::{Access, Link, Processes, Who};
use crate::vfs::{Context, Place, Vfs};
use crate::{At, Timespec, Vecs};

/// Process 7 with thread 8, whose only descriptor is 3, open at `place`.
#[derive(Debug, Default)]
pub struct One {
    pub place: Option<Place>,
}

impl Processes for One {
    fn current(&self) -> Option<(u32, u32)> {
        Some((7, 8))
    }
    fn exists(&self, who: Who) -> bool {
        who.pid == 7 && who.tid.is_none_or(|tid| tid == 7 || tid == 8)
    }
    fn next(&self, from: u32) -> Option<u32> {
        (from <= 7).then_some(7)
    }
    fn next_thread(&self, pid: u32, from: u32) -> Option<u32> {
        (7..=8).find(|tid| pid == 7 && *tid >= from)
    }
    fn next_fd(&self, _: Who, from: u32) -> Option<u32> {
        (from <= 3).then_some(3)
    }
    fn fd_access(&self, _: Who, fd: u32) -> Option<Access> {
        (fd == 3).then_some(Access { reads: true, writes: false })
    }
    fn link(&self, _: Who, link: Link) -> Option<Place> {
        self.place.filter(|_| matches!(link, Link::Fd(3) | Link::Cwd))
    }
}

pub const NOW: Timespec = Timespec { sec: 1_700_000_000, nsec: 5 };

pub fn empty() -> (Vfs<Vecs, One>, Context) {
    let vfs = Vfs::new(Vecs::default(), One::default(), NOW).expect("memory");
    let context = vfs.kernel_context(NOW);
    (vfs, context)
}

pub fn at(context: &Context, path: &'static str) -> At<'static> {
    At { base: context.cwd, path: path.as_bytes() }
}
