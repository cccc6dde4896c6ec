//! Identifiers, rights and limits.

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use crate::{Caller, Errno, Limits, Removed, SetRequest, Shm, ShmFlags, Usage, mode};

const ROOT: Caller = Caller { pid: 7, uid: 0, gid: 0, now: 1000 };
const USER: Caller = Caller { pid: 8, uid: 5, gid: 6, now: 2000 };

fn flags(bits: u32) -> ShmFlags {
    ShmFlags::from_bits_retain(bits)
}

fn unused(_: &u32) -> Usage {
    Usage::default()
}

fn get(shm: &mut Shm<u32>, key: i32, size: u64, bits: u32) -> Result<u32, Errno> {
    shm.get(&ROOT, key, size, flags(bits), |_| Ok(1))
}

#[test]
fn identifiers_are_used_again_late_and_with_another_sequence_number() {
    let mut shm = Shm::default();
    let remove = |shm: &mut Shm<u32>, id| shm.remove(&ROOT, id, |_| false).unwrap();
    for round in 0..64 {
        let id = get(&mut shm, 0, 1, 0o600).unwrap();
        assert_eq!(id, round, "as long as there are fresh indices");
        assert_eq!(remove(&mut shm, id), Removed::Gone(1));
    }
    let id = get(&mut shm, 0, 1, 0o600).unwrap();
    assert_eq!(id, 1 << 15);
    assert_eq!(shm.stat(&ROOT, 0).err(), Some(Errno::Einval), "the old identifier leads nowhere");
    assert_eq!(shm.stat_index(Some(&ROOT), 0).unwrap().0, 1 << 15);
}

#[test]
fn limits_are_obeyed() {
    let mut shm = Shm::new(Limits { max: 8 * 4096, all: 10, mni: 3 });
    assert_eq!(get(&mut shm, 1, 0, 0o1600), Err(Errno::Einval));
    assert_eq!(get(&mut shm, 1, 8 * 4096 + 1, 0o1600), Err(Errno::Einval));
    assert_eq!(get(&mut shm, 1, 8 * 4096, 0o1600), Ok(0));
    assert_eq!(get(&mut shm, 2, 3 * 4096, 0o1600), Err(Errno::Enospc));
    assert_eq!(get(&mut shm, 2, 4097, 0o1600), Ok(1), "exactly all pages");
    assert_eq!(get(&mut shm, 3, 1, 0o1600), Err(Errno::Enospc));
    shm.remove(&ROOT, 1, |_| false).unwrap();
    assert!(get(&mut shm, 3, 1, 0o1600).is_ok() && get(&mut shm, 4, 1, 0o1600).is_ok());
    assert_eq!(get(&mut shm, 5, 1, 0o1600), Err(Errno::Enospc), "three segments");
    assert_eq!(shm.audit(unused), Ok(()));
}

#[test]
fn keys_lead_to_segments() {
    let mut shm = Shm::default();
    assert_eq!(get(&mut shm, 9, 100, 0o600), Err(Errno::Enoent));
    let id = get(&mut shm, 9, 100, 0o1600).unwrap();
    assert_eq!(get(&mut shm, 9, 100, 0), Ok(id));
    assert_eq!(get(&mut shm, 9, 0, 0), Ok(id), "a size of 0 fits");
    assert_eq!(get(&mut shm, 9, 101, 0), Err(Errno::Einval));
    assert_eq!(get(&mut shm, 9, 101, 0o3600), Err(Errno::Eexist), "that comes first");
    assert_ne!(get(&mut shm, 0, 100, 0o600), Ok(id), "IPC_PRIVATE finds nothing");
    assert_eq!(shm.remove(&ROOT, id, |_| true), Ok(Removed::Later));
    assert_eq!(get(&mut shm, 9, 100, 0), Err(Errno::Enoent), "what goes is not found");
    let attached = |_: &u32| Usage { nattch: 1, ..Usage::default() };
    assert_eq!(shm.audit(attached), Ok(()));
    assert!(shm.attach(&ROOT, id, 0o666).is_ok(), "by its identifier it is");
    assert_eq!(shm.last_detach(|_| true, |_| true), None, "somebody was faster");
    assert_eq!(shm.last_detach(|_| true, |_| false), Some(1));
    assert_eq!(shm.attach(&ROOT, id, 0o666).err(), Some(Errno::Einval));
}

