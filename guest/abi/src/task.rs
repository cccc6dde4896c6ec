//! Tasks and their kernel stacks.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A task of the kernel (Linux: what `task_struct` and `thread_info` say to an outsider).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskInfo {
    /// Number; the idle tasks of all CPUs have 0.
    pub pid: u32,
    /// See [`TaskState`].
    pub state: u32,
    /// CPU that it runs on, or ran on last.
    pub cpu: u32,
    /// 1 for an idle task, whose stack is in the per-CPU area; else 0.
    pub idle: u32,
    /// Lowest address of the stack; 0 if there is none.
    pub stack: u64,
    /// Bytes of the stack.
    pub stack_len: u64,
    /// Stack pointer while the task does not run. Upwards from it lie r15, r14, r13, r12, rbx, rbp and the address at which it goes on.
    pub rsp: u64,
    /// Times that the task was switched to.
    pub switches: u64,
    /// Frames that it holds mapped by kmap_local: its depth in the CPU's window.
    pub kmap_depth: u32,
    /// CPU that it must run on, or `u32::MAX`.
    pub pinned: u32,
    /// Name, padded with NUL (Linux: `comm`).
    pub name: [u8; 16],
    /// Guest-physical address of its address space, a [`crate::Mm`]; 0 for a task of the kernel.
    pub mm: u64,
    /// Process that it is a thread of; 0 for a task of the kernel.
    pub tgid: u32,
    /// Process that made that one; 0 if the kernel did.
    pub ppid: u32,
    /// 1 if it gave up its CPU where nothing is half done: it waits for an event, or is on its way to ring 3, or has not run yet. 0 if
    /// it let others run in the middle of something. Says nothing while it runs.
    pub rests: u32,
    /// Its process's `oom_score_adj`; 0 for a task of the kernel.
    pub oom_score_adj: i32,
}
const _: () = assert!(size_of::<TaskInfo>() == 96);

impl TaskInfo {
    /// Bytes from [`TaskInfo::rsp`] to the frame pointer.
    pub const SAVED_RBP: u64 = 40;
    /// Bytes from [`TaskInfo::rsp`] to the address at which the task goes on.
    pub const SAVED_RIP: u64 = 48;
}

/// Values of [`TaskInfo::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TaskState {
    /// No task.
    Unused = 0,
    /// On a CPU.
    Running = 1,
    /// Waits for a CPU.
    Runnable = 2,
    /// Waits for an event.
    Sleeping = 3,
    /// Ended; its stack is given back when somebody joins it (Linux: `EXIT_ZOMBIE`).
    Dead = 4,
}

impl TaskState {
    /// The state of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<TaskState> {
        Some(match raw {
            0 => TaskState::Unused,
            1 => TaskState::Running,
            2 => TaskState::Runnable,
            3 => TaskState::Sleeping,
            4 => TaskState::Dead,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            TaskState::Unused => "unused",
            TaskState::Running => "running",
            TaskState::Runnable => "runnable",
            TaskState::Sleeping => "sleeping",
            TaskState::Dead => "dead",
        }
    }
}
