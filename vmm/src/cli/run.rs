//! `memvisor run`.

use std::{
    borrow::Cow,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, ValueEnum, error::ErrorKind};
use serde::Serialize;

use super::out;
use crate::{
    control::{Claim, SocketError, api::Stats},
    devices::ConsoleTarget,
    event_loop::{EventLoop, LoopConfig, restore_terminal},
    import::Scale,
    machine::{self, Backing, Boot, Machine, Overrides, Paging, Size},
    memory,
    run::{AtEnd, AuditMode, End, Irqchip, Outcome, Progress, RunError, RunEvent, Vm, VmConfig, conduct},
    seccomp::{self, Filters},
};

const AFTER_HELP: &str = "\
Examples:
  memvisor run                                     the default machine
  memvisor run numa4 --cmdline 'seeded=leak'       with a fault that the audit must find
  memvisor run tiny --memory 64M --cpus 2          a machine file, changed
  memvisor run ./my.toml --dry-run --json          what would be built, for a program
  memvisor run real-chiplet --scale 1/64           a real machine's shape in little RAM
  memvisor run --disk file=data.img,name=data --disk size=64M,name=swap
                                                   with two disks (docs/disks.md)
  memvisor run --kernel vmlinux --boot pvh         another kernel
  memvisor run --kernel vmlinuz --initrd initrd.cpio --cmdline console=ttyS0
                                                   stock Linux (docs/linux-guest.md)
  memvisor run --hold --name lab                   keep the guest after its end for `inspect --vm lab`

