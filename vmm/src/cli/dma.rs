//! `memvisor inspect dma`: DMA engines from the VMM's side, bounce buffers from the guest's memory.

use std::fmt;

use memvisor_inspect::views::SwiotlbView;
use serde::Serialize;

use super::source::Source;
use crate::devices::dma::{Counters, DmaStats};

/// Engines in the order of their slots, and the pools of bounce slots.
#[derive(Debug, Serialize)]
pub(super) struct DmaView {
    /// `None` of a dump or a memory file: engines are the VMM's.
    engines: Option<Vec<DmaStats>>,
    /// Slot of the first engine on the bus.
    first_slot: usize,
    /// `None` of a guest that publishes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    bounce: Option<SwiotlbView>,
}

impl DmaView {
    /// Both sides.
    pub(super) fn of(source: &Source) -> anyhow::Result<DmaView> {
        let of_vmm = source.dma()?;
        let disks = of_vmm.as_ref().map_or(0, |(_, disks)| *disks);
        let bounce = match source.root() {
            Some(_) => Some(SwiotlbView::new(&source.guest()?)?),
            None => None,
        };
        Ok(DmaView { engines: of_vmm.map(|(engines, _)| engines), first_slot: disks + 1, bounce })
    }

    fn write_engines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(engines) = &self.engines else {
            return writeln!(
                f,
                "DMA engines are the VMM's: only a running guest has them, a dump or a memory file does not"
            );
        };
        if engines.is_empty() {
            return writeln!(f, "the machine has no DMA engines ([[dma]] in its file)");
        }
        writeln!(
            f,
            "{:8} {:>4} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12} {:>8} {:>10}",
            "slot", "bits", "single", "block", "burst", "stealing", "done", "bytes", "refused", "interrupts"
        )?;
        for (slot, engine) in (self.first_slot..).zip(engines) {
            let Counters { started, done, beyond_mask, no_ram, bytes, interrupts, .. } = engine.counters;
            let other = engine.counters.refused;
            let refused = beyond_mask + no_ram + other;
            writeln!(
                f,
                "00:{slot:02x}.0  {:>4} {:>8} {:>8} {:>8} {:>8} {done:>8} {bytes:>12} {refused:>8} {interrupts:>10}{}",
                engine.address_bits,
                started.single,
                started.block,
                started.burst,
                started.cycle_stealing,
                if engine.active { "  active" } else { "" },
            )?;
            if refused > 0 {
                writeln!(
                    f,
                    "         refused: {beyond_mask} beyond the mask, {no_ram} without RAM, {other} for another reason",
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for DmaView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_engines(f)?;
        match &self.bounce {
            Some(bounce) => write!(f, "{bounce}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::dma::Started;

    #[test]
    fn an_engine_is_a_line_and_its_refusals_another() {
        let started = Started { block: 3, ..Started::default() };
        let counters = Counters { started, beyond_mask: 2, bytes: 4096, ..Counters::default() };
        let engine = DmaStats { address_bits: 24, counters, ..DmaStats::default() };
        let view = DmaView { engines: Some(vec![engine]), first_slot: 3, bounce: None };
        let text = view.to_string();
        assert!(text.contains("00:03.0    24"), "{text}");
        assert!(text.contains("refused: 2 beyond the mask, 0 without RAM"), "{text}");
        let none = DmaView { engines: Some(Vec::new()), first_slot: 1, bounce: None };
        assert!(none.to_string().contains("no DMA engines"));
        let dump = DmaView { engines: None, first_slot: 1, bounce: None };
        assert!(dump.to_string().contains("only a running guest"));
    }
}
