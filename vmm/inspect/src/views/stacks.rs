//! Tasks and their kernel stacks.

use std::fmt;

use memvisor_abi::{PAGE_SIZE, TaskInfo, TaskState};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// No kernel stack is longer; a longer claim is not measured.
const LONGEST: u64 = 1 << 20;

/// [`PAGE_SIZE`] as a length.
const FRAME: usize = 4096;
const _: () = assert!(FRAME as u64 == PAGE_SIZE);

/// `inspect stacks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StacksView {
    /// Stacks by task.
    pub stacks: Vec<StackRow>,
}

/// A task's kernel stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StackRow {
    /// Task.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Lowest address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes from the top to the lowest word that is not zero: the deepest use so far. `None` if part of it is not mapped.
    pub deepest: Option<u64>,
    /// Whether the page below is unmapped.
    pub guarded: bool,
}

/// `inspect tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TasksView {
    /// Tasks in the order of the table: idle tasks first.
    pub tasks: Vec<TaskRow>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskRow {
    /// Number; 0 for idle tasks.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// State in words.
    pub state: &'static str,
    /// CPU that it runs on or ran on last.
    pub cpu: u32,
    /// Times that it was switched to.
    pub switches: u64,
    /// Frames held by kmap_local.
    pub kmap_depth: u32,
    /// Stack pointer while it does not run.
    #[serde(serialize_with = "crate::hex")]
    pub rsp: u64,
}

impl StacksView {
    /// Reads tasks, and their stacks through the kernel's page tables.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<StacksView, GuestError> {
        let tasks = guest.tasks()?;
        let stacks = tasks.iter().filter(|task| task.stack != 0).map(|task| {
            let walker = guest.kernel_walker();
            let mapped = |va| walker.lookup(guest.source(), va).ok();
            StackRow {
                pid: task.pid,
                name: name(task),
                start: task.stack,
                len: task.stack_len,
                deepest: deepest(guest, task),
                guarded: mapped(task.stack.wrapping_sub(PAGE_SIZE)).is_none(),
            }
        });
        Ok(StacksView { stacks: stacks.collect() })
    }
}

fn deepest<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, task: &TaskInfo) -> Option<u64> {
    if task.stack_len > LONGEST {
        return None;
    }
    let walker = guest.kernel_walker();
    let mut lowest = None;
    for page in (0..task.stack_len).step_by(FRAME) {
        let mapped = walker.lookup(guest.source(), task.stack.wrapping_add(page)).ok()?;
        if lowest.is_some() {
            continue;
        }
        let mut bytes = [0; FRAME];
        guest.source().read(mapped.gpa, &mut bytes).ok()?;
        lowest = bytes.iter().position(|&byte| byte != 0).map(|at| page + at as u64 / 8 * 8);
    }
    Some(task.stack_len - lowest.unwrap_or(task.stack_len))
}

impl TasksView {
    /// Reads the table.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<TasksView, GuestError> {
        let row = |task: &TaskInfo| TaskRow {
            pid: task.pid,
            name: name(task),
            state: TaskState::from_raw(task.state).map_or("undefined", TaskState::name),
            cpu: task.cpu,
            switches: task.switches,
            kmap_depth: task.kmap_depth,
            rsp: task.rsp,
        };
        Ok(TasksView { tasks: guest.tasks()?.iter().map(row).collect() })
    }
}

pub(super) fn name(task: &TaskInfo) -> String {
    let bytes: Vec<u8> = task.name.iter().copied().take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for StacksView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel stacks of {} tasks\n  pid name             stack                  bytes  deepest  guard",
            self.stacks.len()
        )?;
        for stack in &self.stacks {
            let deepest = stack.deepest.map_or("?".to_owned(), |bytes| bytes.to_string());
            let guard = if stack.guarded { "unmapped" } else { "! mapped" };
            writeln!(
                f,
                "{:>5} {:<16} {:#018x} {:>8} {deepest:>8}  {guard}",
                stack.pid, stack.name, stack.start, stack.len
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for TasksView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} tasks\n  pid name             state     cpu  switches  kmaps", self.tasks.len())?;
        for task in &self.tasks {
            writeln!(
                f,
                "{:>5} {:<16} {:<8} {:>4} {:>9} {:>6}",
                task.pid, task.name, task.state, task.cpu, task.switches, task.kmap_depth
            )?;
        }
        Ok(())
    }
}
