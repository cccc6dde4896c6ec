//! CPUs.
//!
//! C1  `cpu.percpu`: every online CPU has a per-CPU area; areas lie in E820 RAM and share no byte.

use memvisor_abi::{BootStage, CpuState};

use crate::Rule;
use crate::context::Context;
use crate::frames::{Frames, gaps};
use crate::ledger::{Ledger, finding};

pub(crate) const PERCPU: Rule = Rule {
    name: "cpu.percpu",
    invariant: "per-CPU areas are in RAM and disjoint; online CPUs have one",
    reads: "cpus; E820 map",
    seeded: &["percpu-overlap"],
    hint: "setup_per_cpu_areas",
};

/// Runs C1.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if context.root.stage < BootStage::Smp as u32 {
        ledger.skip(&PERCPU, "the guest has not started its CPUs yet");
        return;
    }
    let mut areas = Vec::new();
    for (index, cpu) in context.cpus.iter().enumerate() {
        ledger.checked(&PERCPU, 1);
        let (start, end) = (cpu.percpu_gpa, cpu.percpu_gpa.saturating_add(cpu.percpu_len));
        if start >= end {
            if cpu.state == CpuState::Online as u32 {
                let what = finding(&PERCPU, format_args!("CPU {index}"), "no per-CPU area", "it is online");
                ledger.report(&PERCPU, what);
            }
            continue;
        }
        for hole in gaps(&context.machine.ram, Frames::touching(start, end)) {
            let claim = format!("its area is {start:#x}..{end:#x}");
            let what = finding(&PERCPU, format_args!("CPU {index}"), claim, format!("{hole} are not RAM"));
            ledger.report(&PERCPU, what.frame(hole.start));
        }
        areas.push((start, end, index));
    }
    areas.sort_unstable();
    for pair in areas.windows(2) {
        if let [(_, end, one), (start, _, other)] = *pair
            && start < end
        {
            let claim = format!("CPU {other}'s area is its own");
            let outside = format!("{start:#x} is in CPU {one}'s, too");
            let what = finding(&PERCPU, format_args!("CPU {other}"), claim, outside);
            ledger.report(&PERCPU, what.address(start).frame(start >> 12));
        }
    }
}
