//! Writes the seeds of the corpora: valid inputs from which a fuzzer finds its way sooner.
//!
//!     cargo run -p memvisor-fuzz-targets --example seeds

mod ext2;
mod import;
mod initramfs;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use memvisor_inspect::{
    CpuRegisters, FactCpu, FactE820, FactNodeMemory, Facts, Levels, RamRegion, SparseMemory, core_file,
    testing::Tables,
};

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(name), bytes).expect("a file");
    };
    for (name, text) in MACHINES {
        put("machine_file", name, text.as_bytes());
    }
    for (name, text) in REQUESTS {
        put("control_http", name, text.as_bytes());
    }
    put("kernel_image", "seed-linux", &[&[0], elf(2).as_slice()].concat());
    put("kernel_image", "seed-pvh-moved-initrd", &[&[7], elf(3).as_slice()].concat());
    put("firmware", "seed-acpi", &acpi());
    put("firmware", "found-one-large-table-for-ever", &large_tables());
    put("firmware", "seed-zero-page", &zero_page());
    put("firmware", "seed-pvh", &start_info());
    put("e820_memblock", "seed-map", &e820(0));
    put("e820_memblock", "seed-small", &e820(1));
    put("dump_reader", "seed-dump", &dump());
    put("device_bus", "seed-commands", &commands());
    put("virtio_disk", "seed-requests", &disk_requests());
    put("dma_engine", "seed-transfers", &transfers());
    for (name, bytes) in PAGES {
        put("alloc_api", name, bytes);
    }
    for (name, bytes) in OBJECTS {
        put("slab_api", name, bytes);
    }
    for (name, bytes) in import::seeds() {
        put("import", name, &bytes);
    }
    for (name, bytes) in ext2::seeds() {
        put("ext2", name, &bytes);
    }
    for (name, bytes) in initramfs::seeds() {
        put("initramfs", name, &bytes);
    }
    for (name, bytes) in GUESTS {
        put("guest_descriptors", name, bytes);
    }
}

const MACHINES: [(&str, &str); 4] = [
    (
        "seed-nodes",
        "[machine]\nname=\"a\"\n[[node]]\nmemory=[\"64M\",{at=\"4G\",size=\"16M\"}]\ncpus=[0,1]\n\
         distances={1=21}\n[[node]]\nmemory=[\"32M\"]\ncpus=[2]\n[hmat]\nlatency_ns=[[80,130],[130,80]]\n",
    ),
    (
        "seed-e820",
        "[machine]\ne820=\"prepend\"\n[[node]]\nmemory=[\"32M\"]\ncpus=[0]\n[[e820]]\nat=\"0xf0000\"\n\
         size=\"64K\"\ntype=\"reserved\"\nrepeat=3\nstride=\"1M\"\n[[e820]]\nat=8\nsize=9\ntype=77\n",
    ),
    (
        "seed-boot",
        "[boot]\nprotocol=\"pvh\"\npaging=5\ncmdline=\"quiet\"\n[[node]]\nmemory=[\"16M\"]\ncpus=[0]\n",
    ),
    (
        "seed-flags",
        "[[node]]\nmemory=[\"64M\"]\ncpus=[0]\n---\n--cpus 3\n--memory-zone id=a,size=32M\n\
         --memory-zone id=b,size=1G,at=4G\n\
         --numa guest_numa_id=0,cpus=[0-1],distances=[1@20],memory_zones=[a]\n\
         --numa guest_numa_id=1,cpus=[2],memory_zones=[b]\n--name x\n--cmdline y\n",
    ),
];

