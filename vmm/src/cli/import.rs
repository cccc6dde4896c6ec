//! `memvisor import`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use super::out;
use crate::{
    import::{self, Imported, Scale},
    machine::{self, MachineFile, Overrides},
};

const AFTER_HELP: &str = "\
Examples:
  dmesg | memvisor import - -o me.toml             from this machine's log
  memvisor import dmesg.txt acpidump.txt /sys/devices/system/node -o server.toml
  memvisor import dmesg.txt --scale 1/64 -o -      a 64th of the RAM, to standard output

What each FILE is follows from its content: a kernel log, the output of acpidump or a binary SRAT, SLIT, APIC
or HMAT, /proc/iomem, or the directories /sys/firmware/memmap, /sys/firmware/acpi/tables and
/sys/devices/system/node, also as `grep -r .` prints them. Contradictions between them, and what memvisor has to
change about the machine, are printed on standard error. docs/import.md tells more.";

/// Arguments of `import`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ImportArgs {
    /// Logs, tables and directories of one machine; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The machine file to write; `-` is standard output
    #[arg(short, long, value_name = "MACHINE.toml")]
    output: PathBuf,
    /// Scale RAM down, such as 1/64, and keep the machine's shape
    #[arg(long, value_name = "1/N")]
    scale: Option<Scale>,
}

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    if args.files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        return Err(out::BadInput("`-` is given twice; standard input can be read once".into()).into());
    }
    let name = args.output.display().to_string();
    let mut imported = import::import(&import::inputs(&args.files), &name)?;
    if let Some(scale) = args.scale {
        imported = import::rescale(imported, scale, &name)?;
    }
    let Imported { text, machine, remarks } = imported;
    for remark in &remarks {
        eprintln!("memvisor: {remark}");
    }
    if name == "-" {
        out::write(text.as_bytes())?;
    } else {
        write(&args.output, &text).with_context(|| format!("write {name}"))?;
        eprintln!("memvisor: {name}: {}", machine.description);
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a new file beside the old one and then takes its place, so that there is never half a file.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(permissions()).tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Those of any new file; the umask takes its part.
fn permissions() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o666)
}

/// The machine file that `run` is asked for, scaled if it is asked to.
pub(super) fn load(name_or_path: &str, scale: Option<Scale>) -> anyhow::Result<MachineFile> {
    let file = machine::load(name_or_path)?;
    let Some(scale) = scale else { return Ok(file) };
    Ok(import::scale(&machine::resolve(file, &Overrides::default())?, scale)?)
}