While it runs: Ctrl-C or Ctrl-A x ends it. Its control socket is $XDG_RUNTIME_DIR/memvisor/NAME.sock.";

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RunArgs {
    /// Name of a machine (see `memvisor machines`) or path of a machine file
    #[arg(default_value = "default")]
    machine: String,
    /// Kernel to boot, an ELF file or a Linux bzImage [default: the bundled guest kernel]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ramdisk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Text to append to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Boot protocol
    #[arg(long, value_enum)]
    boot: Option<BootArg>,
    /// Paging levels; `auto` takes what KVM really accepts
    #[arg(long, value_enum)]
    paging: Option<PagingArg>,
    /// Size of all RAM together, such as 512M or 4G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Scale RAM down, such as 1/64, and keep the machine's shape
    #[arg(long, value_name = "1/N")]
    scale: Option<Scale>,
    /// What the host backs RAM with: 4k, thp, hugetlb-2m or hugetlb-1g [default: the machine's]
    #[arg(long, value_name = "BACKING")]
    backing: Option<Backing>,
    /// Number of CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory range: id=ID,size=SIZE[,at=ADDRESS]; may be repeated, replaces the machine's memory
    #[arg(long, value_name = "ZONE")]
    memory_zone: Vec<String>,
    /// Node: guest_numa_id=N[,cpus=[0-1,3]][,distances=[1@20]][,memory_zones=[ID]]; may be repeated
    #[arg(long, value_name = "NODE")]
    numa: Vec<String>,
    /// Disk: file=PATH or size=SIZE[,name=NAME][,ro][,read_errors=SECTOR][...]; may be repeated, added to
    /// the machine's disks (docs/disks.md)
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// Name under which `inspect`, `check` and `dump` find the guest [default: the machine's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print the machine that would be built and start nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON document on standard output; the guest's console goes to standard error
    #[arg(long)]
    json: bool,
    /// Keep the guest's memory and registers after its end until Ctrl-C or a shutdown request
    #[arg(long)]
    hold: bool,
    /// When to audit
    #[arg(long, value_enum, default_value = "every")]
    audit: AuditArg,
    /// End the guest after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Interrupt controllers; `full` adds PIC, I/O APIC and PIT, which `auto` does for foreign kernels
    #[arg(long, value_enum, default_value = "auto")]
    irqchip: IrqchipArg,
    /// Names of the kernel's addresses for messages: an ELF file or a System.map [default: the kernel]
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    /// Do not restrict the threads to the system calls that they need (docs/isolation.md)
    #[arg(long)]
    no_seccomp: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BootArg {
    /// Linux 64-bit boot protocol
    Linux,
    /// PVH
    Pvh,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PagingArg {
    Auto,
    #[value(name = "4")]
    Four,
    #[value(name = "5")]
    Five,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AuditArg {
    /// When the guest has ended
    Final,
    /// At every checkpoint too
    Every,
    /// Never
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IrqchipArg {
    Auto,
    Split,
    Full,
}

/// A command line of `run` inside another command's.
#[derive(Debug, Parser)]
#[command(name = "run", no_binary_name = true)]
struct RunLine {
    #[command(flatten)]
    args: RunArgs,
}

impl RunArgs {
    /// What `run` would make of `words`, with `more` at the end of the guest's command line. Options that only `run` itself
    /// can follow are refused.
    pub(super) fn parse(words: &[String], more: &str) -> Result<RunArgs, clap::Error> {
        let mut args = RunLine::try_parse_from(words)?.args;
        if args.dry_run || args.json || args.hold {
            return Err(RunLine::command().error(
                ErrorKind::ArgumentConflict,
                "--dry-run, --json and --hold belong to `memvisor run`, not to the guest",
            ));
        }
        args.cmdline = Some(match args.cmdline.take() {
            Some(line) => format!("{line} {more}"),
            None => more.to_owned(),
        });
        Ok(args)
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            boot: self.boot.map(|boot| match boot {
                BootArg::Linux => Boot::Linux,
                BootArg::Pvh => Boot::Pvh,
            }),
            paging: self.paging.map(|paging| match paging {
                PagingArg::Auto => Paging::Auto,
                PagingArg::Four => Paging::Four,
                PagingArg::Five => Paging::Five,
            }),
            memory: self.memory,
            backing: self.backing,
            cpus: self.cpus,
            memory_zone: self.memory_zone.clone(),
            numa: self.numa.clone(),
            disk: self.disk.clone(),
            name: self.name.clone(),
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a, M: Serialize> {
    machine: M,
    levels: u32,
    cmdline: &'a str,
    console: String,
    #[serde(flatten)]
    outcome: &'a Outcome,
    audit: Option<&'a memvisor_report::AuditReport>,
    stats: Stats,
    exit_status: u8,
}

/// A guest that is built and can be started.
pub(super) struct Launch {
    /// The guest; its vCPUs are held.
    pub vm: Arc<Vm>,
    /// Tells the conductor to quit.
    pub sender: Sender<RunEvent>,
    /// For [`conduct`].
    pub events: Receiver<RunEvent>,
    config: VmConfig,
    claim: Arc<Claim>,
}

/// Builds the guest that `args` describe.
pub(super) fn launch(args: &RunArgs, machine: &Machine, console: ConsoleTarget) -> anyhow::Result<Launch> {
    let mut config = VmConfig::from_machine(machine)?;
    config.console = console;
    config.audit = match args.audit {
        AuditArg::Final => AuditMode::Final,
        AuditArg::Every => AuditMode::Every,
        AuditArg::Off => AuditMode::Off,
    };
    config.irqchip = match args.irqchip {
        IrqchipArg::Auto => Irqchip::Auto,
        IrqchipArg::Split => Irqchip::Split,
        IrqchipArg::Full => Irqchip::Full,
    };
    if args.symbols.is_some() {
        config.symbols.clone_from(&args.symbols);
    }
    for remark in memory::remarks(&config.backed) {
        eprintln!("memvisor: warning: {remark}");
    }
    let claim = Arc::new(claim(&config.name, args.name.is_some())?);
    claim.name().clone_into(&mut config.name);
    if args.no_seccomp {
        config.seccomp = Filters::Off;
    } else {
        // Not an owner: the name is given up when the run ends.
        let claim = Arc::downgrade(&claim);
        seccomp::watch(move || {
            if let Some(claim) = claim.upgrade() {
                claim.remove_files();
            }
            restore_terminal();
        })
        .map_err(|source| RunError::Host { step: "watch the filtered threads", source })?;
    }
    let (vm, sender, events) = Vm::build(&config)?;
    // They are in the guest's memory now.
    config.kernel = Cow::default();
    config.initrd = None;
    Ok(Launch { vm: Arc::new(vm), sender, events, config, claim })
}

impl Launch {
    /// Serves the control socket, signals and the clock until it is dropped, which gives the name up.
    pub(super) fn event_loop(
        self,
        args: &RunArgs,
        keyboard: bool,
    ) -> Result<(EventLoop, Receiver<RunEvent>), RunError> {
        let event_loop = EventLoop::start(LoopConfig {
            vm: self.vm,
            claim: Some(self.claim),
            events: self.sender,
            time_limit: args.timeout.map(Duration::from_secs),
            keyboard,
        })
        .map_err(|error| RunError::Loop(error.to_string()))?;
        Ok((event_loop, self.events))
    }
}

/// The machine that `args` describe.
pub(super) fn resolve(args: &RunArgs) -> anyhow::Result<Machine> {
    Ok(machine::resolve(super::import::load(&args.machine, args.scale)?, &args.overrides())?)
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let machine = resolve(args)?;
    let description = machine::describe(&machine)?;
    if args.dry_run {
        out::show(&description, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let console = if args.json { ConsoleTarget::Stderr } else { ConsoleTarget::Stdout };
    let launch = launch(args, &machine, console)?;
    let vm = launch.vm.clone();
    if !args.json {
        out::text(&description)?;
        out::text(&started(&vm, &launch.config, &launch.claim))?;
    }
    let (event_loop, events) = launch.event_loop(args, true)?;

    let mut printed = Ok(());
    let at_end = if args.hold { AtEnd::Hold } else { AtEnd::Return };
    let outcome = conduct(&vm, &events, at_end, |progress| {
        let result = match progress {
            Progress::Checkpoint(record) if args.json => {
                eprintln!("memvisor: {}", record.describe());
                Ok(())
            }
            Progress::Checkpoint(record) => out::text(&format!("memvisor: {}", record.describe())),
            Progress::End(outcome) if args.json => {
                eprintln!("memvisor: {}", outcome.end.describe());
                Ok(())
            }
            Progress::End(outcome) => print_end(&vm, outcome, args.hold),
        };
        if printed.is_ok() {
            printed = result;
        }
    });
    // Gives the terminal back and the name up.
    drop(event_loop);
    let status = outcome.status();
    if args.json {
        out::json(&Document {
            machine: &description,
            levels: vm.facts.levels,
            cmdline: &vm.facts.cmdline,
            console: vm.console().transcript(),
            outcome: &outcome,
            audit: outcome.audit(),
            stats: Stats::of(&vm),
            exit_status: status as u8,
        })?;
    }
    printed?;
    Ok(ExitCode::from(status as u8))
}

/// The name that was asked for; without a wish NAME, NAME-2, NAME-3 and so on, whichever is free.
fn claim(name: &str, wished: bool) -> Result<Claim, SocketError> {
    let mut result = Claim::new(name);
    for number in 2..100 {
        match result {
            Err(SocketError::Taken(_)) if !wished => result = Claim::new(&format!("{name}-{number}")),
            _ => break,
        }
    }
    result
}

fn started(vm: &Vm, config: &VmConfig, claim: &Claim) -> String {
    let (base, len) = vm.entry.image;
    let levels = vm.facts.levels;
    format!(
        "memvisor: kernel {} at {base:#x} (+{len:#x}), entry {:#x}, {levels}-level paging, {} CPUs\n\
         memvisor: command line: {}\n\
         memvisor: control socket {}\n",
        config.kernel_name,
        vm.entry.rip,
        vm.vcpus().len(),
        vm.facts.cmdline,
        claim.path().display(),
    )
}

/// How it ended, audits with findings in full, and the last audit, whose summary is the last line.
fn print_end(vm: &Vm, outcome: &Outcome, hold: bool) -> std::io::Result<()> {
    if !vm.console().at_line_start() {
        out::text(&"")?;
    }
    if let Some(epitaph) = &outcome.epitaph
        && !vm.console().transcript().contains(epitaph.trim())
    {
        out::text(epitaph)?;
    }
    out::text(&format!(
        "memvisor: {} ({} ms, {} audits)",
        outcome.end.describe(),
        outcome.duration.as_millis(),
        outcome.checkpoints.iter().filter(|record| record.audit.is_some()).count(),
    ))?;
    if matches!(outcome.end, End::Stopped { .. } | End::Reset { clean: false })
        && let Some(limit) = vm.host_limit()
    {
        out::text(&format!("memvisor: {limit}"))?;
    }
    if hold && !matches!(outcome.end, End::Stopped { .. }) {
        out::text(&format!("memvisor: held for inspection as {:?}; Ctrl-C ends it", vm.name))?;
    }
    let audits: Vec<_> =
        outcome.checkpoints.iter().filter_map(|record| Some((record, record.audit.as_ref()?))).collect();
    let Some(((_, last), earlier)) = audits.split_last() else {
        let reasons = outcome.checkpoints.iter().find_map(|record| record.no_audit.as_deref());
        return out::text(&format!(
            "memvisor: no audit: {}",
            reasons.unwrap_or(match vm.audit {
                AuditMode::Off => "audits are off (--audit off)",
                _ if vm.entry.foreign => "the kernel is not memvisor's and publishes nothing to audit it by",
                _ => "the guest did not end cleanly",
            })
        ));
    };
    for (record, report) in earlier.iter().filter(|(_, report)| !report.is_clean()) {
        out::text(&format!("\n{}", record.describe()))?;
        out::text(report)?;
    }
    out::text(&"")?;
    out::text(last)?;
    let total = outcome.findings();
    if total != last.count() {
        out::text(&format!("all audits: {total} findings"))?;
    }
    Ok(())
}