#[test]
fn rights_are_the_owners_the_groups_and_others() {
    let mut shm = Shm::default();
    let id = get(&mut shm, 3, 4096, 0o1640).unwrap();
    let try_user = |shm: &Shm<u32>, wanted| shm.attach(&USER, id, wanted).map(drop);
    assert_eq!(try_user(&shm, 0o444), Err(Errno::Eacces));
    let group = SetRequest { uid: 0, gid: 6, mode: 0o1640 };
    assert_eq!(shm.set(&USER, id, &group), Err(Errno::Eperm));
    assert_eq!(shm.set(&ROOT, id, &group), Ok(()));
    assert_eq!(try_user(&shm, 0o444), Ok(()));
    assert_eq!(try_user(&shm, 0o666), Err(Errno::Eacces));
    assert_eq!(shm.get(&USER, 3, 1, flags(0o600), |_| Ok(2)), Err(Errno::Eacces));
    assert_eq!(shm.remove(&USER, id, |_| false), Err(Errno::Eperm));
    shm.set(&ROOT, id, &SetRequest { uid: 5, gid: 6, mode: 0o600 }).unwrap();
    assert_eq!(try_user(&shm, 0o666), Ok(()));
    assert_eq!(shm.stat(&USER, id).unwrap().perm.mode, 0o600, "bits other than rights are not set");
    shm.lock(&USER, id, true).unwrap();
    assert_eq!(shm.stat(&USER, id).unwrap().perm.mode, 0o600 | mode::SHM_LOCKED);
    assert_eq!(shm.remove(&USER, id, |_| false), Ok(Removed::Gone(1)));
}

#[test]
fn structures_are_linuxs() {
    let mut shm = Shm::default();
    let id = get(&mut shm, 0x1234, 5000, 0o1640).unwrap();
    let usage = Usage { nattch: 3, atime: 11, dtime: 12, lpid: 13, rss: 2 };
    let bytes = shm.stat(&ROOT, id).unwrap().to_bytes(&usage);
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((half(0), half(20), word(48), word(56), word(64)), (0x1234, 0o640, 5000, 11, 12));
    assert_eq!((word(72), half(80), half(84), word(88)), (1000, 7, 13, 3));
    let mut text = String::new();
    crate::show(&shm, |_| usage, &mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
             atime      dtime      ctime                   rss                  swap",
            "      4660          0   640                  5000     7    13      3     0     0     0     0         \
             11         12       1000                  8192                     0",
        ]
    );
    assert_eq!(shm.summary(|_| usage).to_bytes()[..24], {
        let mut wanted = [0; 24];
        (wanted[0], wanted[8], wanted[16]) = (1, 2, 2);
        wanted
    });
    let info = shm.info();
    assert_eq!((info[8], info[16..20].to_vec()), (1, 4096_u32.to_le_bytes().to_vec()), "{info:?}");
}

proptest! {
    #[test]
    fn no_two_segments_have_one_identifier(ops in proptest::collection::vec((0..3_u8, 0..6_i32, 0..200_u32), 1..300)) {
        let mut shm = Shm::new(Limits { mni: 80, ..Limits::default() });
        let (mut model, mut seen) = (Vec::new(), Vec::new());
        for (what, key, pick) in ops {
            if what < 2 || model.is_empty() {
                if let Ok(id) = shm.get(&ROOT, key, 1, flags(0o1600), |_| Ok(9_u32))
                    && !model.contains(&id)
                {
                    prop_assert!(!seen.contains(&id), "an identifier comes again");
                    seen.push(id);
                    model.push(id);
                }
            } else {
                let id = model.swap_remove(pick as usize % model.len());
                prop_assert_eq!(shm.remove(&ROOT, id, |_| false), Ok(Removed::Gone(9)));
            }
            let mut ids: Vec<u32> = shm.iter().map(|(id, _)| id).collect();
            ids.sort_unstable();
            model.sort_unstable();
            prop_assert_eq!(&ids, &model);
            prop_assert_eq!(shm.audit(unused), Ok(()));
        }
    }
}

#[test]
fn huge_pages_are_out_of_memory_or_of_a_size_that_is_not() {
    let mut shm = Shm::default();
    let mut wanted = |size: u32| get(&mut shm, 0, 2 << 20, 0o5600 | size << 26);
    // As Linux 6.18 with an empty pool: ENOMEM, and EINVAL for 4 MiB.
    assert_eq!([0, 21, 30].map(&mut wanted), [Err(Errno::Enomem); 3]);
    assert_eq!(wanted(22), Err(Errno::Einval));
}
