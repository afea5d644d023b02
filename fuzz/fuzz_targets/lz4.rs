//! `cargo +nightly fuzz run lz4 fuzz/corpus/lz4`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::ltx::fuzz_lz4(data));
