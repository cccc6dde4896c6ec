//! The machines of images/machines, part of the binary so that it needs no files beside it.

/// A bundled machine file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundled {
    pub name: &'static str,
    pub path: &'static str,
    pub text: &'static str,
}

macro_rules! bundle {
    ($($name:literal),* $(,)?) => {
        /// All bundled machines, the default one first.
        pub(super) const BUNDLED: &[Bundled] = &[$(Bundled {
            name: $name,
            path: concat!("images/machines/", $name, ".toml"),
            text: include_str!(concat!("../../../images/machines/", $name, ".toml")),
        }),*];
    };
}

bundle!(
    "default",
    "tiny",
    "numa4",
    "disks",
    "dma",
    "sparse",
    "hostile",
    "la57",
    "la57-optional",
    "real-laptop",
    "real-cloud",
    "real-server",
    "real-chiplet",
);

/// Name and description of every bundled machine, the default one first.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUNDLED.iter().map(|machine| (machine.name, description(machine.text)))
}

/// The file's `description = "..."`, without a TOML parse: listing must not fail on a broken file.
fn description(text: &'static str) -> &'static str {
    text.lines().find_map(|line| line.strip_prefix("description = \"")?.strip_suffix('"')).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_directory_is_bundled_and_described() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/machines");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .expect("images/machines is in the repository")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|file| file.strip_suffix(".toml").map(str::to_owned))
            .collect();
        files.sort();
        let mut bundled: Vec<&str> = names().map(|(name, _)| name).collect();
        bundled.sort_unstable();
        assert_eq!(files, bundled);
        for (name, description) in names() {
            assert!(!description.is_empty(), "{name} has no description line");
        }
    }
}
