//! Memory that a VMM itself needs, beside the guest's.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Context;

use crate::{
    Options,
    process::{command, find},
    start::Files,
    stats::short,
    table::{Score, Table, Target},
    vm::HeldVm,
};

/// How memvisor's RAM is called in a list of mappings.
const GUEST_RAM: &str = "/memfd:guest-ram";

/// Runs it.
///
/// # Errors
/// If a guest does not start.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let mut table = Table::new(
        "Resident memory",
        "MiB resident (Rss of all mappings but guest RAM, shared libraries and the program's own file included), while \
         the guest is held after its end. QEMU's guest is stopped before its first instruction, so that its RAM is \
         not resident.",
    );
    let files = Files::new()?;
    let mut ours = Vec::new();
    for mib in [128, 1024, 8192] {
        let vm = HeldVm::start(&files.memvisor(&options.memvisor, mib)?)?;
        ours.push((format!("1 CPU, {mib} MiB, do-nothing guest"), resident(vm.pid(), GUEST_RAM)?));
    }
    let vm = HeldVm::start(&command([&options.memvisor, &"run", &"default"]))?;
    ours.push(("machine default, 2 CPUs, 3 audits".into(), resident(vm.pid(), GUEST_RAM)?));
    drop(vm);
    for (work, bytes) in ours {
        let mib = bytes as f64 / f64::from(1 << 20);
        table.row(
            &work,
            &format!("{} MiB", short(mib)),
            ("the bound itself", &"5 MiB"),
            (mib, " MiB"),
            Target::AtMost(5.0),
        );
    }
    match find("qemu-system-x86_64") {
        None => table.absent("1 CPU, 1024 MiB", "QEMU microvm", "qemu-system-x86_64 is not installed"),
        Some(qemu) => {
            let mine = resident(HeldVm::start(&files.memvisor(&options.memvisor, 1024)?)?.pid(), GUEST_RAM)?;
            let theirs = qemu_resident(&qemu, &files.kernel)?;
            table.row(
                "1 CPU, 1024 MiB",
                &format!("{} MiB", short(mine as f64 / f64::from(1 << 20))),
                ("QEMU microvm, stopped", &format!("{} MiB", short(theirs as f64 / f64::from(1 << 20)))),
                (theirs as f64 / mine as f64, "x"),
                Target::None,
            );
        }
    }
    Ok(table.print("resident"))
}

fn qemu_resident(qemu: &Path, kernel: &Path) -> anyhow::Result<u64> {
    let words = command([
        &qemu,
        &"-M",
        &"microvm",
        &"-enable-kvm",
        &"-m",
        &"1024",
        &"-nodefaults",
        &"-no-user-config",
        &"-display",
        &"none",
        &"-serial",
        &"stdio",
        &"-S",
        &"-kernel",
        &kernel,
    ]);
    let child = crate::process::KillOnDrop(crate::process::spawn(&words, std::process::Stdio::null())?);
    // It says nothing when it is ready; its memory no longer grows then.
    let mut last = 0;
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = resident(child.0.id(), "no mapping has this name")?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// Bytes resident in mappings whose name does not begin with `guest`.
fn resident(pid: u32, guest: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut counted = true;
    let mut kib = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let number = rest.trim().trim_end_matches(" kB");
            kib += if counted { number.parse::<u64>().with_context(|| line.to_owned())? } else { 0 };
        } else if line.split(' ').next().is_some_and(|word| word.contains('-')) {
            // A mapping: range, protection, offset, device, inode, name.
            counted = !line.split_whitespace().nth(5).is_some_and(|name| name.starts_with(guest));
        }
    }
    anyhow::ensure!(kib > 0, "{path} lists nothing resident");
    Ok(kib << 10)
}
