//! Dumps of a held guest, against `cp` of the dump.

use std::{fs, path::Path};

use anyhow::Context;

use crate::{
    Options,
    image::Random,
    process::{self, command},
    start::Files,
    stats::{ratio, spread},
    table::{Score, Table, Target},
    vm::HeldVm,
};

/// A file system in memory.
const TMPFS: &str = "/dev/shm";

/// Runs it.
///
/// # Errors
/// If a command fails.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let mib = if options.quick { 256 } else { 2048 };
    let mut table = Table::new(
        "Dump",
        &format!(
            "`memvisor dump` of a held guest with {mib} MiB to {TMPFS}, and `cp` of that file, and of the memory it was made from, to the same place: \
             milliseconds for the whole command, medians of {} interleaved runs (range). The ratio is memvisor's \
             time divided by cp's.",
            options.rounds
        ),
    );
    // Guest, dump, copy, and some room.
    let needed = mib * 7 / 2;
    let available = available_mib()?;
    if available < needed {
        let reason = format!("{available} MiB of memory are available, {needed} are needed");
        table.absent("dump", "cp", &reason);
        return Ok(table.print("dump"));
    }
    let files = Files::new()?;
    let folder = tempfile::tempdir_in(TMPFS).with_context(|| format!("a directory in {TMPFS}"))?;
    // The bundled kernel, which says where its root descriptor is: memory is not searched for one then.
    let vm = HeldVm::start(&command([&options.memvisor, &"run", &files.machine(mib)?, &"--audit", &"off"]))?;
    // In this order, because a page that was touched stays so. What the kernel wrote is left alone.
    let mut random = Random::new(1);
    vm.fill(|number, page| {
        // In blocks of 64 KiB.
        match number / 16 % 16 {
            0 => random_page(&mut random, page),
            1..4 => page.fill(0),
            _ => return false,
        }
        true
    })?;
    measure(options, &mut table, &vm, folder.path(), "1/16 data, 3/16 touched but zero, rest untouched")?;
    let mut random = Random::new(2);
    vm.fill(|_, page| {
        random_page(&mut random, page);
        true
    })?;
    measure(options, &mut table, &vm, folder.path(), "no page is zero")?;
    Ok(table.print("dump"))
}

fn random_page(random: &mut Random, page: &mut [u8; 4096]) {
    for word in page.as_chunks_mut::<8>().0 {
        *word = (random.next() | 1).to_le_bytes();
    }
}

fn measure(
    options: &Options,
    table: &mut Table,
    vm: &HeldVm,
    folder: &Path,
    work: &str,
) -> anyhow::Result<()> {
    let (dump, copy) = (folder.join("dump.core"), folder.join("copy.core"));
    let ours = command([&options.memvisor, &"dump", &"--vm", &vm.name, &"-o", &dump]);
    let theirs = command([&"cp", &dump, &copy]);
    let memory = command([&"cp", &"-L", &vm.largest_ram()?, &copy]);
    let (mut ours_ms, mut theirs_ms, mut memory_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let (time, _) = process::run(&ours)?;
        let (other, _) = process::run(&theirs)?;
        if round == 0 {
            process::run(&command([&"cmp", &dump, &copy])).context("cp copied something else")?;
        }
        fs::remove_file(&dump)?;
        fs::remove_file(&copy)?;
        let (of_memory, _) = process::run(&memory)?;
        fs::remove_file(&copy)?;
        if round > 0 {
            ours_ms.push(process::millis(time));
            theirs_ms.push(process::millis(other));
            memory_ms.push(process::millis(of_memory));
        }
    }
    table.row(
        work,
        &spread(&ours_ms, "ms"),
        ("cp of the dump", &spread(&theirs_ms, "ms")),
        (ratio(&ours_ms, &theirs_ms), "x"),
        Target::AtMost(1.1),
    );
    table.row(
        work,
        &spread(&ours_ms, "ms"),
        ("cp of the guest's memory file", &spread(&memory_ms, "ms")),
        (ratio(&ours_ms, &memory_ms), "x"),
        Target::None,
    );
    Ok(())
}

fn available_mib() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}
