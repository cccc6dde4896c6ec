//! Files in memory with seals, against memfds of this machine's Linux: every result, size and byte, and where data and holes are.

use std::os::fd::OwnedFd;
use std::vec;
use std::vec::Vec;

use mm_core::{Arena, Errno, Id, PAGE_SIZE};
use proptest::prelude::*;
use rustix::fs::{self as host, FallocateFlags, MemfdFlags, SealFlags, SeekFrom};

use super::machine::Machine;
use crate::shmem::{self, FallocFlags, Fallocate};
use crate::{CacheError, Mapping, Sealed, Seals, Seek, put_page, seek_hole_data};

#[derive(Clone, Copy, Debug)]
enum Op {
    Write { at: u64, len: u64 },
    Resize(u64),
    Fallocate { mode: u32, at: u64, len: u64 },
    Seek { what: bool, at: u64 },
    AddSeals(u32),
}

const SPAN: u64 = 9 * PAGE_SIZE;

/// Page borders matter most.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0..SPAN, (0..9_u64).prop_map(|page| page * PAGE_SIZE)]
}

fn op() -> impl Strategy<Value = Op> {
    let len = || prop_oneof![0..64_u64, 1..3 * PAGE_SIZE, (1..3_u64).prop_map(|pages| pages * PAGE_SIZE)];
    let mode = prop_oneof![Just(0_u32), Just(1), Just(3), 0..8_u32];
    let seals = prop_oneof![3 => (0..6_u32).prop_map(|bit| 1 << bit), 1 => 0..0x80_u32];
    prop_oneof![
        5 => (offset(), len()).prop_map(|(at, len)| Op::Write { at, len }),
        3 => offset().prop_map(Op::Resize),
        4 => (mode, offset(), len()).prop_map(|(mode, at, len)| Op::Fallocate { mode, at, len }),
        4 => (any::<bool>(), offset()).prop_map(|(what, at)| Op::Seek { what, at }),
        1 => seals.prop_map(Op::AddSeals),
    ]
}

/// A result or an errno.
type Outcome = Result<u64, i32>;

struct Ours {
    machine: Machine,
    id: Id<Mapping>,
    sealed: Sealed,
}

impl Ours {
    fn size(&self) -> u64 {
        Arena::<Mapping>::at(&self.machine, self.id).size()
    }

