//! Initial file systems of cases: files made on the host, beside this program.
//!
//! `MEMVISOR_INITRDS` names their folder; without it, it is `images` where `memvisor test` was started. `make initrds`
//! makes them.

use std::path::PathBuf;

/// Variable that names the folder.
const FOLDER: &str = "MEMVISOR_INITRDS";

/// Where the archive called `name` is, or would be.
pub fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os(FOLDER).map_or_else(|| PathBuf::from("images"), PathBuf::from);
    std::path::absolute(folder.join(name)).unwrap_or_else(|_| folder.join(name))
}

/// Why a case that needs `name` cannot run here; `None` if it can.
pub fn missing(name: &str) -> Option<String> {
    let path = path(name);
    (!path.is_file()).then(|| {
        format!("no {}: `make initrds` makes it, or {FOLDER} names the folder it is in", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_its_maker() {
        let reason = missing("no-such-archive.cpio").expect("nobody made it");
        assert!(reason.contains("no-such-archive.cpio") && reason.contains("make initrds"), "{reason}");
        assert!(path("x.cpio").is_absolute());
    }
}
