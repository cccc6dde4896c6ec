//! Dumps.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
};

use memvisor_check::{Evidence, Moment, audit};
use memvisor_inspect::{CoreFile, Guest, MemorySource, Walker, find_root, ptdump, views::TranslateView};
use rustix::fs::MemfdFlags;

use crate::{Watched, check_error};

/// A dump is at most some 100 KiB here, so that is what reading all of it many times may cost.
const BUDGET: u64 = 256 << 20;

/// The bytes of a dump.
pub fn dump_reader(data: &[u8]) {
    let fd: OwnedFd = rustix::fs::memfd_create("dump", MemfdFlags::CLOEXEC).expect("the host gives a memfd");
    let mut file = File::from(fd);
    file.write_all(data).expect("a memfd takes bytes");
    let core = match CoreFile::open(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(core) => core,
        Err(error) => return check_error(&error),
    };
    let ram: u64 = core.regions().iter().map(|region| region.len).sum();
    assert!(ram <= data.len() as u64, "{ram} bytes of RAM in a dump of {}", data.len());
    for region in core.regions() {
        let mut byte = [0];
        core.read(region.gpa, &mut byte).expect("the first byte of RAM");
        core.read(region.gpa + (region.len - 1), &mut byte).expect("the last byte of RAM");
        assert!(core.next_data(region.gpa).is_none_or(|gpa| core.is_ram(gpa, 1)));
    }
    let watched = Watched::new(&core, BUDGET);
    if let Some(root) = core.root_gpa().or_else(|| find_root(&watched)) {
        let _ = Guest::attach(&watched, root);
    }
    for walker in core.registers().iter().take(4).filter_map(Walker::from_registers) {
        let answer = walker.translate(&watched, 0xffff_ffff_8100_0000);
        assert!(!TranslateView::new(answer, None).to_string().is_empty());
        ptdump::PtDump::new(&walker, &watched, ptdump::Span::ALL, &[]);
    }
    let report = audit(&Evidence {
        source: &watched,
        root_gpa: core.root_gpa(),
        facts: Some(core.facts()),
        registers: core.registers(),
        moment: Moment::Any,
    });
    assert!(!report.to_string().is_empty());
}
