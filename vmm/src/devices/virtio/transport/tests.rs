use std::{
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use memvisor_inspect::{MemorySource, RamRegion};

use super::*;
use crate::{
    machine::{self, DiskFaults, DiskSource, Sectors},
    seccomp::Filters,
};

// Where the driver of these tests has its rings and buffers.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const DATA: u64 = 0x8000;
const SIZE: u16 = 16;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// Far longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver as small as one can be.
struct Driver {
    device: VirtioPci,
    memory: Arc<Memory>,
    interrupts: Receiver<u32>,
    sent: u16,
}

impl Driver {
    fn new(faults: DiskFaults, read_only: bool) -> Driver {
        let spec =
            machine::Disk { name: "data".into(), source: DiskSource::Temporary(64 << 10), read_only, faults };
        let memory = Arc::new(Memory::new(&[RamRegion { gpa: 0, len: 0x10_0000 }]).expect("1 MiB"));
        let (sender, interrupts) = mpsc::channel();
        let msix = Msix::new(Arc::new(move |_, data| {
            let _ = sender.send(data);
        }));
        let disk = Disk::start(&spec, memory.clone(), msix.clone(), Filters::Off).expect("a disk");
        let device = VirtioPci::new(Arc::new(disk), memory.clone(), msix, 0xc000_0000);
        let mut driver = Driver { device, memory, interrupts, sent: 0 };
        driver.device.config_write(driver.device.msix_at + 2, &MSIX_ENABLE.to_le_bytes());
        driver.device.bar_write(TABLE + 16 + 8, &0x55_u32.to_le_bytes());
        driver.device.bar_write(TABLE + 16 + 12, &0_u32.to_le_bytes());
        driver
    }

    fn started(faults: DiskFaults) -> Driver {
        let mut driver = Driver::new(faults, false);
        assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH), 0xb);
        driver.set_rings([DESC, AVAIL, USED]);
        driver.set(0x14, &[0xf]);
        assert_eq!(driver.status(), 0xf);
        driver
    }

    fn set(&mut self, at: u64, value: &[u8]) {
        self.device.bar_write(COMMON + at, value);
    }

    fn status(&mut self) -> u8 {
        let mut byte = [0];
        self.device.bar_read(COMMON + 0x14, &mut byte);
        byte[0]
    }

    /// The status after the driver asked for `features`.
    fn negotiate(&mut self, features: u64) -> u8 {
        self.set(0x14, &[0]);
        self.set(0x14, &[3]);
        for (select, value) in [(0_u32, halves(features).0), (1, halves(features).1)] {
            self.set(0x08, &select.to_le_bytes());
            self.set(0x0c, &value.unwrap_or(0).to_le_bytes());
        }
        self.set(0x14, &[0xb]);
        self.status()
    }

    fn set_rings(&mut self, rings: [u64; 3]) {
        self.set(0x18, &SIZE.to_le_bytes());
        self.set(0x1a, &1_u16.to_le_bytes());
        for (ring, at) in rings.into_iter().zip([0x20, 0x28, 0x30]) {
            self.set(at, &ring.to_le_bytes());
        }
        self.set(0x1c, &1_u16.to_le_bytes());
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).expect("RAM");
    }

    fn look<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(gpa, &mut bytes).expect("RAM");
        bytes
    }

    fn describe(&self, index: u16, addr: u64, len: u32, flags: u16) {
        let mut bytes = [0; 16];
        fill(&mut bytes, 0, &addr.to_le_bytes());
        fill(&mut bytes, 8, &len.to_le_bytes());
        fill(&mut bytes, 12, &flags.to_le_bytes());
        fill(&mut bytes, 14, &(index + 1).to_le_bytes());
        self.put(DESC + u64::from(index) * 16, &bytes);
    }

    /// Offers the chain at descriptor 0.
    fn offer(&mut self) {
        self.put(AVAIL + 4 + u64::from(self.sent % SIZE) * 2, &0_u16.to_le_bytes());
        self.sent = self.sent.wrapping_add(1);
        self.put(AVAIL + 2, &self.sent.to_le_bytes());
        self.device.bar_write(NOTIFY, &0_u16.to_le_bytes());
    }

    fn wait(&self) -> u8 {
        assert_eq!(self.interrupts.recv_timeout(PATIENCE), Ok(0x55));
        assert_eq!(u16::from_le_bytes(self.look(USED + 2)), self.sent);
        self.look::<1>(STATUS)[0]
    }

    /// A request with `len` bytes at DATA; its status.
    fn request(&mut self, kind: u32, sector: u64, len: u32, flags: u16) -> u8 {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
        self.put(STATUS, &[0xee]);
        self.describe(0, HEADER, 16, NEXT);
        // Two pieces, to see that they are joined.
        self.describe(1, DATA, len / 4, NEXT | flags);
        self.describe(2, DATA + u64::from(len / 4), len - len / 4, NEXT | flags);
        self.describe(3, STATUS, 1, WRITE);
        self.offer();
        self.wait()
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(DATA, bytes);
        self.request(1, sector, u32::try_from(bytes.len()).expect("short"), 0)
    }

    fn read<const N: usize>(&mut self, sector: u64) -> (u8, [u8; N]) {
        self.put(DATA, &[0xdd; N]);
        let status = self.request(0, sector, u32::try_from(N).expect("short"), WRITE);
        (status, self.look(DATA))
    }
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[test]
fn what_was_written_is_read_back_and_neighbours_stay() {
    let mut driver = Driver::started(DiskFaults::default());
    let text: Vec<u8> = (0..=255).cycle().take(1024).collect();
    assert_eq!(driver.write(5, &text), OK);
    assert_eq!(driver.request(4, 0, 0, 0), OK, "flush");
    let (status, back) = driver.read::<2048>(4);
    assert_eq!(status, OK);
    assert_eq!(back[..512], [0; 512]);
    assert_eq!(back[512..1536], text[..]);
    assert_eq!(back[1536..], [0; 512]);
    let stats = driver.device.disk.stats();
    assert_eq!((stats.reads, stats.sectors_read, stats.writes, stats.sectors_written), (1, 4, 1, 2));
    assert_eq!((stats.flushes, stats.notifications, stats.in_flight), (1, 3, 0));
}

