//! Bed kvm: memvisor itself, as a process of its own, watched through its output and its control socket.
//!
//! `memvisor run --json` prints one JSON document with the guest's console and the audits of all checkpoints. With probes the guest is started with `--hold`: ended, but with its memory and
//! registers kept, until the probes are done and ask for its end.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use memvisor_inspect::{CpuRegisters, Facts, MappedMemory};

mod document;
mod live;

pub use document::{ExitedWith, observed, usage};

use super::bed::Observed;
use super::case::{Case, KvmSetup, Need, Setup};
use super::command::{Finished, memvisor, program};
use super::initrd;
use super::linux;
use super::outcome::Subcase;
use super::probes::{Control, Held};
use super::prompt;
use super::samples::{Recorder, Series};
use super::stuck;
use crate::control::{Client, api::VmInfo};
use crate::machine::Backing;
use crate::memory::{free_huge_pages, transparent_refusal};
use crate::run::VmState;
use crate::vcpu::{HostOffer, KvmOpenError, emulates_ring0, open_kvm, second_stage_levels};

/// How often a guest is asked whether it is held.
const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end after its guest did.
const ENDING: Duration = Duration::from_secs(20);
/// Output kept of a process; more is read and dropped.
const OUTPUT_MAX: u64 = 64 << 20;

/// What this host's KVM can do, as far as cases may need it.
#[derive(Debug)]
pub struct Host {
    la57: bool,
    pages_1g: bool,
    second_stage: bool,
    pool_2m: u64,
    pool_1g: u64,
    thp: bool,
    linux: Result<(), &'static str>,
}

impl Host {
    /// Asks KVM.
    ///
    /// # Errors
    /// Why this bed cannot be used here.
    pub fn probe() -> Result<Host, KvmOpenError> {
        let kvm = open_kvm()?;
        let offer = HostOffer::probe(&kvm, true)?;
        let linux = match linux::folder() {
            None => Err("no Linux to boot: MEMVISOR_LINUX names no folder (docs/linux-guest.md)"),
            Some(_) if emulates_ring0(&kvm) => Err("this KVM emulates ring 0 and does not run Linux"),
            Some(_) => Ok(()),
        };
        let second_stage = second_stage_levels() > 0;
        Ok(Host {
            la57: offer.la57,
            pages_1g: offer.pages_1g,
            second_stage,
            pool_2m: free_huge_pages(Backing::Huge2M),
            pool_1g: free_huge_pages(Backing::Huge1G),
            thp: transparent_refusal().is_none(),
            linux,
        })
    }

    /// Gives a case the memory that it is meant to have on this host.
    pub fn fit(&self, case: &mut Case) {
        if let Setup::Kvm(setup) = &mut case.setup
            && !self.second_stage
            && setup.memory_shadowed.is_some()
        {
            setup.memory.clone_from(&setup.memory_shadowed);
        }
    }

    /// Why a case with these needs means nothing here; `None` if all are met.
    pub fn lacks(&self, needs: &[Need]) -> Option<&'static str> {
        needs.iter().find_map(|need| match need {
            Need::La57 => (!self.la57).then_some("this KVM does not run guests at 5 levels"),
            Need::NoLa57 => self.la57.then_some("this KVM does run guests at 5 levels"),
            Need::Pages1g => (!self.pages_1g).then_some("this KVM has no 1 GiB pages for guests"),
            Need::SecondStage => (!self.second_stage)
                .then_some("this KVM shadows the guest's page tables instead of walking a second stage"),
            Need::Hugetlb2m => {
                (self.pool_2m < 64).then_some("the host's pool has not 64 free pages of 2 MiB")
            }
            Need::Hugetlb1g => (self.pool_1g < 2).then_some("the host's pool has not 2 free pages of 1 GiB"),
            Need::Thp => (!self.thp).then_some("the host gives memory files no transparent huge pages"),
            Need::Linux => self.linux.err(),
        })
    }
}

