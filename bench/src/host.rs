//! The machine that the numbers are from.

use std::fs;

/// Processor, memory, kernel, load and date, as far as the machine tells.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(String::new, |line| line.trim_start_matches([' ', '\t', ':']).to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    let version = release.trim().split('-').next().unwrap_or_default().to_owned();
    let load = read("/proc/loadavg");
    let date = std::process::Command::new("date").args(["-u", "+%F"]).output();
    let date =
        date.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    format!(
        "{date}: {} CPUs ({}), {} GiB of RAM, Linux {version}, load {} before",
        cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        field(&cpuinfo, "model name"),
        kib >> 20,
        load.split(' ').next().unwrap_or_default(),
    )
}
