//! `cargo +nightly fuzz run filter fuzz/corpus/filter`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::replication::fuzz_filter(data));
