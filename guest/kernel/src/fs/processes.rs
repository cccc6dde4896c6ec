//! Processes as the tree of /proc sees them.

use alloc::sync::Arc;

use guest_fs::Place;
use guest_fs::proc::{Access, Link, Processes, Who};

use super::OpenFile;
use crate::task::{self, Task, current};

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct Tasks;

/// The task that a directory of /proc is about.
pub fn task_of(who: Who) -> Option<Arc<Task>> {
    let task = task::find_task(who.tid.unwrap_or(who.pid))?;
    (task.process.pid == who.pid).then_some(task)
}

fn next(from: u32, wanted: impl Fn(&Task) -> bool) -> Option<u32> {
    task::with_relations(|_, tasks| {
        tasks.iter().find(|task| task.tid() >= from && wanted(task)).map(|task| task.tid())
    })
}

fn file_of(who: Who, fd: u32) -> Option<Arc<OpenFile>> {
    task_of(who)?.files.get(fd).ok()
}

impl Processes for Tasks {
    fn current(&self) -> Option<(u32, u32)> {
        current().map(|task| (task.process.pid, task.tid()))
    }

    fn exists(&self, who: Who) -> bool {
        task_of(who).is_some()
    }

    fn next(&self, from: u32) -> Option<u32> {
        next(from, Task::is_leader)
    }

    fn next_thread(&self, pid: u32, from: u32) -> Option<u32> {
        next(from, |task| task.process.pid == pid)
    }

    fn next_fd(&self, who: Who, from: u32) -> Option<u32> {
        let table = task_of(who)?.files.table().ok()?;
        table.with(|table| table.next(from).map(|(fd, _)| fd))
    }

    fn fd_access(&self, who: Who, fd: u32) -> Option<Access> {
        // Dropping the last reference under the file system's lock would wait for it.
        let file = file_of(who, fd)?;
        let flags = file.flags();
        later(file);
        Some(Access { reads: flags.reads(), writes: flags.writes() })
    }

    fn link(&self, who: Who, link: Link) -> Option<Place> {
        let task = task_of(who)?;
        match link {
            Link::Cwd => task.files.context().map(|context| context.cwd),
            Link::Root => task.files.context().map(|context| context.root),
            Link::Exe => task.files.exe(),
            Link::Fd(fd) => {
                let file = file_of(who, fd)?;
                let place = file.place;
                later(file);
                Some(place)
            }
        }
    }
}

/// Drops a file outside of the file system's lock.
fn later(file: Arc<OpenFile>) {
    super::GRAVE.with(|grave| grave.push(file));
}
