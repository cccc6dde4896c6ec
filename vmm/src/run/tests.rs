//! Hand-made guests on /dev/kvm.

use super::{
    testing::{CODE, config_of, has_kvm},
    *,
};
use crate::loader::testing::ElfBuilder;

/// Runs to the end; the console's text too.
fn run(config: &VmConfig) -> (Outcome, String) {
    let (vm, _sender, events) = Vm::build(config).expect("a plain machine");
    let outcome = conduct(&vm, &events, AtEnd::Return, |_| ());
    let text = vm.console().transcript();
    (outcome, text)
}

/// Writes `text` to COM1 byte by byte.
fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8 ; then for each byte: mov al, byte ; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// Writes `value` to a 32-bit port.
fn out32(port: u16, value: u32) -> Vec<u8> {
    let mut code = vec![0x66, 0xba];
    code.extend(port.to_le_bytes());
    code.push(0xb8);
    code.extend(value.to_le_bytes());
    code.push(0xef);
    code
}

fn exit_with(code: u32) -> Vec<u8> {
    use memvisor_abi::port::{ARG_LEN, COMMAND, Command};
    [out32(ARG_LEN, code), out32(COMMAND, Command::Exit as u32)].concat()
}

#[test]
fn a_64_bit_guest_prints_and_exits() {
    if !has_kvm() {
        return;
    }
    let code = [print("hello\n"), exit_with(0)].concat();
    let (outcome, text) = run(&config_of(&ElfBuilder::new(CODE, &code)));
    assert_eq!(text, "hello\n");
    assert!(outcome.end.is_clean(), "{}", outcome.end.describe());
    assert_eq!(outcome.status(), ExitStatus::Clean);
}

#[test]
fn a_pvh_guest_gets_start_info_in_ebx() {
    if !has_kvm() {
        return;
    }
    // mov edx, [ebx] ; cmp edx, 0x336ec578 ; jne to the failing exit
    let mut code = vec![0x8b, 0x13, 0x81, 0xfa, 0x78, 0xc5, 0x6e, 0x33, 0x75];
    // In 32-bit code 0x66 0xba is mov dx, imm16 as well, so the helpers serve both modes.
    let good = [print("pvh\n"), exit_with(0)].concat();
    code.push(u8::try_from(good.len()).expect("short jump"));
    code.extend(good);
    code.extend(exit_with(9));
    let config = VmConfig { boot: Boot::Pvh, ..config_of(&ElfBuilder::new(CODE, &code).pvh(CODE)) };
    let (outcome, text) = run(&config);
    assert_eq!((text.as_str(), outcome.status()), ("pvh\n", ExitStatus::Clean), "{}", outcome.end.describe());
}

#[test]
fn exit_codes_reach_the_outcome() {
    if !has_kvm() {
        return;
    }
    let (outcome, _) = run(&config_of(&ElfBuilder::new(CODE, &exit_with(101))));
    assert!(matches!(outcome.end, End::Exit { code: 101, .. }));
    assert_eq!(outcome.status(), ExitStatus::GuestFailed);
}

#[test]
fn acpi_power_off_and_keyboard_reset_end_the_run() {
    if !has_kvm() {
        return;
    }
    // mov dx, 0x604 ; mov ax, SLP_EN | 5 << 10 ; out dx, ax
    let power_off = [0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef];
    let (outcome, _) = run(&config_of(&ElfBuilder::new(CODE, &power_off)));
    assert!(matches!(outcome.end, End::PowerOff), "{}", outcome.end.describe());
    // mov al, 0xfe ; out 0x64, al
    let (outcome, _) = run(&config_of(&ElfBuilder::new(CODE, &[0xb0, 0xfe, 0xe6, 0x64])));
    assert!(matches!(outcome.end, End::Reset { clean: true }), "{}", outcome.end.describe());
}

#[test]
fn a_reset_after_a_kernel_panic_is_a_failure() {
    if !has_kvm() {
        return;
    }
    // mov al, 0xfe ; out 0x64, al
    let reset = vec![0xb0, 0xfe, 0xe6, 0x64];
    for (said, status) in [
        ("reboot: Restarting system\n", ExitStatus::Clean),
        ("Kernel panic - not syncing: no init\n", ExitStatus::GuestFailed),
    ] {
        let (outcome, text) = run(&config_of(&ElfBuilder::new(CODE, &[print(said), reset.clone()].concat())));
        assert_eq!((text.as_str(), outcome.status()), (said, status), "{}", outcome.end.describe());
        assert!(outcome.checkpoints.is_empty(), "nothing to audit it by");
    }
}