const REQUESTS: [(&str, &str); 3] = [
    ("seed-get", "GET /vm HTTP/1.1\r\nHost: x\r\n\r\nGET /vm/stats?x=1 HTTP/1.0\r\n\r\n"),
    (
        "seed-translate",
        "POST /vm/translate HTTP/1.1\r\nContent-Length: 35\r\nConnection: close\r\n\r\n{\"vcpu\":0,\"vas\":[4096,0,18446744073]}",
    ),
    (
        "seed-info",
        "{\"name\":\"a\",\"state\":\"held\",\"pid\":1,\"machine\":\"m\",\"regions\":[{\"slot\":0,\"gpa\":0,\"len\":4096,\"hva\":1}],\"root_gpa\":null,\"stats\":{\"uptime_us\":1,\"vcpus\":[],\"unclaimed_accesses\":0}}",
    ),
];

/// Choices, then edits: place, offset, form and operands of the value.
const GUESTS: [(&str, &[u8]); 5] = [
    ("seed-healthy", &[0]),
    ("seed-healthy-5", &[1]),
    ("seed-no-evidence", &[0xe]),
    // A zone's free list that leads to itself, and one past all RAM.
    (
        "seed-lists",
        &[0, 1, 96, 5, 20, 11, 0, 5, 3, 11, 16, 0, 1, 120, 7, 240, 255, 255, 255, 255, 255, 255, 255, 0],
    ),
    // Tables of the kernel that contain themselves.
    ("seed-tables", &[1, 12, 8, 4, 16, 12, 0, 6, 40, 3, 0, 12, 129, 0, 8, 6, 41, 7, 0]),
];

/// The size of CPUs' lists, then operations with their operands.
const PAGES: [(&str, &[u8]); 6] = [
    // Blocks of all orders, some given back, the lists emptied.
    (
        "seed-orders",
        &[
            28, 7, 0, 0, 0, 1, 0, 0, 0x50, 1, 1, 0, 0, 0x60, 10, 1, 1, 0, 0x20, 3, 1, 1, 5, 0, 0, 5, 1, 0,
            17, 0, 16, 1, 5, 0, 0, 19,
        ],
    ),
    // The first block freed twice, a frame inside another, orders above 10 and frames that are none.
    (
        "seed-wrong",
        &[
            28, 7, 0, 0x20, 2, 1, 1, 8, 0, 0x10, 0, 2, 8, 0, 0x10, 0, 2, 8, 0, 0x11, 0, 0, 0, 0, 240, 11, 0,
            0, 0, 1, 8, 255, 240, 0,
        ],
    ),
    // References, a split, exact sizes, many at once.
    (
        "seed-references",
        &[
            0, 1, 0, 0x50, 2, 1, 1, 10, 0, 0, 0, 9, 1, 0, 0, 11, 1, 0, 0, 12, 0x20, 80, 0, 13, 0x20, 40, 9,
            0, 0, 0,
        ],
    ),
    // A pageblock taken out of use and given back while pages come and go.
    (
        "seed-isolated",
        &[63, 15, 18, 0, 0, 20, 13, 0x20, 200, 17, 0, 14, 1, 1, 15, 0x20, 0, 18, 0, 0, 20, 5, 3, 0, 19],
    ),
    // Two pageblocks of one block, isolated one after the other.
    ("found-isolated-neighbours-apart", &[28, 7, 18, 0, 0x10, 0, 18, 0, 0x10, 2, 19, 18, 0, 0x10, 0, 19]),
    // Half of a block is isolated, then it is freed, and halves are asked for.
    (
        "found-isolated-half-of-a-block",
        &[
            28, 7, 0, 0x20, 10, 1, 1, 18, 0, 0x10, 0x0e, 18, 0, 0x10, 0x12, 5, 0, 0, 0, 0x20, 9, 1, 1, 0,
            0x20, 9, 1, 1, 0, 0x20, 9, 1, 1, 0, 0x20, 9, 1, 1,
        ],
    ),
];

