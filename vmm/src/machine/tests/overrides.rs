//! What the command line does to a machine file.

use std::path::Path;

use super::super::*;
use super::audit;

fn overridden(name: &str, overrides: &Overrides) -> Machine {
    let machine = resolve(load(name).expect(name), overrides).unwrap_or_else(|error| panic!("{error}"));
    audit(&machine);
    machine
}

/// Bytes of the nodes, legacy hole included.
fn spans(machine: &Machine) -> Vec<u64> {
    let legacy = layout::HIGH_RAM_START - layout::EBDA_START;
    let bytes = |node: &Node| node.memory.iter().map(|range| range.len).sum::<u64>();
    let hole =
        |node: &Node| if node.memory.first().is_some_and(|range| range.base == 0) { legacy } else { 0 };
    machine.nodes.iter().map(|node| bytes(node) + hole(node)).collect()
}

#[test]
fn memory_scales_every_range() {
    let memory = |text: &str| Overrides { memory: text.parse().ok(), ..Overrides::default() };
    assert_eq!(spans(&overridden("default", &memory("512M"))), [256 << 20, 256 << 20]);
    assert_eq!(spans(&overridden("numa4", &memory("96M"))), [40 << 20, 24 << 20, 32 << 20, 0]);
    // 3 GiB fit below the MMIO hole; node 0 continues behind node 1's range at 4 GiB.
    let large = overridden("default", &memory("8G"));
    assert_eq!(spans(&large), [4 << 30, 4 << 30]);
    assert_eq!(large.nodes[0].memory.last(), Some(&Range::new(6 << 30, 7 << 30)));
    // What does not divide goes to the largest range.
    let odd = overridden("default", &memory("262148K"));
    assert_eq!(spans(&odd).iter().sum::<u64>(), 262_148 << 10);
}

#[test]
fn cpus_are_cut_off_or_dealt_to_the_nodes_with_cpus() {
    let cpus = |count| Overrides { cpus: Some(count), ..Overrides::default() };
    let nodes = |machine: &Machine| machine.cpus.iter().map(|cpu| cpu.node).collect::<Vec<_>>();
    assert_eq!(nodes(&overridden("numa4", &cpus(8))), [0, 1, 3, 0, 1, 3, 0, 1]);
    assert_eq!(nodes(&overridden("default", &cpus(1))), [0]);
    assert_eq!(nodes(&overridden("tiny", &cpus(3))), [0, 0, 0]);
}

#[test]
fn a_node_that_loses_all_it_had_is_refused() {
    let one = Overrides { cpus: Some(2), ..Overrides::default() };
    let error =
        resolve(load("numa4").expect("bundled"), &one).expect_err("node 3 has only CPU 2").to_string();
    assert_eq!(
        error,
        "images/machines/numa4.toml:23: node[3]: this node has neither memory nor CPUs; give it one of them or remove it"
    );
}

#[test]
fn zones_and_numa_replace_the_nodes() {
    let overrides = Overrides {
        memory_zone: vec!["id=low,size=64M".to_owned(), "id=high,size=64M,at=4G".to_owned()],
        numa: vec![
            "guest_numa_id=0,cpus=[0-1],distances=[1@25],memory_zones=[low]".to_owned(),
            "guest_numa_id=1,memory_zones=[high]".to_owned(),
        ],
        ..Overrides::default()
    };
    let machine = overridden("numa4", &overrides);
    assert_eq!(machine.nodes.len(), 2);
    assert_eq!(machine.distances, [[10, 25], [25, 10]]);
    assert_eq!(machine.nodes[1].memory, [Range { base: 4 << 30, len: 64 << 20 }]);
    assert_eq!(machine.hmat, None, "the file's figures are for other nodes");
    let one_node = Overrides { numa: Vec::new(), ..overrides };
    assert_eq!(overridden("default", &one_node).nodes.len(), 1);
}

#[test]
fn a_command_line_is_appended_and_paths_are_relative_to_the_file() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("my machine.toml");
    let text = "[[node]]\nmemory = [\"64M\"]\ncpus = [0]\n[boot]\nprotocol = \"pvh\"\nkernel = \"k.elf\"\ninitrd = \"/i\"\ncmdline = \"a b\"\n";
    std::fs::write(&path, text).expect("writes");
    let file = load(path.to_str().expect("UTF-8")).expect("reads");
    let overrides = Overrides {
        cmdline: Some("c".to_owned()),
        initrd: Some("there".into()),
        paging: Some(Paging::Four),
        ..Overrides::default()
    };
    let machine = resolve(file, &overrides).expect("resolves");
    assert_eq!(machine.cmdline, "a b c");
    assert_eq!(machine.kernel.as_deref(), Some(directory.path().join("k.elf").as_path()));
    assert_eq!(machine.initrd.as_deref(), Some(Path::new("there")));
    assert_eq!((machine.boot, machine.paging), (Boot::Pvh, Paging::Four));
    assert_eq!((machine.name.as_str(), machine.vm_name.as_str()), ("my-machine", "my-machine"));
}

#[test]
fn five_levels_reach_past_46_bits() {
    let file = |text| MachineFile::from_text("m.toml", text).expect("reads");
    let text = "[[node]]\nmemory = [\"64M\", { at = \"0x400000000000\", size = \"4M\" }]\ncpus = [0]";
    let five = Overrides { paging: Some(Paging::Five), ..Overrides::default() };
    audit(&resolve(file(text), &five).expect("52 bits"));
    assert!(resolve(file(text), &Overrides::default()).is_err());
}

#[test]
fn a_backing_is_the_flags_or_the_nodes_or_the_machines() {
    let text = r#"
[machine]
backing = "thp"
[[node]]
memory = ["64M", "2M", { at = "4G", size = "1G" }]
cpus = [0]
backing = "hugetlb-2m"
[[node]]
memory = ["1M"]
"#;
    let file = || MachineFile::from_text("m.toml", text).expect("reads");
    let machine = resolve(file(), &Overrides::default()).expect("fits");
    audit(&machine);
    let backed = |base, len, backing| Backed { range: Range { base, len }, backing };
    assert_eq!(
        machine.backed,
        [
            backed(0, 66 << 20, Backing::Huge2M),
            backed(66 << 20, 1 << 20, Backing::Transparent),
            backed(4 << 30, 1 << 30, Backing::Huge2M)
        ]
    );
    assert_eq!(machine.huge_pages().into_iter().collect::<Vec<_>>(), [(Backing::Huge2M, 33 + 512)]);
    let of_slots: Vec<_> = machine.slots().iter().map(|slot| slot.backing).collect();
    let pooled = Some(Backing::Huge2M);
    assert_eq!(of_slots, [pooled, pooled, pooled, Some(Backing::Transparent), pooled]);
    let text = describe(&machine).expect("describes").to_string();
    assert!(text.contains("RAM, node 0, hugetlb-2m"), "{text}");
    assert!(text.contains("hugetlb-2m takes 545 pages of 2 MiB"), "{text}");

    let small = Overrides { backing: Some(Backing::Small), ..Overrides::default() };
    let machine = resolve(file(), &small).expect("fits");
    assert!(machine.nodes.iter().all(|node| node.backing == Some(Backing::Small)));
    assert!(machine.huge_pages().is_empty());
    // Scaled, a machine keeps it.
    let scaled = crate::import::scale(&machine, "1/2".parse().expect("a scale")).expect("well-formed");
    let scaled = resolve(scaled, &Overrides::default()).expect("fits");
    assert!(scaled.nodes.iter().all(|node| node.backing == Some(Backing::Small)));
}
