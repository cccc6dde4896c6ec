//! `translate-agrees`: 10,000 addresses, translated by our walker from the guest's page tables and by the
//! VMM, must give the same guest-physical address or none.
//!
//! A third are inside mappings that exist, spread evenly over mappings of each half so that the few small
//! ones count as much as the large direct map; a third lie next to a mapping's ends; a third are
//! random canonical addresses, almost all unmapped. Non-canonical ones are left out: KVM_TRANSLATE
//! does not check for them, as a walk by hardware never gets them.

use anyhow::bail;
use memvisor_inspect::ptdump::for_each_leaf;
use memvisor_inspect::{Levels, Walker};

use super::random::Random;
use super::{Control, Held, Outcome};

/// Addresses compared.
const ADDRESSES: usize = 10_000;
/// The same addresses in every run.
const SEED: u64 = 0x006d_656d_7669_736f;
/// Mappings remembered of each half; beyond it every further one is passed over.
const LEAVES_MAX: usize = 1 << 20;
/// Differences that are quoted.
const QUOTED: usize = 5;

/// A mapping: first address and length in bytes.
type Leaf = (u64, u64);

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Some(cpu) = held.registers.first() else { bail!("the VMM gives no registers") };
    let Some(walker) = Walker::from_registers(cpu) else { bail!("CPU 0 is not in long mode with paging") };
    let (lower, upper) = leaves(&walker, held);
    for (half, leaves) in [("user", &lower), ("kernel", &upper)] {
        if leaves.is_empty() {
            bail!(
                "CPU 0's page tables map nothing in the {half}'s half, so half of the comparison is missing"
            );
        }
    }
    let addresses = choose(walker.levels(), &lower, &upper);
    let theirs = match &mut held.control {
        Control::Kvm(vm) => vm.translate(&addresses)?,
        Control::Qemu(qmp, _) => {
            addresses.iter().map(|&va| qmp.translate(va)).collect::<Result<Vec<_>, _>>()?
        }
    };
    if theirs.len() != addresses.len() {
        bail!("the VMM answered {} of {} addresses", theirs.len(), addresses.len());
    }
    let mut problems = Vec::new();
    let (mut differ, mut mapped) = (0, 0);
    for (&va, &theirs) in addresses.iter().zip(&theirs) {
        let ours = walker.lookup(held.memory, va).map(|page| page.gpa);
        mapped += usize::from(ours.is_ok());
        if ours.as_ref().ok() != theirs.as_ref() {
            differ += 1;
            if problems.len() < QUOTED {
                let ours = ours.map_or_else(|fault| fault.to_string(), |gpa| format!("{gpa:#x}"));
                let theirs = theirs.map_or("no mapping".to_owned(), |gpa| format!("{gpa:#x}"));
                problems.push(format!("{va:#x}: our walk gives {ours}, the VMM {theirs}"));
            }
        }
    }
    if differ > 0 {
        problems.insert(0, format!("{differ} of {ADDRESSES} addresses differ"));
    }
    // If almost none is mapped, agreement means little.
    if mapped < ADDRESSES / 5 {
        problems.push(format!("only {mapped} of {ADDRESSES} addresses are mapped"));
    }
    Ok(Outcome::from_problems(problems))
}

fn leaves(walker: &Walker, held: &Held<'_>) -> (Vec<Leaf>, Vec<Leaf>) {
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    for_each_leaf(walker, held.memory, |leaf| {
        let half = if leaf.va >> 63 == 0 { &mut lower } else { &mut upper };
        if half.len() < LEAVES_MAX {
            half.push((leaf.va, leaf.size.bytes()));
        }
    });
    (lower, upper)
}

fn choose(levels: Levels, lower: &[Leaf], upper: &[Leaf]) -> Vec<u64> {
    let mut random = Random::new(SEED);
    (0..ADDRESSES)
        .map(|number| {
            let half = if number % 2 == 0 { lower } else { upper };
            let index = random.below(half.len() as u64);
            let (start, len) =
                usize::try_from(index).ok().and_then(|index| half.get(index)).copied().unwrap_or((0, 1));
            let wild = random.next();
            let va = match number % 3 {
                0 => start + wild % len,
                1 if wild & 1 == 0 => start.wrapping_sub(1 + wild % 8192),
                1 => start.wrapping_add(len + wild % 8192),
                _ => wild,
            };
            levels.canonical(va)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_canonical_fixed_and_half_of_them_mapped() {
        let levels = Levels::new(4).unwrap();
        let lower = [(0x40_0000, 4096)];
        let upper = [(0xffff_ffff_8000_0000, 2 << 20), (0xffff_ffff_ffff_f000, 4096)];
        let chosen = choose(levels, &lower, &upper);
        assert_eq!(chosen.len(), ADDRESSES);
        assert_eq!(chosen, choose(levels, &lower, &upper));
        assert!(chosen.iter().all(|&va| levels.is_canonical(va)));
        let inside = |leaves: &[Leaf]| {
            chosen
                .iter()
                .filter(|&&va| leaves.iter().any(|(start, len)| va.wrapping_sub(*start) < *len))
                .count()
        };
        assert!(inside(&lower) > ADDRESSES / 10 && inside(&upper) > ADDRESSES / 10);
        assert!(inside(&lower) + inside(&upper) < ADDRESSES / 2);
    }
}
