#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memvisor_fuzz_targets::dma_engine(data));