    /// As the kernel's `cache::write` does.
    fn write(&self, at: u64, len: u64, value: u8) -> Result<u64, CacheError> {
        let (mut done, machine) = (0, &self.machine);
        while done < len {
            let from = at + done;
            let step = (PAGE_SIZE - from % PAGE_SIZE).min(len - done);
            let begun = self
                .sealed
                .seals()
                .check_write(from + step, self.size())
                .and_then(|()| shmem::write_begin(machine, self.id, from / PAGE_SIZE));
            let pfn = match begun {
                Ok(pfn) => pfn,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            (from..from + step).for_each(|byte| machine.set_byte(pfn, byte % PAGE_SIZE, value));
            shmem::write_end(machine, self.id, from + step, pfn);
            done += step;
        }
        Ok(done)
    }

    fn run(&self, op: Op, value: u8) -> Outcome {
        let (machine, id, seals) = (&self.machine, self.id, self.sealed.seals());
        let errno = |error: CacheError| error.errno().number();
        match op {
            Op::Write { at, len } => self.write(at, len, value).map_err(errno),
            Op::Resize(bytes) => shmem::set_size_sealed(machine, id, seals, bytes).map(|()| 0).map_err(errno),
            Op::Fallocate { mode, at, len } => {
                let mode = FallocFlags::from_bits_retain(mode);
                let request = Fallocate { mode, offset: at, len };
                shmem::fallocate_sealed(machine, id, seals, &request).map(|()| 0).map_err(errno)
            }
            Op::Seek { what, at } => {
                let what = if what { Seek::Data } else { Seek::Hole };
                seek_hole_data(machine, id, at, what).ok_or(Errno::Enxio.number())
            }
            Op::AddSeals(raw) => self.sealed.add(raw, true, || false).map(|()| 0).map_err(Errno::number),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.size())
            .map(|at| match shmem::read_page(&self.machine, self.id, at / PAGE_SIZE).unwrap() {
                Some(pfn) => {
                    let byte = self.machine.byte(pfn, at % PAGE_SIZE);
                    put_page(&self.machine, pfn);
                    byte
                }
                None => 0,
            })
            .collect()
    }
}

fn linux(fd: &OwnedFd, op: Op, value: u8) -> Outcome {
    let done = match op {
        Op::Write { at, len } => {
            let bytes = vec![value; usize::try_from(len).unwrap()];
            rustix::io::pwrite(fd, &bytes, at).map(|done| done as u64)
        }
        Op::Resize(bytes) => host::ftruncate(fd, bytes).map(|()| 0),
        Op::Fallocate { mode, at, len } => {
            host::fallocate(fd, FallocateFlags::from_bits_retain(mode), at, len).map(|()| 0)
        }
        Op::Seek { what: true, at } => host::seek(fd, SeekFrom::Data(at)),
        Op::Seek { what: false, at } => host::seek(fd, SeekFrom::Hole(at)),
        Op::AddSeals(raw) => host::fcntl_add_seals(fd, SealFlags::from_bits_retain(raw)).map(|()| 0),
    };
    done.map_err(rustix::io::Errno::raw_os_error)
}

fn sequences() -> u32 {
    std::env::var("MEMVISOR_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_memfd_is_as_on_linux(ops in proptest::collection::vec(op(), 1..40)) {
        let fd = host::memfd_create("as-on-linux", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let machine = Machine::new();
        let ours = Ours { id: machine.mapping(0), machine, sealed: Sealed::default() };
        for (number, &op) in ops.iter().enumerate() {
            let value = u8::try_from(number % 250 + 1).unwrap();
            let wanted = linux(&fd, op, value);
            prop_assert_eq!(ours.run(op, value), wanted, "ours, Linux's: call {} of {:?}", number, ops);
            let stat = host::fstat(&fd).unwrap();
            prop_assert_eq!(ours.size(), u64::try_from(stat.st_size).unwrap());
            let seals = host::fcntl_get_seals(&fd).unwrap().bits();
            prop_assert_eq!(ours.sealed.seals().bits(), seals, "seals after call {} of {:?}", number, ops);
        }
        let mut bytes = vec![0; usize::try_from(ours.size()).unwrap()];
        let len = rustix::io::pread(&fd, &mut bytes[..], 0).unwrap();
        prop_assert_eq!(len, bytes.len());
        prop_assert!(ours.bytes() == bytes, "bytes differ after {:?}", ops);
        shmem::evict(&ours.machine, ours.id);
        prop_assert_eq!(ours.machine.used(), 0);
    }
}

#[test]
fn what_is_mapped_writably_is_not_sealed_against_writes() {
    let sealed = Sealed::default();
    assert_eq!(sealed.add(Seals::WRITE.bits(), false, || true), Err(Errno::Ebusy));
    assert_eq!(sealed.map_writable(), Ok(()), "the refused seal left nothing behind");
    assert_eq!(sealed.add(Seals::WRITE.bits(), false, || false), Err(Errno::Ebusy), "one is on its way");
    assert_eq!(sealed.add(Seals::FUTURE_WRITE.bits(), false, || true), Ok(()));
    sealed.unmap_writable();
    assert_eq!(sealed.add(Seals::WRITE.bits(), false, || false), Ok(()));
    assert_eq!(sealed.map_writable(), Err(Errno::Eperm));
    assert_eq!(sealed.seals(), Seals::WRITE | Seals::FUTURE_WRITE);
}

#[test]
fn a_file_that_cannot_be_sealed_says_so() {
    let sealed = Sealed::default();
    sealed.init(Seals::SEAL);
    assert_eq!(sealed.add(Seals::GROW.bits(), false, || false), Err(Errno::Eperm));
    assert_eq!(sealed.add(0x40, false, || false), Err(Errno::Einval), "unknown seals come first");
    assert_eq!(sealed.seals(), Seals::SEAL);
}

#[test]
fn sealed_files_are_mapped_read_only_for_ever() {
    assert_eq!(Seals::empty().check_mmap(true), Ok(false));
    assert_eq!(Seals::GROW.check_mmap(true), Ok(false));
    for seals in [Seals::WRITE, Seals::FUTURE_WRITE] {
        assert_eq!(seals.check_mmap(true), Err(CacheError::Sealed));
        assert_eq!(seals.check_mmap(false), Ok(true));
    }
    assert_eq!(Seals::EXEC.check_mode(0o755, 0o644), Err(CacheError::Sealed));
    assert_eq!(Seals::EXEC.check_mode(0o755, 0o711), Ok(()));
}
