//! Server and client together, over a real guest where there is KVM.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use memvisor_inspect::MemorySource;

use super::*;
use crate::{
    event_loop::{EventLoop, LoopConfig},
    run::{AtEnd, VmState, conduct, testing},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_client_reads_pauses_translates_and_ends_a_guest() {
    if !testing::has_kvm() {
        return;
    }
    // inc rax ; jmp back
    let config = testing::config(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    let (vm, sender, events) = crate::run::Vm::build(&config).expect("a plain machine");
    let vm = Arc::new(vm);
    let dir = tempfile::tempdir().expect("temporary directory");
    let claim = Arc::new(Claim::in_dir(&dir.path().join("run"), "vm").expect("free"));
    let client = Client::at(claim.path());
    let event_loop = EventLoop::start(LoopConfig {
        vm: vm.clone(),
        claim: Some(claim.clone()),
        events: sender,
        time_limit: None,
        keyboard: false,
    })
    .expect("event loop");
    let conductor = {
        let vm = vm.clone();
        std::thread::spawn(move || conduct(&vm, &events, AtEnd::Return, |_| ()))
    };

    let info = client.info().expect("answers");
    assert_eq!((info.pid, info.root_gpa, info.regions.len()), (std::process::id(), None, 2));
    assert_eq!(client.facts().expect("answers"), vm.facts);
    assert_eq!(client.pause().expect("answers"), VmState::Paused);
    let registers = client.registers().expect("answers");
    assert_eq!(registers, client.registers().expect("answers"));
    assert!((2 * MIB..2 * MIB + 8).contains(&registers[0].rip));
    let memory = client.map_memory().expect("descriptors");
    let mut code = [0; 5];
    memory.read(2 * MIB, &mut code).expect("RAM");
    assert_eq!(code, [0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    let vas: Vec<u64> = (0..10_000).map(|page| page << 12).collect();
    let answers = client.translate(0, &vas).expect("answers");
    assert!(answers.iter().zip(&vas).all(|(answer, va)| answer.va == *va && answer.gpa == Some(*va)));
    assert!(matches!(client.translate(9, &[0]), Err(ClientError::Refused { status: 404, .. })));
    assert_eq!(client.resume().expect("answers"), VmState::Running);
    // Nobody can say whether a guest without a root rests; it stands still all the same, and is not asked again.
    for _ in 0..2 {
        let rest = client.rest().expect("answers");
        assert_eq!((rest.state, rest.busy), (VmState::Paused, None));
    }
    assert_eq!(client.resume().expect("answers"), VmState::Running);
    assert_eq!(client.console().expect("answers"), "");
    let stats = client.stats().expect("answers");
    assert!(stats.uptime_us > 0);
    assert!(stats.kvm.is_empty() || stats.kvm.contains_key("pages_4k"), "{:?}", stats.kvm);

    let mut raw = UnixStream::connect(claim.path()).expect("listens");
    raw.write_all(b"BREW /vm HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n\x00\r\n\r\n").expect("sends");
    let mut text = String::new();
    raw.read_to_string(&mut text).expect("closed by the server");
    let codes: Vec<&str> = text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
    assert_eq!(codes, ["405", "404", "400"], "{text}");

    client.shutdown().expect("answers");
    let outcome = conductor.join().expect("no panic");
    assert!(outcome.end.describe().contains("control socket"), "{}", outcome.end.describe());
    drop(event_loop);
}
