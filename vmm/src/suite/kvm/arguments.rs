//! The command line of a case's memvisor.

use super::super::case::{Case, KvmSetup};
use super::super::{initrd, linux};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::{Setup, parse};

    #[test]
    fn flags_say_what_the_stanza_says() {
        let text = "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\ncmdline = \"seeded=leak\"\n\
                    kvm = { machine = \"tiny\", boot = \"pvh\", paging = \"4\", cpus = 2, disks = [\
                    { name = \"swap\", size_mib = 8 }, { name = \"ro\", size_mib = 1, read_only = true }] }\n";
        let case = parse("boot", text).unwrap().remove(0);
        let Setup::Kvm(setup) = &case.setup else { panic!("not memvisor's") };
        assert_eq!(
            arguments(&case, setup).join(" "),
            "run tiny --json --boot pvh --paging 4 --cpus 2 --cmdline seeded=leak \
             --disk size=8M,name=swap --disk size=1M,name=ro,ro"
        );
    }
}
