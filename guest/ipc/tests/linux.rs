//! Random sequences of calls on the crate and on this machine's Linux: every errno, and what IPC_STAT tells.
//! `MEMVISOR_SEQUENCES=10000 cargo test --release -p guest-ipc --test linux` runs more.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::undocumented_unsafe_blocks, reason = "system calls of a test")]

use std::collections::BTreeMap;
use std::ptr;

use guest_ipc::{Caller, Errno, Removed, SetRequest, Shm, ShmFlags, Usage};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Get { key: i32, size: usize, flags: i32 },
    Attach { slot: usize, read_only: bool },
    Detach { slot: usize },
    Remove { slot: usize },
    Set { slot: usize, mode: u32 },
    Lock { slot: usize, lock: bool },
}

const SLOTS: usize = 6;
const KEYS: i32 = 4;

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let flags = prop_oneof![
        Just(libc::IPC_CREAT | 0o600),
        Just(libc::IPC_CREAT | libc::IPC_EXCL | 0o640),
        Just(0),
        Just(0o666)
    ];
    let size = prop_oneof![Just(0_usize), Just(1), Just(4096), Just(5000), Just(9000)];
    prop_oneof![
        4 => (0..KEYS, size, flags).prop_map(|(key, size, flags)| Op::Get { key, size, flags }),
        3 => (slot(), any::<bool>()).prop_map(|(slot, read_only)| Op::Attach { slot, read_only }),
        3 => slot().prop_map(|slot| Op::Detach { slot }),
        2 => slot().prop_map(|slot| Op::Remove { slot }),
        1 => (slot(), 0..0o7777_u32).prop_map(|(slot, mode)| Op::Set { slot, mode }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, lock)| Op::Lock { slot, lock }),
    ]
}

/// Keys that nobody else on this machine has.
fn key(key: i32) -> i32 {
    if key == 0 {
        libc::IPC_PRIVATE
    } else {
        0x4d00_0000 | (std::process::id().cast_signed() & 0xf_ffff) << 4 | key
    }
}

fn caller() -> Caller {
    let (uid, gid) = (unsafe { libc::geteuid() }, unsafe { libc::getegid() });
    Caller { pid: std::process::id(), uid, gid, now: 0 }
}

/// What IPC_STAT tells that does not depend on the time.
#[derive(Debug, PartialEq)]
struct Told {
    has_key: bool,
    mode: u32,
    size: u64,
    cpid: u32,
    nattch: u64,
}

type Outcome<T = ()> = Result<T, i32>;

/// Both sides, with the numbers that each gave by slot.
struct Both {
    shm: Shm<usize>,
    handles: usize,
    attached: BTreeMap<usize, u64>,
    slots: Vec<(i32, u32, usize)>,
    places: Vec<Vec<*mut libc::c_void>>,
}