/// Runs a case; `kernel` instead of the bundled guest. `watched`, with samples of its memory, unless it is stopped, probed or talked to.
///
/// # Errors
/// What kept memvisor from starting, or from being understood.
pub fn run(case: &Case, kernel: Option<&Path>, deadline: Instant, watched: bool) -> anyhow::Result<Observed> {
    if let Setup::Kvm(setup) = &case.setup
        && !case.dialogue.is_empty()
    {
        return prompt::run(case, setup, deadline);
    }
    if case.expect.live > 0 {
        return live::run(case, kernel, deadline);
    }
    if case.expect.probes.is_empty() {
        let name = unique_name();
        let mut process = Process::start(case, kernel, &["--name", &name])?;
        let recorder = watched.then(|| watch(name.clone()));
        let ended = process.wait(deadline);
        let calls = ended.is_none().then(|| stuck::asked(&name, kernel));
        let samples = recorder.map_or_else(Series::default, Recorder::end);
        let mut observed = process.observe(ended, case)?;
        observed.samples = samples;
        observed.problems.extend(calls);
        if let Setup::Kvm(setup) = &case.setup
            && setup.linux.is_some()
        {
            let outcome = linux::examine(setup, &observed.console)?;
            observed.probes.push(Subcase { name: linux::NAME.to_owned(), outcome });
        }
        return Ok(observed);
    }
    let vm = HeldVm::start(case, kernel, deadline)?;
    let mut probes = Vec::new();
    // A guest that did not come to a clean end has nothing to show to the probes; the run says why.
    if vm.held.is_some() {
        for probe in &case.expect.probes {
            let Some(parts) = &vm.held else { break };
            let mut held = Held {
                memory: &parts.memory,
                root_gpa: parts.root_gpa,
                registers: &parts.registers,
                console: &parts.console,
                facts: &parts.facts,
                control: Control::Kvm(&vm),
            };
            let outcome = probe.run(&mut held);
            probes.push(Subcase { name: probe.name().to_owned(), outcome });
        }
    }
    let mut observed = vm.finish()?;
    observed.probes = probes;
    Ok(observed)
}

/// Begins to look at the guest of that name, once it runs.
fn watch(name: String) -> Recorder {
    let mut client = None;
    Recorder::when(move || {
        if client.is_none() {
            client = Client::find(Some(&name)).ok();
        }
        let client = client.as_ref()?;
        let root_gpa = client.info().ok()?.root_gpa?;
        Some((client.map_memory().ok()?, root_gpa))
    })
}

/// A name for a guest that no other has.
fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A guest that has ended and is kept for readers.
#[derive(Debug)]
pub struct HeldVm {
    case: Case,
    kernel: Option<PathBuf>,
    deadline: Instant,
    process: Process,
    client: Option<Client>,
    /// `None` if it ended before it could be held.
    held: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    memory: MappedMemory,
    root_gpa: u64,
    registers: Vec<CpuRegisters>,
    facts: Facts,
    console: String,
}

impl HeldVm {
    /// Starts the case's guest and waits until it is held, or gone.
    ///
    /// # Errors
    /// If memvisor does not start, or its guest is not held before `deadline`.
    pub fn start(case: &Case, kernel: Option<&Path>, deadline: Instant) -> anyhow::Result<HeldVm> {
        let name = unique_name();
        let process = Process::start(case, kernel, &["--hold", "--name", &name])?;
        let kernel = kernel.map(Path::to_path_buf);
        let mut vm = HeldVm { case: case.clone(), kernel, deadline, process, client: None, held: None };
        loop {
            if vm.process.child.try_wait()?.is_some() {
                return Ok(vm);
            }
            if Instant::now() >= deadline {
                let calls = stuck::asked(&name, vm.kernel());
                bail!("the guest did not end within {} s; {calls}", case.timeout.as_secs());
            }
            if let Ok(client) = Client::find(Some(&name))
                && let Ok(info) = client.info()
                && info.state == VmState::Held
            {
                let root_gpa = info.root_gpa.context("the guest announced no root descriptor")?;
                vm.held = Some(Parts {
                    memory: client.map_memory()?,
                    root_gpa,
                    registers: client.registers()?,
                    facts: client.facts()?,
                    console: client.console()?,
                });
                vm.client = Some(client);
                return Ok(vm);
            }
            std::thread::sleep(POLL);
        }
    }

    /// The case it runs.
    pub const fn case(&self) -> &Case {
        &self.case
    }

    /// The kernel it runs instead of the bundled one.
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// When the case's time is over.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Its name for `--vm`.
    ///
    /// # Errors
    /// If it ended before it could be held.
    pub fn name(&self) -> anyhow::Result<&str> {
        self.client.as_ref().map(Client::name).context("the guest ended before it could be examined")
    }

