//! Huge pages of the host: its pools (hugetlbfs), and its policy for transparent ones in memory files.
//!
//! Linux: Documentation/admin-guide/mm/hugetlbpage.rst, transhuge.rst.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::MemoryError;
use crate::machine::{Backed, Backing, Range};

const MM: &str = "/sys/kernel/mm";

/// Refuses what the host's pools cannot give, before anything is made.
///
/// # Errors
/// [`MemoryError::HugePages`], [`MemoryError::NoPool`].
pub(super) fn check(backed: &[Backed]) -> Result<(), MemoryError> {
    let mut needed: BTreeMap<Backing, u64> = BTreeMap::new();
    for Backed { range, backing } in backed.iter().filter(|backed| backed.backing.is_pooled()) {
        *needed.entry(*backing).or_default() += range.len / backing.page_size();
    }
    for (backing, needed) in needed {
        let pool = Pool::of(Path::new(MM), backing)?;
        if pool.available() < needed {
            return Err(pool.refuse(needed));
        }
    }
    Ok(())
}

/// The error for a pool that somebody else emptied since [`check`].
pub(super) fn exhausted(backing: Backing, range: Range) -> MemoryError {
    match Pool::of(Path::new(MM), backing) {
        Ok(pool) => pool.refuse(range.len / backing.page_size()),
        Err(error) => error,
    }
}

/// What the host will not do for these backings although it starts the guest: one line each.
pub fn remarks(backed: &[Backed]) -> Vec<String> {
    let thp = backed.iter().any(|backed| backed.backing == Backing::Transparent);
    let refusal = if thp { transparent_refusal() } else { None };
    refusal.into_iter().collect()
}

/// Pages of the host's pool that a machine with this backing may take now.
pub fn free_huge_pages(backing: Backing) -> u64 {
    Pool::of(Path::new(MM), backing).map_or(0, |pool| pool.available())
}

/// Why the host gives memory files no transparent huge pages of 2 MiB even where they are asked for.
pub fn transparent_refusal() -> Option<String> {
    policy_refusal(Path::new(MM))
}

#[derive(Debug)]
struct Pool {
    backing: Backing,
    folder: PathBuf,
    total: u64,
    free: u64,
    /// Of the free ones, those that somebody has reserved and not touched.
    reserved: u64,
    /// What the kernel would still add by itself.
    overcommit: u64,
}

impl Pool {
    fn of(mm: &Path, backing: Backing) -> Result<Pool, MemoryError> {
        let folder = mm.join(format!("hugepages/hugepages-{}kB", backing.page_size() >> 10));
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (Some(total), Some(free), Some(reserved)) =
            (read("nr_hugepages"), read("free_hugepages"), read("resv_hugepages"))
        else {
            return Err(MemoryError::NoPool { backing });
        };
        let surplus = read("surplus_hugepages").unwrap_or(0);
        let overcommit = read("nr_overcommit_hugepages").unwrap_or(0).saturating_sub(surplus);
        Ok(Pool { backing, total, free, reserved, overcommit, folder })
    }

    const fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved).saturating_add(self.overcommit)
    }

    fn refuse(&self, needed: u64) -> MemoryError {
        let available = self.available();
        MemoryError::HugePages {
            backing: self.backing,
            needed,
            available,
            // The pool has to grow by what is missing; whoever wants it whole writes the whole.
            write: self.total.saturating_add(needed.saturating_sub(available)),
            file: self.folder.join("nr_hugepages"),
        }
    }
}

fn policy_refusal(mm: &Path) -> Option<String> {
    let folder = mm.join("transparent_hugepage");
    let chosen = |file: &Path| {
        let text = fs::read_to_string(file).ok()?;
        let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
        Some(word.to_owned())
    };
    let global = folder.join("shmem_enabled");
    let Some(policy) = chosen(&global) else {
        return Some(
            "backing \"thp\": this host's kernel has no transparent huge pages; RAM gets pages of 4 KiB"
                .into(),
        );
    };
    let by_size = folder.join("hugepages-2048kB/shmem_enabled");
    let (file, policy) = match (policy.as_str(), chosen(&by_size)) {
        ("deny" | "force", _) | (_, None) => (global, policy),
        (_, Some(own)) if own == "inherit" => (global, policy),
        (_, Some(own)) => (by_size, own),
    };
    matches!(policy.as_str(), "never" | "deny").then(|| {
        format!(
            "backing \"thp\": {} is \"{policy}\", so RAM gets pages of 4 KiB; allow it with: echo advise | sudo tee {}",
            file.display(),
            file.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("temporary directory");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
            fs::write(path, text).expect("writes");
        }
        folder
    }

    #[test]
    fn a_pool_offers_what_is_free_and_not_reserved_and_what_the_kernel_may_add() {
        let base = "hugepages/hugepages-2048kB";
        let file = |name: &str| format!("{base}/{name}");
        let numbers = [("nr_hugepages", "10\n"), ("free_hugepages", "6\n"), ("resv_hugepages", "4\n")];
        let files: Vec<(String, &str)> = numbers.iter().map(|(name, text)| (file(name), *text)).collect();
        let list: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let folder = sys(&list);
        let pool = Pool::of(folder.path(), Backing::Huge2M).expect("a pool");
        assert_eq!(pool.available(), 2);
        let text = pool.refuse(16).to_string();
        for words in ["hugetlb-2m", "16 huge pages of 2 MiB", "2 free", "echo 24 |", "nr_hugepages"] {
            assert!(text.contains(words), "{words:?} in {text}");
        }
        fs::write(folder.path().join(file("nr_overcommit_hugepages")), "5").expect("writes");
        fs::write(folder.path().join(file("surplus_hugepages")), "2").expect("writes");
        assert_eq!(Pool::of(folder.path(), Backing::Huge2M).expect("a pool").available(), 5);
        let text = Pool::of(folder.path(), Backing::Huge1G).expect_err("no such pool").to_string();
        assert!(text.contains("1 GiB"), "{text}");
    }

    #[test]
    fn the_policy_for_memory_files_is_the_one_of_the_size_if_it_does_not_inherit() {
        let (global, own) =
            ("transparent_hugepage/shmem_enabled", "transparent_hugepage/hugepages-2048kB/shmem_enabled");
        let never = "always within_size advise [never] deny force";
        let advise = "always within_size [advise] never deny force";
        let refused = |files: &[(&str, &str)]| policy_refusal(sys(files).path());
        assert!(refused(&[]).is_some_and(|text| text.contains("no transparent huge pages")));
        assert!(refused(&[(global, never)]).is_some_and(|text| text.contains("\"never\"")));
        assert_eq!(refused(&[(global, advise)]), None);
        let inherit = "always [inherit] within_size advise never";
        assert!(refused(&[(global, never), (own, inherit)]).is_some());
        assert_eq!(refused(&[(global, never), (own, "[always] inherit within_size advise never")]), None);
        assert!(refused(&[(global, advise), (own, "always inherit within_size advise [never]")]).is_some());
        let deny = "always within_size advise never [deny] force";
        assert!(refused(&[(global, deny), (own, "[always] inherit")]).is_some());
    }
}
