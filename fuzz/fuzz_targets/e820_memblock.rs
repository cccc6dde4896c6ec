#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memvisor_fuzz_targets::e820_memblock(data));