    /// Its memory and the address of its root descriptor.
    ///
    /// # Errors
    /// If it ended before it could be held.
    pub fn memory(&self) -> anyhow::Result<(&MappedMemory, u64)> {
        let parts = self.held.as_ref().context("the guest ended before it could be examined")?;
        Ok((&parts.memory, parts.root_gpa))
    }

    /// What its VMM says about it now.
    ///
    /// # Errors
    /// If the guest is gone.
    pub fn info(&self) -> anyhow::Result<VmInfo> {
        let client = self.client.as_ref().context("the guest ended before it could be examined")?;
        Ok(client.info()?)
    }

    /// KVM's own translation of each address, by CPU 0.
    ///
    /// # Errors
    /// If the guest is gone.
    pub fn translate(&self, addresses: &[u64]) -> anyhow::Result<Vec<Option<u64>>> {
        let client = self.client.as_ref().context("the guest ended before it could be examined")?;
        Ok(client.translate(0, addresses)?.into_iter().map(|answer| answer.gpa).collect())
    }

    /// Runs `memvisor WORDS --vm NAME` on it.
    ///
    /// # Errors
    /// If the guest is gone or the command cannot be started.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Finished> {
        memvisor(&[words, &["--vm", self.name()?]].concat())
    }

    /// Lets it go and says what its run came to.
    ///
    /// # Errors
    /// If it does not end, or its output cannot be understood.
    pub fn finish(mut self) -> anyhow::Result<Observed> {
        if let Some(client) = &self.client {
            client.shutdown()?;
        }
        let ended = self.process.wait(Instant::now() + ENDING);
        self.process.observe(ended, &self.case)
    }
}

/// A memvisor process; dropped, it is gone.
#[derive(Debug)]
struct Process {
    child: Child,
    output: Option<JoinHandle<Vec<u8>>>,
    messages: Option<JoinHandle<Vec<u8>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; then both say so, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(case: &Case, kernel: Option<&Path>, more: &[&str]) -> anyhow::Result<Process> {
        let Setup::Kvm(setup) = &case.setup else { bail!("a case without its table kvm") };
        // A stock Linux is not replaced by another build of memvisor's kernel.
        let kernel = kernel.filter(|_| setup.linux.is_none());
        let mut child = Command::new(program()?)
            .args(arguments(case, setup))
            .args(more)
            .args(kernel.map(|path| ["--kernel".as_ref(), path.as_os_str()]).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start memvisor run")?;
        let output = child.stdout.take().map(pump);
        let messages = child.stderr.take().map(pump);
        Ok(Process { child, output, messages })
    }

    /// The exit code; `None` if time is over.
    fn wait(&mut self, deadline: Instant) -> Option<ExitedWith> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(ExitedWith(status.code())),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL / 5),
                _ => return None,
            }
        }
    }

    /// What came of it; it is killed if it did not end.
    fn observe(mut self, ended: Option<ExitedWith>, case: &Case) -> anyhow::Result<Observed> {
        if ended.is_none() {
            // Its pipes end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let text = |thread: Option<JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (output, messages) = (text(self.output.take()), text(self.messages.take()));
        observed(ended, &output, messages, case)
    }
}

/// Arguments of a memvisor that runs a case's machine, with `--json`.
pub fn arguments(case: &Case, setup: &KvmSetup) -> Vec<String> {
    let mut args = vec!["run".to_owned(), setup.machine.clone(), "--json".to_owned()];
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            args.extend([flag.to_owned(), value]);
        }
    };
    add("--boot", setup.boot.clone());
    add("--paging", setup.paging.clone());
    add("--memory", setup.memory.clone());
    add("--backing", setup.backing.clone());
    add("--scale", setup.scale.clone());
    add("--cpus", setup.cpus.map(|cpus| cpus.to_string()));
    add("--cmdline", (!case.cmdline.is_empty()).then(|| case.cmdline.clone()));
    add("--initrd", case.initrd.as_deref().map(|name| initrd::path(name).display().to_string()));
    for image in &case.images {
        let disk = format!("file={},name={}", image.path.display(), image.name);
        args.extend(["--disk".to_owned(), disk]);
    }
    for disk in &setup.disks {
        let read_only = if disk.read_only { ",ro" } else { "" };
        let mut flag = format!("size={}M,name={}{read_only}", disk.size_mib, disk.name);
        for (key, sectors) in [("read_errors", &disk.read_errors), ("write_errors", &disk.write_errors)] {
            if !sectors.is_empty() {
                let sectors: Vec<String> = sectors.iter().map(u64::to_string).collect();
                flag += &format!(",{key}=[{}]", sectors.join(","));
            }
        }
        args.extend(["--disk".to_owned(), flag]);
    }
    if let Some(image) = &setup.linux {
        args.extend(linux::arguments(image));
    }
    args
}