/// The allocator and its debugging, then operations with their operands.
const OBJECTS: [(&str, &[u8]); 5] = [
    (
        "seed-slub",
        &[
            0, 16, 1, 56, 1, 0, 0, 100, 1, 0, 0, 100, 5, 0, 0, 200, 9, 0, 0, 0, 0, 1, 10, 1, 0, 1, 15, 33,
            17, 33,
        ],
    ),
    (
        "seed-slab",
        &[
            1, 16, 2, 40, 16, 3, 63, 2, 0, 2, 100, 2, 1, 0, 3, 5, 1, 0, 250, 0, 1, 12, 7, 0, 0, 6, 0, 128,
            200, 1,
        ],
    ),
    (
        "seed-slob",
        &[2, 16, 1, 24, 1, 0, 0, 100, 6, 0, 63, 6, 2, 128, 0, 32, 8, 1, 0, 0, 128, 0, 48, 9, 0, 0, 0],
    ),
    // SLUB with all of its debugging: an object freed twice, by the wrong cache, in its middle.
    (
        "seed-debugged",
        &[
            64, 16, 1, 56, 1, 0, 0, 100, 1, 0, 0, 100, 9, 0, 0, 0, 13, 200, 0, 0, 33, 0, 13, 0, 0, 0, 40, 0,
            14, 70, 0, 0, 33, 1, 19, 33,
        ],
    ),
    // A zeroed object of 33 bytes, and the red zone behind it.
    ("found-zeroes-in-a-red-zone", &[66, 16, 1, 33, 1, 0, 2, 100, 9, 0, 0, 0]),
];

