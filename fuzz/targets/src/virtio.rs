//! A driver of a disk that does anything.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use memvisor::{
    devices::{
        pci::Function,
        virtio::{BAR_BYTES, Disk, Msix, VirtioPci},
    },
    machine::{self, DiskFaults, DiskSource, Sectors},
    memory::Memory,
    seccomp::Filters,
};
use memvisor_inspect::RamRegion;

use crate::Input;

const RAM: u64 = 0x1_0000;
/// Where [`set_up`] puts the rings.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const SECTORS: u64 = 64;

/// Accesses to the registers of a disk and to the memory of its rings, with a hostile driver's luck: descriptors, rings and
/// registers are written at any time, while the disk's thread works.
pub fn virtio_disk(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Arc::new(Memory::new(&[RamRegion { gpa: 0, len: RAM }]).expect("64 KiB"));
    let faults = DiskFaults {
        read_errors: vec![Sectors { sector: 5, count: 2 }],
        torn_writes: Some(9),
        ..DiskFaults::default()
    };
    let spec = machine::Disk {
        name: "fuzz".into(),
        source: DiskSource::Temporary(SECTORS * 512),
        read_only: input.u8() & 1 == 1,
        faults,
    };
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let msix = Msix::new(Arc::new(move |_: u64, _: u32| {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let disk = Disk::start(&spec, memory.clone(), msix.clone(), Filters::Off).expect("a disk");
    let disk = Arc::new(disk);
    let mut device = VirtioPci::new(disk.clone(), memory.clone(), msix, 0xc000_0000);
    let mut wide = [0; 8];
    while !input.is_empty() {
        let op = input.u8();
        let len = 1_usize << (op >> 6);
        match op & 7 {
            0 => device.bar_read(u64::from(input.u16()) % u64::from(BAR_BYTES), &mut wide[..len]),
            1 => {
                let at = u64::from(input.u16()) % u64::from(BAR_BYTES);
                device.bar_write(at, input.bytes(len));
            }
            2 => device.config_write(usize::from(input.u8()).min(256 - len), input.bytes(len)),
            3 => device.config_read(usize::from(input.u8()).min(256 - len), &mut wide[..len]),
            4 => {
                let gpa = u64::from(input.u16());
                let count = usize::from(input.u8());
                let _ = memory.write(gpa, input.bytes(count));
            }
            5 => set_up(&mut device),
            6 => request(&mut device, &memory, &mut input),
            _ => {
                disk.hold(1);
                disk.release(1);
            }
        }
    }
    // Nothing is half done, and the thread lives.
    disk.hold(1);
    let stats = disk.stats();
    assert!(stats.in_flight <= 256, "{stats:?}");
    assert!(stats.sectors_read <= stats.reads.saturating_mul(SECTORS), "{stats:?}");
    assert!(sent.load(Ordering::Relaxed) <= stats.interrupts + 2 * data.len() as u64, "{stats:?}");
    disk.release(1);
    device.bar_write(0x14, &[0]);
    assert!(!disk.stats().active && disk.is_alive(), "after a reset");
}

/// What an honest driver does first.
fn set_up(device: &mut VirtioPci) {
    for (at, value) in [(0x14, 0_u8), (0x14, 3)] {
        device.bar_write(at, &[value]);
    }
    device.bar_write(0x08, &1_u32.to_le_bytes());
    device.bar_write(0x0c, &1_u32.to_le_bytes());
    device.bar_write(0x14, &[0xb]);
    device.bar_write(0x18, &16_u16.to_le_bytes());
    device.bar_write(0x1a, &1_u16.to_le_bytes());
    for (ring, at) in RINGS.into_iter().zip([0x20, 0x28, 0x30]) {
        device.bar_write(at, &ring.to_le_bytes());
    }
    device.bar_write(0x1c, &1_u16.to_le_bytes());
    device.bar_write(0x14, &[0xf]);
}

/// A request of up to four descriptors, and a ring of the doorbell.
fn request(device: &mut VirtioPci, memory: &Memory, input: &mut Input<'_>) {
    let [desc, avail, _] = RINGS;
    let kind = u64::from(input.u8() % 10);
    let header = [kind.to_le_bytes(), u64::from(input.u8()).to_le_bytes()].concat();
    let _ = memory.write(0x4000, &header);
    let count = u16::from(input.u8() % 4) + 1;
    for index in 0..count {
        let addr = if index == 0 { 0x4000 } else { u64::from(input.u16()) * 2 };
        let len = if index == 0 { 16_u32 } else { (u32::from(input.u8()) * 64).max(1) };
        let flags = u16::from(input.u8() & 3) | u16::from(index + 1 < count);
        let next = if input.u8() < 8 { input.u16() } else { index + 1 };
        let words = [addr, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
        let bytes = words.map(u64::to_le_bytes).concat();
        let _ = memory.write(desc + 16 * u64::from(index), &bytes);
    }
    let index = u16::from(input.u8());
    let _ = memory.write(avail + 4 + 2 * u64::from(index % 16), &[0, 0]);
    let _ = memory.write(avail + 2, &index.to_le_bytes());
    device.bar_write(0x3000, &[0, 0]);
}