/// Reads a pipe to its end on a thread of its own, so that its writer never blocks.
fn pump(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read is not there; the run is judged by what is.
        let _ = (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::ExitStatus;
    use crate::suite::bed::{Ended, judge};
    use crate::suite::case::parse;
    use crate::suite::outcome::Outcome;

    fn case() -> Case {
        let text = "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\ncmdline = \"seeded=leak\"\n\
                    kvm = { machine = \"tiny\", boot = \"pvh\", paging = \"4\", cpus = 2, disks = [\
                    { name = \"swap\", size_mib = 8 }, { name = \"ro\", size_mib = 1, read_only = true }] }\n";
        parse("boot", text).unwrap().remove(0)
    }

    fn end(code: ExitStatus, output: &str) -> Observed {
        observed(Some(ExitedWith(Some(code as i32))), output, "error: why".to_owned(), &case()).unwrap()
    }

    const CLEAN: &str = r#"{"console": "hello\n", "end": {"kind": "exit", "code": 0}, "checkpoints": [{"name": "end",
        "no_audit": null, "audit": {"rules": [{"name": "owner.none", "findings": 0, "skipped": null}],
        "frames_audited": 8, "findings": []}}]}"#;

    #[test]
    fn flags_say_what_the_stanza_says() {
        let case = case();
        let Setup::Kvm(setup) = &case.setup else { panic!("not memvisor's") };
        assert_eq!(
            arguments(&case, setup).join(" "),
            "run tiny --json --boot pvh --paging 4 --cpus 2 --cmdline seeded=leak \
             --disk size=8M,name=swap --disk size=1M,name=ro,ro"
        );
    }

    #[test]
    fn a_host_is_told_what_it_lacks_for_a_case() {
        let host = Host {
            la57: true,
            pages_1g: false,
            second_stage: true,
            pool_2m: 64,
            pool_1g: 0,
            thp: true,
            linux: Ok(()),
        };
        assert_eq!(host.lacks(&[Need::Hugetlb2m, Need::Thp]), None);
        assert!(host.lacks(&[Need::Hugetlb1g]).is_some_and(|reason| reason.contains("1 GiB")));
        assert_eq!(host.lacks(&[Need::La57, Need::SecondStage]), None);
        assert!(host.lacks(&[Need::La57, Need::Pages1g]).unwrap().contains("1 GiB"));
        assert!(host.lacks(&[Need::NoLa57]).unwrap().contains("does run"));
        let shadow = Host { la57: false, second_stage: false, linux: Err("none"), ..host };
        assert!(shadow.lacks(&[Need::SecondStage]).unwrap().contains("shadows"));
        assert_eq!(shadow.lacks(&[Need::NoLa57]), None);
    }

    #[test]
    fn a_case_has_less_memory_only_where_kvm_shadows() {
        let host = |second_stage| Host {
            la57: false,
            pages_1g: false,
            second_stage,
            pool_2m: 0,
            pool_1g: 0,
            thp: false,
            linux: Ok(()),
        };
        let memory = |host: Host, stanza: &str| {
            let text = format!(
                "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\nkvm = {{ machine = \"default\"{stanza} }}\n"
            );
            let mut case = parse("boot", &text).unwrap().remove(0);
            host.fit(&mut case);
            let Setup::Kvm(setup) = case.setup else { panic!("not on kvm") };
            setup.memory
        };
        let both = r#", memory = "96M", memory_shadowed = "48M""#;
        assert_eq!(memory(host(false), both).as_deref(), Some("48M"));
        assert_eq!(memory(host(true), both).as_deref(), Some("96M"));
        assert_eq!(memory(host(false), r#", memory = "96M""#).as_deref(), Some("96M"));
        assert_eq!(memory(host(true), r#", memory_shadowed = "48M""#), None);
    }

    #[test]
    fn the_document_says_console_and_audits() {
        let observed = end(ExitStatus::Clean, CLEAN);
        assert_eq!(observed.ended, Ended::Clean);
        assert_eq!(observed.console, "hello\n");
        assert_eq!((observed.audits[0].rules, observed.audits[0].frames), (1, 8));
    }

    #[test]
    fn exits_and_emulated_instructions_are_those_of_all_vcpus() {
        let stats = r#""stats": {"uptime_us": 1, "unclaimed_accesses": 0, "kvm": {"insn_emulation": 70}, "vcpus": [
            {"index": 0, "state": "stopped", "exits": {"hlt": 2, "io_out": 3}},
            {"index": 1, "state": "stopped", "exits": {"hlt": 1}}]}, "console"#;
        let usage = end(ExitStatus::Clean, &CLEAN.replacen("\"console", stats, 1)).usage;
        assert_eq!(usage.describe().as_deref(), Some("6 exits (hlt 3, io_out 3), 70 instructions emulated"));
    }

    #[test]
    fn an_exit_code_that_the_document_contradicts_is_not_clean() {
        assert!(matches!(end(ExitStatus::Findings, CLEAN).ended, Ended::Other(_)));
        let findings = CLEAN.replace("\"findings\": 0", "\"findings\": 3");
        assert!(matches!(end(ExitStatus::Clean, &findings).ended, Ended::Other(_)));
        assert_eq!(end(ExitStatus::Findings, &findings).ended, Ended::Clean);
    }

    #[test]
    fn a_refusal_needs_no_document() {
        assert_eq!(end(ExitStatus::BadInput, "").ended, Ended::Refused);
        assert!(matches!(end(ExitStatus::Clean, "").ended, Ended::Other(_)));
        let killed = observed(Some(ExitedWith(None)), CLEAN, String::new(), &case()).unwrap();
        assert!(matches!(killed.ended, Ended::Other(_)));
        let late = observed(None, "", "hello".to_owned(), &case()).unwrap();
        assert_eq!(late.console, "hello");
        assert!(matches!(late.ended, Ended::Other(text) if text.contains("180 s")));
        assert!(observed(Some(ExitedWith(Some(0))), "no json", String::new(), &case()).is_err());
    }

    #[test]
    fn a_vcpu_that_could_not_go_on_speaks_before_the_console() {
        let failed = r#"{"console": "one\n\n two\nthree\n", "checkpoints": [], "end":
            {"kind": "failed", "failure": {"cpu": 1, "reason": "triple fault", "guest_fault": true,
             "registers": {"rip": 18446744071578845184}, "symbol": "start+0x10", "hint": null}}}"#;
        let observed = end(ExitStatus::GuestFailed, failed);
        let Outcome::Failed(reasons) = judge(&case(), &observed, &[]) else { panic!("not a failure") };
        let lines: Vec<&str> = reasons[0].lines().collect();
        assert_eq!(
            lines[0],
            "expected a clean power-off, got: triple fault on CPU 1 at rip 0xffffffff81000000 in start+0x10 \
             (memvisor exited with 5, findings: false)"
        );
        assert_eq!(lines[1..], ["the console ends:", "  one", "  two", "  three"]);
    }

    #[test]
    fn a_memvisor_that_died_is_quoted_by_its_last_words() {
        let messages = (0..100).map(|n| format!("line {n}\n")).collect::<String>() + "memvisor: no memory\n";
        let observed = observed(Some(ExitedWith(Some(6))), "", messages, &case()).unwrap();
        let Ended::Other(text) = observed.ended else { panic!("no failure") };
        assert!(text.contains("exited with 6") && text.ends_with("line 99 / memvisor: no memory"), "{text}");
        assert!(!text.contains("line 90"), "{text}");
    }

    #[test]
    fn a_run_that_was_stopped_names_who_did_it() {
        let stopped = r#"{"console": "", "checkpoints": [], "end": {"kind": "stopped", "by": "SIGINT"}}"#;
        let Ended::Other(text) = end(ExitStatus::Stopped, stopped).ended else { panic!("no failure") };
        assert!(text.starts_with("stopped by SIGINT (memvisor exited with 7"), "{text}");
    }

    #[test]
    fn a_guest_that_gave_up_is_named() {
        let panicked = CLEAN.replace("\"code\": 0", "\"code\": 101");
        assert_eq!(
            end(ExitStatus::GuestFailed, &panicked).ended,
            Ended::Guest(101, "the guest kernel panicked")
        );
    }

    #[test]
    fn a_checkpoint_without_an_audit_is_a_problem() {
        let none = r#"{"console": "", "end": {"kind": "power_off"},
            "checkpoints": [{"name": "smp", "audit": null, "no_audit": "off"}]}"#;
        assert!(end(ExitStatus::Clean, none).problems[0].contains("smp: off"));
    }
}
