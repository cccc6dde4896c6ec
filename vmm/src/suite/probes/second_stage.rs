//! `second-stage-sizes`: what KVM counts in its second-stage tables (binary statistics pages_4k, pages_2m,
//! pages_1g) fits what `inspect translate` says about the host's pages behind guest memory.
//!
//! KVM maps a guest page only while the VMM's own tables map it, and never by a larger page than they do
//! (Linux: host_pfn_mapping_level in arch/x86/kvm/mmu/mmu.c; the MMU notifier takes away the rest). So, with every
//! frame of every slot looked up:
//! S1  KVM maps something, and no more bytes than the host has present;
//! S2  2 MiB and 1 GiB mappings are no more than the host's pages of at least that size can hold;
//! S3  where the machine says what backs all RAM, it is so: no page larger than 4 KiB with `4k`, and KVM uses the pages
//!     of `hugetlb-2m` and `hugetlb-1g` as a whole.

use anyhow::Context;
use memvisor_inspect::{Stage2, Stage2Pages};

use super::{Control, Held, Outcome};
use crate::cli::LiveStage2;
use crate::machine::Backing;
use crate::memory::SlotInfo;

const FRAME: u64 = 4096;
const HUGE: u64 = 2 << 20;
const GIGANTIC: u64 = 1 << 30;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Control::Kvm(vm) = &held.control else {
        return Ok(Outcome::Skipped("only memvisor's own guests have a second stage in KVM".to_owned()));
    };
    let info = vm.info()?;
    let stage2 = LiveStage2::new(&info);
    if stage2.levels() == 0 {
        return Ok(Outcome::Skipped("this KVM shadows page tables, it has no second stage".to_owned()));
    }
    let kvm = stage2.pages().context("KVM counts no pages")?;
    Ok(match present(&stage2, &info.regions) {
        Ok(host) => {
            let mut problems = problems(kvm, host);
            problems.extend(backing(&info.regions).and_then(|backing| unlike(backing, kvm, host)));
            Outcome::from_problems(problems)
        }
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

/// The backing of the largest slot: the one where large pages fit.
fn backing(slots: &[SlotInfo]) -> Option<Backing> {
    slots.iter().max_by_key(|slot| slot.len)?.backing
}

fn unlike(backing: Backing, kvm: Stage2Pages, host: [u64; 3]) -> Option<String> {
    let wrong = match backing {
        Backing::Small => kvm.pages_2m + kvm.pages_1g + host[1] > 0,
        // As far as the host has them.
        Backing::Transparent => false,
        Backing::Huge2M => kvm.pages_2m == 0,
        Backing::Huge1G => kvm.pages_1g == 0,
    };
    wrong.then(|| {
        format!(
            "S3: backing is {backing}, and KVM maps {kvm}; the host has {:#x} bytes in huge pages",
            host[1]
        )
    })
}

fn problems(kvm: Stage2Pages, host: [u64; 3]) -> Vec<String> {
    let [small, huge, gigantic] = [kvm.pages_4k * FRAME, kvm.pages_2m * HUGE, kvm.pages_1g * GIGANTIC];
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
    fn a_backing_is_kept_or_told() {
        let kvm = |[pages_4k, pages_2m, pages_1g]: [u64; 3]| Stage2Pages { pages_4k, pages_2m, pages_1g };
        assert_eq!(unlike(Backing::Small, kvm([9, 0, 0]), [9 * FRAME, 0, 0]), None);
        assert!(unlike(Backing::Small, kvm([9, 1, 0]), [9 * FRAME, 0, 0]).is_some());
        assert!(unlike(Backing::Small, kvm([9, 0, 0]), [9 * FRAME, FRAME, 0]).is_some());
        assert!(unlike(Backing::Huge2M, kvm([9, 0, 0]), [HUGE, HUGE, 0]).is_some());
        assert_eq!(unlike(Backing::Huge2M, kvm([9, 1, 0]), [HUGE, HUGE, 0]), None);
        assert!(unlike(Backing::Huge1G, kvm([9, 1, 0]), [GIGANTIC; 3]).is_some());
    }

    #[test]
    fn what_the_host_has_bounds_what_kvm_maps() {
        let problems = |[pages_4k, pages_2m, pages_1g]: [u64; 3], host| {
            super::problems(Stage2Pages { pages_4k, pages_2m, pages_1g }, host)
        };
        assert_eq!(problems([10, 0, 0], [10 * FRAME, 0, 0]), [""; 0]);
        assert_eq!(problems([0, 1, 0], [2 * HUGE, HUGE, 0]), [""; 0]);
        assert!(problems([0; 3], [FRAME, 0, 0])[0].starts_with("S1"));
        assert!(problems([11, 0, 0], [10 * FRAME, 0, 0])[0].starts_with("S1"));
        assert!(problems([0, 1, 0], [HUGE, 0, 0])[0].starts_with("S2"));
        assert!(problems([0, 0, 1], [GIGANTIC, GIGANTIC, 0])[0].starts_with("S2"));
    }
}
