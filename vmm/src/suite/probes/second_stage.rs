//! `second-stage-sizes`: what KVM counts in its second-stage tables (binary statistics pages_4k, pages_2m,
//! pages_1g) fits what `inspect translate` says about the host's pages behind guest memory.
//!
//! KVM maps a guest page only while the VMM's own tables map it, and never by a larger page than they do
//! (Linux: host_pfn_mapping_level in arch/x86/kvm/mmu/mmu.c; the MMU notifier takes away the rest). So, with every
//! frame of every slot looked up:
//! S1  KVM maps something, and no more bytes than the host has present;
//! S2  2 MiB and 1 GiB mappings are no more than the host's pages of at least that size can hold.

use anyhow::Context;
use memvisor_inspect::Stage2;

use super::{Control, Held, Outcome};
use crate::cli::LiveStage2;
use crate::memory::SlotInfo;

const FRAME: u64 = 4096;
const HUGE: u64 = 2 << 20;
const GIGANTIC: u64 = 1 << 30;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Control::Kvm(vm) = &held.control else {
        return Ok(Outcome::Skipped("only memvisor's own guests have a second stage in KVM".to_owned()));
    };
    let info = vm.info()?;
    let stage2 = LiveStage2::new(info.regions.clone(), info.pid);
    if stage2.levels() == 0 {
        return Ok(Outcome::Skipped("this KVM shadows page tables, it has no second stage".to_owned()));
    }
    let count =
        |name: &str| info.stats.kvm.get(name).copied().with_context(|| format!("KVM counts no {name}"));
    let kvm = [count("pages_4k")?, count("pages_2m")?, count("pages_1g")?];
    Ok(match present(&stage2, &info.regions) {
        Ok(host) => Outcome::from_problems(problems(kvm, host)),
        Err(reason) => Outcome::Skipped(reason),
    })
}

/// Bytes that the host has in pages of at least 4 KiB, 2 MiB and 1 GiB.
fn present(stage2: &dyn Stage2, slots: &[SlotInfo]) -> Result<[u64; 3], String> {
    let mut bytes = [0; 3];
    for slot in slots {
        for gpa in (slot.gpa..slot.gpa.saturating_add(slot.len)).step_by(4096) {
            let Some(page) = stage2.lookup(gpa) else { return Err(format!("{gpa:#x} is in no slot")) };
            match (page.host_frame, page.page_size) {
                (Some(_), Some(size)) => {
                    for (sum, least) in bytes.iter_mut().zip([FRAME, HUGE, GIGANTIC]) {
                        *sum += if size >= least { FRAME } else { 0 };
                    }
                }
                (Some(_), None) => return Err(format!("the host does not tell page sizes: {}", page.note)),
                (None, _) if page.note.contains("CAP_SYS_ADMIN") || page.note.starts_with("pagemap") => {
                    return Err(format!("the host does not tell frames: {}", page.note));
                }
                (None, _) => {}
            }
        }
    }
    Ok(bytes)
}

fn problems(kvm: [u64; 3], host: [u64; 3]) -> Vec<String> {
    let [small, huge, gigantic] = [kvm[0] * FRAME, kvm[1] * HUGE, kvm[2] * GIGANTIC];
    let mut problems = Vec::new();
    if small + huge + gigantic == 0 {
        problems.push("S1: a guest ran, and KVM counts no page in its second stage".to_owned());
    }
    for (rule, size, mapped, present) in [
        ("S1", "any size", small + huge + gigantic, host[0]),
        ("S2", "2 MiB or more", huge + gigantic, host[1]),
        ("S2", "1 GiB", gigantic, host[2]),
    ] {
        if mapped > present {
            problems.push(format!(
                "{rule}: KVM maps {mapped:#x} bytes by pages of {size}, the host has {present:#x}"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_has_bounds_what_kvm_maps() {
        assert_eq!(problems([10, 0, 0], [10 * FRAME, 0, 0]), [""; 0]);
        assert_eq!(problems([0, 1, 0], [2 * HUGE, HUGE, 0]), [""; 0]);
        assert!(problems([0; 3], [FRAME, 0, 0])[0].starts_with("S1"));
        assert!(problems([11, 0, 0], [10 * FRAME, 0, 0])[0].starts_with("S1"));
        assert!(problems([0, 1, 0], [HUGE, 0, 0])[0].starts_with("S2"));
        assert!(problems([0, 0, 1], [GIGANTIC, GIGANTIC, 0])[0].starts_with("S2"));
    }
}