#[test]
fn the_name_is_the_serial_number() {
    let mut driver = Driver::started(DiskFaults::default());
    assert_eq!(driver.request(8, 0, 20, WRITE), OK);
    assert_eq!(&driver.look::<5>(DATA), b"data\0");
}

#[test]
fn requests_for_what_there_is_not_fail_alone() {
    let mut driver = Driver::started(DiskFaults::default());
    assert_eq!(driver.read::<1024>(127).0, IOERR, "past the end");
    assert_eq!(driver.read::<1024>(u64::MAX).0, IOERR);
    assert_eq!(driver.read::<100>(0).0, IOERR, "not whole sectors");
    assert_eq!(driver.request(99, 0, 0, 0), UNSUPP);
    assert_eq!(driver.read::<1024>(126).0, OK);
    let mut read_only = Driver::new(DiskFaults::default(), true);
    assert_ne!(read_only.device.features & 1 << VIRTIO_BLK_F_RO, 0);
    read_only.negotiate(1 << VIRTIO_F_VERSION_1);
    read_only.set_rings([DESC, AVAIL, USED]);
    read_only.set(0x14, &[0xf]);
    assert_eq!(read_only.write(0, &[1; 512]), IOERR);
    assert_eq!(read_only.read::<512>(0), (OK, [0; 512]));
}

