//! `linux-and-pvh-agree`: the same machine, started a second time by the other boot protocol, looks the
//! same to the guest: sanitized E820, nodes, distances, CPUs, and the extents of zones.
//!
//! What follows from where a boot loader puts its data (reservations, managed and free pages) may differ.

use anyhow::{Context, bail};
use memvisor_inspect::{Guest, MemorySource};

use super::super::case::Setup;
use super::super::kvm::HeldVm;
use super::{Control, Held, Outcome};

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Control::Kvm(vm) = &held.control else {
        return Ok(Outcome::Skipped("QEMU boots an ELF image by PVH only".to_owned()));
    };
    let case = vm.case();
    let Setup::Kvm(setup) = &case.setup else { bail!("a case for memvisor without its table") };
    let other = match setup.boot.as_deref() {
        Some("linux") => "pvh",
        Some("pvh") => "linux",
        _ => bail!("the stanza must say boot = \"linux\" or \"pvh\""),
    };
    let mut second = case.clone();
    if let Setup::Kvm(setup) = &mut second.setup {
        setup.boot = Some(other.to_owned());
    }
    let second =
        HeldVm::start(&second, vm.kernel(), vm.deadline()).with_context(|| format!("start by {other}"))?;
    let (memory, root_gpa) = second.memory().with_context(|| format!("start by {other}"))?;
    let (first_view, second_view) = (view(held.memory, held.root_gpa)?, view(memory, root_gpa)?);
    second.finish()?;
    let problems = first_view
        .into_iter()
        .zip(second_view)
        .filter(|((_, first), (_, second))| first != second)
        .map(|((what, first), (_, second))| format!("{what}: {first}; by {other}: {second}"));
    Ok(Outcome::from_problems(problems.collect()))
}

/// What must not depend on the protocol, in words.
fn view(memory: &impl MemorySource, root_gpa: u64) -> anyhow::Result<Vec<(&'static str, String)>> {
    let guest = Guest::attach(memory, root_gpa)?;
    let zones: Vec<_> = guest
        .zones()?
        .iter()
        .map(|zone| (zone.node, zone.kind, zone.start_pfn, zone.spanned_pages, zone.present_pages))
        .collect();
    let cpus: Vec<_> = guest.cpus()?.iter().map(|cpu| (cpu.apic_id, cpu.node, cpu.state)).collect();
    Ok(vec![
        ("E820", format!("{:x?}", guest.e820()?)),
        ("nodes", format!("{:x?}", guest.nodes()?)),
        ("distances", format!("{:?}", guest.distances()?)),
        ("CPUs as (APIC id, node, state)", format!("{cpus:?}")),
        ("zones as (node, kind, start, spanned, present)", format!("{zones:x?}")),
    ])
}
