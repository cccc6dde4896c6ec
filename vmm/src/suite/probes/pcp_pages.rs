//! `pcp-pages`: for every block that a CPU keeps, the view of its first and of its last frame names the CPU, the order, the type
//! and the place on the list; `inspect pcp` counts what is on the lists.

use memvisor_inspect::{
    Guest,
    views::{Owner, PageView, PcpView},
};

use super::{Held, Outcome};

/// Frames that are looked up, spread over all lists.
const LOOKED_UP: usize = 12;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let guest = Guest::attach(held.memory, held.root_gpa)?;
    let mut problems = Vec::new();
    for row in PcpView::new(&guest)?.pagesets {
        let place = format!("CPU {}, node {} zone {}", row.cpu, row.node, row.zone);
        if u64::from(row.count) != row.found {
            problems.push(format!("{place}: {} pages found, the guest counts {}", row.found, row.count));
        }
        if row.high == 0 || row.batch == 0 || row.batch > row.high.max(1) {
            problems.push(format!("{place}: high {} and batch {} were never set up", row.high, row.batch));
        }
    }
    let zones = guest.zones()?;
    let mut kept = Vec::new();
    for (index, pcp) in guest.pcps()?.iter().enumerate() {
        let (cpu, zone) = (index / zones.len(), index % zones.len());
        for list in guest.pcp_lists(pcp, cpu, zone)? {
            let blocks = list.blocks.iter().enumerate();
            kept.extend(blocks.map(|(place, &head)| (head, list.order, cpu, place)));
        }
    }
    if kept.is_empty() {
        problems.push("no CPU keeps a page".to_owned());
    }
    for &(head, order, cpu, position) in kept.iter().step_by(kept.len().div_ceil(LOOKED_UP).max(1)) {
        for pfn in [head, head + (1 << order) - 1] {
            let owners = PageView::new(&guest, pfn)?.owners;
            let right = matches!(
                owners[..],
                [Owner::Pcp { head: h, order: o, cpu: c, position: p, .. }] if (h, o, c, p) == (head, order, cpu, position)
            );
            if !right {
                let owners: Vec<String> = owners.iter().map(ToString::to_string).collect();
                problems.push(format!(
                    "frame {pfn:#x} is part of block {head:#x} of order {order}, number {position} on a list of CPU {cpu}; its view says {owners:?}"
                ));
            }
        }
    }
    Ok(Outcome::from_problems(problems))
}