fn elf(kind: u16) -> Vec<u8> {
    let mut out = Vec::from(b"\x7fELF\x02\x01\x01".as_slice());
    out.resize(16, 0);
    out.extend([kind.to_le_bytes(), 62_u16.to_le_bytes()].concat());
    out.extend(1_u32.to_le_bytes());
    out.extend([0x20_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    out.extend(0_u32.to_le_bytes());
    out.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut program = |kind: u32, offset: u64, at: u64, file: u64, memory: u64| {
        out.extend([kind.to_le_bytes(), 7_u32.to_le_bytes()].concat());
        out.extend([offset, at, at, file, memory, 4].map(u64::to_le_bytes).concat());
    };
    program(1, 176, 0x20_0000, 4, 0x1000);
    program(4, 180, 0, 20, 20);
    out.extend([0xf4; 4]);
    out.extend([4_u32, 4, 18].map(u32::to_le_bytes).concat());
    out.extend(b"Xen\0");
    out.extend(0x20_0000_u32.to_le_bytes());
    out
}

/// A piece of the firmware target's input.
fn piece(at: u32, bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("short");
    [&at.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat()
}

fn table(at: u32, signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(36 + body.len()).expect("short");
    let mut bytes = [signature.as_slice(), &len.to_le_bytes()].concat();
    bytes.resize(36, 0);
    bytes.extend(body);
    piece(at, &bytes)
}

fn acpi() -> Vec<u8> {
    let mut rsdp = Vec::from(b"RSD PTR ".as_slice());
    rsdp.resize(36, 0);
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[25] = 0x20;
    let roots = [0x3000_u64, 0x4000, 0x5000, 0x6000].map(u64::to_le_bytes).concat();
    let madt =
        [&0xfee0_0000_u32.to_le_bytes()[..], &[1, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0]]
            .concat();
    let mut srat = vec![0; 12];
    srat.extend([
        0, 16, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    for node in [0_u8, 1] {
        let mut memory = vec![0; 40];
        (memory[0], memory[1], memory[2], memory[12], memory[17], memory[28]) = (1, 40, node, node, 16, 1);
        srat.extend(memory);
    }
    let slit = [&2_u64.to_le_bytes()[..], &[10, 21, 31, 10]].concat();
    let mut fadt = vec![0; 240];
    (fadt[5], fadt[29]) = (0x70, 6);
    let dsdt = b"\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00";
    let mut out = vec![1];
    out.extend(piece(0xe_0000, &rsdp));
    out.extend(table(0x2000, b"XSDT", &roots));
    out.extend(table(0x3000, b"APIC", &madt));
    out.extend(table(0x4000, b"SRAT", &srat));
    out.extend(table(0x5000, b"SLIT", &slit));
    out.extend(table(0x6000, b"FACP", &fadt));
    out.extend(table(0x7000, b"DSDT", dsdt));
    out
}

/// An XSDT of nearly 1 MiB whose entries all lead to a table of 1 MiB at 8.
fn large_tables() -> Vec<u8> {
    let mut rsdp = Vec::from(b"RSD PTR ".as_slice());
    rsdp.resize(36, 0);
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[25] = 0x20;
    let mut xsdt = [b"XSDT".as_slice(), &0xf_c000_u32.to_le_bytes()].concat();
    xsdt.resize(36, 0);
    for _ in 0..7000 {
        xsdt.extend(8_u64.to_le_bytes());
    }
    let mut out = vec![1];
    out.extend(piece(0xe_0000, &rsdp));
    out.extend(piece(0x2000, &xsdt));
    out.extend(piece(8, &[b"SSDT".as_slice(), &0xf_fff0_u32.to_le_bytes()].concat()));
    out
}

fn packed(addr: u64, size: u64, kind: u32) -> Vec<u8> {
    [&addr.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
}

fn zero_page() -> Vec<u8> {
    let mut out = vec![0];
    out.extend(piece(0x71e8, &[1]));
    out.extend(piece(0x72d0, &packed(0, 0x9_fc00, 1)));
    out.extend(piece(0x7228, &0x2_0000_u32.to_le_bytes()));
    out.extend(piece(0x7250, &0x3_0000_u64.to_le_bytes()));
    out.extend(piece(0x2_0000, b"quiet\0"));
    out.extend(piece(0x3_0008, &[1, 0, 0, 0, 20, 0, 0, 0]));
    out.extend(piece(0x3_0010, &packed(0x10_0000, 0x1000, 1)));
    out
}

fn start_info() -> Vec<u8> {
    let mut info = [0x336e_c578_u32, 1, 0, 1].map(u32::to_le_bytes).concat();
    info.extend([0x9000_u64, 0x2_0000, 0xe_0000, 0x8000].map(u64::to_le_bytes).concat());
    info.extend([1_u32, 0].map(u32::to_le_bytes).concat());
    let mut out = vec![6];
    out.extend(piece(0x7000, &info));
    out.extend(piece(0x8000, &packed(0, 0x9_fc00, 1)));
    out.extend(piece(0x9000, &[0x1_0000_u64, 0x100, 0, 0].map(u64::to_le_bytes).concat()));
    out.extend(piece(0x2_0000, b"quiet\0"));
    out
}

/// Numbers in the form of `Input::number`: any, and 2^n.
fn any(value: u64) -> Vec<u8> {
    [&[255][..], &value.to_le_bytes()].concat()
}

fn e820(small: u8) -> Vec<u8> {
    let mut out = vec![46, 4];
    for (addr, size, kind) in
        [(0, 0xa_0000, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 0x100_0000, 1), (u64::MAX - 4, 9, 5)]
    {
        out.extend([any(addr), any(size), vec![kind]].concat());
    }
    out.push(small);
    for (op, base, size) in [
        (2_u8, 0x10_0000, 0x8000),
        (0x14, 0x20_0000, 0x1000),
        (1, 0x40_0000, 0x1000),
        (3, 0x10_1000, 0x1000),
        (5, 0, 12),
    ] {
        out.extend([vec![op], any(base), any(size)].concat());
    }
    out.extend([vec![6], any(0), any(0x3000), any(u64::MAX), vec![12]].concat());
    out.extend([vec![7 + 8], any(0x1000), any(0x100), any(0x20_0000), vec![16]].concat());
    out
}

fn commands() -> Vec<u8> {
    // Text in RAM, every command on it, keys, ports and MMIO.
    let mut out = vec![0xa5, 16, 0, 0x10, 0, 0];
    out.extend(b"memvisor-root\0\r\nafter boot\0\0\0\0\0\0");
    for command in 1..6 {
        out.extend([7, 64 + 12, 0, 11, command]);
    }
    out.extend([0x86, 3, b'a', b'b', b'c', 0x20, 0, 0x21, 1, 0xfe, 0, 0x83, 4, 255]);
    out.extend(0xfec0_0000_u64.to_le_bytes());
    out.extend([0x21, 0x82, 0x34, 0x12, 0x60, 3]);
    out
}

/// A driver that sets a disk up, writes, reads, flushes and asks for the name, then breaks the ring, and sets up again.
fn disk_requests() -> Vec<u8> {
    const SET_UP: u8 = 5;
    const REQUEST: u8 = 6;
    // Kind, sector; three descriptors: header, 512 bytes at 0x8000 that the device writes or reads, status; index.
    let request = |kind: u8, index: u8| {
        let write = if kind == 1 { 0 } else { 2 };
        [&[REQUEST, kind, 3, 2, 1, 9][..], &[0, 0x40, 8, write | 1, 9], &[0, 0x28, 0, 2, 9], &[index]]
            .concat()
    };
    let mut out = vec![0, SET_UP];
    for (kind, index) in [(1, 1), (0, 2), (4, 3), (8, 4), (0, 200)] {
        out.extend(request(kind, index));
    }
    // Zeroes over the rings, then an honest start.
    out.extend([4, 2, 0x20, 2, 0, 0, 4, 2, 0x30, 2, 0, 0, 7, SET_UP]);
    out.extend(request(0, 1));
    out
}

/// Transfers of each mode there and back, one that is refused, a hold, and any register.
fn transfers() -> Vec<u8> {
    const TRANSFER: u8 = 5;
    // Mode and sides, source, destination, length, unit / 17, burst.
    let transfer =
        |choice: u8, source: u8, destination: u8| [TRANSFER, choice, 0, source, 0, destination, 0, 4, 16, 3];
    let mut out = vec![1];
    for mode in 0..4 {
        out.extend(transfer(8 | mode, 0x10, 0x20));
        out.extend([7]);
        out.extend(transfer(4 | mode, 0x20, 0x30));
    }
    out.extend(transfer(0x88 | 1, 0x80, 0));
    out.extend([4, 9, 3, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([4, 14, 7, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(transfer(9, 1, 2));
    out.extend([0xc0, 0x50, 0]);
    out
}

/// One page of data and three of page tables.
fn dump() -> Vec<u8> {
    let mut memory =
        SparseMemory::new(&[RamRegion { gpa: 0, len: 0x1000 }, RamRegion { gpa: 0x3000, len: 0x3000 }])
            .expect("RAM");
    memory.write_u64(0x10, 0x1234).expect("RAM");
    let mut tables = Tables::new(Levels::Four, 0x3000..0x6000);
    tables.map(&mut memory, 0xffff_ffff_8000_0000, 0, memvisor_inspect::PageSize::Size2M, 3);
    let facts = Facts {
        machine: "seed".into(),
        e820: vec![FactE820 { addr: 0, size: 0x6000, kind: 1 }],
        node_memory: vec![FactNodeMemory { node: 0, base: 0, len: 0x6000 }],
        cpus: vec![FactCpu { apic_id: 0, node: 0 }],
        levels: 4,
        ..Facts::default()
    };
    let registers = CpuRegisters {
        cr0: 1 << 31 | 1,
        cr3: tables.root(),
        cr4: 1 << 5,
        efer: 1 << 10 | 1 << 8,
        ..CpuRegisters::default()
    };
    let mut out = Cursor::new(Vec::new());
    let info = "NUMBER(memvisor_root)=0x1000\n";
    core_file::write(&mut out, &memory, &[registers], &facts, info, &mut |_, _| ()).expect("a dump");
    out.into_inner()
}
