//! Memory for tests: bytes from address 0, with builders for tables.

use std::vec::Vec;
use std::{format, string::String};

use crate::Memory;

pub(crate) struct Ram(pub Vec<u8>);

impl Memory for Ram {
    fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        let at = usize::try_from(addr).ok()?;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

impl Ram {
    pub fn new() -> Ram {
        Ram(std::vec![0; 1 << 20])
    }

    pub fn put(&mut self, addr: usize, bytes: &[u8]) {
        self.0[addr..addr + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a table with a right length and checksum.
    pub fn table(&mut self, addr: usize, signature: &[u8; 4], body: &[u8]) {
        let len = u32::try_from(36 + body.len()).unwrap();
        let mut table = Vec::from(signature.as_slice());
        table.extend(len.to_le_bytes());
        table.resize(36, 0);
        table.extend(body);
        table[9] = 0_u8.wrapping_sub(table.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte)));
        self.put(addr, &table);
    }

    /// Writes an RSDP of revision 2 and an XSDT at 0x2000 that names `tables`.
    pub fn root(&mut self, addr: usize, tables: &[u64]) {
        let mut rsdp = Vec::from(b"RSD PTR ".as_slice());
        rsdp.resize(36, 0);
        rsdp[15] = 2;
        rsdp[20..24].copy_from_slice(&36_u32.to_le_bytes());
        rsdp[24..32].copy_from_slice(&0x2000_u64.to_le_bytes());
        rsdp[8] = 0_u8.wrapping_sub(rsdp[..20].iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte)));
        rsdp[32] = 0_u8.wrapping_sub(rsdp.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte)));
        self.put(addr, &rsdp);
        let body: Vec<u8> = tables.iter().flat_map(|table| table.to_le_bytes()).collect();
        self.table(0x2000, b"XSDT", &body);
    }
}

/// Runs `f` and returns its result with what it said.
pub(crate) fn heard<T>(f: impl FnOnce(crate::Say<'_>) -> T) -> (T, String) {
    let mut text = String::new();
    let result = f(&mut |line| {
        text.push_str(&format!("{line}\n"));
    });
    (result, text)
}