#[test]
fn a_triple_fault_is_reported_with_registers_and_bytes() {
    if !has_kvm() {
        return;
    }
    // mov ebx, 0x5eed ; ud2, without an IDT
    let (outcome, _) = run(&config_of(&ElfBuilder::new(CODE, &[0xbb, 0xed, 0x5e, 0, 0, 0x0f, 0x0b])));
    let failure = failure(&outcome.end).expect("failed");
    assert!(failure.guest_fault, "{failure}");
    assert!(failure.reason.contains("triple fault"), "{failure}");
    let registers = failure.registers.as_ref().expect("readable");
    assert_eq!(registers.gpr[1], 0x5eed, "{failure}");
    assert_eq!(failure.instruction.first_chunk(), Some(&[0x0f, 0x0b]), "{failure}");
    let walk = failure.walk.as_ref().and_then(|walk| walk.mapped()).expect("mapped");
    assert_eq!((walk.gpa, failure.rip_gpa), (CODE + 5, Some(CODE + 5)), "{failure}");
    assert_eq!(outcome.status(), ExitStatus::GuestFailed);
}

#[test]
fn what_this_kvm_cannot_run_in_ring_0_is_reported_with_bytes_symbol_and_advice() {
    if !has_kvm() {
        return;
    }
    let map = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(map.path(), format!("{CODE:016x} T count_bits\n")).expect("writes");
    // nop ; popcnt eax, eax
    let code = [vec![0x90, 0xf3, 0x0f, 0xb8, 0xc0], exit_with(0)].concat();
    let config =
        VmConfig { symbols: Some(map.path().to_owned()), ..config_of(&ElfBuilder::new(CODE, &code)) };
    let (outcome, _) = run(&config);
    let Some(failure) = failure(&outcome.end) else {
        // A KVM that runs ring 0 itself.
        assert_eq!(outcome.status(), ExitStatus::Clean, "{}", outcome.end.describe());
        return;
    };
    assert!(!failure.guest_fault, "{failure}");
    assert_eq!(failure.instruction.first_chunk(), Some(&[0xf3, 0x0f, 0xb8, 0xc0]), "{failure}");
    assert_eq!(failure.rip_gpa, Some(CODE + 1), "{failure}");
    assert_eq!(failure.symbol.as_deref(), Some("count_bits+0x1"), "{failure}");
    let text = failure.to_string();
    assert!(text.contains("in count_bits+0x1") && text.contains("emulates ring 0"), "{text}");
    assert_eq!(outcome.status(), ExitStatus::VmmFailed);
}

#[test]
fn wild_port_and_mmio_accesses_read_ones_and_do_no_harm() {
    if !has_kvm() {
        return;
    }
    let code = [
        // mov dx, 0x1234 ; in eax, dx ; cmp eax, -1 ; jne fail
        vec![0x66, 0xba, 0x34, 0x12, 0xed, 0x83, 0xf8, 0xff, 0x75],
        vec![0],
        // mov ebx, 0xd0000000 ; mov [rbx], eax ; mov eax, [rbx] ; cmp eax, -1 ; jne fail
        vec![0xbb, 0, 0, 0, 0xd0, 0x31, 0xc0, 0x89, 0x03, 0x8b, 0x03, 0x83, 0xf8, 0xff, 0x75],
        vec![0],
        exit_with(0),
    ];
    let mut bytes: Vec<u8> = code.concat();
    let end = bytes.len();
    for at in [9, 25] {
        bytes[at] = u8::try_from(end - at - 1).expect("short jump");
    }
    bytes.extend(exit_with(7));
    let (outcome, _) = run(&config_of(&ElfBuilder::new(CODE, &bytes)));
    assert_eq!(outcome.status(), ExitStatus::Clean, "{}", outcome.end.describe());
}

#[test]
fn bulk_console_and_checkpoint_commands_work_from_the_guest() {
    use memvisor_abi::port::{ARG_HI, ARG_LEN, ARG_LO, COMMAND, Command};
    if !has_kvm() {
        return;
    }
    let text_at = u32::try_from(CODE).expect("low") + 0x200;
    let mut code = [
        out32(ARG_LO, text_at),
        out32(ARG_HI, 0),
        out32(ARG_LEN, 5),
        out32(COMMAND, Command::Console as u32),
        out32(COMMAND, Command::Checkpoint as u32),
        exit_with(0),
    ]
    .concat();
    code.resize(0x200, 0x90);
    code.extend(b"bulk\n\0");
    let (outcome, text) = run(&config_of(&ElfBuilder::new(CODE, &code)));
    assert_eq!(text, "bulk\n");
    let first = &outcome.checkpoints[0];
    assert_eq!((first.number, first.name.as_str(), first.cpu), (Some(5), "bulk?", Some(0)));
    assert!(first.no_audit.as_ref().is_some_and(|why| why.contains("no root")), "{first:?}");
}

