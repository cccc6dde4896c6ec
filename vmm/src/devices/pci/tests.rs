use super::*;

/// A function whose BAR has one byte that remembers.
struct OneByte {
    config: ConfigSpace,
    byte: u8,
}

impl Function for OneByte {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 0 { self.byte } else { 0 });
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [byte, ..]) = (offset, data) {
            self.byte = *byte;
        }
    }
}

const BASE: u64 = 0xc000_0000;

fn bus() -> (PciPorts, PciWindow) {
    let header = Header { vendor: 0x1af4, device: 0x1042, class: 0x01_8000, revision: 1, subsystem: (1, 2) };
    let mut config = ConfigSpace::new(&header);
    config.set_bar0(0xc000_0000, 0x1000);
    config.add_capability(0x09, &[0xaa, 0xbb], &[0, 0xff]);
    config.add_capability(0x11, &[0xcc], &[]);
    let root = Arc::new(Mutex::new(PciRoot::new(vec![Box::new(OneByte { config, byte: 7 })])));
    (PciPorts(root.clone()), PciWindow { root, base: BASE })
}

fn read(ports: &mut PciPorts, slot: u32, register: u32) -> u32 {
    ports.write(0, &(ENABLE | slot << 11 | register).to_le_bytes());
    let mut word = [0; 4];
    ports.read(4, &mut word);
    u32::from_le_bytes(word)
}

fn write(ports: &mut PciPorts, slot: u32, register: u32, value: u32) {
    ports.write(0, &(ENABLE | slot << 11 | register).to_le_bytes());
    ports.write(4, &value.to_le_bytes());
}

#[test]
fn slots_answer_with_their_ids_and_empty_ones_with_ones() {
    let (mut ports, _) = bus();
    assert_eq!(read(&mut ports, 0, 0), 0x0008_1b36);
    assert_eq!(read(&mut ports, 1, 0), 0x1042_1af4);
    assert_eq!(read(&mut ports, 2, 0), u32::MAX);
    // Another bus, another function, not enabled.
    for address in [ENABLE | 1 << 16, ENABLE | 1 << 11 | 1 << 8, 1 << 11] {
        ports.write(0, &u32::to_le_bytes(address));
        let mut word = [0; 4];
        ports.read(4, &mut word);
        assert_eq!(word, [0xff; 4], "{address:#x}");
    }
}

#[test]
fn parts_of_a_word_are_read_and_written() {
    let (mut ports, _) = bus();
    read(&mut ports, 1, 0);
    let mut half = [0; 2];
    ports.read(6, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x1042);
    // What crosses the end of the word is not there.
    ports.read(7, &mut half);
    assert_eq!(half, [0x10, 0xff]);
}

#[test]
fn a_bar_tells_its_size_and_moves() {
    let (mut ports, mut window) = bus();
    let at = |window: &mut PciWindow, address: u64| {
        let mut byte = [0];
        window.read(address - BASE, &mut byte);
        byte[0]
    };
    assert_eq!(at(&mut window, BASE), 7);
    write(&mut ports, 1, 0x10, u32::MAX);
    assert_eq!(read(&mut ports, 1, 0x10), 0xffff_f000);
    write(&mut ports, 1, 0x10, 0xc123_4567);
    assert_eq!(read(&mut ports, 1, 0x10), 0xc123_4000);
    assert_eq!(at(&mut window, BASE), 0xff);
    window.write(0x123_4000, &[9]);
    assert_eq!(at(&mut window, 0xc123_4000), 9);
    // Memory space off.
    write(&mut ports, 1, 0x04, 0);
    assert_eq!(at(&mut window, 0xc123_4000), 0xff);
    // An access across the end belongs to nobody.
    write(&mut ports, 1, 0x04, 2);
    let mut wide = [0; 8];
    window.read(0x123_4ffc, &mut wide);
    assert_eq!(wide, [0xff; 8]);
}

#[test]
fn the_list_of_capabilities_is_linked_and_read_only_but_for_its_mask() {
    let (mut ports, _) = bus();
    assert_ne!(read(&mut ports, 1, 0x04) & 1 << 20, 0);
    let first = read(&mut ports, 1, 0x34) & 0xff;
    assert_eq!(first, 0x40);
    assert_eq!(read(&mut ports, 1, first), 0xbbaa_4409);
    assert_eq!(read(&mut ports, 1, 0x44) & 0xffff, 0x0011);
    write(&mut ports, 1, first, 0x1234_5678);
    assert_eq!(read(&mut ports, 1, first), 0x12aa_4409);
}
