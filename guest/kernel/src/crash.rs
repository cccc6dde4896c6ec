//! Ways to die on purpose, `crash=NAME` on the command line, so that the reports are tested.

use mm_core::{PAGE_SIZE, VirtAddr};

use crate::arch::percpu;
use crate::arch::trap;
use crate::mm::layout::{levels, percpu_area};
use crate::mm::phys;
use crate::{cmdline, println, sched};

const GENERAL_PROTECTION: usize = 13;

/// Dies as the command line asks, if it asks.
pub fn run() {
    let mut text = [0; 32];
    let len = cmdline::value("crash", |value| {
        let len = value.len().min(text.len());
        text[..len].copy_from_slice(&value.as_bytes()[..len]);
        len
    });
    // The command line is not locked any more: a thread may be started.
    let Some(name) = len.and_then(|len| core::str::from_utf8(&text[..len]).ok()) else { return };
    match name {
        "panic" => panic!("asked for by crash=panic"),
        "null-read" => touch(0x10),
        "rodata-write" => scribble(phys::image().va + phys::image().text),
        "stack-overflow" => overflow("overflow", 0),
        "irq-stack-overflow" => touch(percpu_area(percpu::cpu()).as_u64() + 19 * PAGE_SIZE + 0xff8),
        "invalid-opcode" => trap::invalid_opcode(),
        // #GP cannot be delivered either, and two contributory exceptions make #DF (SDM 3A 6.15).
        "double-fault" => {
            trap::break_gate(GENERAL_PROTECTION);
            touch(1 << (levels().va_bits() - 1));
        }
        other => println!(
            "crash: no such way as {other}; known are panic null-read rodata-write stack-overflow irq-stack-overflow invalid-opcode double-fault"
        ),
    }
}

fn touch(address: u64) {
    phys::read_mapped(VirtAddr::new(address));
}

/// A thread that calls itself until its stack ends.
fn overflow(name: &str, depth: u64) {
    let context = sched::task_context();
    if let Ok(thread) = sched::spawn(name, recurse, depth, &context) {
        thread.join(&context);
    }
}

#[expect(unconditional_recursion, reason = "the stack's guard ends it")]
fn recurse(depth: u64) {
    let frame = core::hint::black_box([depth; 32]);
    recurse(frame[0] + 1);
    core::hint::black_box(frame);
}

fn scribble(address: u64) {
    phys::write_mapped(VirtAddr::new(address));
}