#[test]
fn a_busy_guest_pauses_resumes_and_quits() {
    if !has_kvm() {
        return;
    }
    // inc rax ; jmp back
    let config = config_of(&ElfBuilder::new(CODE, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]));
    let (vm, sender, events) = Vm::build(&config).expect("a plain machine");
    assert_eq!(vm.state(), VmState::Created);
    let vm = &vm;
    std::thread::scope(|scope| {
        let runner = scope.spawn(move || conduct(vm, &events, AtEnd::Return, |_| ()));
        while vm.registers().expect("alive")[0].gpr[0] == 0 {}
        vm.pause();
        assert_eq!(vm.state(), VmState::Paused);
        let held = vm.registers().expect("alive");
        assert_eq!(held, vm.registers().expect("alive"), "a paused guest stands still");
        let answers = vm.vcpus()[0].translate(vec![CODE, 0x1234, 1 << 40]).expect("alive");
        assert_eq!(answers.iter().map(|t| t.gpa).collect::<Vec<_>>(), [Some(CODE), Some(0x1234), None]);
        vm.resume();
        while vm.registers().expect("alive")[0].gpr[0] == held[0].gpr[0] {}
        sender.send(RunEvent::Quit("the test".into())).expect("conductor listens");
        let outcome = runner.join().expect("no panic");
        assert_eq!(outcome.status(), ExitStatus::Stopped);
    });
    assert_eq!(vm.state(), VmState::Held);
}

#[test]
fn the_full_interrupt_controller_can_be_had() {
    if !has_kvm() {
        return;
    }
    let code = [print("full\n"), exit_with(0)].concat();
    let config = VmConfig { irqchip: Irqchip::Full, ..config_of(&ElfBuilder::new(CODE, &code)) };
    let (outcome, text) = run(&config);
    assert_eq!(
        (text.as_str(), outcome.status()),
        ("full\n", ExitStatus::Clean),
        "{}",
        outcome.end.describe()
    );
}

#[test]
fn cpus_that_wait_for_their_start_can_be_held_and_read() {
    use memvisor_inspect::FactCpu;
    if !has_kvm() {
        return;
    }
    let mut config = config_of(&ElfBuilder::new(CODE, &[0xeb, 0xfe]));
    config.facts.cpus = (0..3).map(|apic_id| FactCpu { apic_id, node: 0 }).collect();
    let (vm, sender, events) = Vm::build(&config).expect("a plain machine");
    let vm = &vm;
    std::thread::scope(|scope| {
        let runner = scope.spawn(move || conduct(vm, &events, AtEnd::Return, |_| ()));
        for _ in 0..20 {
            vm.pause();
            let registers = vm.registers().expect("alive");
            assert_eq!(registers.iter().map(|cpu| cpu.index).collect::<Vec<_>>(), [0, 1, 2]);
            assert_eq!((registers[0].rip, registers[1].levels()), (CODE, None));
            vm.resume();
        }
        sender.send(RunEvent::Quit("the test".into())).expect("conductor listens");
        runner.join().expect("no panic");
    });
}

#[test]
fn the_bundled_kernel_ends_cleanly_by_both_protocols() {
    if !has_kvm() {
        return;
    }
    if !crate::loader::has_bundled_kernel() {
        eprintln!("SKIPPED: no guest kernel is bundled: build with MEMVISOR_GUEST=FILE");
        return;
    }
    for boot in [Boot::Linux, Boot::Pvh] {
        let overrides = machine::Overrides { boot: Some(boot), ..Default::default() };
        let file = machine::load("default").expect("bundled machine");
        let machine = machine::resolve(file, &overrides).expect("good machine");
        let config =
            VmConfig { console: ConsoleTarget::Null, ..VmConfig::from_machine(&machine).expect("reads") };
        let (outcome, text) = run(&config);
        assert_eq!(outcome.status(), ExitStatus::Clean, "{text}{}", outcome.end.describe());
        assert!(outcome.audit().is_some_and(|report| report.ran() > 0 && report.is_clean()), "{text}");
    }
}