#[test]
fn injected_faults_reach_the_driver() {
    let mut driver = Driver::started(DiskFaults {
        read_errors: vec![Sectors { sector: 3, count: 1 }],
        torn_writes: Some(2),
        ..DiskFaults::default()
    });
    assert_eq!(driver.write(0, &[7; 4096]), OK);
    assert_eq!(driver.read::<2048>(0).0, IOERR);
    assert_eq!(driver.read::<512>(4), (OK, [7; 512]));
    assert_eq!(driver.write(0, &[9; 4096]), IOERR);
    assert_eq!(driver.read::<512>(4).0, IOERR, "the power is gone");
    assert_eq!(driver.device.disk.stats().injected, 3);
}

#[test]
fn features_are_refused_that_were_not_offered_or_are_too_few() {
    let mut driver = Driver::new(DiskFaults::default(), false);
    assert_eq!(driver.negotiate(1 << VIRTIO_BLK_F_FLUSH) & 8, 0, "no VERSION_1");
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << 3) & 8, 0, "never offered");
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1) & 8, 8);
}

#[test]
fn rings_outside_ram_and_broken_rings_need_a_reset() {
    let mut driver = Driver::new(DiskFaults::default(), false);
    driver.negotiate(1 << VIRTIO_F_VERSION_1);
    driver.set_rings([DESC, AVAIL, 0x10_0000]);
    driver.set(0x14, &[0xf]);
    assert_eq!(driver.status(), 0x4f);

    let mut driver = Driver::started(DiskFaults::default());
    // More than the queue has entries.
    driver.put(AVAIL + 2, &1000_u16.to_le_bytes());
    driver.device.bar_write(NOTIFY, &0_u16.to_le_bytes());
    while driver.status() & 0x40 == 0 {
        std::thread::yield_now();
    }
    driver.put(AVAIL + 2, &0_u16.to_le_bytes());
    driver.put(USED + 2, &0_u16.to_le_bytes());
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1), 0xb, "a reset mends it");
    driver.set_rings([DESC, AVAIL, USED]);
    driver.set(0x14, &[0xf]);
    assert_eq!(driver.read::<512>(0).0, OK);
}

#[test]
fn chains_that_are_no_requests_come_back_and_harm_nobody() {
    let mut driver = Driver::started(DiskFaults::default());
    // A loop, no status byte, buffers outside RAM.
    for (addr, len, flags) in [(HEADER, 16, 0), (0x20_0000, 16, WRITE), (u64::MAX, 0x1000, WRITE)] {
        driver.describe(0, addr, len, flags);
        driver.offer();
        driver.wait();
    }
    driver.describe(0, HEADER, 16, NEXT);
    driver.put(DESC + 14, &0_u16.to_le_bytes());
    driver.offer();
    driver.wait();
    assert_eq!(driver.device.disk.stats().malformed, 4);
    assert_eq!(driver.read::<512>(0).0, OK);
}

#[test]
fn a_held_disk_begins_nothing_and_goes_on_afterwards() {
    let mut driver = Driver::started(DiskFaults::default());
    driver.device.disk.hold(4);
    driver.device.disk.hold(2);
    driver.describe(0, HEADER, 16, NEXT);
    driver.put(HEADER, &[0; 16]);
    driver.describe(1, DATA, 512, NEXT | WRITE);
    driver.describe(2, STATUS, 1, WRITE);
    driver.put(STATUS, &[0xee]);
    driver.offer();
    driver.device.disk.release(4);
    assert!(driver.interrupts.recv_timeout(Duration::from_millis(20)).is_err());
    assert_eq!(driver.look::<1>(STATUS), [0xee]);
    driver.device.disk.release(2);
    assert_eq!(driver.wait(), OK);
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let mut driver = Driver::new(DiskFaults::default(), false);
    let at = driver.device.window_at;
    driver.device.config_write(at + 4, &[0]);
    driver.device.config_write(at + 8, &0x2000_u32.to_le_bytes());
    driver.device.config_write(at + 12, &4_u32.to_le_bytes());
    let mut capacity = [0; 4];
    driver.device.config_read(at + 16, &mut capacity);
    assert_eq!(u32::from_le_bytes(capacity), 128);
}
