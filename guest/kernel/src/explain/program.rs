//! Walkthroughs that a program of ring 3 does (guest/user/src/walks.rs): between two of its pauses its work, and what the kernel does meanwhile,
//! is recorded.

use core::ffi::CStr;

use super::whole_part;
use crate::task::{self, End};

/// Names of a part's checkpoints.
type Titles = (&'static CStr, &'static CStr);

macro_rules! titles {
    ($what:literal) => {
        (text(concat!("before: ", $what, "\0")), text(concat!("after: ", $what, "\0")))
    };
}

/// The text before its NUL.
const fn text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a title has one NUL, at its end"),
    }
}

/// A walkthrough and its parts, in the order in which the program does them.
pub struct Program {
    /// As the command line gives it.
    pub name: &'static str,
    parts: &'static [Titles],
}

/// What RDI of the program begins at for walkthroughs.
const FIRST: u64 = 1000;

/// In the order of the program's table.
pub const PROGRAMS: [Program; 7] = [
    Program {
        name: "reclaim-then-oom",
        parts: &[
            titles!("a disk is read: clean pages fill the cache"),
            titles!("100 MiB steps, until the OOM killer comes"),
            titles!("memory can be had again"),
        ],
    },
    Program { name: "slow-path-64m", parts: &[titles!("64 MiB steps, until the slow path has reclaimed")] },
    Program { name: "kswapd", parts: &[titles!("a disk is read when memory is short")] },
    Program {
        name: "swap-out-in",
        parts: &[
            titles!("madvise(MADV_PAGEOUT) of 4 pages"),
            titles!("the first page is read"),
            titles!("the second page is read"),
            titles!("the third page is read"),
            titles!("the first page is written"),
            titles!("munmap"),
        ],
    },
    Program {
        name: "writeback",
        parts: &[titles!("write of 16 KiB"), titles!("fsync"), titles!("more is written than may be dirty")],
    },
    Program {
        name: "file-read",
        parts: &[
            titles!("read of the first 4 KiB"),
            titles!("read of the next 4 KiB"),
            titles!("read of 6 pages more"),
            titles!("the first 4 KiB once more"),
        ],
    },
    Program {
        name: "mmap-vs-read",
        parts: &[titles!("8 pages by read"), titles!("8 pages by mmap"), titles!("the mapping once more")],
    },
];

/// The walkthrough of a name, with its place.
pub fn find(name: &str) -> Option<usize> {
    PROGRAMS.iter().position(|program| program.name == name)
}

/// Runs the program of that place from part to part; `Err` says what it did instead.
pub fn run(place: usize) -> Result<(), &'static str> {
    let program = PROGRAMS.get(place).ok_or("there is no such program")?;
    let process = task::run_init(1, FIRST + place as u64).map_err(|_| "the program cannot be started")?;
    for (before, after) in program.parts {
        if task::wait_init(&process) != End::Paused {
            return Err("the program ended before it was told");
        }
        let end = whole_part(before, after, || {
            task::end_pause(&process);
            task::wait_init(&process)
        });
        if end != End::Paused {
            return Err("the program ended in the middle");
        }
        task::end_pause(&process);
    }
    match task::wait_init(&process) {
        End::Exited(0) => Ok(()),
        End::Exited(_) => Err("a check of the program failed"),
        End::Paused => Err("the program has more parts"),
    }
}
