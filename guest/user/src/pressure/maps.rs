//! max-map-count: a process has as many areas as it may, and no more (LTP's max_map_count, in our own words).

use core::ffi::CStr;
use core::fmt::Write;

use super::latency;
use super::vmstat::lines;
use crate::memory::{BYTES, NONE, PRIVATE, Pages, READ, READ_WRITE};
use crate::proc::number;
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::promises::put;
use crate::shared::{mount, unmount};
use crate::sys::{self, Out};

const ENOMEM: u64 = 12_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
const FILE: &CStr = c"/proc/sys/vm/max_map_count";

/// Areas of this process, without the page that the kernel shows and does not count.
fn areas() -> u64 {
    let mut count = 0;
    lines(c"/proc/self/maps", |line| {
        count += u64::from(!line.is_empty() && !line.ends_with(b"[vsyscall]"));
    });
    count
}

/// In a child: makes areas until it may not, and reports whether all is as Linux has it, by bits.
fn fill(limit: u64) -> u64 {
    let before = areas();
    // One area for each page: neighbours differ in what is allowed.
    let room = Pages::map(limit * 2, NONE, PRIVATE);
    let mut made = 0;
    let refused = loop {
        if made >= limit * 2 {
            break 0;
        }
        let result = latency::time(|| sys::mprotect(room.at(made), BYTES, READ));
        if result != 0 {
            break result;
        }
        made += 2;
    };
    let now = areas();
    let whole = Pages::map(1, READ_WRITE, PRIVATE | 0x4000);
    let _ = writeln!(
        Out,
        "max-map-count: limit {limit}: {before} areas before, {now} after {} splits; mmap of one more is {}",
        made / 2,
        if whole.is_mapped() { "done" } else { "refused" }
    );
    let mut wrong = 0;
    let mut expect = |bit: u64, holds: bool| wrong |= u64::from(!holds) << bit;
    expect(0, refused == ENOMEM);
    // A split in the middle makes two more, so it stops one early or at the limit.
    expect(1, now == limit || now + 1 == limit || now == limit + 1);
    // munmap in the middle of an area would make one more, too.
    let middle = room.at(limit * 2 - 3);
    let cut = sys::munmap(middle, BYTES);
    expect(2, cut == ENOMEM || now < limit);
    // At an end it makes none.
    expect(3, sys::munmap(room.at(limit * 2 - 1), BYTES) == 0);
    expect(4, sys::munmap(room.start, (limit * 2 - 1) * BYTES) == 0);
    expect(5, Pages::map(1, READ, PRIVATE).is_mapped());
    wrong
}

/// The suite.
pub fn run(checks: &mut Checks) {
    mount(checks);
    let before = number(FILE, b"");
    checks.check("Linux's limit at first", before == 65530);
    for limit in [100, 1000] {
        let mut text = *b"    \n";
        let set: &[u8] = if limit == 100 { b"100\n" } else { b"1000\n" };
        text[..set.len()].copy_from_slice(set);
        checks.check("the limit is set", put(FILE, set) == set.len() as u64 && number(FILE, b"") == limit);
        let pid = child(|| fill(limit));
        let (_, status) = wait(pid, 0);
        if status != 0 {
            let _ = writeln!(Out, "max-map-count: limit {limit}: status {status:#x}");
        }
        checks.check("a process has as many areas as it may, and no more", status == 0);
    }
    // LTP sets it to what there is already: no more can be made, and all stays.
    checks.check("less than there are", put(FILE, b"1\n") == 2);
    let refused = Pages::map(1, READ, PRIVATE);
    checks.check("then nothing is mapped", refused.start == ENOMEM);
    checks.check("nothing negative", put(FILE, b"-1\n") == EINVAL);
    checks.check("it is set back", put(FILE, b"65530\n") == 6 && number(FILE, b"") == before);
    let area = Pages::map(1, READ, PRIVATE);
    checks.check("and memory can be mapped", area.is_mapped() && area.unmap());
    unmount(checks);
}