fn host(result: i32) -> Outcome<i32> {
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

fn ours<T>(result: Result<T, Errno>) -> Outcome<T> {
    result.map_err(Errno::number)
}

impl Both {
    fn new() -> Both {
        let (slots, places) = (Vec::new(), vec![Vec::new(); 64]);
        Both { shm: Shm::default(), handles: 0, attached: BTreeMap::new(), slots, places }
    }

    fn slot(&self, slot: usize) -> Option<(i32, u32, usize)> {
        self.slots.get(slot % self.slots.len().max(1)).copied()
    }

    fn nattch(&self, handle: usize) -> u64 {
        self.attached.get(&handle).copied().unwrap_or(0)
    }

    fn stat(&self, (id, our, handle): (i32, u32, usize)) -> (Outcome<Told>, Outcome<Told>) {
        let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
        let linux = host(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut ds) }).map(|_| Told {
            has_key: ds.shm_perm.__key != 0,
            mode: u32::from(ds.shm_perm.mode),
            size: ds.shm_segsz as u64,
            cpid: ds.shm_cpid.cast_unsigned(),
            nattch: ds.shm_nattch,
        });
        let told = ours(self.shm.stat(&caller(), our)).map(|it| Told {
            has_key: it.perm.key != 0,
            mode: it.perm.mode,
            size: it.size,
            cpid: it.cpid,
            nattch: self.nattch(handle),
        });
        (told, linux)
    }

    fn run(&mut self, op: Op) -> (Outcome, Outcome) {
        match op {
            Op::Get { key: k, size, flags } => {
                let handle = self.handles;
                self.handles += 1;
                let bits = ShmFlags::from_bits_retain(flags.cast_unsigned());
                let got = ours(self.shm.get(&caller(), key(k), size as u64, bits, |_| Ok(handle)));
                let linux = host(unsafe { libc::shmget(key(k), size, flags) });
                if let (Ok(our), Ok(id)) = (got, linux)
                    && !self.slots.iter().any(|slot| slot.0 == id)
                {
                    let handle = self.shm.attach(&caller(), our, 0).map_or(handle, |it| it.handle);
                    self.slots.push((id, our, handle));
                    self.places.resize(self.slots.len().max(self.places.len()), Vec::new());
                }
                (got.map(drop), linux.map(drop))
            }
            Op::Attach { slot, read_only } => {
                let Some((id, our, handle)) = self.slot(slot) else { return (Ok(()), Ok(())) };
                let got =
                    ours(self.shm.attach(&caller(), our, if read_only { 0o444 } else { 0o666 })).map(drop);
                let flags = if read_only { libc::SHM_RDONLY } else { 0 };
                let at = unsafe { libc::shmat(id, ptr::null(), flags) };
                let linux = if at.addr() == usize::MAX { host(-1).map(drop) } else { Ok(()) };
                if linux.is_ok() {
                    *self.attached.entry(handle).or_default() += 1;
                    let index = slot % self.slots.len();
                    self.places[index].push(at);
                }
                (got, linux)
            }
            Op::Detach { slot } => {
                let Some((_, _, handle)) = self.slot(slot) else { return (Ok(()), Ok(())) };
                let index = slot % self.slots.len();
                let Some(at) = self.places[index].pop() else { return (Ok(()), Ok(())) };
                let linux = host(unsafe { libc::shmdt(at) }).map(drop);
                *self.attached.entry(handle).or_default() -= 1;
                let left = self.nattch(handle);
                self.shm.last_detach(|it| *it == handle, |_| left > 0);
                (Ok(()), linux)
            }
            Op::Remove { slot } => {
                let Some((id, our, handle)) = self.slot(slot) else { return (Ok(()), Ok(())) };
                let left = self.nattch(handle);
                let got = ours(self.shm.remove(&caller(), our, |_| left > 0));
                assert!(got != Ok(Removed::Later) || left > 0);
                (got.map(drop), host(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }).map(drop))
            }
            Op::Set { slot, mode } => {
                let Some((id, our, _)) = self.slot(slot) else { return (Ok(()), Ok(())) };
                let Caller { uid, gid, .. } = caller();
                // The owner keeps its rights: else root and others would see different things.
                let mode = mode | 0o600;
                let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
                (ds.shm_perm.uid, ds.shm_perm.gid) = (uid, gid);
                ds.shm_perm.mode = u16::try_from(mode).unwrap();
                let got = ours(self.shm.set(&caller(), our, &SetRequest { uid, gid, mode }));
                (got, host(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut ds) }).map(drop))
            }
            Op::Lock { slot, lock } => {
                let Some((id, our, _)) = self.slot(slot) else { return (Ok(()), Ok(())) };
                let command = if lock { libc::SHM_LOCK } else { libc::SHM_UNLOCK };
                let got = ours(self.shm.lock(&caller(), our, lock));
                (got, host(unsafe { libc::shmctl(id, command, ptr::null_mut()) }).map(drop))
            }
        }
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        for at in self.places.iter().flatten() {
            unsafe { libc::shmdt(*at) };
        }
        for slot in &self.slots {
            unsafe { libc::shmctl(slot.0, libc::IPC_RMID, ptr::null_mut()) };
        }
    }
}

fn sequences() -> u32 {
    std::env::var("MEMVISOR_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments_are_as_on_linux(ops in proptest::collection::vec(op(), 1..50)) {
        let mut both = Both::new();
        for (number, &op) in ops.iter().enumerate() {
            let (got, linux) = both.run(op);
            prop_assert_eq!(got, linux, "ours, Linux's: call {} of {:?}", number, ops);
            for &slot in &both.slots {
                let (told, linux) = both.stat(slot);
                prop_assert_eq!(told, linux, "after call {} of {:?}", number, ops);
            }
            let audit = both.shm.audit(|handle| Usage { nattch: both.nattch(*handle), ..Usage::default() });
            prop_assert_eq!(audit, Ok(()));
        }
    }
}
