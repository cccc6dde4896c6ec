use super::*;

#[test]
fn numbers_are_those_of_libc() {
    let pairs = [
        (Resource::Cpu, libc::RLIMIT_CPU),
        (Resource::Stack, libc::RLIMIT_STACK),
        (Resource::Nproc, libc::RLIMIT_NPROC),
        (Resource::Nofile, libc::RLIMIT_NOFILE),
        (Resource::Memlock, libc::RLIMIT_MEMLOCK),
        (Resource::AddressSpace, libc::RLIMIT_AS),
        (Resource::Sigpending, libc::RLIMIT_SIGPENDING),
        (Resource::Rttime, libc::RLIMIT_RTTIME),
    ];
    for (resource, number) in pairs {
        assert_eq!(Resource::new(number), Ok(resource));
        assert_eq!(resource as usize, number as usize);
    }
    assert_eq!(Resource::new(16), Err(Errno::Einval));
}

#[test]
fn soft_limits_stay_below_hard_ones() {
    let mut limits = Limits::init(1000);
    let set = |limits: &mut Limits, soft, hard| limits.set(Resource::Nofile, Rlimit { soft, hard }, false);
    assert_eq!(set(&mut limits, 11, 10), Err(Errno::Einval));
    assert_eq!(set(&mut limits, 10, 10), Ok(Rlimit { soft: 1024, hard: 4096 }));
    assert_eq!(limits.soft(Resource::Nofile), 10);
}

#[test]
fn only_the_privileged_raise_hard_limits() {
    let mut limits = Limits::init(1000);
    let more = Rlimit { soft: 600, hard: 600 };
    assert_eq!(limits.set(Resource::Nproc, more, false), Err(Errno::Eperm));
    assert_eq!(limits.set(Resource::Nproc, more, true), Ok(Rlimit { soft: 500, hard: 500 }));
    let most = Rlimit { soft: 1, hard: NR_OPEN + 1 };
    assert_eq!(limits.set(Resource::Nofile, most, true), Err(Errno::Eperm));
}

#[test]
fn a_limit_is_two_words() {
    let limit = Rlimit { soft: 5, hard: INFINITY };
    assert_eq!(size_of::<libc::rlimit64>(), Rlimit::LEN);
    assert_eq!(Rlimit::from_bytes(&limit.to_bytes()), limit);
}
