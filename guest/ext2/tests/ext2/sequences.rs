//! Random sequences of calls on every format.

use proptest::prelude::*;

use crate::host::{self, FORMATS, Format, NEW};
use crate::twin::{Op, Twin};

fn op() -> impl Strategy<Value = Op> {
    let n = || any::<usize>();
    let b = || any::<u8>();
    prop_oneof![
        6 => (n(), b(), 0..0o10000u32).prop_map(|(a, w, m)| Op::Create(a, w, m)),
        4 => (n(), b()).prop_map(|(a, w)| Op::Mkdir(a, w)),
        2 => (n(), b(), 1..200usize).prop_map(|(a, w, l)| Op::Symlink(a, w, l)),
        1 => (n(), b(), any::<bool>()).prop_map(|(a, w, p)| Op::Mknod(a, w, p)),
        2 => (n(), n(), b()).prop_map(|(f, a, w)| Op::Link(f, a, w)),
        4 => (n(), b()).prop_map(|(a, w)| Op::Unlink(a, w)),
        2 => (n(), b()).prop_map(|(a, w)| Op::Rmdir(a, w)),
        4 => (n(), b(), n(), b(), any::<bool>()).prop_map(|(a, v, c, w, r)| Op::Rename(a, v, c, w, r)),
        10 => (n(), offset(), 0..9000usize, b()).prop_map(|(f, o, l, c)| Op::Write(f, o, l, c)),
        4 => (n(), offset()).prop_map(|(f, s)| Op::Truncate(f, s)),
        2 => (n(), any::<u32>().prop_map(|m| m >> 1), any::<u32>().prop_map(|u| u >> 1)).prop_map(|(f, m, u)| Op::Attr(f, m, u)),
        2 => n().prop_map(Op::Hold),
        2 => n().prop_map(Op::Release),
        3 => (n(), offset(), 0..9000usize).prop_map(|(f, o, l)| Op::Read(f, o, l)),
        1 => Just(Op::Remount),
    ]
}

/// Where direct pointers, the first and the second level of blocks of 1024 bytes begin and end.
fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..20_000usize,
        11_000..13_500usize,
        270_000..280_000usize,
        48_000..50_000usize,
        0..700_000usize
    ]
}

fn run(format: &Format, ops: &[Op]) -> u32 {
    let mut twin = Twin::new(host::image(format));
    for op in ops {
        twin.apply(op);
    }
    twin.check();
    twin.full
}

#[test]
fn a_write_of_nothing_changes_nothing() {
    if host::is_ready() {
        run(&FORMATS[0], &[Op::Create(0, 0, 0o644), Op::Write(0, 700, 0, 0)]);
    }
}

/// How many sequences; `MEMVISOR_SEQUENCES=2000` runs more.
pub fn cases(usual: u32) -> u32 {
    std::env::var("MEMVISOR_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(32), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_calls_does_what_the_model_does(
        format in 0..FORMATS.len(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        if host::is_ready() {
            run(&FORMATS[format], &ops);
        }
    }

    #[test]
    fn a_disk_that_is_nearly_full_loses_nothing(
        blocks in 60..160u32,
        inodes in 16..40u32,
        ops in prop::collection::vec(op(), 40..200),
    ) {
        if host::is_ready() {
            let format = Format { blocks, inodes, group: 0, revision: 1, block: 1024, inode: 128, features: NEW, reserved: 5 };
            run(&format, &ops);
        }
    }
}
