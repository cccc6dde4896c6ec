//! A CPU as /proc/cpuinfo has it, by CPUID (Linux: arch/x86/kernel/cpu/proc.c, `x86_cap_flags`).

use alloc::string::String;
use core::fmt;

use guest_fs::proc::CpuInfo;

use crate::arch::regs::cpuid;
use crate::sched::clock;
use crate::smp;

/// Features: leaf, subleaf, register (0 is EAX), and names by bit, as Linux has them; an empty name is one that Linux does not show.
type Word = (u32, u32, usize, &'static str);

/// Names are separated by blanks, `-` is a bit without a name.
const WORDS: [Word; 4] = [
    (
        1,
        0,
        3,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        0x8000_0001,
        0,
        3,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        1,
        0,
        2,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor",
    ),
    (
        7,
        0,
        1,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
];

/// Features of this CPU by name.
fn flags() -> Result<String, fmt::Error> {
    let mut text = String::new();
    for (leaf, subleaf, register, names) in WORDS {
        let base = cpuid(leaf & 0x8000_0000, 0)[0];
        if leaf > base {
            continue;
        }
        let word = cpuid(leaf, subleaf)[register];
        for (bit, name) in names.split(' ').enumerate() {
            if word >> bit & 1 != 0 && name != "-" {
                text.try_reserve(name.len() + 1).map_err(|_| fmt::Error)?;
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(name);
            }
        }
    }
    Ok(text)
}

/// Calls `f` with a CPU. Differs from Linux: all CPUs are taken to be as the one that runs this, each a core of one package.
///
/// # Errors
/// Those of `f`; no memory.
pub fn with(cpu: u32, f: &mut dyn FnMut(&CpuInfo<'_>) -> fmt::Result) -> fmt::Result {
    let [level, b, c, d] = cpuid(0, 0);
    let mut vendor = [0; 12];
    vendor.chunks_exact_mut(4).zip([b, d, c]).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    let mut brand = [0; 48];
    for (to, leaf) in brand.chunks_exact_mut(16).zip(0x8000_0002_u32..) {
        to.chunks_exact_mut(4)
            .zip(cpuid(leaf, 0))
            .for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    }
    let end = brand.iter().position(|byte| *byte == 0).unwrap_or(brand.len());
    let signature = cpuid(1, 0)[0];
    let (mut family, mut model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    if family == 0xf {
        family += signature >> 20 & 0xff;
    }
    if family >= 6 {
        model += (signature >> 16 & 0xf) << 4;
    }
    let extended = cpuid(0x8000_0000, 0)[0];
    let sizes = if extended >= 0x8000_0008 { cpuid(0x8000_0008, 0)[0] } else { 36 | 48 << 8 };
    let cache_kib = if extended >= 0x8000_0006 { cpuid(0x8000_0006, 0)[2] >> 16 } else { 0 };
    let clflush = (cpuid(1, 0)[1] >> 8 & 0xff) * 8;
    f(&CpuInfo {
        vendor: core::str::from_utf8(&vendor).unwrap_or("?"),
        signature: (family, model, signature & 0xf),
        model_name: core::str::from_utf8(brand.get(..end).unwrap_or(&[])).unwrap_or("?").trim(),
        khz: clock::tsc_khz(),
        cache_kib,
        apic: cpu,
        siblings: smp::nr_online(),
        cpuid_level: level,
        flags: &flags()?,
        address_bits: (sizes & 0xff, sizes >> 8 & 0xff),
        clflush: if clflush == 0 { 64 } else { clflush },
    })
}
