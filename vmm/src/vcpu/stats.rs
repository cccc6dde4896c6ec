//! KVM's own statistics of a VM or of a vCPU (Linux: Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::OnceLock,
};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;
/// Descriptors and lengths past these are not KVM's.
const DESCRIPTORS_MAX: u32 = 4096;
const NAME_MAX: u32 = 1024;
/// Bytes of a descriptor before its name.
const DESCRIPTOR_BYTES: usize = 16;

/// The statistics file of a VM or a vCPU.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Read by who asks first: each name takes a system call.
    fields: OnceLock<Vec<(String, u64)>>,
}

impl KvmStats {
    /// Opens the statistics of `vm_or_vcpu`, a descriptor of KVM. For a vCPU before it runs: KVM lets the
    /// call wait for the end of KVM_RUN.
    ///
    /// # Errors
    /// If this KVM has none (Linux before 5.14).
    pub fn open(vm_or_vcpu: &impl AsRawFd) -> io::Result<KvmStats> {
        // SAFETY: the request takes no argument and touches no memory of this process.
        let fd = unsafe { libc::ioctl(vm_or_vcpu.as_raw_fd(), KVM_GET_STATS_FD) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the request returns a new descriptor that nobody else has.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(KvmStats { file, fields: OnceLock::new() })
    }

    /// Names and values now. Histograms are left out.
    ///
    /// # Errors
    /// If the file cannot be read, or is not in the documented form.
    pub fn read(&self) -> io::Result<Vec<(String, u64)>> {
        let fields = match self.fields.get() {
            Some(fields) => fields,
            None => {
                let fields = read_fields(&self.file)?;
                self.fields.get_or_init(|| fields)
            }
        };
        fields
            .iter()
            .map(|(name, offset)| {
                let mut word = [0; 8];
                self.file.read_exact_at(&mut word, *offset)?;
                Ok((name.clone(), u64::from_ne_bytes(word)))
            })
            .collect()
    }
}

/// Names of single values, and where each is in the file.
fn read_fields(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0)?;
    let [name_size, count, _, descriptors_at, data_at] = [4, 8, 12, 16, 20].map(|at| word(&header, at));
    if name_size > NAME_MAX || count > DESCRIPTORS_MAX {
        return Err(io::Error::other(format!("{count} statistics with names of {name_size} bytes")));
    }
    let name_size = usize::try_from(name_size).unwrap_or(0);
    let mut fields = Vec::new();
    let mut descriptor = vec![0; DESCRIPTOR_BYTES + name_size];
    for index in 0..u64::from(count) {
        let at = u64::from(descriptors_at) + index * descriptor.len() as u64;
        file.read_exact_at(&mut descriptor, at)?;
        let values = word(&descriptor, 4) >> 16;
        let offset = word(&descriptor, 8);
        let name = descriptor.get(DESCRIPTOR_BYTES..).unwrap_or(&[]);
        let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
        if values == 1 {
            fields.push((String::from_utf8_lossy(name).into_owned(), u64::from(data_at) + u64::from(offset)));
        }
    }
    Ok(fields)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn single_values_are_read_and_histograms_left_out() {
        let mut file = tempfile::tempfile().expect("temporary file");
        let mut bytes = Vec::new();
        // flags, name_size, count, id, descriptors, data
        for value in [0u32, 8, 2, 24, 32, 80] {
            bytes.extend(value.to_ne_bytes());
        }
        bytes.extend(b"kvm-1\0\0\0");
        for (name, values, offset) in [(b"pages\0\0\0", 1u16, 0u32), (b"histo\0\0\0", 4, 8)] {
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(0u16.to_ne_bytes());
            bytes.extend(values.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(name);
        }
        bytes.extend(77u64.to_ne_bytes());
        file.write_all(&bytes).expect("writes");
        let stats = KvmStats { file, fields: OnceLock::new() };
        assert_eq!(stats.read().expect("reads"), [("pages".to_owned(), 77)]);
    }
}
