//! Names of kernel addresses: from an ELF file's symbol table or a System.map.

use std::fmt;

use rustc_demangle::demangle;

/// Addresses and names, ascending.
#[derive(Clone, Debug, Default)]
pub struct Symbols(Vec<(u64, String)>);

/// An address by the symbol before it; as text, with the name as it is in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The symbol.
    pub name: &'a str,
    /// Bytes after it.
    pub offset: u64,
}

/// An address this far from a symbol is not part of it.
const OFFSET_MAX: u64 = 1 << 20;
const SHT_SYMTAB: u32 = 2;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;

impl Symbols {
    /// Reads an ELF64 file or a System.map; what is neither has no symbols.
    pub fn parse(bytes: &[u8]) -> Symbols {
        let mut symbols = if bytes.starts_with(b"\x7fELF") { elf_symbols(bytes) } else { map_symbols(bytes) };
        symbols.sort();
        symbols.dedup_by_key(|symbol| symbol.0);
        Symbols(symbols)
    }

    /// The symbol that `address` is in or shortly after.
    pub fn find(&self, address: u64) -> Option<Place<'_>> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.0.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset < OFFSET_MAX).then_some(Place { name, offset })
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}+{:#x}", demangle(self.name), self.offset)
    }
}

/// Lines "address type name"; code only.
fn map_symbols(bytes: &[u8]) -> Vec<(u64, String)> {
    let symbol = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
        is_code.then_some((address, words.next()?.to_owned()))
    };
    bytes.split(|byte| *byte == b'\n').filter_map(symbol).collect()
}

/// Functions of `.symtab`. A damaged table ends early.
fn elf_symbols(bytes: &[u8]) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let sections_at = read_u64(bytes, 40).unwrap_or(0);
    let section_size = u64::from(read_u16(bytes, 58).unwrap_or(0));
    let count = u64::from(read_u16(bytes, 60).unwrap_or(0));
    let section = |index: u64| {
        let at = sections_at.checked_add(index.checked_mul(section_size)?)?;
        bytes.get(usize::try_from(at).ok()?..)?.first_chunk::<SECTION_BYTES>()
    };
    let contents = |header: &[u8]| {
        let at = usize::try_from(read_u64(header, 24)?).ok()?;
        let len = usize::try_from(read_u64(header, 32)?).ok()?;
        bytes.get(at..at.checked_add(len)?)
    };
    for index in 0..count {
        let Some(header) = section(index) else { break };
        if read_u32(header, 4) != Some(SHT_SYMTAB) {
            continue;
        }
        let strings = read_u32(header, 40).and_then(|link| contents(section(link.into())?));
        let (Some(table), Some(strings)) = (contents(header), strings) else { continue };
        found.extend(table.chunks_exact(SYMBOL_BYTES).filter_map(|symbol| {
            let kind = symbol.get(4)? & 0xf;
            let section = read_u16(symbol, 6)?;
            let address = read_u64(symbol, 8)?;
            let name = strings.get(usize::try_from(read_u32(symbol, 0)?).ok()?..)?;
            let name = name.split(|byte| *byte == 0).next()?;
            let is_code = matches!(kind, STT_FUNC | STT_NOTYPE) && section != 0 && !name.is_empty();
            is_code.then(|| (address, String::from_utf8_lossy(name).into_owned()))
        }));
    }
    found
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}
fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}
fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_named_by_the_code_symbol_before_it() {
        let map =
            b"ffffffff81000000 T startup_64\nffffffff81000100 D data\nffffffff81000200 t next\nnonsense\n";
        let symbols = Symbols::parse(map);
        let name = |address| symbols.find(address).map(|place| place.to_string());
        assert_eq!(name(0xffff_ffff_8100_0123).as_deref(), Some("startup_64+0x123"));
        assert_eq!(name(0xffff_ffff_8100_0200).as_deref(), Some("next+0x0"));
        assert_eq!(name(0xffff_ffff_80ff_ffff), None);
        assert_eq!(name(0xffff_ffff_9100_0000), None, "too far to mean anything");
    }

    #[test]
    fn names_read_as_in_the_source() {
        let symbols = Symbols::parse(
            b"ffffffff81000000 t _ZN15memvisor_kernel2fs9processes7file_of17h007b3dc4be959d1aE\n",
        );
        let place = symbols.find(0xffff_ffff_8100_0010).expect("within");
        assert_eq!(place.to_string(), "memvisor_kernel::fs::processes::file_of+0x10");
    }

    #[test]
    fn the_symbol_table_of_an_elf_file_is_read() {
        // This test's own executable has one.
        let own = std::fs::read(std::env::current_exe().expect("known")).expect("readable");
        let symbols = Symbols::parse(&own);
        assert!(symbols.0.iter().any(|(_, name)| name.contains("the_symbol_table_of_an_elf_file_is_read")));
    }

    proptest! {
        #[test]
        fn damage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 4..400), address: u64) {
            let _ = Symbols::parse(&bytes).find(address);
            bytes[..4].copy_from_slice(b"\x7fELF");
            let _ = Symbols::parse(&bytes).find(address);
        }
    }
}
