#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memvisor_fuzz_targets::ext2(data));
