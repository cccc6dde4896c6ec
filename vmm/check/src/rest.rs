//! Rules at a moment that the guest did not choose.
//!
//! Most structures are whole only while nobody changes them, which is when the guest is at rest. What hardware follows at any time, and
//! what nobody changes any more after boot, must hold at every moment, also in the middle of a change.

use memvisor_abi::BootStage;
use memvisor_inspect::Busy;

use crate::context::Context;
use crate::ledger::Ledger;
use crate::{Rule, attach, cma, cpu, pgtable, pti, topology, zonelist, zones};

/// Rules that hold at every moment once the guest has booted; the first one before, too.
const AT_EVERY_MOMENT: &[&Rule] = &[
    &attach::ROOT,
    &topology::RAW,
    &topology::CLEAN,
    &topology::MEMORY,
    &topology::NODES,
    &topology::DISTANCES,
    &topology::CPUS,
    &cpu::PERCPU,
    &zones::EXTENT,
    &zones::MANAGED,
    &zonelist::ORDER,
    &zonelist::OWN,
    &cma::AREA,
    &pgtable::WX,
    &pgtable::USER,
    &pgtable::RESERVED_BITS,
    &pgtable::TABLE_IN_RAM,
    &pgtable::LEAF_IN_RAM,
    &pgtable::CANONICAL,
    &pgtable::SHARED_KERNEL,
    &pti::ENTRY_AREA,
];

/// Withdraws what the other rules said if the guest is not at rest, and says whether it did. Without registers nobody knows, and they
/// stand.
pub(crate) fn withdraw(context: &Context<'_>, ledger: &mut Ledger) -> bool {
    let Some(reason) = between(context) else { return false };
    // While it boots nothing is there for good yet.
    let booted = context.root.stage >= BootStage::Smp as u32;
    let always = if booted { AT_EVERY_MOMENT } else { &AT_EVERY_MOMENT[..1] };
    for rule in crate::RULES.iter().filter(|rule| !always.contains(rule)) {
        ledger.withdraw(rule, &reason);
    }
    true
}

/// Why nothing can be said of what changes; `None` at rest.
fn between(context: &Context<'_>) -> Option<String> {
    if context.registers.is_empty() {
        return None;
    }
    let busy = match context.guest.busy(context.registers) {
        Ok(busy) if busy.is_empty() => return None,
        Ok(busy) => busy,
        Err(error) => return Some(format!("not checked: nobody can say whether the guest rests: {error}")),
    };
    let more = if busy.len() > SHOWN { format!(", and {} more", busy.len() - SHOWN) } else { String::new() };
    let names: Vec<String> = busy.iter().take(SHOWN).map(Busy::to_string).collect();
    Some(format!("not checked: the guest is between two states: {}{more}", names.join(", ")))
}

/// Busy ones that are named.
const SHOWN: usize = 3;
