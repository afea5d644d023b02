//! `cargo +nightly fuzz run name fuzz/corpus/name`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::types::fuzz_name(data));
