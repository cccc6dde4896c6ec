//! Per-CPU lists and zonelists of the synthetic guest, and damage to them.

use memvisor_abi::*;

use super::guest::*;

/// A frame that CPU 0 keeps on its list of unmovable single pages.
const PCP_PFN: u64 = 0x3340;
/// Its lists' index: CPU 0, node 0 DMA32.
const PCP_INDEX: u64 = 1;

/// Descriptor of the frame on CPU 0's list.
pub(super) fn describe(pfn: u64, page: &mut Page) {
    if pfn == PCP_PFN {
        page.kind = PageKind::Pcp as u8;
    }
}

/// Empty lists of the right size, but for one page on CPU 0.
pub(super) fn pcps(zones: &[Zone]) -> Vec<PerCpuPages> {
    let of = |zone: &Zone| {
        // A thousandth over 4, times 1.5, down to a power of two, less one: the zones have 4000 and 16000 pages.
        let batch = match zone.managed_pages {
            0 => return PerCpuPages::EMPTY,
            1..0x2000 => 1,
            _ => 3,
        };
        let low = u32::try_from(zone.watermark[1]).unwrap();
        PerCpuPages { batch, high: low.max(4 * batch), ..PerCpuPages::EMPTY }
    };
    let mut pcps: Vec<PerCpuPages> = zones.iter().chain(zones).map(of).collect();
    let kept = &mut pcps[usize::try_from(PCP_INDEX).unwrap()];
    (kept.count, kept.lists[0]) = (1, PcpList { head: PCP_PFN, tail: PCP_PFN });
    (kept.numa[NumaEvent::Hit as usize], kept.numa[NumaEvent::Local as usize]) = (5, 5);
    pcps
}

pub(super) fn zonelists() -> [Zonelist; 2] {
    let list = |node: u32, own: [u16; 2], all: [u16; 4]| {
        let mut list = Zonelist { node, count: 4, nofallback_count: 2, ..Zonelist::EMPTY };
        list.nofallback[..2].copy_from_slice(&own);
        list.fallback[..4].copy_from_slice(&all);
        list
    };
    [list(0, [1, 0], [1, 0, 7, 6]), list(1, [7, 6], [7, 6, 1, 0])]
}

/// Where CPU 0's lists of node 0 DMA32 are, and its count, its high, its first list and its events.
fn pcp(guest: &TestGuest) -> u64 {
    guest.guest().root().pcps.gpa + PCP_INDEX * size_of::<PerCpuPages>() as u64
}

#[test]
fn pcp_count_sees_a_count_too_high() {
    let mut guest = healthy();
    let gpa = pcp(&guest);
    guest.memory.write(gpa, &[2]).unwrap();
    let finding = only(&guest, "pcp.count");
    assert_eq!((finding.guest_says.as_str(), finding.outside_says.as_str()), ("2", "1"));
}

#[test]
fn pcp_limits_sees_a_cpu_that_may_keep_more() {
    let mut guest = healthy();
    let gpa = pcp(&guest) + 4;
    guest.memory.write(gpa, &[255, 255]).unwrap();
    only(&guest, "pcp.limits");
}

#[test]
fn pcp_list_sees_a_tail_that_is_not_the_last() {
    let mut guest = healthy();
    let gpa = pcp(&guest) + 24;
    guest.memory.write_u64(gpa, PCP_PFN + 1).unwrap();
    only(&guest, "pcp.list");
}

#[test]
fn pcp_state_sees_an_order_of_another_list() {
    let mut guest = healthy();
    guest.edit_page(PCP_PFN, |page| page.order = 1);
    assert!(only(&guest, "pcp.state").to_string().contains("order 1"));
}

#[test]
fn a_page_on_a_cpus_list_and_a_free_list_has_two_owners() {
    let mut guest = healthy();
    let gpa = pcp(&guest) + 16;
    let free = guest.take_block(NODE0_DMA32, 0);
    guest.put_block(NODE0_DMA32, 0, free);
    guest.memory.write_u64(gpa, free).unwrap();
    let rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    assert!(rules.contains(&"owner.single"), "{rules:?}");
}

#[test]
fn zonelist_order_sees_a_far_node_first() {
    let mut guest = healthy();
    let gpa = guest.guest().root().zonelists.gpa;
    guest.memory.write(gpa + 32, &[7, 0, 6, 0, 1, 0, 0, 0]).unwrap();
    only(&guest, "zonelist.order");
}

#[test]
fn zonelist_own_sees_another_nodes_zone() {
    let mut guest = healthy();
    let gpa = guest.guest().root().zonelists.gpa;
    guest.memory.write(gpa + 16, &[7]).unwrap();
    only(&guest, "zonelist.own");
}

#[test]
fn numa_events_sees_an_allocation_that_was_neither_hit_nor_miss() {
    let mut guest = healthy();
    let gpa = pcp(&guest) + 16 + 16 * NR_PCP_LISTS as u64 + 8 * NumaEvent::Local as u64;
    guest.memory.write_u64(gpa, 6).unwrap();
    only(&guest, "numa.events");
}
